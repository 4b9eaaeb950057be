"""Recorded episodes in the format of Crafter's recorder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import crafter
import numpy as np
import pytest
from numpy.typing import NDArray

from delta_iris.data.recorded_episodes import add_recorded_episodes, find_recorded_episodes, read_recorded_episode
from delta_iris.data.replay import Replay
from delta_iris.data.replay_reader import ReplayReader
from delta_iris.errors import UserError

SHAPE = (32, 32, 3)


def make_episode(length: int, **changes: Any) -> dict[str, NDArray[Any]]:
    """Return the arrays that the recorder writes, with changes; None removes an array."""
    generator = np.random.default_rng(length)
    arrays = {
        "image": generator.integers(0, 256, (length + 1, *SHAPE), np.uint8),
        "action": generator.integers(0, 17, length + 1),
        "reward": generator.standard_normal(length + 1),
        "done": np.arange(length + 1) == length,
    }
    return {key: value for key, value in (arrays | changes).items() if value is not None}


def save(path: Path, **arrays: Any) -> Path:
    """Write an `.npz` file."""
    np.savez_compressed(path, **arrays)
    return path


def test_reads_what_crafters_recorder_writes(tmp_path: Path) -> None:
    env = crafter.Recorder(crafter.Env(size=(32, 32), length=30, seed=3), tmp_path, save_stats=False, save_video=False)
    frames, actions, rewards, done = [env.reset()], [], [], False
    generator = np.random.default_rng(0)
    while not done:
        actions.append(int(generator.integers(17)))
        frame, reward, done, info = env.step(actions[-1])
        frames.append(frame)
        rewards.append(reward)
    (path,) = find_recorded_episodes(tmp_path)
    steps = read_recorded_episode(path, SHAPE, 17)
    assert np.array_equal(steps.frames, frames[:-1])
    assert steps.actions.tolist() == actions
    assert steps.rewards.tolist() == np.asarray(rewards, np.float32).tolist()
    assert steps.terminated.tolist() == [False] * (len(actions) - 1) + [info["discount"] == 0]
    assert steps.truncated.tolist() == [False] * (len(actions) - 1) + [info["discount"] == 1]


@pytest.mark.parametrize(
    ("arrays", "terminated"),
    [
        ({}, True),
        ({"done": np.zeros(21, bool)}, False),
        ({"done": None}, False),
        ({"discount": np.ones(21)}, False),  # done because of the time limit
        ({"done": None, "discount": np.arange(20, -1, -1)}, True),
    ],
)
def test_the_last_step_is_terminated_or_truncated(tmp_path: Path, arrays: dict[str, Any], terminated: bool) -> None:
    steps = read_recorded_episode(save(tmp_path / "a.npz", **make_episode(20, **arrays)), SHAPE, 17)
    assert (steps.terminated[-1], steps.truncated[-1]) == (terminated, not terminated)
    assert not steps.terminated[:-1].any()
    assert not steps.truncated[:-1].any()


def test_a_replay_contains_the_added_episodes(tmp_path: Path) -> None:
    lengths = [20, 1, 33]
    for number, length in enumerate(lengths):
        save(tmp_path / f"{number}.npz", **make_episode(length), info=np.zeros(3))
    paths = find_recorded_episodes(tmp_path)
    replay = Replay(tmp_path / "replay", SHAPE)
    add_recorded_episodes(replay, paths, 17)
    assert replay.lengths.tolist() == lengths
    replay.close()
    reader = ReplayReader(tmp_path / "replay", SHAPE)
    for number, (path, length) in enumerate(zip(paths, lengths, strict=True)):
        found, expected = reader.read(number, 0, length), read_recorded_episode(path, SHAPE, 17)
        for name in found._fields:
            assert np.array_equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"reward": None}, "reward"),
        ({"image": np.zeros((21, 16, 16, 3), np.uint8)}, "must be uint8 of shape"),
        ({"image": np.zeros((21, *SHAPE), np.float32)}, "image in .* is float32"),
        ({"image": np.zeros((1, *SHAPE), np.uint8)}, "at least two images"),
        ({"image": np.uint8(3)}, "must be uint8 of shape"),
        ({"action": np.zeros((21, 17), int)}, "with argmax"),
        ({"action": np.zeros(20, int)}, "those before each image"),
        ({"action": np.full(21, 17)}, r"actions from 17 to 17, but data\.num_actions is 17"),
        ({"action": np.full(21, -1)}, "actions from -1"),
        ({"reward": np.full(21, np.nan)}, "not finite"),
        ({"reward": np.full(21, "much")}, "reward is <U4"),
        ({"done": np.zeros((21, 2), bool)}, "cannot be read as an episode"),
        ({"image": np.array([None] * 21)}, "pickled objects"),
    ],
)
def test_invalid_arrays_raise_with_the_file_name(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = save(tmp_path / "wrong.npz", **make_episode(20, **arrays))
    with pytest.raises(UserError, match=message) as error:
        read_recorded_episode(path, SHAPE, 17)
    assert "wrong.npz" in str(error.value)


def test_damaged_files_raise(tmp_path: Path) -> None:
    path = save(tmp_path / "cut.npz", **make_episode(20))
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:200] + bytes(50) + whole[250:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"cut\.npz cannot be read as an episode"):
            read_recorded_episode(path, SHAPE, 17)


def test_fewer_episodes_than_processes_raise(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", **make_episode(3))
    with pytest.raises(UserError, match=r"holds 1 \.npz files"):
        find_recorded_episodes(tmp_path, world_size=2)
    with pytest.raises(UserError, match=r"holds 0 \.npz files"):
        find_recorded_episodes(tmp_path / "nowhere")
