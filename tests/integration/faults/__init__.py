"""Faults of everything around the trainer, done for real."""
