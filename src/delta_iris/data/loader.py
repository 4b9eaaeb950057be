"""Loading of segments from the replay in background processes."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from delta_iris.data.reader_deaths import deaths_expected, deaths_raise, postpone_deaths
from delta_iris.data.replay_reader import ReplayReader
from delta_iris.data.segment import SegmentBatch, SegmentIndex
from delta_iris.data.streams import EpisodeStreams
from delta_iris.errors import UserError
from delta_iris.lifetime import die_with

__all__ = ["SegmentDataset", "SegmentLoader", "check_shared_memory", "segment_loader"]

PREFETCH_FACTOR = 4
"""Batches that each background process reads ahead."""
START_TIMEOUT = 30.0
"""Seconds in which background processes must have started; otherwise they are killed and started anew."""
STARTS = 3
"""Attempts to start them."""


class SegmentDataset(Dataset[SegmentBatch]):
    """Reads batches of segments from a replay.

    Each process opens the replay at its first read and sees the steps that are on disk at that time.

    Args:
        folder: folder of the replay.
        frame_shape: (H, W, 3).
        length: steps per segment, T.
        skip_damaged: whether to open a replay whose index is damaged; see `ReplayReader`.
        streams: how episodes follow one another, to let a segment that reaches its episode's end go on with the final
            frame, if it was stored, and then with the next episode of the same environment. A final frame is a real
            step whose action, reward and end are 0. None ends segments with their episodes.
    """

    def __init__(
        self,
        folder: Path,
        frame_shape: tuple[int, int, int],
        length: int,
        skip_damaged: bool = False,
        streams: EpisodeStreams | None = None,
    ) -> None:
        self.folder = folder
        self.streams = streams
        self.skip_damaged = skip_damaged
        self.frame_shape = frame_shape
        self.length = length
        self._reader: ReplayReader | None = None

    def bytes_per_batch(self, batch_size: int) -> int:
        """Return the memory that a batch takes, apart from what each tensor needs by itself.

        Args:
            batch_size: number of segments, B.
        """
        frame = self.frame_shape[0] * self.frame_shape[1] * self.frame_shape[2]
        # Actions and terminated are int64, rewards float32; mask and is_first take a byte.
        return batch_size * self.length * (frame + 8 + 8 + 4 + 1 + 1)

    def __getitems__(self, indices: list[SegmentIndex]) -> SegmentBatch:
        """Read a batch of B segments; slots outside of the episodes are filled with zeros.

        Args:
            indices: B pairs of an episode and a first step.

        Raises:
            IndexError: if there is no such episode, or the segment contains no step of it.
            UserError: if the data on disk is damaged.
        """
        if self._reader is None:
            self._reader = ReplayReader(self.folder, self.frame_shape, self.skip_damaged)
        shape = (len(indices), self.length)
        frames = np.zeros((*shape, *self.frame_shape), np.uint8)
        actions, rewards = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        terminated = np.zeros(shape, np.int64)
        mask, is_first = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
        for row, (episode, start) in enumerate(indices):
            for slot, number, first, stop in self._spans(self._reader, episode, start):
                slots = slice(slot, slot + stop - first)
                mask[row, slots] = True
                if first == self._reader.length(number):
                    final_frame = self._reader.final_frame(number)
                    assert final_frame is not None
                    frames[row, slot] = final_frame
                    continue
                steps = self._reader.read(number, first, stop)
                frames[row, slots], actions[row, slots] = steps.frames, steps.actions
                rewards[row, slots], terminated[row, slots] = steps.rewards, steps.terminated
                is_first[row, slot] = first == 0
        return SegmentBatch(
            # Permuting makes a view: no copy, and the frames are channels-last in memory, as convolutions prefer.
            torch.from_numpy(frames).permute(0, 1, 4, 2, 3),
            torch.from_numpy(actions),
            torch.from_numpy(rewards),
            torch.from_numpy(terminated),
            torch.from_numpy(mask),
            torch.from_numpy(is_first),
        )

    def __getitem__(self, index: SegmentIndex) -> SegmentBatch:
        """Read a batch of one segment.

        Args:
            index: episode and first step.

        Raises:
            IndexError: if there is no such episode, or the segment contains no step of it.
            UserError: if the data on disk is damaged.
        """
        return self.__getitems__([index])

    def _spans(self, reader: ReplayReader, episode: int, start: int) -> list[tuple[int, int, int, int]]:
        """The parts of a segment: slot, episode, first step and step to stop before; see `EpisodeStreams.spans`."""
        if self.streams is not None:
            return self.streams.spans(episode, start, self.length)
        first = max(start, 0)
        return [(first - start, episode, first, min(start + self.length, reader.length(episode)))]


class _PlannedBatches:
    """A batch sampler for fixed batches, which skips those that were trained on before an interruption.

    Its length includes the skipped batches, because Lightning counts them as done when it resumes an epoch.
    """

    def __init__(self, batches: list[list[SegmentIndex]], skip: int) -> None:
        self._batches, self._skip = batches, skip

    def __iter__(self) -> Iterator[list[SegmentIndex]]:
        return iter(self._batches[self._skip :])

    def __len__(self) -> int:
        return len(self._batches)


class SegmentLoader(DataLoader[SegmentBatch]):
    """A DataLoader whose iterators raise what goes wrong in a background process as one line.

    Args:
        phase: name of the training phase, for messages.
        options: keyword arguments of `DataLoader`.
    """

    def __init__(self, phase: str, **options: Any) -> None:
        super().__init__(**options)
        self.phase = phase

    def __iter__(self) -> Iterator[SegmentBatch]:  # type: ignore[override]
        # Its first use imports a module and logs whatever is raised meanwhile, be it that a process has died: that
        # would then be noticed only after `timeout`.
        with torch.autograd.profiler.record_function("segments"):
            pass
        # A process may die while the next one is started, but not of a signal that the trainer is to answer.
        with self._one_line(), _blocked_signals():
            iterator = self._start()
        return self._batches(iterator)

    def _start(self) -> Iterator[Any]:
        """Start the background processes, and wait until all of them run.

        A process that is forked while another thread of the trainer begins or ends may wait for ever for a lock that
        this thread held, in Python 3.11. Gloo's threads enter and leave Python at each collective operation.
        """
        if not self.num_workers:
            return super().__iter__()
        for _ in range(STARTS):
            running, started = os.pipe()
            try:
                self.worker_init_fn = functools.partial(_init_worker, parent=os.getpid(), started=started)
                iterator = super().__iter__()
                postpone_deaths()
                if _wait_for_bytes(running, self.num_workers, START_TIMEOUT):
                    return iterator
            finally:
                os.close(running)
                os.close(started)
            _kill(iterator._workers)  # type: ignore[attr-defined]
        raise UserError(
            f"{self.phase}: the processes that read segments did not start within {START_TIMEOUT:.0f} seconds, "
            f"{STARTS} times: use fewer data.num_workers"
        )

    def _batches(self, iterator: Iterator[Any]) -> Iterator[SegmentBatch]:
        try:
            while True:
                with self._one_line():
                    batch = next(iterator, None)
                if batch is None:
                    return
                if isinstance(batch, UserError):
                    raise batch
                yield batch
        except UserError:
            _kill(getattr(iterator, "_workers", []))
            raise

    @contextlib.contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            with deaths_raise():
                yield
        except RuntimeError as error:
            if not str(error).startswith("DataLoader "):
                raise
            raise UserError(
                f"{self.phase}: reading segments of the replay failed ({str(error).rstrip('.')}): a process was "
                "killed, often for lack of memory, or cannot pass on its batches for lack of shared memory "
                "(/dev/shm): use fewer data.num_workers, or give the container more (--shm-size)"
            ) from error


class _ErrorsAsBatches(Dataset[Any]):
    """Returns a `UserError` in the place of a batch: raised in a worker, it would arrive as the text of a traceback."""

    def __init__(self, dataset: SegmentDataset) -> None:
        self._dataset = dataset

    def __getitems__(self, indices: list[SegmentIndex]) -> SegmentBatch | UserError:
        try:
            return self._dataset.__getitems__(indices)
        except UserError as error:
            return error

    def __getitem__(self, index: SegmentIndex) -> SegmentBatch | UserError:
        return self.__getitems__([index])


def _return_unchanged(batch: Any) -> Any:
    return batch


def _kill(workers: list[BaseProcess]) -> None:
    """End processes that may hang, which would keep this process from ending."""
    with deaths_expected():
        for worker in workers:
            worker.kill()
            worker.join()


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Hold back signals to this process, and block them in those that it starts until `_init_worker` has set them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait_for_bytes(pipe: int, number: int, timeout: float) -> bool:
    """Return whether `number` bytes arrive within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while number > 0:
        if not connection.wait([pipe], max(0.0, deadline - time.monotonic())):
            return False
        number -= len(os.read(pipe, number))
    return True


