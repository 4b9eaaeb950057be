"""Runs of two and of eight processes on one machine: they end together, and resume as if they had never stopped."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from delta_iris.data.replay_reader import ReplayReader
from tests.integration.faults.runs import (
    RUN,
    assert_equal_runs,
    command,
    environment,
    fit,
    scalars,
    share,
    strike,
    survivors,
)

SLOW = pytest.mark.slow


class Whole(NamedTuple):
    """A run that was never stopped.

    Attributes:
        ranks: its number of processes.
        path: its folder.
        output: what it printed.
    """

    ranks: int
    path: Path
    output: str

    @property
    def options(self) -> list[object]:
        """Those of `fit`."""
        return options(self.ranks)


def options(ranks: int) -> list[object]:
    """The options of `fit` for a number of processes."""
    return ["--trainer.devices", ranks, *share(ranks)]


@pytest.fixture(scope="module", params=[2, pytest.param(8, marks=SLOW)])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    output = fit(*options(request.param), cwd=folder)
    return Whole(request.param, folder / RUN, output)


def test_all_processes_train_together(whole: Whole) -> None:
    assert "Done: 2 epochs, " in whole.output
    replays = sorted((whole.path / "replay").iterdir())
    assert [path.name for path in replays] == [f"rank_{rank}" for rank in range(whole.ranks)]
    readers = [ReplayReader(path, (64, 64, 3)) for path in replays]
    # 500 frames of the first epoch and 200 of the second, rounded up to the same number from each environment.
    steps = -(-500 // whole.ranks) + 200 // whole.ranks
    assert [sum(map(reader.length, range(reader.num_episodes))) for reader in readers] == [steps] * whole.ranks
    assert not np.array_equal(readers[0].read(0, 0, 1).frames, readers[1].read(0, 0, 1).frames)  # other worlds
    assert len(list(whole.path.glob("events*"))) == 1
    assert scalars(whole.path)["train/episodes"][0][0] == -(-500 // whole.ranks) * whole.ranks


@pytest.mark.parametrize(
    ("activity", "first"),
    [
        pytest.param("dynamics", False, marks=SLOW),  # the others wait for its gradients
        pytest.param("collect", True, marks=SLOW),  # the others wait for nothing
        pytest.param("collect", False, marks=SLOW),
        pytest.param("test", True, marks=SLOW),
    ],
)
def test_all_processes_end_with_one_that_is_killed_and_the_run_resumes(
    tmp_path: Path, whole: Whole, activity: str, first: bool
) -> None:
    marker, rank = f"ranks-{os.getpid()}", 0 if first else whole.ranks // 2
    # The pipe ends when the last process that has it open has ended.
    with subprocess.Popen(
        command(*whole.options, *strike(activity, 1, 1, "SIGKILL", rank)),
        cwd=tmp_path,
        env=environment(MARKER=marker),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        output = process.communicate(timeout=240)[0].decode()
    assert process.returncode != 0, output
    assert "Traceback" not in output
    assert not survivors(marker)
    fit(*whole.options, "--ckpt_path", "last", cwd=tmp_path)
    assert_equal_runs(tmp_path / RUN, whole.path)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_the_run_resumes(tmp_path: Path, whole: Whole) -> None:
    status = 128 + signal.SIGTERM
    output = fit(*whole.options, *strike("tokenizer", 1, 1, "SIGTERM", whole.ranks - 1), cwd=tmp_path, status=status)
    resume = ("--ckpt_path", RUN / "checkpoints" / "interrupted.ckpt")
    assert f"Resume with:\n  delta-iris fit --config {RUN}/config.yaml {' '.join(map(str, resume))}\n" in output
    fit(*whole.options, *resume, cwd=tmp_path)
    assert_equal_runs(tmp_path / RUN, whole.path)


@pytest.mark.parametrize("others", [1, pytest.param(4, marks=SLOW), pytest.param(8, marks=SLOW)])
def test_another_number_of_processes_cannot_resume_a_run(whole: Whole, others: int) -> None:
    if others == whole.ranks:
        pytest.skip("the same number")
    before = sorted(whole.path.rglob("*"))
    resume = ("--ckpt_path", "last", "--trainer.max_epochs", 3)
    output = fit(*options(others), *resume, cwd=whole.path.parents[2], status=2)
    (line,) = [line for line in output.splitlines() if line.startswith("delta-iris: ")]
    assert f"resume with --trainer.devices {whole.ranks} (now {others})" in line
    assert sorted(whole.path.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize("asked", [3, None])
def test_all_processes_compute_with_the_threads_that_are_asked_for_or_share_the_cores(
    tmp_path: Path, asked: int | None
) -> None:
    given = ["--num_threads", asked] if asked else []
    expected = asked or max(1, len(os.sched_getaffinity(0)) // 2)
    counting = ["--trainer.callbacks", "tests.integration.faults.strike.ThreadCount"]
    variables = environment()
    del variables["OMP_NUM_THREADS"]  # which would decide for the processes that Lightning starts
    arguments = command(*options(2), *given, *counting, "--trainer.fast_dev_run", 1, "--trust", "tests")
    subprocess.run(arguments, cwd=tmp_path, env=variables, check=True, timeout=240, start_new_session=True)
    assert [(tmp_path / f"threads_{rank}").read_text() for rank in range(2)] == [str(expected)] * 2


@pytest.mark.slow
def test_a_replay_that_is_too_short_in_one_process_ends_all_with_one_line(tmp_path: Path) -> None:
    """A Dreamer's segments are not padded."""
    (tmp_path / "recorded").mkdir()
    for length in (200, 3):
        times = (length + 1,)
        image, action, reward = np.zeros((*times, 16, 16, 3), np.uint8), np.zeros(times, np.int64), np.zeros(times)
        np.savez_compressed(tmp_path / "recorded" / f"{length}.npz", image=image, action=action, reward=reward)
    recorded = ("--data.recorded_episodes", "recorded", "--model.schedule.collection.last_epoch", 0)
    output = fit("--trainer.devices", 2, *recorded, cwd=tmp_path, status=2, config="dreamer_catch.yaml")
    (line,) = [line for line in output.splitlines() if line.startswith("delta-iris: ")]
    assert re.search(r"no environment has \d+ frames in a row in the replay of rank 1, one of 2 that share", line)
    assert "set fewer trainer.devices" in line
