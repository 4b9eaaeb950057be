"""Tests of schedules."""

from __future__ import annotations

from typing import Any

import pytest

from delta_iris.training.schedule import CollectionSchedule, PhaseSchedule


def test_the_first_epoch_may_collect_another_number_of_frames() -> None:
    schedule = CollectionSchedule(frames=100, first_epoch_frames=500)
    assert [schedule.frames_in(epoch) for epoch in range(3)] == [500, 100, 100]
    assert [schedule.frames_until(epochs) for epochs in range(4)] == [0, 500, 600, 700]
    assert CollectionSchedule(frames=100).frames_in(0) == 100
    assert CollectionSchedule(frames=100, first_epoch_frames=0).frames_in(0) == 0


def test_collection_ends_after_the_last_epoch() -> None:
    schedule = CollectionSchedule(frames=100, first_epoch_frames=500, last_epoch=2)
    assert [schedule.frames_in(epoch) for epoch in range(4)] == [500, 100, 0, 0]
    assert schedule.frames_until(10) == 600
    assert CollectionSchedule(frames=100, first_epoch_frames=500, last_epoch=0).frames_until(10) == 0


def test_the_first_epoch_may_train_another_number_of_steps() -> None:
    schedule = PhaseSchedule(steps=10, batch_size=4, first_epoch_steps=30)
    assert [schedule.steps_in(epoch) for epoch in range(3)] == [30, 10, 10]
    assert [schedule.segments_until(epochs) for epochs in range(4)] == [0, 120, 160, 200]
    assert PhaseSchedule(steps=10).steps_in(0) == 10
    assert PhaseSchedule(steps=10, first_epoch_steps=0).steps_in(0) == 0


def test_a_phase_may_start_in_a_later_epoch() -> None:
    schedule = PhaseSchedule(steps=10, batch_size=4, first_epoch_steps=30, start_epoch=2)
    assert [schedule.steps_in(epoch) for epoch in range(5)] == [0, 0, 30, 10, 10]
    assert [schedule.segments_until(epochs) for epochs in range(6)] == [0, 0, 0, 120, 160, 200]
    assert PhaseSchedule(steps=10, start_epoch=2).steps_in(2) == 10


@pytest.mark.parametrize(("steps", "first", "most"), [(10, None, 10), (10, 30, 30), (10, 0, 10), (0, 3, 3), (0, 0, 0)])
def test_most_steps_are_those_of_the_longest_epoch(steps: int, first: int | None, most: int) -> None:
    assert PhaseSchedule(steps=steps, first_epoch_steps=first, start_epoch=4).most_steps == most


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": -1}, "frames is -1: it must be 0 or more"),
        ({"first_epoch_frames": -1}, "first_epoch_frames is -1: it must be 0 or more"),
        ({"epsilon": -0.1}, r"epsilon is -0\.1: it must lie between 0 and 1"),
        ({"epsilon": 2.0}, r"epsilon is 2\.0: it must lie between 0 and 1"),
    ],
)
def test_invalid_collection_schedules_raise(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CollectionSchedule(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": -1}, "steps is -1: it must be 0 or more"),
        ({"first_epoch_steps": -1}, "first_epoch_steps is -1: it must be 0 or more"),
        ({"start_epoch": -1}, "start_epoch is -1: it must be 0 or more"),
        ({"batch_size": 0}, "batch_size is 0: it must be 1 or more"),
        ({"micro_batch_size": 0}, "micro_batch_size is 0: it must be 1 or more"),
    ],
)
def test_invalid_phase_schedules_raise(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PhaseSchedule(**arguments)
