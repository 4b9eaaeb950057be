"""Ctrl-C as a request to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["StopOnInterrupt"]


class StopOnInterrupt:
    """A context in which Ctrl-C calls `request_stop` instead of raising KeyboardInterrupt.

    Args:
        request_stop: returns false to raise KeyboardInterrupt after all, as for a second Ctrl-C.
    """

    def __init__(self, request_stop: Callable[[], bool]) -> None:
        self._request_stop = request_stop
        self._previous: Any = None
        # Signal handlers can be set in the main thread only; elsewhere Ctrl-C keeps its usual meaning.
        self._possible = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> None:
        if self._possible:
            self._previous = signal.signal(signal.SIGINT, self._handle)

    def __exit__(self, *_: object) -> None:
        if self._possible:
            signal.signal(signal.SIGINT, self._previous)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if not self._request_stop():
            raise KeyboardInterrupt
