"""Segments that the dataset and its loader read from a replay."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from delta_iris.data import loader as loader_module
from delta_iris.data.loader import SegmentDataset, segment_loader
from delta_iris.data.reader_deaths import deaths_raise
from delta_iris.data.replay import Replay
from delta_iris.data.segment import SegmentBatch
from delta_iris.errors import UserError

from .replay_helpers import SHAPE, fill

HANGING: set[Path] = set()
"""Files; while there are any, a process that is forked removes one and waits for ever."""


def _hang_after_fork() -> None:
    for path in HANGING:
        if path.exists():
            path.unlink()
            while True:
                signal.pause()


os.register_at_fork(after_in_child=_hang_after_fork)


def test_background_loading_yields_the_same_batches_in_order(tmp_path: Path) -> None:
    fill(Replay(tmp_path, SHAPE), 300)
    indices = [[(episode, start) for episode in range(4)] for start in range(-5, 30)]
    dataset = SegmentDataset(tmp_path, SHAPE, 21)
    expected = [dataset.__getitems__(batch) for batch in indices]
    loader = segment_loader(SegmentDataset(tmp_path, SHAPE, 21), indices, num_workers=2, skip=3)
    loaded = list(loader)
    assert len(loaded) == len(expected) - 3
    assert len(loader) == len(expected)
    for batch, expected_batch in zip(loaded, expected[3:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, expected_batch, strict=True))


def test_creating_an_iterator_leaves_the_global_random_numbers_untouched(tmp_path: Path) -> None:
    fill(Replay(tmp_path, SHAPE), 40)
    state = torch.get_rng_state()
    next(iter(segment_loader(SegmentDataset(tmp_path, SHAPE, 5), [[(0, 0)]], num_workers=0)))
    assert torch.equal(torch.get_rng_state(), state)


def test_is_first_marks_only_the_first_step_of_an_episode(tmp_path: Path) -> None:
    fill(Replay(tmp_path, SHAPE), 74)
    dataset = SegmentDataset(tmp_path, SHAPE, 6)
    batch = dataset.__getitems__([(1, -2), (1, 0), (1, 1), (0, 34), (0, -5)])
    assert batch.is_first.nonzero().tolist() == [[0, 2], [1, 0], [4, 5]]


def test_a_single_item_is_a_batch_of_one(tmp_path: Path) -> None:
    fill(Replay(tmp_path, SHAPE), 40)
    dataset = SegmentDataset(tmp_path, SHAPE, 6)
    for field, expected in zip(dataset[0, 3], dataset.__getitems__([(0, 3)]), strict=True):
        assert torch.equal(field, expected)


def hanging(folder: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next processes that are forked hang before they run any code of the loader."""
    paths = {folder / f"hang-{each}" for each in range(number)}
    for path in paths:
        path.touch()
    monkeypatch.setattr(loader_module, "START_TIMEOUT", 0.5)
    monkeypatch.setitem(globals(), "HANGING", paths)


def test_a_process_that_hangs_at_its_start_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(Replay(tmp_path / "replay", SHAPE), 300)
    dataset, indices = SegmentDataset(tmp_path / "replay", SHAPE, 21), [[(0, start)] for start in range(5)]
    expected = [dataset.__getitems__(batch) for batch in indices]
    hanging(tmp_path, 1, monkeypatch)
    found = list(segment_loader(SegmentDataset(tmp_path / "replay", SHAPE, 21), indices, num_workers=2))
    assert not list(tmp_path.glob("hang-*"))
    for batch, expected_batch in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, expected_batch, strict=True))


def test_processes_that_never_start_give_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(Replay(tmp_path / "replay", SHAPE), 300)
    hanging(tmp_path, 9, monkeypatch)
    loader = segment_loader(SegmentDataset(tmp_path / "replay", SHAPE, 5), [[(0, 0)]], num_workers=1, phase="dynamics")
    with pytest.raises(UserError, match=r"dynamics: the processes .* did not start within .* seconds, 3 times"):
        iter(loader)


def killed_after_the_first_batch(folder: Path, number: int) -> Iterator[SegmentBatch]:
    """What a loader yields after its first batch, when some of its two processes have been killed."""
    fill(Replay(folder, SHAPE), 300)
    before = set(multiprocessing.active_children())
    loader = segment_loader(SegmentDataset(folder, SHAPE, 21), [[(0, 0)]] * 40, num_workers=2, phase="dynamics")
    batches = iter(loader)
    next(batches)
    for child in list(set(multiprocessing.active_children()) - before)[:number]:
        assert child.pid is not None
        child.kill()
        # PyTorch's handler of the signal would raise here. Joining the process would hide from it that it was killed.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    return batches


@pytest.mark.parametrize("killed", [1, 2])
def test_a_process_that_is_killed_interrupts_nothing_but_the_next_batch(tmp_path: Path, killed: int) -> None:
    batches = killed_after_the_first_batch(tmp_path, killed)
    with pytest.raises(UserError, match=r"dynamics: reading segments .* killed, often for lack of memory"):
        list(batches)
    # The next phase has other processes.
    dataset = SegmentDataset(tmp_path, SHAPE, 21)
    assert len(list(segment_loader(dataset, [[(0, 0)]] * 5, num_workers=2))) == 5


def test_a_death_is_noticed_before_waiting_for_a_batch(tmp_path: Path) -> None:
    batches = killed_after_the_first_batch(tmp_path, 1)
    with pytest.raises(RuntimeError, match="is killed by signal"), deaths_raise():
        pytest.fail("it would wait for a batch of a process that is gone")
    del batches
