"""The packing of chunks and the metadata file."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import pytest

from delta_iris.data.replay_format import (
    INDEX_RECORD,
    check_metadata,
    format_metadata,
    pack_steps,
    packed_size,
    read_metadata,
    unpack_final_frame,
    unpack_steps,
)
from delta_iris.data.replay_index import record_checks
from delta_iris.errors import UserError

from .replay_helpers import SHAPE, random_step


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 16])
def test_unpacking_inverts_packing(steps: int, final: bool) -> None:
    generator = np.random.default_rng(steps)
    frames, actions, rewards = zip(*(random_step(generator) for _ in range(steps)), strict=True)
    final_frame = random_step(generator)[0]
    data = pack_steps(list(frames), list(actions), list(rewards), final_frame if final else None)
    assert len(data) == packed_size(steps, SHAPE, final)
    unpacked = unpack_steps(data, steps, SHAPE)
    np.testing.assert_array_equal(unpacked[0], np.stack(frames))
    assert unpacked[1].tolist() == list(actions)
    assert unpacked[2].tolist() == list(rewards)
    if final:
        np.testing.assert_array_equal(unpack_final_frame(data, steps, SHAPE), final_frame)


def test_a_final_frame_is_packed_without_steps() -> None:
    final_frame = random_step(np.random.default_rng(0))[0]
    data = pack_steps([], [], [], final_frame)
    np.testing.assert_array_equal(unpack_final_frame(data, 0, SHAPE), final_frame)


def test_record_checks_are_the_crc_of_the_other_fields() -> None:
    data = np.random.default_rng(0).integers(0, 256, (50, INDEX_RECORD.itemsize), np.uint8)
    records = data.reshape(-1).view(INDEX_RECORD)
    assert record_checks(records).tolist() == [zlib.crc32(row[:-4].tobytes()) for row in data]


def test_metadata_of_the_same_shape_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "replay.json").write_bytes(format_metadata(SHAPE))
    assert check_metadata(tmp_path, SHAPE) == 2
    (tmp_path / "replay.json").write_text('{"format": 1, "frame_shape": [4, 6, 3]}')
    assert check_metadata(tmp_path, SHAPE) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no replay"),
        ("{", r"replay\.json is damaged"),
        ("[" * 4000, r"replay\.json is damaged"),
        ("[1]", r"replay\.json is damaged"),
        ('{"format": 1, "frame_shape": [4, 6, -3]}', r"replay\.json is damaged"),
        ('{"format": 1, "frame_shape": [4, 6, 3.0]}', r"replay\.json is damaged"),
        ('{"format": 1, "frame_shape": [4, 1e9, 3]}', r"replay\.json is damaged"),
        ('{"format": 2, "frame_shape": [4, 6, 3]}', r"replay\.json is damaged \(its checksum is wrong"),
        ('{"format": 3, "frame_shape": [4, 6, 3]}', "has format 3, this version reads formats 1 and 2"),
        ('{"format": 1, "frame_shape": [8, 8, 3]}', r"shape \(8, 8, 3\), data\.frame_size asks for \(4, 6, 3\)"),
    ],
)
def test_other_metadata_raises(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "replay.json").write_text(content)
    with pytest.raises(UserError, match=message):
        check_metadata(tmp_path, SHAPE)


def test_a_pipe_instead_of_a_file_raises_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "replay.json")
    with pytest.raises(UserError, match=r"replay\.json is not a regular file"):
        read_metadata(tmp_path)
