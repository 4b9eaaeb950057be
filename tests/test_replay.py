"""The replay on disk against a plain list, and what happens to it when things go wrong."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from delta_iris.data import replay as replay_module
from delta_iris.data.loader import WindowDataset, window_loader
from delta_iris.data.replay import CHUNK_STEPS, MOST_PENDING, Replay, ReplayReader
from delta_iris.errors import UserError

SHAPE = (4, 6, 3)


def random_step(generator: np.random.Generator) -> tuple:
    frame = generator.integers(0, 256, SHAPE, dtype=np.uint8)
    return frame, int(generator.integers(17)), float(np.float32(generator.normal()))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    environments=st.integers(1, 4),
    plan=st.lists(st.tuples(st.integers(1, 60), st.booleans()), min_size=1, max_size=4),
    end_rate=st.sampled_from([0.0, 0.02, 0.3]),
)
def test_windows_equal_those_of_a_plain_list(seed, environments, plan, end_rate) -> None:
    """Several sessions of collecting, flushed or reopened in between; episodes end at random or are under way."""
    generator = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        replay = Replay(Path(folder), SHAPE)
        naive: list[list[tuple]] = []
        under_way: dict[int, int] = {}
        for steps, reopen in plan:
            for _ in range(steps):
                for environment in range(environments):
                    if environment not in under_way:
                        under_way[environment] = len(naive)
                        naive.append([])
                    terminated, truncated = generator.random() < end_rate, generator.random() < end_rate / 2
                    step = (*random_step(generator), bool(terminated), bool(truncated))
                    naive[under_way[environment]].append(step)
                    replay.append(environment, *step)
                    if terminated or truncated:
                        del under_way[environment]
            replay.flush()
            if reopen:
                replay.close()
                replay = Replay(Path(folder), SHAPE)
                under_way.clear()
        assert replay.lengths.tolist() == [len(episode) for episode in naive]
        reader = ReplayReader(Path(folder), SHAPE)
        dataset = WindowDataset(Path(folder), SHAPE, 21)
        for number, episode in enumerate(naive):
            whole = reader.read(number, 0, len(episode))
            for mine, theirs in zip(whole, zip(*episode, strict=True), strict=True):
                np.testing.assert_array_equal(mine, np.stack(theirs))
            start = int(generator.integers(-20, len(episode)))
            window = dataset.__getitems__([(number, start)])
            for slot in range(21):
                t = start + slot
                real = 0 <= t < len(episode)
                assert bool(window.valid[0, slot]) == real
                expected = episode[t] if real else (np.zeros(SHAPE, np.uint8), 0, 0.0, False, False)
                np.testing.assert_array_equal(window.frames[0, slot].permute(1, 2, 0).numpy(), expected[0])
                assert int(window.actions[0, slot]) == expected[1]
                assert float(window.rewards[0, slot]) == expected[2]
                assert int(window.ends[0, slot]) == int(expected[3])
        replay.close()


def fill(replay: Replay, steps: int, seed: int = 0, length: int = 37) -> None:
    generator = np.random.default_rng(seed)
    for t in range(1, steps + 1):
        replay.append(0, *random_step(generator), t % length == 0, False)
    replay.flush()


def test_rolling_back_restores_the_files_to_the_byte(tmp_path: Path) -> None:
    replay = Replay(tmp_path, SHAPE)
    fill(replay, 100)
    position = replay.position()
    files = [tmp_path / "chunks.bin", tmp_path / "index.bin"]
    before, lengths = [file.read_bytes() for file in files], replay.lengths.tolist()
    fill(replay, 80, seed=1)
    assert replay.num_frames == 180
    replay.rollback(position)
    assert [file.read_bytes() for file in files] == before
    assert replay.lengths.tolist() == lengths
    fill(replay, 50, seed=2)
    assert replay.num_frames == 150
    assert ReplayReader(tmp_path, SHAPE).length(replay.num_episodes - 1) == 50 - 37


def files_of(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("chunks.bin", "index.bin")]


def test_files_are_the_same_however_long_compression_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks are written in the order in which they were filled, whenever they are ready."""
    pack, generator = replay_module._pack, np.random.default_rng(0)

    def slow_pack(*steps):
        time.sleep(generator.choice([0, 0.0005, 0.003]))
        return pack(*steps)

    for name, packs in (("fast", pack), ("slow", slow_pack)):
        monkeypatch.setattr(replay_module, "_pack", packs)
        replay, steps = Replay(tmp_path / name, SHAPE), np.random.default_rng(1)
        for t in range(1, 800):
            for environment in range(3):
                replay.append(environment, *random_step(steps), (t + environment) % 23 == 0, False)
            if t % 200 == 0:
                replay.flush()
        replay.close()
    assert files_of(tmp_path / "fast") == files_of(tmp_path / "slow")


