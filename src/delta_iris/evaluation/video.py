"""Episodes as animations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["compare_frames", "label_panels", "strip", "write_gif", "write_mp4"]

MAX_FRAMES = 1000
PANEL_HEIGHT, STRIP_HEIGHT, LABEL_HEIGHT, GAP = 256, 64, 28, 8
BACKGROUND, INK = (255, 255, 255), (40, 40, 40)


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


def write_gif(path: Path, frames: NDArray[np.uint8], height: int = 256, fps: int = 10) -> None:
    """Write the first thousand frames as a looping GIF.

    Args:
        path: of the GIF, which is replaced if it exists.
        frames: (T, H, W, 3).
        height: frames are enlarged by an integer factor, to at most this number of pixels.
        fps: frames a second.
    """
    images = (Image.fromarray(_enlarge(frame, height)) for frame in frames[:MAX_FRAMES])
    next(images).save(path, save_all=True, append_images=images, duration=1000 // fps, loop=0)


def write_mp4(path: Path, frames: NDArray[np.uint8], fps: int = 10) -> None:
    """Write frames as H.264, which browsers play.

    Args:
        path: of the video, which is replaced if it exists.
        frames: (T, H, W, 3). An odd height or width is cut by one pixel, because the format halves the colours' size.
        fps: frames a second.
    """
    height, width = (size - size % 2 for size in frames.shape[1:3])
    writer: Any = imageio.get_writer(path, format="FFMPEG", fps=fps, codec="libx264", macro_block_size=2)
    with writer:
        for frame in frames:
            writer.append_data(frame[:height, :width])


def label_panels(panels: list[NDArray[np.uint8]], labels: list[str]) -> NDArray[np.uint8]:
    """Place enlarged animations side by side, with a label above each.

    Args:
        panels: (T, H, W, 3) each, of equal sizes.
        labels: one for each.

    Returns:
        (T, H', W', 3).
    """
    height, width = _enlarge(panels[0][0], PANEL_HEIGHT).shape[:2]
    canvas = Image.new("RGB", (len(panels) * (width + GAP) - GAP, height + LABEL_HEIGHT), BACKGROUND)
    for column, label in enumerate(labels):
        _write(canvas, (column * (width + GAP), 4), label)
    result = np.repeat(np.asarray(canvas)[None], len(panels[0]), 0)
    for column, panel in enumerate(panels):
        left = column * (width + GAP)
        result[:, LABEL_HEIGHT:, left : left + width] = _enlarge(panel, PANEL_HEIGHT)
    return result


def strip(rows: list[NDArray[np.uint8]], labels: list[str], columns: int) -> Image.Image:
    """Place evenly spaced frames of animations in rows, with their steps above and a label before each row.

    Frames with fewer than 64 rows of pixels are enlarged.

    Args:
        rows: (T, H, W, 3) each, of equal sizes.
        labels: one for each row.
        columns: frames in a row, fewer if there are fewer.
    """
    steps = np.unique(np.linspace(0, len(rows[0]) - 1, columns).round().astype(int))
    height, width = _enlarge(rows[0][0], STRIP_HEIGHT).shape[:2]
    left = 110
    image = Image.new("RGB", (left + len(steps) * (width + 2), LABEL_HEIGHT + len(rows) * (height + 2)), BACKGROUND)
    for column, step in enumerate(steps):
        _write(image, (left + column * (width + 2) + 2, 6), str(step))
        for row, frames in enumerate(rows):
            place = left + column * (width + 2), LABEL_HEIGHT + row * (height + 2)
            image.paste(Image.fromarray(_enlarge(frames[step], STRIP_HEIGHT)), place)
    for row, label in enumerate(labels):
        _write(image, (4, LABEL_HEIGHT + row * (height + 2) + height // 2 - 8), label)
    return image


def _enlarge(frames: NDArray[np.uint8], height: int) -> NDArray[np.uint8]:
    """Repeat the pixels of frames (..., H, W, 3) as often as `height` allows."""
    scale = max(1, height // frames.shape[-3])
    return frames.repeat(scale, -3).repeat(scale, -2)


def _write(image: Image.Image, place: tuple[int, int], text: str) -> None:
    ImageDraw.Draw(image).text(place, text, INK, ImageFont.load_default(15))
