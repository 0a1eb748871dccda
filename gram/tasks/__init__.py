"""Tasks: one file a family of puzzles, behind the protocol of `protocol.py`."""
