"""Loading of segments from the replay in background processes."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from delta_iris.data.reader_deaths import deaths_expected, deaths_raise, postpone_deaths
from delta_iris.data.segment import SegmentBatch, SegmentRequest
from delta_iris.data.segment_dataset import SegmentDataset
from delta_iris.errors import UserError
from delta_iris.lifetime import die_with

__all__ = ["SegmentLoader", "check_shared_memory"]

PREFETCH_FACTOR = 4
"""Batches that each background process reads ahead."""
START_TIMEOUT = 30.0
"""Seconds in which background processes must have started; otherwise they are killed and started anew."""
STARTS = 3
"""Attempts to start them."""


class SegmentLoader:
    """Processes that read segments ahead, through all phases of a run: starting them takes a quarter of a second.

    They are no threads, because most of reading holds the interpreter's lock, which the steps of training need.

    Args:
        dataset: reads the segments.
        num_workers: number of background processes; 0 reads in the calling process.
        pin_memory: whether to copy batches to page-locked memory, for faster transfers to a GPU.
        timeout: seconds to wait for a batch of a background process.
    """

    def __init__(
        self, dataset: SegmentDataset, num_workers: int, pin_memory: bool = False, timeout: float = 300
    ) -> None:
        self._requests = _Requests()
        self._call = 0
        self._loader: DataLoader[SegmentBatch | UserError] = DataLoader(
            _ErrorsAsBatches(dataset),
            sampler=self._requests,
            batch_size=None,  # a request is for a whole batch
            collate_fn=_return_unchanged,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            # Creating an iterator draws a seed, which must not come from the random numbers of training.
            generator=torch.Generator(),
            prefetch_factor=PREFETCH_FACTOR if num_workers else None,
            timeout=timeout if num_workers else 0,
        )

    def batches(self, requests: Iterable[SegmentRequest], phase: str = "training") -> Iterator[SegmentBatch]:
        """Read batches in order. What was read ahead for an earlier call is dropped: only the newest can go on.

        Args:
            requests: each for a batch. They are drawn as they are needed.
            phase: name of the training phase, for messages.

        Raises:
            UserError: while iterating: the data on disk is damaged, a background process has died, or no batch comes in
                time. The background processes are then ended, as after any other error.
            RuntimeError: while iterating: there was a later call, or the loader was closed.
        """
        self._requests.next = requests
        with self._one_line(phase):
            self._check_alive()
            started = not self._loader.num_workers or self._loader._iterator is not None
            iterator: Iterator[Any] = iter(self._loader) if started else self._start(phase)
        self._call += 1
        call = self._call
        while True:
            if call != self._call:
                raise RuntimeError("a loader reads for one call of `batches` at a time, until it is closed")
            with self._one_line(phase):
                batch = next(iterator, None)
                if isinstance(batch, UserError):
                    raise batch
            if batch is None:
                return
            yield batch

    def close(self) -> None:
        """End the background processes."""
        self._call += 1
        if (iterator := self._loader._iterator) is not None:
            iterator._shutdown_workers()  # type: ignore[attr-defined]
            self._loader._iterator = None

    def _check_alive(self) -> None:
        """Raise as PyTorch would, also for processes whose death Python has taken note of and PyTorch cannot see."""
        for worker in self._workers:
            if not worker.is_alive():
                raise RuntimeError(f"DataLoader worker (pid {worker.pid}) exited unexpectedly")

    @property
    def _workers(self) -> list[BaseProcess]:
        return getattr(self._loader._iterator, "_workers", [])

    @contextlib.contextmanager
    def _one_line(self, phase: str) -> Iterator[None]:
        """Turn what PyTorch says of the background processes into a message, and end them after any error."""
        try:
            with deaths_raise():
                yield
        except BaseException as error:
            self._kill()
            if not self._tells_of_a_death(error):
                raise
            raise UserError(
                f"{phase}: reading segments of the replay failed ({str(error).rstrip('. ')}): a process was killed, "
                "often for lack of memory, or cannot pass on its batches for lack of shared memory (/dev/shm): use "
                "fewer data.num_workers, or give the container more (--shm-size)"
            ) from error

    def _tells_of_a_death(self, error: BaseException) -> bool:
        if isinstance(error, RuntimeError):
            return str(error).startswith("DataLoader ")
        # A process may be missed as the sender of a batch before its death is known. "Caught": raised within a process.
        broken = isinstance(error, ConnectionError | EOFError) and not str(error).startswith("Caught ")
        return broken and self._loader.num_workers > 0

    def _start(self, phase: str) -> Iterator[Any]:
        """Start the background processes, and wait until all of them run.

        A process that is forked while another thread of the trainer begins or ends may wait for ever for a lock that
        this thread held, in Python 3.11. Gloo's threads enter and leave Python at each collective operation.
        """
        # Its first use imports a module and logs whatever is raised meanwhile, be it that a process has died: that
        # would then be noticed only after `timeout`.
        with torch.autograd.profiler.record_function("segments"):
            pass
        for _ in range(STARTS):
            running, started = os.pipe()
            try:
                self._loader.worker_init_fn = functools.partial(_init_worker, parent=os.getpid(), started=started)
                # A process may die while the next one is started, but not of a signal that the trainer is to answer.
                with _blocked_signals():
                    iterator = iter(self._loader)
                    postpone_deaths()
                    if _wait_for_bytes(running, self._loader.num_workers, START_TIMEOUT):
                        return iterator
            finally:
                os.close(running)
                os.close(started)
            self._kill()
        raise UserError(
            f"{phase}: the processes that read segments did not start within {START_TIMEOUT:.0f} seconds, "
            f"{STARTS} times: use fewer data.num_workers"
        )

    def _kill(self) -> None:
        """End processes that may hang, which would keep this process from ending."""
        with deaths_expected():
            for worker in self._workers:
                worker.kill()
                worker.join()
        self.close()


class _Requests:
    """The sampler of a DataLoader whose processes outlive what it iterates over."""

    def __init__(self) -> None:
        self.next: Iterable[SegmentRequest] = ()

    def __iter__(self) -> Iterator[SegmentRequest]:
        return iter(self.next)


class _ErrorsAsBatches(Dataset["SegmentBatch | UserError"]):
    """Returns a `UserError` in the place of a batch: raised in a worker, it would arrive as the text of a traceback."""

    def __init__(self, dataset: SegmentDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, request: SegmentRequest) -> SegmentBatch | UserError:
        try:
            return self._dataset[request]
        except UserError as error:
            return error


def _return_unchanged(batch: Any) -> Any:
    return batch


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
        bytes_per_batch: see `SegmentBatch.num_bytes`.
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
