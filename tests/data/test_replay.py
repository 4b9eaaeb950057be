"""The replay against a plain list, and after crashes, full disks and rollbacks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from delta_iris.data import replay as replay_module
from delta_iris.data.replay import MAX_PENDING_CHUNKS, Replay
from delta_iris.data.replay_copy import copy_replay
from delta_iris.data.replay_format import CHUNK_STEPS, INDEX_RECORD_1, pack_steps
from delta_iris.data.replay_index import ReplayPosition, read_records
from delta_iris.data.replay_reader import ReplayReader
from delta_iris.errors import UserError

from .replay_helpers import SHAPE, fill, large_index, random_step, read_files, read_segments


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    environments=st.integers(1, 4),
    plan=st.lists(st.tuples(st.integers(1, 60), st.booleans()), min_size=1, max_size=4),
    end_rate=st.sampled_from([0.0, 0.02, 0.3]),
)
def test_segments_equal_those_of_a_plain_list(
    seed: int, environments: int, plan: list[tuple[int, bool]], end_rate: float
) -> None:
    """Collect in several sessions, flushed or reopened in between; episodes end at random or stay unfinished."""
    generator = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        replay = Replay(Path(folder), SHAPE)
        episodes: list[list[tuple[Any, ...]]] = []
        current_episodes: dict[int, int] = {}
        for steps, reopen in plan:
            for _ in range(steps):
                for environment in range(environments):
                    if environment not in current_episodes:
                        current_episodes[environment] = len(episodes)
                        episodes.append([])
                    terminated, truncated = generator.random() < end_rate, generator.random() < end_rate / 2
                    step = (*random_step(generator), bool(terminated), bool(truncated))
                    episodes[current_episodes[environment]].append(step)
                    replay.append(environment, *step)
                    if terminated or truncated:
                        del current_episodes[environment]
            replay.flush()
            if reopen:
                replay.close()
                replay = Replay(Path(folder), SHAPE)
                current_episodes.clear()
        assert replay.lengths.tolist() == [len(episode) for episode in episodes]
        reader = ReplayReader(Path(folder), SHAPE)
        for number, episode in enumerate(episodes):
            assert reader.final_frame(number) is None
            for found, expected in zip(reader.read(number, 0, len(episode)), zip(*episode, strict=True), strict=True):
                np.testing.assert_array_equal(found, np.stack(expected))
            check_segment(Path(folder), episode, number, int(generator.integers(-20, len(episode))))
        replay.close()


def check_segment(folder: Path, episode: list[tuple[Any, ...]], number: int, start: int) -> None:
    """Compare a segment slot by slot with the steps of its episode."""
    batch = read_segments(folder, 21, [(number, start)])
    for slot in range(21):
        t = start + slot
        real = 0 <= t < len(episode)
        assert bool(batch.mask[0, slot]) == real
        assert bool(batch.is_first[0, slot]) == (t == 0)
        expected = episode[t] if real else (np.zeros(SHAPE, np.uint8), 0, 0.0, False, False)
        np.testing.assert_array_equal(batch.frames[0, slot].permute(1, 2, 0).numpy(), expected[0])
        assert int(batch.actions[0, slot]) == expected[1]
        assert float(batch.rewards[0, slot]) == expected[2]
        assert int(batch.terminated[0, slot]) == int(expected[3])


def test_rollback_restores_the_files_byte_for_byte(tmp_path: Path) -> None:
    replay = Replay(tmp_path, SHAPE)
    fill(replay, 100)
    position = replay.position()
    files, lengths = read_files(tmp_path), replay.lengths.tolist()
    fill(replay, 80, seed=1)
    assert replay.num_frames == 180
    replay.rollback(position)
    assert read_files(tmp_path) == files
    assert replay.lengths.tolist() == lengths
    fill(replay, 50, seed=2)
    assert replay.num_frames == 150
    assert ReplayReader(tmp_path, SHAPE).length(replay.num_episodes - 1) == 50 - 37


def test_files_are_synced_when_a_checkpoint_is_to_name_them_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = Replay(tmp_path, SHAPE)
    synced: list[tuple[int, int]] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        fsync(descriptor)
        state = os.fstat(descriptor)
        synced.append((state.st_ino, state.st_size))

    monkeypatch.setattr(os, "fsync", record)
    fill(replay, 100)
    replay.position(sync=False)
    assert not synced
    replay.position()
    for name in ("chunks.bin", "index.bin"):
        state = (tmp_path / name).stat()
        assert (state.st_ino, state.st_size) in synced
    assert tmp_path.stat().st_ino in {number for number, _ in synced}
    synced.clear()
    replay.position()  # nothing was written since
    assert not synced
    replay.close()


def slow_down_packing(monkeypatch: pytest.MonkeyPatch, wait: Callable[[], Any]) -> None:
    """Call `wait` in the compression thread before each chunk is packed."""

    def slow_pack_steps(*steps: Any) -> bytes:
        wait()
        return pack_steps(*steps)

    monkeypatch.setattr(replay_module, "pack_steps", slow_pack_steps)


def test_files_do_not_depend_on_the_duration_of_compression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    for name in ("fast", "slow"):
        if name == "slow":
            slow_down_packing(monkeypatch, lambda: time.sleep(generator.choice([0, 0.0005, 0.003])))
        replay, steps = Replay(tmp_path / name, SHAPE), np.random.default_rng(1)
        for t in range(1, 800):
            for environment in range(3):
                replay.append(environment, *random_step(steps), (t + environment) % 23 == 0, False)
            if t % 200 == 0:
                replay.flush()
        replay.close()
    assert read_files(tmp_path / "fast") == read_files(tmp_path / "slow")


@pytest.mark.parametrize(
    "count_steps",
    [
        lambda replay: replay.num_frames,
        lambda replay: replay.lengths.sum(),
    ],
    ids=["num_frames", "lengths"],
)
def test_full_chunks_count_while_they_are_compressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count_steps: Callable[[Replay], int]
) -> None:
    slow_down_packing(monkeypatch, lambda: time.sleep(0.02))
    replay, generator = Replay(tmp_path, SHAPE), np.random.default_rng(0)
    for _ in range(3 * CHUNK_STEPS + 5):
        replay.append(0, *random_step(generator), False, False)
    assert count_steps(replay) == 3 * CHUNK_STEPS
    assert ReplayReader(tmp_path, SHAPE).length(0) == 3 * CHUNK_STEPS


def test_rollback_drops_chunks_that_are_being_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replay = Replay(tmp_path, SHAPE)
    fill(replay, 100)
    position, files = replay.position(), read_files(tmp_path)
    slow_down_packing(monkeypatch, lambda: time.sleep(0.02))
    generator = np.random.default_rng(1)
    for _ in range(5 * CHUNK_STEPS):
        replay.append(0, *random_step(generator), False, False)
    replay.rollback(position)
    assert replay.num_frames == 100
    replay.close()
    assert read_files(tmp_path) == files


def test_append_blocks_when_too_many_chunks_are_pending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    slow_down_packing(monkeypatch, release.wait)
    replay, generator = Replay(tmp_path, SHAPE), np.random.default_rng(0)
    num_appended = 0

    def append() -> None:
        nonlocal num_appended
        for _ in range((MAX_PENDING_CHUNKS + 5) * CHUNK_STEPS):
            replay.append(0, *random_step(generator), False, False)
            num_appended += 1

    thread = threading.Thread(target=append)
    thread.start()
    thread.join(timeout=1)
    blocked, num_appended_when_blocked = thread.is_alive(), num_appended
    # Released before any assertion can fail, because the process waits for its threads.
    release.set()
    thread.join()
    assert blocked
    assert num_appended_when_blocked == (MAX_PENDING_CHUNKS + 1) * CHUNK_STEPS - 1
    replay.close()
    assert ReplayReader(tmp_path, SHAPE).length(0) == (MAX_PENDING_CHUNKS + 5) * CHUNK_STEPS


KILLED_SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from replay_helpers import SHAPE, fill
from delta_iris.data.replay import Replay
replay = Replay(Path({folder!r}), SHAPE)
fill(replay, 100)
print("flushed", flush=True)
fill(replay, 10**9, seed=1)
"""


