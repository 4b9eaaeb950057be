"""Full disks, killed processes and signals, on a replay and its loader in processes of their own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from delta_iris.data.replay import Replay
from delta_iris.data.replay_reader import ReplayReader
from tests.data.replay_helpers import SHAPE, fill, random_step, read_files

ROOT = Path(__file__).parents[3]
PRELUDE = """
import os, resource, signal, sys, time
from pathlib import Path
from delta_iris.data.loader import SegmentLoader, check_shared_memory
from delta_iris.data.replay import Replay
from delta_iris.data.replay_copy import copy_replay
from delta_iris.data.segment import SegmentBatch
from delta_iris.data.segment_dataset import SegmentDataset
from delta_iris.errors import UserError
from tests.data.replay_helpers import SHAPE, fill, make_requests
folder = Path(sys.argv[1])
"""


def start(script: str, folder: Path, wrapper: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Run a script in a process of its own."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    command = [*wrapper, sys.executable, "-c", PRELUDE + textwrap.dedent(script), str(folder)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(script: str, folder: Path, wrapper: tuple[str, ...] = ()) -> str:
    """Run a script to its end and return what it printed."""
    process = start(script, folder, wrapper)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return output


def is_alive(process: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_dead(processes: list[int], seconds: float) -> None:
    """Fail if a process is still alive after some time."""
    deadline = time.monotonic() + seconds
    while any(map(is_alive, processes)):
        assert time.monotonic() < deadline, f"{processes} are alive"
        time.sleep(0.02)


def test_a_limit_of_file_size_loses_nothing_and_the_same_process_goes_on(tmp_path: Path) -> None:
    """EFBIG, for real. What could not be written is kept in memory and written when there is space."""
    script = """
    import itertools
    import numpy as np
    from tests.data.replay_helpers import random_step
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    replay, generator = Replay(folder, SHAPE), np.random.default_rng(0)
    fill(replay, 37)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
    try:
        for t in itertools.count():
            replay.append(0, *random_step(generator), False, False)
    except UserError as error:
        print(error)
    try:
        replay.flush()
    except UserError as error:
        print(error)
    print(replay.open_episodes[0][1], t + 1)
    if sys.argv[1].endswith("on"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        replay.append(0, *random_step(generator), True, False)
    replay.close()
    """
    for name in ("stopped", "goes on"):
        *errors, steps = run(script, tmp_path / name).splitlines()
        assert len(errors) == 2
        for error in errors:
            assert "cannot be written: the limit of a file's size is reached" in error
            assert "what the last checkpoint includes is safe" in error
        appended = int(steps.split()[1])
        assert steps == f"{appended} {appended}"
        reader = ReplayReader(tmp_path / name, SHAPE)
        generator = np.random.default_rng(0)
        np.testing.assert_array_equal(reader.read(0, 0, 37).frames, [random_step(generator)[0] for _ in range(37)])
        if name == "goes on":
            assert reader.length(1) == appended + 1
            frames = reader.read(1, 0, appended + 1).frames
            generator = np.random.default_rng(0)
            np.testing.assert_array_equal(frames, [random_step(generator)[0] for _ in range(appended + 1)])


TMPFS = ("unshare", "-Urm", "sh", "-c", 'mount -t tmpfs -o size=64k none "$0" && exec "$@"')


def in_small_disk(folder: Path) -> tuple[str, ...]:
    """A command line that runs what follows with a file system of 64 KiB at `folder`."""
    folder.mkdir()
    if shutil.which("unshare") is None or subprocess.run([*TMPFS, str(folder), "true"], check=False).returncode:
        pytest.skip("needs user namespaces that may mount")
    return (*TMPFS, str(folder))


def test_a_full_disk_loses_nothing_and_collection_goes_on_once_there_is_space(tmp_path: Path) -> None:
    """ENOSPC on a small file system; a copy that does not fit leaves nothing."""
    script = """
    import numpy as np
    from tests.data.replay_helpers import random_step
    (folder / "ballast").write_bytes(bytes(40_000))
    replay, generator, full = Replay(folder / "replay", SHAPE), np.random.default_rng(0), 0
    for t in range(500):
        try:
            replay.append(0, *random_step(generator), t % 37 == 36, False)
            if t % 37 == 36:
                replay.flush()  # otherwise a slow machine may write everything at the end only
        except UserError as error:
            full += 1
            if full == 1:
                print(error)
                (folder / "ballast").unlink()
    position = replay.position()
    print(full, replay.num_frames, replay.lengths.tolist() == [37] * 13 + [19])
    try:
        copy_replay(folder / "replay", folder / "copy", position)
    except UserError as error:
        print(error)
    print(sorted(path.name for path in folder.iterdir()))
    """
    lines = run(script, tmp_path / "disk", in_small_disk(tmp_path / "disk")).splitlines()
    assert "replay cannot be written: the disk is full; what the last checkpoint includes is safe" in lines[0]
    assert lines[1] == "1 500 True"
    assert "copy cannot be written: the disk is full" in lines[2]
    assert lines[3] == "['replay']"


def test_a_read_only_file_system_is_refused_in_one_line(tmp_path: Path) -> None:
    script = """
    import subprocess
    replay = Replay(folder, SHAPE)
    fill(replay, 37)
    replay.close()
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    try:
        Replay(folder, SHAPE)
    except UserError as error:
        print(error)
    """
    output = run(script, tmp_path / "disk", in_small_disk(tmp_path / "disk"))
    assert "the file system is read-only; what the last checkpoint includes is safe" in output


def test_killed_writers_leave_a_replay_that_resumes(tmp_path: Path) -> None:
    """Kills at random moments of writing, each resumed from the last position."""
    script = """
    replay = Replay(folder, SHAPE)
    fill(replay, 1)
    print("ready", flush=True)
    fill(replay, 10**9, seed=1)
    """
    folder, generator = tmp_path / "replay", np.random.default_rng(0)
    replay = Replay(folder, SHAPE)
    fill(replay, 100)
    position, files = replay.position(), read_files(folder)
    replay.close()
    for _ in range(4):
        process = start(script, folder)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(generator.uniform(0, 0.1))
        process.kill()
        process.communicate()
        reader = ReplayReader(folder, SHAPE)
        for episode in range(reader.num_episodes):
            if reader.length(episode):
                reader.read(episode, 0, reader.length(episode))
        replay = Replay(folder, SHAPE)
        replay.rollback(position)
        replay.close()
        assert read_files(folder) == files


LOADER = """
# Ignored in whatever a shell has started in the background, and in what that starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
replay = Replay(folder, SHAPE)
fill(replay, 370)
requests = make_requests(folder, 9, [[(0, 0)] * 8] * 500)
loader = SegmentLoader(SegmentDataset(folder, SHAPE), 2, timeout=60)
iterator = loader.batches(requests)
next(iterator)
import multiprocessing
workers = [process.pid for process in multiprocessing.active_children()]
"""


def test_workers_die_with_a_killed_trainer(tmp_path: Path) -> None:
    process = start(LOADER + "print(*workers, flush=True)\ntime.sleep(60)\n", tmp_path)
    assert process.stdout is not None
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 2
    assert all(map(is_alive, workers))
    process.kill()
    process.communicate()
    wait_until_dead(workers, 10)


def test_workers_leave_signals_to_the_trainer_and_end_with_it(tmp_path: Path) -> None:
    """A scheduler or a terminal signals all processes: reading goes on, and the trainer ends without waiting."""
    script = """
    for worker in workers:
        for number in (signal.SIGTERM, signal.SIGINT):
            # From another process than the trainer.
            os.system(f"kill -{number} {worker}")
    print(sum(len(batch.mask) for batch in iterator), flush=True)
    iterator = loader.batches(requests)
    next(iterator)
    raise SystemExit(0)
    """
    # Signalled also while one of them is still starting.
    slow_start = """
    import delta_iris.data.loader as loader_module
    init_worker = loader_module._init_worker
    def slow_init_worker(number, parent, started):
        time.sleep(1.5 * number)
        init_worker(number, parent, started)
    loader_module._init_worker = slow_init_worker
    """
    script = textwrap.dedent(slow_start) + LOADER + textwrap.dedent(script)
    started = time.monotonic()
    assert run(script, tmp_path) == f"{499 * 8}\n"
    assert time.monotonic() - started < 40


@pytest.mark.parametrize(("fault", "timeout"), [("time.sleep(1000)", 1), ("os.kill(os.getpid(), signal.SIGKILL)", 100)])
def test_a_worker_that_hangs_or_dies_ends_in_one_line(tmp_path: Path, fault: str, timeout: int) -> None:
    script = """
    class Disk(SegmentDataset):
        def __getitem__(self, request):
            FAULT

    replay = Replay(folder, SHAPE)
    fill(replay, 370)
    try:
        requests = make_requests(folder, 9, [[(0, 0)]] * 9)
        list(SegmentLoader(Disk(folder, SHAPE), 2, timeout=TIMEOUT).batches(requests, "tokenizer"))
    except UserError as error:
        print(error)
    """
    output = run(script.replace("FAULT", fault).replace("TIMEOUT", str(timeout)), tmp_path)
    assert output.startswith("tokenizer: reading segments of the replay failed (DataLoader ")
    assert len(output.splitlines()) == 1
    assert "data.num_workers" in output
    assert "/dev/shm" in output
    assert ("timed out after 1 seconds" in output) == ("sleep" in fault)


def test_damage_that_a_worker_finds_arrives_as_the_same_line(tmp_path: Path) -> None:
    script = """
    replay = Replay(folder, SHAPE)
    fill(replay, 370)
    data = bytearray((folder / "chunks.bin").read_bytes())
    data[50] ^= 1
    (folder / "chunks.bin").write_bytes(data)
    requests = make_requests(folder, 9, [[(0, 0)]])
    for num_workers in (0, 1):
        try:
            list(SegmentLoader(SegmentDataset(folder, SHAPE), num_workers).batches(requests))
        except UserError as error:
            print(error)
    """
    lines = run(script, tmp_path).splitlines()
    assert len(lines) == 2
    assert lines[0] == lines[1]
    assert "chunks.bin is damaged at byte 0 (episode 0, step 0)" in lines[0]


def test_too_little_shared_memory_is_refused_before_the_run(tmp_path: Path) -> None:
    """On a real /dev/shm of 64 KiB."""
    script = """
    for num_workers, batch_size in ((0, 32), (4, 32)):
        check_shared_memory(num_workers, SegmentBatch.num_bytes(batch_size, 21, (64, 64, 3)), 1000)
        print("passed", flush=True)
    """
    in_small_disk(tmp_path / "disk")
    wrapper = ("unshare", "-Urm", "sh", "-c", 'mount -t tmpfs -o size=64k none /dev/shm && exec "$0" "$@"')
    process = start(script, tmp_path, wrapper)
    output, errors = process.communicate(timeout=60)
    assert output == "passed\n"
    assert "data.num_workers is 4: the batches read ahead take 134 MiB" in errors
    assert "/dev/shm has 0 MiB free" in errors


def test_interrupting_the_trainer_alone_ends_its_workers(tmp_path: Path) -> None:
    script = LOADER + "print(*workers, flush=True)\ntime.sleep(60)\n"
    process = start(script, tmp_path)
    assert process.stdout is not None
    workers = [int(pid) for pid in process.stdout.readline().split()]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=55)
    assert process.returncode == -signal.SIGINT
    wait_until_dead(workers, 10)
