"""The replay against a plain list, and after crashes, full disks and rollbacks."""

from __future__ import annotations

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

from delta_iris.data import replay as replay_module
from delta_iris.data.loader import SegmentDataset
from delta_iris.data.replay import MAX_PENDING_CHUNKS, Replay
from delta_iris.data.replay_format import CHUNK_STEPS, pack_steps
from delta_iris.data.replay_reader import ReplayReader
from delta_iris.errors import UserError

from .replay_helpers import SHAPE, fill, random_step, read_files


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
        dataset = SegmentDataset(Path(folder), SHAPE, 21)
        for number, episode in enumerate(episodes):
            for found, expected in zip(reader.read(number, 0, len(episode)), zip(*episode, strict=True), strict=True):
                np.testing.assert_array_equal(found, np.stack(expected))
            check_segment(dataset, episode, number, int(generator.integers(-20, len(episode))))
        replay.close()


def check_segment(dataset: SegmentDataset, episode: list[tuple[Any, ...]], number: int, start: int) -> None:
    """Compare a segment slot by slot with the steps of its episode."""
    batch = dataset.__getitems__([(number, start)])
    for slot in range(dataset.length):
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
        lambda replay: CHUNK_STEPS * replay.position()["chunks"],
    ],
    ids=["num_frames", "lengths", "position"],
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


FULL_DISK_SCRIPT = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from replay_helpers import SHAPE, fill
from delta_iris.data.replay import Replay
from delta_iris.errors import UserError
replay = Replay(Path({folder!r}), SHAPE)
fill(replay, 37)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))  # larger files raise an error, as on a full disk
try:
    fill(replay, 1000, seed=1, length=10_000)
except UserError as error:
    print(error)
replay.close()
"""


def test_a_full_disk_loses_nothing_that_was_written(tmp_path: Path) -> None:
    folder = tmp_path / "replay"
    script = FULL_DISK_SCRIPT.format(tests=str(Path(__file__).parent), folder=str(folder))
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "is full" in run.stdout
    assert "resume with --ckpt_path" in run.stdout
    reader = ReplayReader(folder, SHAPE)
    generator = np.random.default_rng(0)
    expected = np.stack([random_step(generator)[0] for _ in range(37)])
    np.testing.assert_array_equal(reader.read(0, 0, 37).frames, expected)
    assert (folder / "index.bin").stat().st_size % 32 == 0
    for episode in range(reader.num_episodes):
        reader.read(episode, 0, reader.length(episode))