def test_a_killed_process_leaves_everything_flushed_and_no_gap(tmp_path: Path) -> None:
    script = KILLED_SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "replay"))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "flushed\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    reader = ReplayReader(tmp_path / "replay", SHAPE)
    lengths = [len(reader.read(e, 0, reader.length(e)).actions) for e in range(reader.num_episodes)]
    assert lengths[:4] == [37, 37, 26 + 37, 37]
    assert set(lengths[4:-1]) <= {37}


def test_rollback_of_truncated_files_raises(tmp_path: Path) -> None:
    replay = Replay(tmp_path, SHAPE)
    fill(replay, 100)
    position = replay.position()
    with (tmp_path / "chunks.bin").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(UserError, match=r"chunks\.bin holds 100 bytes"):
        replay.rollback(position)


def test_another_frame_shape_raises(tmp_path: Path) -> None:
    Replay(tmp_path, SHAPE)
    with pytest.raises(UserError, match=r"data\.frame_size asks for \(8, 8, 3\)"):
        Replay(tmp_path, (8, 8, 3))


def test_a_folder_with_other_files_raises(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="not empty and holds no replay"):
        Replay(tmp_path, SHAPE)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), steps=st.integers(1, 60), end_rate=st.sampled_from([0.02, 0.3]))
def test_final_frames_and_cut_off_episodes_are_kept(seed: int, steps: int, end_rate: float) -> None:
    """Episodes end by termination or are cut off later, with or without their final frame, flushed before or not."""
    generator = np.random.default_rng(seed)
    episodes: list[tuple[list[Any], NDArray[np.uint8] | None, bool]] = []
    with tempfile.TemporaryDirectory() as folder:
        replay, current = Replay(Path(folder), SHAPE), list[Any]()
        for _ in range(steps):
            ended, final = bool(generator.random() < end_rate), None
            if generator.random() < 0.5:
                final = random_step(generator)[0]
            frame, action, reward = random_step(generator)
            current.append((frame, action, reward, ended, False))
            replay.append(0, frame, action, reward, ended, False, final if ended else None)
            if generator.random() < 0.2:
                replay.flush()
            if not ended and generator.random() < end_rate:
                replay.truncate(0, final)
                current[-1] = (*current[-1][:-1], True)
                ended = True
            if ended:
                replay.truncate(0)  # nothing is open
                episodes.append((current, final, True))
                current = []
        replay.close()
        if current:
            episodes.append((current, None, False))
        reader = ReplayReader(Path(folder), SHAPE)
        assert reader.num_episodes == len(episodes)
        assert replay.lengths.tolist() == [len(episode) for episode, _, _ in episodes]
        for number, (episode, final, _) in enumerate(episodes):
            for found, expected in zip(reader.read(number, 0, len(episode)), zip(*episode, strict=True), strict=True):
                np.testing.assert_array_equal(found, np.stack(expected))
            stored = reader.final_frame(number)
            assert (stored is None) == (final is None)
            np.testing.assert_array_equal(stored, final)


