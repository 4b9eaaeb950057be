"""Neural network building blocks that do not depend on environments, replay or world models."""