def test_full_chunks_count_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths, number of frames and position tell of chunks that were still being compressed when they were asked."""
    pack = replay_module._pack
    monkeypatch.setattr(replay_module, "_pack", lambda *steps: (time.sleep(0.02), pack(*steps))[1])
    generator, told = np.random.default_rng(0), []
    for ask in (lambda r: r.num_frames, lambda r: r.lengths.sum(), lambda r: CHUNK_STEPS * r.position()["chunks"]):
        replay = Replay(tmp_path / str(len(told)), SHAPE)
        for _ in range(3 * CHUNK_STEPS + 5):
            replay.append(0, *random_step(generator), False, False)
        told.append(ask(replay))
        assert ReplayReader(replay.folder, SHAPE).length(0) == 3 * CHUNK_STEPS
    assert told == [3 * CHUNK_STEPS] * 3


def test_rolling_back_drops_what_is_still_being_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replay = Replay(tmp_path, SHAPE)
    fill(replay, 100)
    position, before = replay.position(), files_of(tmp_path)
    pack = replay_module._pack
    monkeypatch.setattr(replay_module, "_pack", lambda *steps: (time.sleep(0.02), pack(*steps))[1])
    generator = np.random.default_rng(1)
    for _ in range(5 * CHUNK_STEPS):
        replay.append(0, *random_step(generator), False, False)
    replay.rollback(position)
    assert replay.num_frames == 100
    replay.close()
    assert files_of(tmp_path) == before


def test_whoever_appends_too_fast_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits to be compressed does not pile up in memory."""
    pack, go_on = replay_module._pack, threading.Event()
    monkeypatch.setattr(replay_module, "_pack", lambda *steps: (go_on.wait(), pack(*steps))[1])
    replay, generator, done = Replay(tmp_path, SHAPE), np.random.default_rng(0), []

    def append() -> None:
        for _ in range((MOST_PENDING + 5) * CHUNK_STEPS):
            replay.append(0, *random_step(generator), False, False)
            done.append(1)

    thread = threading.Thread(target=append)
    thread.start()
    thread.join(timeout=1)
    waits, done_then = thread.is_alive(), len(done)
    go_on.set()  # before anything can fail: else the process would wait for its threads for ever
    thread.join()
    assert waits
    assert done_then == (MOST_PENDING + 1) * CHUNK_STEPS - 1
    replay.close()
    assert ReplayReader(tmp_path, SHAPE).length(0) == (MOST_PENDING + 5) * CHUNK_STEPS


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_replay import SHAPE, fill
from delta_iris.data.replay import Replay
replay = Replay(Path({folder!r}), SHAPE)
fill(replay, 100)
print("flushed", flush=True)
fill(replay, 10**9, seed=1)
"""


def test_a_killed_process_leaves_all_that_was_flushed_and_no_gap(tmp_path: Path) -> None:
    script = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "replay"))
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


def test_a_reader_sees_a_store_that_was_killed_while_writing(tmp_path: Path) -> None:
    replay = Replay(tmp_path, SHAPE)
    fill(replay, 3 * CHUNK_STEPS, length=1000)
    # The chunk was written, its record was not; then half a record.
    with (tmp_path / "chunks.bin").open("ab") as file:
        file.write(b"half a chunk")
    with (tmp_path / "index.bin").open("ab") as file:
        file.write(b"\0" * 7)
    assert ReplayReader(tmp_path, SHAPE).length(0) == 3 * CHUNK_STEPS


def test_damage_is_told_with_file_and_place(tmp_path: Path) -> None:
    replay = Replay(tmp_path, SHAPE)
    fill(replay, 40)
    data = bytearray((tmp_path / "chunks.bin").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "chunks.bin").write_bytes(data)
    with pytest.raises(UserError, match=r"chunks\.bin is damaged at byte .*episode 0, step 16"):
        ReplayReader(tmp_path, SHAPE).read(0, 0, 37)


def test_a_cut_store_cannot_be_rolled_back(tmp_path: Path) -> None:
    replay = Replay(tmp_path, SHAPE)
    fill(replay, 100)
    position = replay.position()
    with (tmp_path / "chunks.bin").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(UserError, match=r"chunks\.bin holds 100 bytes"):
        replay.rollback(position)


def test_frames_of_another_shape_are_refused(tmp_path: Path) -> None:
    Replay(tmp_path, SHAPE)
    with pytest.raises(UserError, match=r"data\.frame_size asks for \(8, 8, 3\)"):
        Replay(tmp_path, (8, 8, 3))


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="not empty and holds no replay"):
        Replay(tmp_path, SHAPE)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_replay import SHAPE, fill
from delta_iris.data.replay import Replay
from delta_iris.errors import UserError
replay = Replay(Path({folder!r}), SHAPE)
fill(replay, 37)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))  # writing beyond fails as on a full disk
try:
    fill(replay, 1000, seed=1, length=10_000)
except UserError as error:
    print(error)
replay.close()
"""


def test_a_full_disk_loses_nothing_that_was_written(tmp_path: Path) -> None:
    folder = tmp_path / "replay"
    script = FULL_DISK.format(tests=str(Path(__file__).parent), folder=str(folder))
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "is full" in run.stdout
    assert "resume with --ckpt_path" in run.stdout
    reader = ReplayReader(folder, SHAPE)
    generator = np.random.default_rng(0)
    expected = [random_step(generator) for _ in range(37)]
    np.testing.assert_array_equal(reader.read(0, 0, 37).frames, np.stack([step[0] for step in expected]))
    assert (folder / "index.bin").stat().st_size % 32 == 0
    for episode in range(reader.num_episodes):
        reader.read(episode, 0, reader.length(episode))


def test_loading_in_the_background_gives_the_same_batches_in_order(tmp_path: Path) -> None:
    fill(Replay(tmp_path, SHAPE), 300)
    draws = [[(e, s) for e in range(4)] for s in range(-5, 30)]
    dataset = WindowDataset(tmp_path, SHAPE, 21)
    expected = [dataset.__getitems__(batch) for batch in draws]
    loaded = list(window_loader(WindowDataset(tmp_path, SHAPE, 21), draws, num_workers=2, skip=3))
    assert len(loaded) == len(expected) - 3
    for mine, theirs in zip(loaded, expected[3:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