def collect_steps(replay: Replay, generator: np.random.Generator, steps: int) -> None:
    """Append steps of three environments whose episodes end at random, the last chunk of each with its final frame."""
    for _ in range(steps):
        for environment in range(3):
            ended = bool(generator.random() < 0.03)
            final = random_step(generator)[0]
            replay.append(environment, *random_step(generator), ended, False, final if ended else None)


@pytest.mark.parametrize("seed", range(5))
def test_a_resumed_replay_equals_one_that_never_stopped(tmp_path: Path, seed: int) -> None:
    """To the bit, after a stop at a position, with steps after it that are lost."""
    rounds = np.random.default_rng(seed).integers(1, 50, 4).tolist()
    for name in ("stopped", "whole"):
        replay, generator = Replay(tmp_path / name, SHAPE), np.random.default_rng(seed)
        for steps in rounds:
            collect_steps(replay, generator, steps)
            position = replay.position(sync=False)
            if name == "stopped":
                collect_steps(replay, np.random.default_rng(99), 20)
                replay.close()
                replay = Replay(tmp_path / name, SHAPE)
                replay.rollback(position)
                assert replay.position() == position
        replay.close()
    assert read_files(tmp_path / "stopped") == read_files(tmp_path / "whole")


def test_a_copy_up_to_a_position_continues_as_the_replay_did(tmp_path: Path) -> None:
    replay, generator = Replay(tmp_path / "old", SHAPE), np.random.default_rng(0)
    collect_steps(replay, generator, 50)
    position, state = replay.position(), generator.bit_generator.state
    collect_steps(replay, generator, 50)
    last = replay.position()
    files = read_files(tmp_path / "old")
    copy_replay(tmp_path / "old", tmp_path / "runs" / "new", position)
    assert read_files(tmp_path / "old") == files
    copy = Replay(tmp_path / "runs" / "new", SHAPE)
    copy.rollback(position)
    generator.bit_generator.state = state
    collect_steps(copy, generator, 50)
    assert copy.position() == last
    assert read_files(tmp_path / "runs" / "new") == files
    with pytest.raises(UserError, match="is not empty"):
        copy_replay(tmp_path / "old", tmp_path / "runs" / "new", position)


