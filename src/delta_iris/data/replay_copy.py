"""Copying an earlier state of a replay, so that it can be continued without discarding what came later."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from delta_iris.data.disk import copy_bytes, disk_errors, sync_folder
from delta_iris.data.replay_format import ReplayFiles, read_metadata
from delta_iris.data.replay_index import ReplayPosition, check_position, index_path, record_type
from delta_iris.errors import UserError

__all__ = ["copy_replay"]


def copy_replay(source: Path, target: Path, position: ReplayPosition) -> None:
    """Make a new replay of what another one held at an earlier state. The source is only read.

    Disk blocks are shared where the file system can. The target appears only when all of it is on disk.

    Args:
        source: folder of a replay.
        target: folder of the new replay, which must not exist or be empty.
        position: what `Replay.position` returned at the earlier state.

    Raises:
        UserError: if the source never had that state or is damaged, the target exists, or the disk is full; nothing is
            left of the copy then.
    """
    version, frame_shape = read_metadata(source)
    # With damaged records, the copy can be continued by whoever leaves them out.
    check_position(source, frame_shape, position)
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{target} is not empty: choose another run folder")
    files, new = ReplayFiles.of(source), target.with_name(target.name + ".partial")
    index, record_bytes = index_path(source, version), record_type(version).itemsize
    try:
        with disk_errors(target):
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)
            for path, name, size in (
                (files.chunks, files.chunks.name, position["bytes"]),
                (index, files.index.name, position["chunks"] * record_bytes),
                (files.metadata, files.metadata.name, files.metadata.stat().st_size),
            ):
                copy_bytes(path, new / name, size)
            sync_folder(new)
            os.replace(new, target)
            sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
