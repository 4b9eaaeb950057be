"""Temporary files of a process, which no killed process leaves behind for longer than until the next start."""

from __future__ import annotations

import atexit
import contextlib
import functools
import multiprocessing
import os
import shutil
import tempfile
from pathlib import Path

__all__ = ["process_scratch"]


@functools.cache
def process_scratch() -> Path:
    """Make this process's own temporary folder, and remove those of processes that have ended.

    The sockets of data loaders go there too, which Python would otherwise leave in `pymp-…` folders of killed
    processes. The folder is removed when the process ends by itself.
    """
    parent = Path(tempfile.gettempdir()) / f"delta_iris-{os.getuid()}"
    parent.mkdir(mode=0o700, exist_ok=True)
    for old in parent.iterdir():
        if not old.name.isdecimal() or not _is_running(int(old.name)):
            shutil.rmtree(old, ignore_errors=True)
    own = parent / str(os.getpid())
    shutil.rmtree(own, ignore_errors=True)  # of an earlier process with this number
    own.mkdir()
    atexit.register(_remove, own, os.getpid())
    multiprocessing.current_process()._config["tempdir"] = str(own)  # type: ignore[attr-defined]
    return own


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except ProcessLookupError:
        return False
    return True


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # a forked process must not remove its parent's
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
