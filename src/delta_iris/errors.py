"""The exception for mistakes that the user can fix, and what a full disk looks like."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

__all__ = ["UserError", "causes", "is_disk_full"]


class UserError(Exception):
    """A problem that the user can fix, such as a wrong configuration value or a damaged file.

    The message names the configuration key or the file and says how to fix it. The command line prints only the
    message, without a traceback, and exits with status 2.
    """


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and, one after the other, those that it was raised from or while handling."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def is_disk_full(error: BaseException, folder: Path | None = None) -> bool:
    """Whether an error comes from a full disk, an exceeded quota or an exceeded file size.

    Args:
        error: what was raised.
        folder: that was written to. PyTorch's writer may hide the reason; then a disk with no space left counts.
    """
    for cause in causes(error):
        if isinstance(cause, OSError):
            return cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return folder is not None and shutil.disk_usage(folder).free < 1 << 20