def _init_worker(_: int, parent: int, started: int) -> None:
    """Say that this process runs. Leave it to the trainer what a signal means, but never outlive it."""
    os.write(started, b"s")
    # Ctrl-C reaches all processes of the terminal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A scheduler sends SIGTERM to all processes of a job, the DataLoader to a worker that has to end.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_parent_says, args=(parent,), daemon=True).start()
    die_with(parent)
    torch.set_num_threads(1)


def _end_when_parent_says(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(128 + signal.SIGTERM)


def check_shared_memory(num_workers: int, bytes_per_batch: int, batches: int) -> None:
    """Check that the batches that are read ahead fit into shared memory; without it, workers would wait for ever.

    Args:
        num_workers: background processes of a loader.
        bytes_per_batch: see `SegmentDataset.bytes_per_batch`.
        batches: number of batches of the loader.

    Raises:
        UserError: if `/dev/shm` has less free space than needed.
    """
    shared_memory = Path("/dev/shm")
    if not num_workers or not shared_memory.is_dir():
        return
    # One more is held by the trainer.
    needed = (min(PREFETCH_FACTOR * num_workers, batches) + 1) * bytes_per_batch
    state = os.statvfs(shared_memory)
    free = state.f_bavail * state.f_frsize
    if needed > free:
        raise UserError(
            f"data.num_workers is {num_workers}: the batches read ahead take {needed / 2**20:,.0f} MiB of shared "
            f"memory, but {shared_memory} has {free / 2**20:,.0f} MiB free: use fewer data.num_workers or a smaller "
            "batch_size in model.init_args.schedule, or give the container more (--shm-size)"
        )


def segment_loader(
    dataset: SegmentDataset,
    batches: list[list[SegmentIndex]],
    num_workers: int,
    skip: int = 0,
    pin_memory: bool = False,
    timeout: float = 300,
    phase: str = "training",
) -> SegmentLoader:
    """Create a DataLoader that reads given batches in order.

    Its iterators raise a `UserError` if the data on disk is damaged, if a background process dies, or if no batch comes
    in time.

    Args:
        dataset: reads the segments.
        batches: episode and first step of each segment of each batch.
        num_workers: number of background processes; 0 reads in the calling process.
        skip: number of batches at the beginning to leave out.
        pin_memory: whether to copy batches to page-locked memory, for faster transfers to a GPU.
        timeout: seconds to wait for a batch of a background process.
        phase: name of the training phase, for messages.
    """
    return SegmentLoader(
        phase,
        dataset=_ErrorsAsBatches(dataset),
        batch_sampler=_PlannedBatches(batches, skip),
        num_workers=num_workers,
        # `__getitems__` already returns a batch.
        collate_fn=_return_unchanged,
        pin_memory=pin_memory,
        # Creating an iterator draws a seed, which must not come from the random numbers of training.
        generator=torch.Generator(),
        prefetch_factor=PREFETCH_FACTOR if num_workers else None,
        timeout=timeout if num_workers else 0,
    )
