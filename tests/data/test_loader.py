"""Segments that the dataset and its loader read from a replay."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from delta_iris.data import loader as loader_module
from delta_iris.data import reader_deaths
from delta_iris.data.loader import SegmentLoader
from delta_iris.data.reader_deaths import deaths_raise
from delta_iris.data.replay import Replay
from delta_iris.data.segment import SegmentBatch, SegmentIndex, SegmentRequest
from delta_iris.data.segment_dataset import SegmentDataset
from delta_iris.errors import UserError

from .replay_helpers import SHAPE, fill, make_requests, read_segments

HANGING: set[Path] = set()
"""Files; while there are any, a process that is forked removes one and waits for ever."""


def _hang_after_fork() -> None:
    for path in HANGING:
        if path.exists():
            path.unlink()
            while True:
                signal.pause()


os.register_at_fork(after_in_child=_hang_after_fork)


def load(folder: Path, batches: list[list[SegmentIndex]], num_workers: int, length: int = 21) -> list[SegmentBatch]:
    """Read batches by a loader of their own."""
    loader = SegmentLoader(SegmentDataset(folder, SHAPE), num_workers)
    loaded = list(loader.batches(make_requests(folder, length, batches), "dynamics"))
    loader.close()
    return loaded


def assert_equal(loaded: list[SegmentBatch], folder: Path, length: int, batches: list[list[SegmentIndex]]) -> None:
    assert len(loaded) == len(batches)
    for batch, indices in zip(loaded, batches, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, read_segments(folder, length, indices), strict=True))


def test_background_loading_yields_the_same_batches_in_order(tmp_path: Path) -> None:
    fill(Replay(tmp_path, SHAPE), 300)
    batches = [[(episode, start) for episode in range(4)] for start in range(-5, 30)]
    assert_equal(load(tmp_path, batches, 2), tmp_path, 21, batches)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_same_processes_read_for_all_phases(tmp_path: Path, num_workers: int) -> None:
    replay = Replay(tmp_path, SHAPE)
    before = set(multiprocessing.active_children())
    loader = SegmentLoader(SegmentDataset(tmp_path, SHAPE), num_workers)
    workers: set[BaseProcess] = set()
    for number, length in enumerate((21, 9, 30)):
        # The replay grows between phases, and each has a length of its own.
        fill(replay, 100, seed=number)
        last = replay.num_episodes - 1
        batches = [[(last, start), (0, 2 + start)] for start in range(-8, 10)]
        requests = make_requests(tmp_path, length, batches)
        if number == 1:
            # A phase that is left in its middle, while batches are read ahead.
            next(loader.batches(requests))
        assert_equal(list(loader.batches(requests)), tmp_path, length, batches)
        assert len(workers | set(multiprocessing.active_children()) - before) == num_workers
        workers = set(multiprocessing.active_children()) - before
    loader.close()
    assert set(multiprocessing.active_children()) == before
    # A loader that was closed starts again.
    assert_equal(list(loader.batches(requests)), tmp_path, length, batches)
    loader.close()


def test_only_the_newest_call_can_go_on(tmp_path: Path) -> None:
    fill(Replay(tmp_path, SHAPE), 100)
    for num_workers in (0, 2):
        loader = SegmentLoader(SegmentDataset(tmp_path, SHAPE), num_workers)
        requests = make_requests(tmp_path, 9, [[(0, start)] for start in range(9)])
        older = loader.batches(requests)
        next(older)
        newer = loader.batches(requests)
        next(newer)
        with pytest.raises(RuntimeError, match="one call of `batches` at a time"):
            next(older)
        assert len(list(newer)) == 8
        last = loader.batches(requests)
        next(last)
        loader.close()
        with pytest.raises(RuntimeError, match="until it is closed"):
            next(last)


class Faulty(SegmentDataset):
    """Raises in its second batch."""

    error: BaseException = KeyError()

    def __getitem__(self, request: SegmentRequest) -> SegmentBatch:
        if request.spans[0][0][2] == 1:
            raise self.error
        return super().__getitem__(request)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("error", [RuntimeError("some fault"), EOFError("of a file"), ConnectionError("to a server")])
def test_faults_of_the_code_are_raised_as_they_are(tmp_path: Path, error: Exception, num_workers: int) -> None:
    fill(Replay(tmp_path, SHAPE), 100)
    dataset, before = Faulty(tmp_path, SHAPE), set(multiprocessing.active_children())
    dataset.error = error
    loader = SegmentLoader(dataset, num_workers)
    batches = loader.batches(make_requests(tmp_path, 9, [[(0, start)] for start in range(9)]))
    next(batches)
    with pytest.raises(type(error), match=str(error)):
        next(batches)
    assert set(multiprocessing.active_children()) == before
    # Whoever goes on has other processes.
    assert len(list(loader.batches(make_requests(tmp_path, 9, [[(0, 0)]] * 9)))) == 9
    loader.close()


def test_reading_leaves_the_global_random_numbers_untouched(tmp_path: Path) -> None:
    fill(Replay(tmp_path, SHAPE), 40)
    state = torch.get_rng_state()
    for num_workers in (0, 1):
        load(tmp_path, [[(0, 0)]], num_workers, length=5)
        assert torch.equal(torch.get_rng_state(), state)


def test_is_first_marks_only_the_first_step_of_an_episode(tmp_path: Path) -> None:
    fill(Replay(tmp_path, SHAPE), 74)
    batch = read_segments(tmp_path, 6, [(1, -2), (1, 0), (1, 1), (0, 34), (0, -5)])
    assert batch.is_first.nonzero().tolist() == [[0, 2], [1, 0], [4, 5]]


@pytest.mark.parametrize("start", [37, -6])
def test_a_segment_without_a_step_is_refused(tmp_path: Path, start: int) -> None:
    fill(Replay(tmp_path, SHAPE), 74)
    with pytest.raises(IndexError):
        read_segments(tmp_path, 6, [(0, start)])


def test_the_size_of_a_batch_is_known_before(tmp_path: Path) -> None:
    fill(Replay(tmp_path, SHAPE), 74)
    batch = read_segments(tmp_path, 6, [(0, 3), (1, 2)])
    assert SegmentBatch.num_bytes(2, 6, SHAPE) == sum(field.nbytes for field in batch)


def hanging(folder: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next processes that are forked hang before they run any code of the loader."""
    paths = {folder / f"hang-{each}" for each in range(number)}
    for path in paths:
        path.touch()
    monkeypatch.setattr(loader_module, "START_TIMEOUT", 0.5)
    monkeypatch.setitem(globals(), "HANGING", paths)


