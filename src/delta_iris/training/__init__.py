"""The loop, its phases, and everything that a run writes."""
