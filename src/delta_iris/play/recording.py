"""Frames of a game that are kept for an animation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from delta_iris.evaluation.video import MAX_FRAMES, label_panels, write_gif, write_mp4

__all__ = ["Recording"]


class Recording:
    """Up to a thousand frames, of one game or of two side by side.

    Args:
        labels: one for each game.
        fps: frames a second of the animation.
    """

    def __init__(self, labels: list[str], fps: int) -> None:
        self.labels, self.fps = labels, fps
        self._frames: list[list[NDArray[np.uint8]]] = []

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def is_full(self) -> bool:
        """Whether no more frames are taken."""
        return len(self) >= MAX_FRAMES

    def add(self, frames: list[NDArray[np.uint8]]) -> None:
        """Keep a step.

        Args:
            frames: (H, W, 3) for each label.
        """
        if not self.is_full:
            self._frames.append(frames)

    def write(self, path: Path) -> None:
        """Write the animation.

        Args:
            path: of a `.gif` or an `.mp4` file.
        """
        panels = [np.stack(frames) for frames in zip(*self._frames, strict=True)]
        animation = label_panels(panels, self.labels)
        if path.suffix == ".gif":
            write_gif(path, animation, animation.shape[1], self.fps)
        else:
            write_mp4(path, animation, self.fps)
