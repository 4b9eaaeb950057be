"""The actor-critic that learns from imagined trajectories."""
