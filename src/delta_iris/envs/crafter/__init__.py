"""Crafter, deterministic and fast."""
