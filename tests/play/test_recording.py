"""Tests of recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio
import numpy as np
import pytest
from PIL import Image

from delta_iris.evaluation.video import MAX_FRAMES
from delta_iris.play.recording import Recording

FRAME = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)


@pytest.mark.parametrize("labels", [["real"], ["real", "imagined"]])
def test_both_formats_hold_all_frames_at_the_games_speed(labels: list[str], tmp_path: Path) -> None:
    recording = Recording(labels, fps=20)
    for shift in range(6):
        recording.add([np.roll(FRAME, shift, 0)] * len(labels))
    recording.write(tmp_path / "game.gif")
    recording.write(tmp_path / "game.mp4")
    with Image.open(tmp_path / "game.gif") as animation:
        assert animation.n_frames == 6  # type: ignore[attr-defined]
        assert animation.info["duration"] == 50
        width, height = animation.size
    assert width > height * len(labels) * 0.8
    video: Any = imageio.get_reader(tmp_path / "game.mp4")
    with video:
        assert video.count_frames() == 6
        assert video.get_meta_data()["fps"] == 20


def test_a_full_recording_takes_no_more() -> None:
    recording = Recording(["real"], fps=10)
    for _ in range(MAX_FRAMES + 5):
        recording.add([FRAME])
    assert recording.is_full
    assert len(recording) == MAX_FRAMES
