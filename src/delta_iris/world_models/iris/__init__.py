"""The tokenizer and the dynamics of IRIS: tokens stand for a frame alone."""

from delta_iris.world_models.iris.frame_dynamics import FrameDynamics
from delta_iris.world_models.iris.frame_tokenizer import FrameTokenizer

__all__ = ["FrameDynamics", "FrameTokenizer"]
