"""Episodes to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["write_gif"]

MILLISECONDS = 100
MOST_FRAMES = 1000


def write_gif(path: Path, frames: NDArray[np.uint8], height: int = 256) -> None:
    """Write frames, the first thousand at most, as an animation of ten a second that begins again at its end.

    Args:
        path: of the GIF, which replaces what is there.
        frames: (T, H, W, 3).
        height: frames are enlarged by a whole number, to at most so many pixels.
    """
    scale = max(1, height // frames.shape[1])
    pictures = (Image.fromarray(frame.repeat(scale, 0).repeat(scale, 1)) for frame in frames[:MOST_FRAMES])
    next(pictures).save(path, save_all=True, append_images=pictures, duration=MILLISECONDS, loop=0)
