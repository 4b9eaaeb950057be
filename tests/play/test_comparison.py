"""Tests of where an imagined game parts from the real one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from delta_iris.play.comparison import Comparison, Parting


def game(brightness: int = 100, reward: float = 0.0, ended: str | None = None) -> Any:
    return SimpleNamespace(frame=np.full((4, 4, 3), brightness, np.uint8), reward=reward, ended=ended)


@pytest.mark.parametrize(
    ("real", "imagined", "reason"),
    [
        (game(), game(), None),
        (game(), game(112), None),  # 12 of 255 are 4.7 %
        (game(), game(113), "frame"),  # 5.1 %
        (game(113), game(), "frame"),
        (game(reward=1), game(reward=0.6), None),
        (game(reward=1), game(reward=0.4), "reward"),
        (game(ended="terminated"), game(ended="terminated"), None),
        (game(ended="terminated"), game(), "end"),
        (game(), game(ended="terminated"), "end"),
        # A time limit is no part of what the model has learned.
        (game(ended="truncated"), game(), None),
    ],
)
def test_games_part_where_frame_reward_or_end_differ(real: Any, imagined: Any, reason: str | None) -> None:
    comparison = Comparison()
    comparison.add(game(), game())
    comparison.add(real, imagined)
    assert comparison.parting == (Parting(2, reason) if reason else None)


def test_they_part_once_and_errors_go_on() -> None:
    comparison = Comparison()
    for brightness in (100, 151, 100, 49):
        comparison.add(game(), game(brightness))
    assert comparison.parting == Parting(2, "frame")
    assert comparison.errors == pytest.approx([0, 0.2, 0, 0.2])