def test_a_process_that_hangs_at_its_start_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, batches = tmp_path / "replay", [[(0, start)] for start in range(5)]
    fill(Replay(folder, SHAPE), 300)
    hanging(tmp_path, 1, monkeypatch)
    loaded = load(folder, batches, 2)
    assert not list(tmp_path.glob("hang-*"))
    assert_equal(loaded, folder, 21, batches)


def test_processes_that_never_start_give_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(Replay(tmp_path / "replay", SHAPE), 300)
    hanging(tmp_path, 9, monkeypatch)
    with pytest.raises(UserError, match=r"dynamics: the processes .* did not start within .* seconds, 3 times"):
        load(tmp_path / "replay", [[(0, 0)]], 1)


class Killed(NamedTuple):
    """A loader some of whose two processes have been killed, and a phase that was in its middle or at its end."""

    loader: SegmentLoader
    requests: list[SegmentRequest]
    batches: Iterator[SegmentBatch]


def kill_after(folder: Path, count: int, killed: int) -> Killed:
    """Kill processes after `count` of 40 batches; 41 asks for more than there are, so that the phase ends."""
    fill(Replay(folder, SHAPE), 300)
    before = set(multiprocessing.active_children())
    loader = SegmentLoader(SegmentDataset(folder, SHAPE), 2)
    requests = make_requests(folder, 21, [[(0, 0)]] * 40)
    batches = loader.batches(requests, "dynamics")
    assert len(list(itertools.islice(batches, count))) == min(count, 40)
    for child in list(set(multiprocessing.active_children()) - before)[:killed]:
        assert child.pid is not None
        child.kill()
        # PyTorch's handler of the signal would raise here. Joining the process would hide from it that it was killed.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    return Killed(loader, requests, batches)


KILLED = r"dynamics: reading segments .* killed, often for lack of memory"


@pytest.mark.parametrize("killed", [1, 2])
def test_a_process_that_is_killed_interrupts_nothing_but_the_next_batch(tmp_path: Path, killed: int) -> None:
    loader, requests, batches = kill_after(tmp_path, 1, killed)
    with pytest.raises(UserError, match=KILLED):
        list(batches)
    # Whoever goes on has other processes.
    assert len(list(loader.batches(requests))) == 40
    loader.close()


def test_a_batch_of_a_process_that_is_killed_meanwhile_gives_the_same_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connections are closed a moment before its death is reported, which is put off here."""
    monkeypatch.setattr(reader_deaths, "_error_if_any_worker_fails", lambda: None)
    loader, _, batches = kill_after(tmp_path, 1, 2)
    monkeypatch.setattr(BaseProcess, "is_alive", lambda _: True)
    with pytest.raises(UserError, match=KILLED) as caught:
        list(batches)
    assert isinstance(caught.value.__cause__, ConnectionError | EOFError)
    loader.close()


def test_a_process_that_is_killed_between_phases_is_missed_by_the_next_one(tmp_path: Path) -> None:
    loader, requests, _ = kill_after(tmp_path, 41, 1)
    # A process that is started, as an environment may be, takes note of those that have ended, unseen by PyTorch.
    process = multiprocessing.get_context("fork").Process(target=int)
    process.start()
    process.join()
    started = time.monotonic()
    with pytest.raises(UserError, match=KILLED):
        next(loader.batches(requests, "dynamics"))
    assert time.monotonic() - started < 60  # not only after the 300 s that a batch may take
    loader.close()


def test_a_death_is_noticed_before_waiting_for_a_batch(tmp_path: Path) -> None:
    loader, _, _ = kill_after(tmp_path, 1, 1)
    with pytest.raises(RuntimeError, match="is killed by signal"), deaths_raise():
        pytest.fail("it would wait for a batch of a process that is gone")
    loader.close()
