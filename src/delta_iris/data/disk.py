"""Files that are whole or absent after a crash, and one true line when a disk does not take or give what it should."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from delta_iris.errors import UserError

__all__ = [
    "copy_bytes",
    "disk_errors",
    "is_disk_full",
    "replace_by",
    "replace_file",
    "sync_folder",
    "whole_folder",
    "write_all",
]

_REASONS = {
    errno.ENOSPC: ("the disk is full", "free some space"),
    errno.EDQUOT: ("the disk quota is used up", "free some space"),
    errno.EFBIG: ("the limit of a file's size is reached (ulimit -f, or the file system's)", "raise it"),
    errno.EROFS: ("the file system is read-only", "make it writable"),
    errno.EIO: ("the disk reports an error", "check the disk"),
}

_NO_COPY_FILE_RANGE = (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM)
"""What `os.copy_file_range` fails with where a file system does not have it."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` of writing into one line that says what is certain.

    Args:
        path: what is written, for the message.

    Raises:
        UserError: if the disk is full, read-only or broken, or the path cannot be written for another reason.
    """
    try:
        yield
    except OSError as error:
        reason, way_out = _REASONS.get(error.errno or 0, (error.strerror or str(error), "change that"))
        raise UserError(
            f"{path} cannot be written: {reason}; what the last checkpoint includes is safe: {way_out} and resume "
            "with --ckpt_path"
        ) from error


def is_disk_full(error: BaseException, folder: Path | None = None) -> bool:
    """Whether an error comes from a full disk, an exceeded quota or an exceeded file size.

    Args:
        error: what was raised.
        folder: that was written to. PyTorch's writer may hide the reason; then a disk with no space left counts.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        cause = cause.__cause__ or cause.__context__
    return folder is not None and shutil.disk_usage(folder).free < 1 << 20


def write_all(file: BinaryIO, data: bytes) -> None:
    """Write all bytes to an unbuffered file, which may write fewer than requested at once.

    Args:
        file: the file.
        data: the bytes.
    """
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that after a crash it has either its old content or the new one, never a part.

    Args:
        path: the file, which need not exist.
        data: the new content.
    """
    new = path.with_name(path.name + ".new")
    with new.open("wb", buffering=0) as file:
        write_all(file, data)
        os.fsync(file.fileno())
    replace_by(path, new)


def replace_by(path: Path, new: Path) -> None:
    """Rename a file to `path`, in place of what is there; afterwards the name is on the disk too.

    Args:
        path: the name to have.
        new: the file, whose content is on the disk.
    """
    os.replace(new, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder, or the content of a file, survive a power loss.

    Args:
        folder: the folder or the file.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Give a folder to fill, which becomes `target` once all of it is on the disk; otherwise nothing is left of it.

    Args:
        target: the folder to make, which must not exist or be empty.

    Raises:
        UserError: if it is not empty, the disk is full, or it cannot be written.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists already: name a new one")
    new, has_parent = target.with_name(f".{target.name}.partial"), target.parent.exists()
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        yield new
        for path in [*new.rglob("*"), new]:
            sync_folder(path)
        replace_by(target, new)
    except BaseException as error:
        shutil.rmtree(new, ignore_errors=True)
        if not has_parent:
            with suppress(OSError):
                target.parent.rmdir()
        if is_disk_full(error):
            raise UserError(f"{target} cannot be written: the disk is full; nothing of it is left") from error
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise UserError(f"{target} cannot be written: {reason}; nothing of it is left") from error
        raise


def copy_bytes(source: Path, target: Path, size: int) -> None:
    """Copy the first bytes of a file to a new file and sync it, sharing disk blocks where the file system can.

    Args:
        source: the file.
        target: the new file.
        size: number of bytes, at most the size of the file.
    """
    with source.open("rb", buffering=0) as reader, target.open("xb", buffering=0) as writer:
        missing = size
        try:
            while missing and hasattr(os, "copy_file_range"):  # Linux
                copied = os.copy_file_range(reader.fileno(), writer.fileno(), missing)
                if not copied:
                    break
                missing -= copied
        except OSError as error:
            if error.errno not in _NO_COPY_FILE_RANGE:
                raise
        while missing:
            block = reader.read(min(missing, 1 << 20))
            if not block:
                raise OSError(errno.EIO, f"{source} ends early")
            write_all(writer, block)
            missing -= len(block)
        os.fsync(writer.fileno())
