"""Tests of `split_batch` and of what a phase does unless it says otherwise."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

import delta_iris
from delta_iris.data.segment import SegmentBatch
from delta_iris.training.phase import Phase, Sampling, split_batch
from delta_iris.training.schedule import PhaseSchedule
from tests.helpers import make_segment, make_system, make_tokenizer


@pytest.mark.parametrize(("size", "lengths"), [(None, [5]), (1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (9, [5])])
def test_parts_hold_all_rows_in_order(size: int | None, lengths: list[int]) -> None:
    segment, tokens = make_segment(5), torch.arange(5 * 3).view(5, 3)
    parts = split_batch((segment, tokens), size)
    assert [len(part_tokens) for _, part_tokens in parts] == lengths
    assert torch.equal(torch.cat([part_tokens for _, part_tokens in parts]), tokens)
    for part_segment, part_tokens in parts:
        assert isinstance(part_segment, SegmentBatch)
        assert all(len(field) == len(part_tokens) for field in part_segment)
    for index, field in enumerate(segment):
        assert torch.equal(torch.cat([part_segment[index] for part_segment, _ in parts]), field)


def test_a_tensor_is_split_too() -> None:
    parts = split_batch(torch.arange(3), 2)
    assert [part.tolist() for part in parts] == [[0, 1], [2]]


def test_a_phase_trains_on_segments_in_one_step_by_default() -> None:
    tokenizer, segment = make_tokenizer(), make_segment(2)
    phase = Phase("tokenizer", "tokenizer", tokenizer, Sampling(9, 0, 0), PhaseSchedule())
    assert phase.prepare(segment) is segment
    assert not phase.captures_prepare
    assert phase.batch_multiple == 1
    assert list(phase.minibatches(segment)) == [segment]
    assert torch.equal(phase.loss(segment, None).loss, tokenizer.loss(segment).loss)
    assert phase.after_backward([]) == {}
    assert phase.activity.name == "tokenizer"
    assert phase.activity.unit == "steps"


def test_nothing_above_the_systems_names_a_phase() -> None:
    """The loop, the learner, callbacks and commands know the list of phases only."""
    names = {phase.name for phase in make_system().phases}
    package = Path(delta_iris.__file__).parent
    files = [*package.glob("commands/*.py"), *package.glob("evaluation/*.py"), *package.glob("imagination/*.py")]
    files += [path for path in package.rglob("training/**/*.py") if "systems" not in path.parts]
    assert len(files) > 25
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Constant) and node.value in names), f"{path}:{node.lineno}"
