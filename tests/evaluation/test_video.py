"""Tests of writing episodes as animations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from delta_iris.evaluation.video import MAX_FRAMES, write_gif


def test_an_animation_holds_the_enlarged_frames(tmp_path: Path) -> None:
    # Few colours, which a GIF keeps; not square; no two consecutive frames are equal.
    frames = np.zeros((5, 4, 6, 3), np.uint8)
    for t in range(len(frames)):
        frames[t, :, t] = (250, 10 * t, 0)
    write_gif(tmp_path / "a.gif", frames, height=10)
    with Image.open(tmp_path / "a.gif") as animation:
        shown = [np.asarray(picture.convert("RGB")) for picture in ImageSequence.Iterator(animation)]
    assert np.array_equal(np.stack(shown), frames.repeat(2, 1).repeat(2, 2))


def test_an_animation_ends_after_a_thousand_frames(tmp_path: Path) -> None:
    frames = (np.arange(MAX_FRAMES + 9) % 2 * 255).astype(np.uint8).reshape(-1, 1, 1, 1).repeat(3, -1)
    write_gif(tmp_path / "a.gif", frames, height=1)
    with Image.open(tmp_path / "a.gif") as animation:
        assert sum(1 for _ in ImageSequence.Iterator(animation)) == MAX_FRAMES
