"""The packing of chunks and the metadata file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from delta_iris.data.replay_format import check_metadata, pack_steps, read_index, unpack_steps, write_metadata
from delta_iris.errors import UserError

from .replay_helpers import SHAPE, random_step


@pytest.mark.parametrize("steps", [1, 2, 16])
def test_unpacking_inverts_packing(steps: int) -> None:
    generator = np.random.default_rng(steps)
    frames, actions, rewards = zip(*(random_step(generator) for _ in range(steps)), strict=True)
    data = pack_steps(list(frames), list(actions), list(rewards))
    assert len(data) == steps * (np.prod(SHAPE) + 4 + 4)
    unpacked = unpack_steps(data, steps, SHAPE)
    np.testing.assert_array_equal(unpacked[0], np.stack(frames))
    assert unpacked[1].tolist() == list(actions)
    assert unpacked[2].tolist() == list(rewards)


def test_metadata_of_the_same_shape_is_accepted(tmp_path: Path) -> None:
    write_metadata(tmp_path, SHAPE)
    check_metadata(tmp_path, SHAPE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no replay"),
        ("{", r"replay\.json is damaged"),
        ('{"format": 2, "frame_shape": [4, 6, 3]}', "has format 2, this version reads format 1"),
        ('{"format": 1, "frame_shape": [8, 8, 3]}', r"shape \(8, 8, 3\), data\.frame_size asks for \(4, 6, 3\)"),
    ],
)
def test_other_metadata_raises(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "replay.json").write_text(content)
    with pytest.raises(UserError, match=message):
        check_metadata(tmp_path, SHAPE)


def test_a_missing_index_is_empty(tmp_path: Path) -> None:
    assert len(read_index(tmp_path)) == 0
