"""Conversion of a replay of format version 1, whose index records had no checksums of their own.

The chunks stay as they are. At any moment the folder holds a whole index of the version that `replay.json` names:

1. The new index is written to another file and synced.
2. `replay.json` is replaced by one of version 2; from now on the new index counts.
3. The new index is renamed to the old one's name.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from delta_iris.data.disk import replace_file, sync_folder
from delta_iris.data.replay_format import ReplayFiles, check_metadata, format_metadata
from delta_iris.data.replay_index import index_path, read_records

__all__ = ["upgrade_replay"]


def upgrade_replay(folder: Path, frame_shape: tuple[int, int, int]) -> None:
    """Convert a replay of version 1, or finish a conversion that was interrupted; otherwise do nothing.

    Args:
        folder: folder of the replay.
        frame_shape: (H, W, 3).

    Raises:
        UserError: if the replay's metadata is damaged.
        OSError: if the disk is full; the replay is unchanged then.
    """
    files = ReplayFiles.of(folder)
    if check_metadata(folder, frame_shape) == 1:
        records = np.ascontiguousarray(read_records(files.index, 1))
        replace_file(files.index.with_name(files.index.name + ".converted"), records.tobytes())
        replace_file(files.metadata, format_metadata(frame_shape))
    if (converted := index_path(folder, 2)) != files.index:
        os.replace(converted, files.index)
        sync_folder(folder)
