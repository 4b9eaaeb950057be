"""Tests of reading event files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from tensorboard.util.tensor_util import make_ndarray  # type: ignore[import-untyped]

from delta_iris.errors import UserError
from delta_iris.legacy import canonical_tag
from delta_iris.report.events import read_events
from tests.report.report_helpers import RECORDED, write_events


def test_curves_are_the_values_that_tensorboard_shows() -> None:
    board = EventAccumulator(str(RECORDED), size_guidance={"tensors": 0})
    board.Reload()
    tags = [tag for tag in board.Tags()["tensors"] if board.SummaryMetadata(tag).plugin_data.plugin_name == "scalars"]
    assert len(tags) == 129
    expected = {
        canonical_tag(tag): [(event.step, make_ndarray(event.tensor_proto).item()) for event in board.Tensors(tag)]
        for tag in tags
    }
    log = read_events(RECORDED)
    assert {tag: [(p.step, p.value) for p in points] for tag, points in log.scalars.items()} == expected
    assert {name.partition(" ")[0] for name in log.images} == {"images/reconstruction", "images/imagination"}
    assert log.notes == []


def test_a_later_file_replaces_what_it_logs_again_and_stops_are_left_out(tmp_path: Path) -> None:
    write_events(tmp_path, [("a", 1, 1.0, 110), ("a", 2, 2.0, 120), ("a", 3, 3.0, 130), ("b", 9, 9.0, 130)], 100, 0)
    write_events(tmp_path, [("a", 2, 5.0, 1020), ("a", 4, 6.0, 1040)], 1000, 1)
    log = read_events(tmp_path)
    assert log.scalars["a"] == [(10, 1, 1.0), (50, 2, 5.0), (70, 4, 6.0)]
    assert log.scalars["b"] == [(30, 9, 9.0)]
    assert len(log.notes) == 1
    assert "logs 2 values again after a resume" in log.notes[0]


def test_files_are_read_in_the_order_of_time(tmp_path: Path) -> None:
    write_events(tmp_path, [("a", 3, 3.0, 1010)], 1000, 0)
    write_events(tmp_path, [("a", 1, 1.0, 110)], 100, 1)
    assert read_events(tmp_path).scalars["a"] == [(10, 1, 1.0), (20, 3, 3.0)]


@pytest.mark.parametrize("cut", [0.5, 0.93])
def test_what_comes_before_a_cut_is_shown_and_the_cut_is_noted(tmp_path: Path, cut: float) -> None:
    (source,) = RECORDED.iterdir()
    content = source.read_bytes()
    (tmp_path / source.name).write_bytes(content[: int(cut * len(content))])
    whole, log = read_events(RECORDED), read_events(tmp_path)
    assert len(log.notes) == 1
    assert "ends within a record" in log.notes[0]
    assert log.scalars
    for tag, points in log.scalars.items():
        assert points == whole.scalars[tag][: len(points)]


def test_what_comes_before_damage_is_shown_and_the_damage_is_noted(tmp_path: Path) -> None:
    path = write_events(tmp_path, [("a", step, float(step), 100 + step) for step in range(50)], 100)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    log = read_events(tmp_path)
    read = len(log.scalars["a"])
    assert 0 < read < 50
    assert [point.step for point in log.scalars["a"]] == list(range(read))
    assert [note for note in log.notes if f"damaged after {read + 1} of 51 records" in note] == log.notes


def test_a_record_that_claims_to_be_endless_asks_for_no_memory(tmp_path: Path) -> None:
    path = write_events(tmp_path, [("a", 1, 1.0, 110)], 100)
    with path.open("ab") as file:
        file.write((1 << 60).to_bytes(8, "little") + bytes(30))
    log = read_events(tmp_path)
    assert len(log.scalars["a"]) == 1
    assert "ends within a record" in log.notes[0]


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "events.out.tfevents.1")
    with pytest.raises(UserError, match="is not a regular file"):
        read_events(tmp_path)
