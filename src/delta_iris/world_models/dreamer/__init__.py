"""The world model of DreamerV3, and of DreamerV2 as a preset of the same parts."""

from delta_iris.world_models.dreamer.world_model import DreamerWorldModel

__all__ = ["DreamerWorldModel"]
