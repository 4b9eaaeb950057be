"""Recorded episodes: what Crafter's own recorder wrote is what a run begins with."""

from __future__ import annotations

from pathlib import Path

import crafter
import numpy as np
import pytest

from delta_iris.data.recorded_episodes import add_recordings, find_recordings, read_recording
from delta_iris.data.replay import Replay, ReplayReader
from delta_iris.errors import UserError

SHAPE = (32, 32, 3)


def episode(length: int, **changed) -> dict[str, np.ndarray]:
    """Arrays as the recorder writes them."""
    generator = np.random.default_rng(length)
    arrays = {
        "image": generator.integers(0, 256, (length + 1, *SHAPE), np.uint8),
        "action": generator.integers(0, 17, length + 1),
        "reward": generator.standard_normal(length + 1),
        "done": np.arange(length + 1) == length,
    }
    return {key: value for key, value in (arrays | changed).items() if value is not None}


def save(path: Path, **arrays) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def test_what_crafters_recorder_writes_is_read_step_by_step(tmp_path: Path) -> None:
    env = crafter.Recorder(crafter.Env(size=(32, 32), length=30, seed=3), tmp_path, save_stats=False, save_video=False)
    frames, actions, rewards, done = [env.reset()], [], [], False
    generator = np.random.default_rng(0)
    while not done:
        actions.append(int(generator.integers(17)))
        frame, reward, done, info = env.step(actions[-1])
        frames.append(frame)
        rewards.append(reward)
    (path,) = find_recordings(tmp_path)
    steps = read_recording(path, SHAPE, 17)
    assert np.array_equal(steps.frames, frames[:-1])
    assert steps.actions.tolist() == actions
    assert steps.rewards.tolist() == np.float32(rewards).tolist()
    assert steps.terminated.tolist() == [False] * (len(actions) - 1) + [info["discount"] == 0]
    assert steps.truncated.tolist() == [False] * (len(actions) - 1) + [info["discount"] == 1]


@pytest.mark.parametrize(
    ("arrays", "terminated"),
    [
        ({}, True),
        ({"done": np.zeros(21, bool)}, False),
        ({"done": None}, False),
        ({"discount": np.ones(21)}, False),  # done, for the time was up
        ({"done": None, "discount": np.arange(20, -1, -1)}, True),
    ],
)
def test_an_episode_ended_in_itself_or_was_cut_off(tmp_path: Path, arrays, terminated: bool) -> None:
    steps = read_recording(save(tmp_path / "a.npz", **episode(20, **arrays)), SHAPE, 17)
    assert (steps.terminated[-1], steps.truncated[-1]) == (terminated, not terminated)
    assert not steps.terminated[:-1].any()
    assert not steps.truncated[:-1].any()


def test_a_replay_holds_recordings_as_if_they_had_been_collected(tmp_path: Path) -> None:
    lengths = [20, 1, 33]
    for number, length in enumerate(lengths):
        save(tmp_path / f"{number}.npz", **episode(length), info=np.zeros(3))
    paths = find_recordings(tmp_path)
    replay = Replay(tmp_path / "replay", SHAPE)
    add_recordings(replay, paths, 17)
    assert replay.lengths.tolist() == lengths
    replay.close()
    reader = ReplayReader(tmp_path / "replay", SHAPE)
    for number, (path, length) in enumerate(zip(paths, lengths, strict=True)):
        for found, expected in zip(reader.read(number, 0, length), read_recording(path, SHAPE, 17), strict=True):
            assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"reward": None}, "reward"),
        ({"image": np.zeros((21, 16, 16, 3), np.uint8)}, "give uint8 of"),
        ({"image": np.zeros((21, *SHAPE), np.float32)}, "image in .* is float32"),
        ({"image": np.zeros((1, *SHAPE), np.uint8)}, "two images or more"),
        ({"image": np.uint8(3)}, "give uint8 of"),
        ({"action": np.zeros((21, 17), int)}, "their argmax"),
        ({"action": np.zeros(20, int)}, "what came before each image"),
        ({"action": np.full(21, 17)}, "actions from 17 to 17, data.num_actions is 17"),
        ({"action": np.full(21, -1)}, "actions from -1"),
        ({"reward": np.full(21, np.nan)}, "no finite numbers"),
        ({"reward": np.full(21, "much")}, "reward <U4"),
        ({"done": np.zeros((21, 2), bool)}, "cannot be read as an episode"),
        ({"image": np.array([None] * 21)}, "pickled objects"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, arrays, told: str) -> None:
    path = save(tmp_path / "wrong.npz", **episode(20, **arrays))
    with pytest.raises(UserError, match=told) as error:
        read_recording(path, SHAPE, 17)
    assert "wrong.npz" in str(error.value)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "cut.npz", **episode(20))
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:200] + bytes(50) + whole[250:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"cut\.npz cannot be read as an episode"):
            read_recording(path, SHAPE, 17)


def test_every_process_needs_a_recording(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", **episode(3))
    with pytest.raises(UserError, match=r"holds 1 \.npz files"):
        find_recordings(tmp_path, processes=2)
    with pytest.raises(UserError, match=r"holds 0 \.npz files"):
        find_recordings(tmp_path / "nowhere")
