"""Opening files that may come from a stranger: regular files only, of a bounded size."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from delta_iris.errors import UserError

__all__ = ["open_regular", "read_text"]

MAX_TEXT_BYTES = 1 << 20
"""Largest configuration or `about.json`; those of this project have a few thousand bytes."""


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Devices and pipes, which may have no end or no writer, are refused.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: if it does not exist.
        UserError: if it is no regular file, or cannot be opened.
    """
    try:
        # Without O_NONBLOCK, opening a pipe waits for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} cannot be read: {error}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path} is not a regular file")
    return os.fdopen(descriptor, "rb")


def read_text(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Read a small text file.

    Args:
        path: of the file.
        max_bytes: a larger file is refused before it is read.

    Raises:
        UserError: if it does not exist, is no regular file, cannot be read, is larger, or not UTF-8.
    """
    try:
        with open_regular(path) as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > max_bytes:
        raise UserError(f"{path} cannot be read: it is larger than {max_bytes} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read as text: {error}") from error
