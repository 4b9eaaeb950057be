"""When the death of a DataLoader's process is noticed: only where the trainer waits for its batches."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from torch._C import _error_if_any_worker_fails

__all__ = ["deaths_expected", "deaths_raise", "postpone_deaths"]

_raising = False
"""Whether a death is to be raised at once."""


def postpone_deaths() -> None:
    """Replace PyTorch's handler of SIGCHLD, once it has been set.

    It raises in whatever the main thread is doing, be it that it writes a checkpoint or tells of another error.
    """
    # Signals are handled in the main thread, and only there can a handler be set.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, _on_death)


@contextlib.contextmanager
def deaths_raise() -> Iterator[None]:
    """Raise PyTorch's RuntimeError in this block if a process of a DataLoader dies, or has died before."""
    with _raise_at_once(True):
        _error_if_any_worker_fails()
        yield


@contextlib.contextmanager
def deaths_expected() -> Iterator[None]:
    """Do not raise for the processes of a DataLoader that die in this block."""
    with _raise_at_once(False):
        yield
        with contextlib.suppress(RuntimeError):
            _error_if_any_worker_fails()  # raises once for a DataLoader


@contextlib.contextmanager
def _raise_at_once(raising: bool) -> Iterator[None]:
    global _raising
    before, _raising = _raising, raising
    try:
        yield
    finally:
        _raising = before


def _on_death(_: int, __: FrameType | None) -> None:
    if _raising:
        _error_if_any_worker_fails()
