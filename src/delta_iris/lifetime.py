"""A child process that never outlives its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

__all__ = ["die_with"]

_PR_SET_PDEATHSIG = 1
"""Of Linux's `prctl`: the signal that the kernel sends this process when its parent dies, whatever killed it."""


def die_with(parent: int) -> None:
    """End this process with its parent. Elsewhere than on Linux, only a parent that has ended already is noticed.

    Args:
        parent: process id of the parent, as the parent knows it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        os._exit(1)
