"""Reading replays that are intact, damaged, or cut off in the middle of a write."""

from __future__ import annotations

from pathlib import Path

import pytest

from delta_iris.data.replay import Replay
from delta_iris.data.replay_format import CHUNK_STEPS
from delta_iris.data.replay_reader import ReplayReader, find_replays
from delta_iris.errors import UserError

from .replay_helpers import SHAPE, fill


def test_an_incomplete_write_is_ignored(tmp_path: Path) -> None:
    replay = Replay(tmp_path, SHAPE)
    fill(replay, 3 * CHUNK_STEPS, length=1000)
    # A chunk without its record, and half a record.
    with (tmp_path / "chunks.bin").open("ab") as file:
        file.write(b"half a chunk")
    with (tmp_path / "index.bin").open("ab") as file:
        file.write(b"\0" * 7)
    assert ReplayReader(tmp_path, SHAPE).length(0) == 3 * CHUNK_STEPS


def test_damage_raises_with_file_and_position(tmp_path: Path) -> None:
    replay = Replay(tmp_path, SHAPE)
    fill(replay, 40)
    data = bytearray((tmp_path / "chunks.bin").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "chunks.bin").write_bytes(data)
    with pytest.raises(UserError, match=r"chunks\.bin is damaged at byte .*episode 0, step 16"):
        ReplayReader(tmp_path, SHAPE).read(0, 0, 37)


def test_a_folder_without_a_replay_raises(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no replay"):
        ReplayReader(tmp_path, SHAPE)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (3, 3), (30, 38)])
def test_missing_steps_raise(tmp_path: Path, start: int, stop: int) -> None:
    fill(Replay(tmp_path, SHAPE), 37)
    with pytest.raises(IndexError, match=r"episode 0 of .* has no steps"):
        ReplayReader(tmp_path, SHAPE).read(0, start, stop)


@pytest.mark.parametrize("episode", [-1, 1])
def test_missing_episodes_raise(tmp_path: Path, episode: int) -> None:
    fill(Replay(tmp_path, SHAPE), 37)
    with pytest.raises(IndexError, match=f"has no episode {episode}"):
        ReplayReader(tmp_path, SHAPE).length(episode)


def test_the_replays_of_a_run_are_found_in_the_order_of_its_processes(tmp_path: Path) -> None:
    for rank in (0, 2, 10):
        Replay(tmp_path / "run" / "replay" / f"rank_{rank}", SHAPE).close()
    ranks = [tmp_path / "run" / "replay" / f"rank_{rank}" for rank in (0, 2, 10)]
    assert find_replays(tmp_path / "run") == find_replays(tmp_path / "run" / "replay") == ranks
    assert find_replays(ranks[1]) == [ranks[1]]
    assert find_replays(tmp_path) == [tmp_path]
