"""The course of the learning rate."""

from __future__ import annotations

import pytest
from torch import nn

from delta_iris.nn.optim import make_optimizer


def rates(steps: int, *schedule: float) -> list[float]:
    optimizer, course = make_optimizer(nn.Linear(2, 2), 0.4, 0.0, *schedule)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        course.step()
    return found


def test_the_learning_rate_rises_then_stays() -> None:
    assert rates(6, 3) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    assert rates(2, 0) == pytest.approx([0.4, 0.4])


def test_it_falls_linearly_to_a_fraction() -> None:
    assert rates(7, 0, 0.25, 4) == pytest.approx([0.4, 0.325, 0.25, 0.175, 0.1, 0.1, 0.1])
    # While it still rises, both factors hold.
    assert rates(3, 1, 0.25, 4)[0] == pytest.approx(0.2)
    assert rates(3, 1, 0.25, 4)[1] == pytest.approx(0.325)
