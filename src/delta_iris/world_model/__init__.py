"""The dynamics: predicts the next tokens, rewards and episode ends."""

from delta_iris.world_model.module import WorldModel

__all__ = ["WorldModel"]
