"""Recorded episodes in the format of Crafter's recorder."""

from __future__ import annotations

import io
import os
import tempfile
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import crafter
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib import format as npy
from numpy.typing import NDArray

from delta_iris.data import recorded_episodes
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
    assert isinstance(path, Path)
    steps, final_frame = read_recorded_episode(path, SHAPE, 17)
    assert np.array_equal(steps.frames, frames[:-1])
    assert np.array_equal(final_frame, frames[-1])
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
    steps = read_recorded_episode(save(tmp_path / "a.npz", **make_episode(20, **arrays)), SHAPE, 17).steps
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
        assert isinstance(path, Path)
        found, (expected, final_frame) = reader.read(number, 0, length), read_recorded_episode(path, SHAPE, 17)
        np.testing.assert_array_equal(reader.final_frame(number), final_frame)
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


def save_with_header(path: Path, shape: tuple[int, ...], content: bytes) -> Path:
    """Write an episode whose image declares a shape, whatever its content is."""
    header = io.BytesIO()
    npy.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    save(path, **make_episode(20, image=None))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", header.getvalue() + content)
    return path


@pytest.mark.parametrize(
    ("shape", "content", "message"),
    [
        ((10**9, *SHAPE), b"few", "declares 3,072,000,000,000 bytes of data but has another size"),
        ((2**63, *SHAPE), b"few", "declares .* bytes of data but has another size"),
        ((-21, *SHAPE), b"few", "has another size"),
        ((21, 2**40, 2**40, 3), b"", "has another size"),
        ((10_000, *SHAPE), bytes(10_000 * 3072), r"action is .* of shape \(10000,\)"),
    ],
)
def test_sizes_are_checked_before_memory_is_asked_for(
    tmp_path: Path, shape: tuple[int, ...], content: bytes, message: str
) -> None:
    path = save_with_header(tmp_path / "huge.npz", shape, content)
    tracemalloc.start()
    with pytest.raises(UserError, match=message) as error:
        read_recorded_episode(path, SHAPE, 17)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
    assert "huge.npz" in str(error.value)


def test_a_long_header_is_not_read(tmp_path: Path) -> None:
    header = b"\x93NUMPY\x02\x00" + (50 << 20).to_bytes(4, "little") + bytes(50 << 20)
    with zipfile.ZipFile(tmp_path / "header.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", header)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"image\.npy has version \(2, 0\)"):
        read_recorded_episode(tmp_path / "header.npz", SHAPE, 17)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_an_episode_above_the_limit_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_episodes, "MAX_EPISODE_BYTES", 20 * 3072)
    path = save(tmp_path / "long.npz", **make_episode(20))
    with pytest.raises(UserError, match=r"long\.npz takes 64,512 bytes, more than the limit of 61,440"):
        read_recorded_episode(path, SHAPE, 17)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(UserError, match=r"pipe\.npz is not a regular file"):
        read_recorded_episode(tmp_path / "pipe.npz", SHAPE, 17)
    save(tmp_path / "episode.npz", **make_episode(20))
    (tmp_path / "link.npz").symlink_to("episode.npz")
    assert len(read_recorded_episode(tmp_path / "link.npz", SHAPE, 17).steps.actions) == 20


EPISODE = make_episode(3, discount=np.array([1.0, 1, 1, 0]), info=np.zeros(3))


