"""Episodes as animations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["compare_frames", "write_gif"]

FRAME_MILLISECONDS = 100
MAX_FRAMES = 1000


def compare_frames(real: NDArray[np.uint8], predicted: NDArray[np.uint8], gap: int = 1) -> NDArray[np.uint8]:
    """Place episodes side by side, the real ones above the predicted ones.

    Args:
        real: (N, T, H, W, 3).
        predicted: (N, T, H, W, 3).
        gap: pixels between the pictures.

    Returns:
        (T, 2 · H + gap, N · (W + gap) − gap, 3).
    """
    columns = np.pad(np.stack([real, predicted]), ((0, 0), (0, 0), (0, 0), (0, gap), (0, gap), (0, 0)))
    rows = np.concatenate(list(columns.transpose(1, 2, 0, 3, 4, 5)), axis=3)
    return np.concatenate([rows[:, 0], rows[:, 1]], axis=1)[:, :-gap, :-gap]


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