def test_a_replay_of_another_run_is_refused(tmp_path: Path) -> None:
    """Of the same number of chunks, and of any other."""
    for name, seed in (("a", 0), ("b", 1)):
        fill(Replay(tmp_path / name, SHAPE), 100, seed)
    longer = Replay(tmp_path / "longer", SHAPE)
    fill(longer, 400, seed=2, length=33)
    position = Replay(tmp_path / "a", SHAPE).position()
    for name in ("b", "longer"):
        files = read_files(tmp_path / name)
        with pytest.raises(UserError, match=r"index\.bin is not what it was .*another run"):
            Replay(tmp_path / name, SHAPE).rollback(position)
        with pytest.raises(UserError, match=r"index\.bin is not what it was .*another run"):
            copy_replay(tmp_path / name, tmp_path / "copy", position)
        assert read_files(tmp_path / name) == files
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": float("nan")}, r"environment 0 gave the reward nan at step 3 of episode 0"),
        ({"reward": 1e39}, "finite 32-bit"),
        ({"frame": np.zeros((6, 4, 3), np.uint8)}, r"frame that is uint8 \(6, 4, 3\) at step 3"),
        ({"frame": np.zeros(SHAPE)}, "frame that is float64"),
        ({"frame": None}, "frame that is NoneType"),
        ({"action": -1}, "action -1"),
        ({"final_frame": np.zeros(SHAPE), "terminated": True}, "frame that is float64"),
    ],
)
def test_an_invalid_step_raises_and_is_not_stored(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    replay = Replay(tmp_path, SHAPE)
    fill(replay, 3)
    step: dict[str, Any] = {
        "frame": np.zeros(SHAPE, np.uint8),
        "action": 0,
        "reward": 0.0,
        "terminated": False,
        "truncated": False,
    }
    with pytest.raises(UserError, match=message):
        replay.append(0, **(step | changes))
    replay.close()
    assert ReplayReader(tmp_path, SHAPE).length(0) == 3


def test_a_second_writer_is_noticed(tmp_path: Path) -> None:
    replay, other = Replay(tmp_path, SHAPE), Replay(tmp_path, SHAPE)
    fill(replay, 50)
    with pytest.raises(UserError, match=r"chunks\.bin was changed by another process"):
        fill(other, 50)
    replay.close()
    assert ReplayReader(tmp_path, SHAPE).length(1) == 50 - 37


def test_a_moved_replay_is_noticed_when_a_checkpoint_is_to_name_it(tmp_path: Path) -> None:
    replay = Replay(tmp_path / "replay", SHAPE)
    fill(replay, 50)
    (tmp_path / "replay").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"chunks\.bin was changed"):
        replay.position()


def write_version_1(folder: Path, steps: int) -> ReplayPosition:
    """Write a replay as version 0.2.0 did, and return its position."""
    replay = Replay(folder, SHAPE)
    fill(replay, steps)
    position = replay.position()
    replay.close()
    records = read_records(folder / "index.bin", 2)
    old = np.zeros(len(records), INDEX_RECORD_1)
    for name in INDEX_RECORD_1.names or ():
        old[name] = records[name]
    (folder / "index.bin").write_bytes(old.tobytes())
    (folder / "replay.json").write_text(json.dumps({"format": 1, "frame_shape": list(SHAPE)}))
    return {"chunks": position["chunks"], "bytes": position["bytes"]}


def test_a_replay_of_version_1_is_read_and_continued(tmp_path: Path) -> None:
    position = write_version_1(tmp_path, 100)
    fill(Replay(tmp_path / "new", SHAPE), 100)
    expected = [ReplayReader(tmp_path / "new", SHAPE).read(e, 0, 26) for e in range(3)]
    files = read_files(tmp_path)
    reader = ReplayReader(tmp_path, SHAPE)
    for episode, steps in enumerate(expected):
        for found, field in zip(reader.read(episode, 0, 26), steps, strict=True):
            np.testing.assert_array_equal(found, field)
    assert read_files(tmp_path) == files
    replay = Replay(tmp_path, SHAPE)
    assert read_files(tmp_path) == read_files(tmp_path / "new")
    fill(replay, 50, seed=1)
    replay.rollback(position)
    assert read_files(tmp_path) == read_files(tmp_path / "new")


@pytest.mark.parametrize("stage", ["index written", "metadata replaced"])
def test_an_interrupted_conversion_is_finished(tmp_path: Path, stage: str) -> None:
    fill(Replay(tmp_path / "new", SHAPE), 100)
    write_version_1(tmp_path / "old", 100)
    converted = (tmp_path / "new" / "index.bin").read_bytes()
    (tmp_path / "old" / "index.bin.converted").write_bytes(converted)
    if stage == "metadata replaced":
        (tmp_path / "old" / "replay.json").write_bytes((tmp_path / "new" / "replay.json").read_bytes())
    assert ReplayReader(tmp_path / "old", SHAPE).num_episodes == 3
    Replay(tmp_path / "old", SHAPE)
    assert read_files(tmp_path / "old") == read_files(tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "old").iterdir()) == ["chunks.bin", "index.bin", "replay.json"]


def test_reading_a_large_index_is_bounded_by_the_number_of_its_records(tmp_path: Path) -> None:
    """A million frames: sorted, checked and summed within seconds, also on a busy machine."""
    records = large_index(1_024_000)
    Replay(tmp_path, SHAPE).close()
    (tmp_path / "index.bin").write_bytes(records.tobytes())
    with (tmp_path / "chunks.bin").open("wb") as file:
        file.truncate(int(records["offset"][-1] + records["size"][-1]))
    started = time.process_time()
    reader = ReplayReader(tmp_path, SHAPE)
    assert time.process_time() - started < 2
    assert reader.num_episodes == 6_400
    assert reader.length(17) == 160