def mutate(data: st.DataObject, examples: Path) -> None:
    """Change bytes of a valid file: it is refused with its name, or gives the same episode."""
    path = save(examples / "episode.npz", **EPISODE)
    expected = read_recorded_episode(path, SHAPE, 17)
    content = bytearray(path.read_bytes())
    # Half of the changes hit the archive's directory at the end, which has no checksum.
    first = data.draw(st.sampled_from([0, max(0, len(content) - 700)]))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(first, len(content) - 1))
        changed = data.draw(st.binary(min_size=1, max_size=data.draw(st.sampled_from([1, 1, 8, 60]))))
        content[start : start + len(changed)] = changed
    if data.draw(st.integers(0, 9)) == 0:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    path.write_bytes(content)
    try:
        found = read_recorded_episode(path, SHAPE, 17)
    except UserError as error:
        message = str(error)
        assert "episode.npz" in message
        return
    for field, expected_field in zip(found.steps, expected.steps, strict=True):
        np.testing.assert_array_equal(field, expected_field)
    np.testing.assert_array_equal(found.final_frame, expected.final_frame)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_recordings_are_named_or_without_effect(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        mutate(data, Path(folder))


@pytest.mark.slow
@settings(max_examples=5_000, deadline=None)
@given(data=st.data())
def test_many_damaged_recordings_are_named_or_without_effect(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        mutate(data, Path(folder))


def test_a_directory_that_hides_an_array_raises(tmp_path: Path) -> None:
    """A comment's length, changed to swallow the next entry: without `discount`, the episode would seem cut off."""
    path = save(tmp_path / "hidden.npz", **EPISODE)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        names, entry = archive.namelist(), archive.start_dir
    hidden = names.index("discount.npy")
    for name in names[: hidden - 1]:
        entry += 46 + len(name)
    content[entry + 32] = sum(46 + len(name) for name in names[hidden:])
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        assert "discount.npy" not in archive.namelist()
    with pytest.raises(UserError, match=r"hidden\.npz cannot be read .*directory is damaged"):
        read_recorded_episode(path, SHAPE, 17)


def test_fewer_episodes_than_processes_raise(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", **make_episode(3))
    with pytest.raises(UserError, match=r"holds 1 \.npz files"):
        find_recorded_episodes(tmp_path, world_size=2)
    with pytest.raises(UserError, match=r"holds 0 \.npz files"):
        find_recorded_episodes(tmp_path / "nowhere")


def test_the_episodes_of_a_replay_are_appended_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_episodes, "BLOCK_STEPS", 7)  # blocks end within episodes
    source, generator = Replay(tmp_path / "source", SHAPE), np.random.default_rng(0)
    for environment, length, end in ((0, 20, (True, False)), (1, 7, (False, True)), (2, 5, (False, False))):
        frames = generator.integers(0, 256, (length + 1, *SHAPE), np.uint8)
        for t in range(length):
            last = t == length - 1 and any(end)
            final = frames[length] if last and environment == 0 else None
            source.append(environment, frames[t], t % 17, float(t), *(end if last else (False, False)), final)
    source.close()
    episodes = find_recorded_episodes(tmp_path / "source", world_size=3)
    target = Replay(tmp_path / "target", SHAPE)
    add_recorded_episodes(target, episodes, 17)
    target.close()
    expected, found = (ReplayReader(tmp_path / name, SHAPE) for name in ("source", "target"))
    assert found.num_episodes == 3
    for i in range(3):
        length = expected.length(i)
        theirs, ours = expected.read(i, 0, length), found.read(i, 0, length)
        if i == 2:
            theirs.truncated[-1] = True  # an unfinished episode was cut off
        assert all(np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in ours._fields)
        final, known = found.final_frame(i), expected.final_frame(i)
        assert (final is None) == (known is None) == (i > 0)
        assert final is None or np.array_equal(final, known)  # type: ignore[arg-type]


def test_a_replay_of_another_game_is_refused(tmp_path: Path) -> None:
    source = Replay(tmp_path / "source", SHAPE)
    source.append(0, np.zeros(SHAPE, np.uint8), 4, 0.0, True, False)
    source.close()
    episodes = find_recorded_episodes(tmp_path / "source")
    with pytest.raises(UserError, match=r"episode 0 of .* has action 4, but data.num_actions is 3"):
        add_recorded_episodes(Replay(tmp_path / "fewer actions", SHAPE), episodes, 3)
    with pytest.raises(UserError, match=r"holds frames of shape \(32, 32, 3\), data.frame_size asks for"):
        add_recorded_episodes(Replay(tmp_path / "other frames", (16, 16, 3)), episodes, 17)
    with pytest.raises(UserError, match="holds 1 episodes, but 2 process"):
        find_recorded_episodes(tmp_path / "source", world_size=2)
