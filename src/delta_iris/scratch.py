"""Temporary files of a process, which no killed process leaves behind for longer than until the next start."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import multiprocessing
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import IO

from delta_iris.errors import UserError

__all__ = ["process_scratch"]

SOCKET_PATH_BYTES = 100
"""Longest path of a socket; Linux takes 107 bytes, macOS 103."""

SOCKET_NAME_BYTES = len("/listener-xxxxxxxx")

LOCK = ".lock"
"""File in a process's folder that it keeps locked. The lock ends with the process, and forked ones do not have it."""

_locks: list[IO[str]] = []
"""Kept open: closing a file gives its lock up."""


@functools.cache
def process_scratch() -> Path:
    """Make this process's own temporary folder, and remove those of processes that have ended.

    The sockets of data loaders go there too, which Python would otherwise leave in `pymp-…` folders of killed
    processes; or to `/tmp`, if `TMPDIR` is too long for the name of a socket. The folder is removed when the process
    ends by itself.
    """
    own = _make_folder(Path(tempfile.gettempdir()))
    too_long = len(os.fsencode(own)) + SOCKET_NAME_BYTES > SOCKET_PATH_BYTES
    sockets = _make_folder(Path("/tmp")) if too_long else own
    multiprocessing.current_process()._config["tempdir"] = str(sockets)  # type: ignore[attr-defined]
    return own


def _make_folder(temporary: Path) -> Path:
    parent = temporary / f"delta_iris-{os.getuid()}"
    parent.mkdir(mode=0o700, exist_ok=True)
    status = parent.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise UserError(f"{parent} is not a folder of this user: remove it, or set TMPDIR to another folder")
    for old in parent.iterdir():
        _remove_unowned(old)
    while True:
        own = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=parent))
        lock = (own / LOCK).open("w")
        fcntl.lockf(lock, fcntl.LOCK_EX)
        if own.exists():  # nobody has locked and removed it in between
            break
        lock.close()
    _locks.append(lock)
    atexit.register(_remove, own, os.getpid())
    return own


def _remove_unowned(folder: Path) -> None:
    """Remove a folder whose process has ended, in this container or another one that shares the file system."""
    with contextlib.suppress(OSError), (folder / LOCK).open("r+") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # a forked process must not remove its parent's
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
