"""The sampler: an engine that runs trajectories in slots, its policies, plans of shards and their store."""
