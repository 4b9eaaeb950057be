"""Runs that are stopped at any moment, by a signal or killed, and resumed: they end as one that was never stopped."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.integration.faults.runs import RUN, assert_equal_runs, command, environment, fit, strike, survivors


@pytest.fixture(scope="module")
def unstopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unstopped")
    fit(cwd=folder)
    return folder / RUN


SLOW = pytest.mark.slow
MOMENTS = [
    # Epoch 1 collects 100 steps of each environment, epoch 0 250; both have 4 batches of each phase of the world model.
    pytest.param("collect", 1, 37, "GROUP"),
    pytest.param("dynamics", 1, 1, "SIGKILL", marks=SLOW),
    pytest.param("test", 1, 11, "SIGTERM", marks=SLOW),
    pytest.param("save", 1, 0, "SIGKILL"),
    *[
        pytest.param(activity, epoch, step, name, marks=SLOW)
        for activity, epoch, step in (
            ("collect", 0, 100),
            ("collect", 1, 0),
            ("collect", 1, 99),
            ("tokenizer", 0, 0),
            ("tokenizer", 1, 3),
            ("dynamics", 1, 0),
            ("actor_critic", 0, 1),
            ("actor_critic", 1, 0),
            ("test", 0, 30),
            ("test", 1, 0),
            ("save", 0, 0),
        )
        for name in ("SIGTERM", "SIGKILL", "GROUP")
        if (activity, name) != ("save", "GROUP")
    ],
]


@pytest.mark.parametrize(("activity", "epoch", "step", "name"), MOMENTS)
def test_a_stopped_run_ends_as_one_that_was_never_stopped(
    tmp_path: Path, unstopped: Path, activity: str, epoch: int, step: int, name: str
) -> None:
    killed = name == "SIGKILL"
    output = fit(*strike(activity, epoch, step, name), cwd=tmp_path, status=-signal.SIGKILL if killed else 143)
    run = tmp_path / RUN
    if not killed:
        resume = ["--ckpt_path", str(RUN / "checkpoints" / "interrupted.ckpt")]
        assert f"Resume with:\n  delta-iris fit --config {RUN}/config.yaml {' '.join(resume)}\n" in output
    elif list((run / "checkpoints").glob("*.ckpt")):
        resume = ["--ckpt_path", "last"]
    else:
        resume, run = ["--version", "again"], run.with_name("again")
    fit(*resume, cwd=tmp_path)
    assert_equal_runs(run, unstopped)


def test_nothing_of_a_killed_run_outlives_it_or_the_next_start(tmp_path: Path) -> None:
    """Neither processes nor temporary folders."""
    marker = f"strike-{os.getpid()}"
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    variables = environment(TMPDIR=str(temporary), MARKER=marker)
    # The pipe ends when the last process that has it open has ended.
    with subprocess.Popen(
        command(*strike("tokenizer", 1, 1, "SIGKILL")),
        cwd=tmp_path,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.read()
    assert process.returncode == -signal.SIGKILL
    assert not survivors(marker)
    # Its name is too long for sockets, which are in /tmp then.
    places = [folder / f"delta_iris-{os.getuid()}" for folder in (temporary, Path("/tmp"))]
    left = [folder for place in places for folder in place.glob(f"{process.pid}-*")]
    assert len(left) == 2
    fit("--ckpt_path", "last", "--trainer.max_epochs", 1, cwd=tmp_path, variables={"TMPDIR": str(temporary)})
    assert not any(each.exists() for each in left)
    assert list(places[0].iterdir()) == []
    assert not any(each.name.startswith("pymp-") for each in temporary.iterdir())
    assert not (tmp_path / RUN / "scratch").exists()


@pytest.mark.slow
def test_max_time_ends_a_run_with_a_checkpoint_that_it_resumes_from(tmp_path: Path, unstopped: Path) -> None:
    output = fit("--trainer.max_time", "00:00:00:00", cwd=tmp_path)
    assert "max_time is over" in output
    fit("--ckpt_path", "last", cwd=tmp_path)
    assert_equal_runs(tmp_path / RUN, unstopped)
