"""Training: the loop, its losses, settings, puzzles, costs and diagnosis."""
