"""Episodes as animations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["write_gif"]

FRAME_MILLISECONDS = 100
MAX_FRAMES = 1000


def write_gif(path: Path, frames: NDArray[np.uint8], height: int = 256) -> None:
    """Write the first thousand frames as a looping GIF of ten frames a second.

    Args:
        path: of the GIF, which is replaced if it exists.
        frames: (T, H, W, 3).
        height: frames are enlarged by an integer factor, to at most this number of pixels.
    """
    scale = max(1, height // frames.shape[1])
    images = (Image.fromarray(frame.repeat(scale, 0).repeat(scale, 1)) for frame in frames[:MAX_FRAMES])
    next(images).save(path, save_all=True, append_images=images, duration=FRAME_MILLISECONDS, loop=0)
