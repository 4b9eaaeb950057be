"""The Crafter environment, deterministic and accelerated."""
