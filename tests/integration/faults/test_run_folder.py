"""One folder for a run: owned by one process, never destroyed by another start, and shared by all that writes."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest
import torch

from tests.integration.faults.runs import RUN, assert_equal_runs, checkpoint, command, environment, fit, scalars, strike

TENSORBOARD = {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": {"save_dir": "elsewhere"}}
CSV = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "elsewhere"}}


def contents(folder: Path) -> dict[str, bytes]:
    """All files in a folder, but for the lock."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("[!.]*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of a finished run that has kept the checkpoints of both epochs."""
    folder = tmp_path_factory.mktemp("finished")
    fit("--checkpoint.save_top_k", -1, cwd=folder)
    return folder


@pytest.mark.slow
def test_a_run_in_use_is_refused_by_name_and_a_new_run_takes_the_next_folder(tmp_path: Path) -> None:
    with subprocess.Popen(
        command("--trainer.max_epochs", 1000),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as first:
        assert first.stdout is not None
        try:
            while "held out" not in (line := first.stdout.readline()):
                assert line
            while not (tmp_path / RUN / "checkpoints" / "last.ckpt").exists():
                assert first.poll() is None
            owner = f"process {first.pid} on {socket.gethostname()}"
            assert f"version_0 is in use by {owner}" in fit("--ckpt_path", "last", cwd=tmp_path, status=2)
            fit("--trainer.max_epochs", 1, cwd=tmp_path)
        finally:
            os.killpg(first.pid, signal.SIGKILL)
    assert (tmp_path / RUN.with_name("version_1") / "checkpoints" / "last.ckpt").exists()
    # The lock has died with its process.
    last = tmp_path / RUN / "checkpoints" / "last.ckpt"
    epochs = torch.load(last, weights_only=True)["epoch"] + 1
    output = fit("--ckpt_path", last, "--trainer.max_epochs", epochs - 1, cwd=tmp_path, status=2)
    assert f"has {epochs} epochs, and trainer.max_epochs is {epochs - 1}" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.environment", "NoSuchGame-v0"], "NoSuchGame"),
        (["--data.environment", "CartPole-v1", "--data.environment_options", "{}"], "RGB frames"),
        (["--data.recorded_episodes", "missing"], "missing"),
        (["--ckpt_path", "last"], "--ckpt_path last: no run in lightning_logs/tiny has saved a checkpoint"),
        (["--ckpt_path", "best"], "--ckpt_path best: no run in lightning_logs/tiny has saved a checkpoint"),
        (
            ["--ckpt_path", "last", "--version", "3"],
            "lightning_logs/tiny/version_3/checkpoints holds no whole checkpoint",
        ),
        (["--version", "../out"], "version is '../out': it names a folder, without a path"),
        (["--trainer.default_root_dir", "/proc/runs"], "/proc/runs"),
    ],
)
def test_a_refused_start_leaves_nothing_behind(tmp_path: Path, arguments: list[str], message: str) -> None:
    assert message in fit(*arguments, cwd=tmp_path, status=2)
    assert list(tmp_path.iterdir()) == []


def test_resuming_an_older_checkpoint_destroys_nothing(finished: Path) -> None:
    run = finished / RUN
    older, before = run / "checkpoints" / "epoch-0000.ckpt", contents(run)
    output = fit("--ckpt_path", older, cwd=finished)
    assert "epoch-0000.ckpt is older than" in output
    assert "epoch 1/2" not in output
    assert contents(run) == before
    branch = RUN.with_name("version_1")
    # It goes on from there as the first run did.
    (finished / branch / "checkpoints" / "best.ckpt").touch()  # of the first epoch, if its agent was the better one
    assert_equal_runs(finished / branch, run, names=False)
    shutil.rmtree(finished / branch)


def test_a_run_folder_can_be_moved(finished: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved" / "run"
    shutil.copytree(finished / RUN, moved)
    away = finished / "away"
    (finished / RUN).rename(away)
    try:
        output = fit("--ckpt_path", moved / "checkpoints" / "last.ckpt", "--trainer.max_epochs", 3, cwd=tmp_path)
        assert "epoch 3/3" in output
        assert not (finished / RUN).exists()
    finally:
        away.rename(finished / RUN)
    assert checkpoint(moved)["epoch"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moved"]


def test_another_game_is_refused_and_nothing_is_changed(finished: Path) -> None:
    before = contents(finished / RUN)
    options = ("--data.environment_options", "{length: 30}", "--ckpt_path", "last")
    assert "was trained with data.environment_options" in fit(*options, cwd=finished, status=2)
    # The game comes first: other numbers would not help.
    assert "was trained with data.environment_options" in fit(*options, "--data.num_envs", 4, cwd=finished, status=2)
    options = ("--data.num_envs", "4", "--ckpt_path", "last")
    assert "data.num_envs is 4, but the checkpoint holds 2 environments" in fit(*options, cwd=finished, status=2)
    assert contents(finished / RUN) == before


def test_a_finished_run_says_how_it_goes_on(finished: Path) -> None:
    run = finished / RUN
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    output = fit("--config", run / "config.yaml", "--ckpt_path", "last", cwd=finished)
    assert "The run has all its 2 epochs: set a larger trainer.max_epochs to go on." in output
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before


def test_a_checkpoint_among_those_of_another_run_is_refused_and_nothing_is_changed(
    finished: Path, tmp_path: Path
) -> None:
    fit("--trainer.max_epochs", 1, "--seed_everything", 5, cwd=tmp_path)
    stray = tmp_path / RUN / "checkpoints" / "stray.ckpt"
    stray.write_bytes((finished / RUN / "checkpoints" / "last.ckpt").read_bytes())
    before = contents(tmp_path / RUN)
    assert "the replay belongs to another run" in fit("--ckpt_path", stray, cwd=tmp_path, status=2)
    assert contents(tmp_path / RUN) == before


@pytest.mark.parametrize(
    "loggers",
    [
        pytest.param([TENSORBOARD, CSV], id="both"),
        pytest.param([CSV], id="csv", marks=pytest.mark.slow),
        pytest.param([], id="none", marks=pytest.mark.slow),
    ],
)
def test_every_logger_writes_into_the_run_folder_and_goes_on_after_a_resume(
    tmp_path: Path, finished: Path, loggers: list[object]
) -> None:
    options = ["--trainer.logger", json.dumps(loggers) if loggers else "false"]
    fit(*options, *strike("tokenizer", 1, 2, "SIGTERM"), cwd=tmp_path, status=143)
    fit(*options, "--ckpt_path", "last", cwd=tmp_path)
    place = Path("elsewhere" if loggers else "lightning_logs", *RUN.parts[1:])
    assert [path.name for path in tmp_path.iterdir()] == [place.parts[0]]
    run = tmp_path / place
    assert (run / "config.yaml").is_file()
    assert bool(list(run.glob("events*"))) == (TENSORBOARD in loggers)
    if TENSORBOARD in loggers:
        assert scalars(run) == scalars(finished / RUN)
    if CSV in loggers:
        with (run / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        expected = scalars(finished / RUN)
        for tag in ("train/return", "tokenizer/loss", "test/return"):
            assert [int(row["step"]) for row in rows if row.get(tag)] == [step for step, _ in expected[tag]]
            logged = [float(row[tag]) for row in rows if row.get(tag)]
            assert logged == pytest.approx([value for _, value in expected[tag]], rel=1e-6)


def test_fast_dev_run_goes_through_everything_and_keeps_nothing(tmp_path: Path) -> None:
    output = fit("--trainer.fast_dev_run", 1, cwd=tmp_path)
    assert "epoch 1/1" in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_slurm_starts_a_run_again_that_it_has_warned(tmp_path: Path, finished: Path) -> None:
    """`scontrol` is a program of the cluster, which is not here: what it is called with is written down."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "scontrol").write_text(f"#!/bin/sh\necho $* >> {tools}/called\n")
    (tools / "scontrol").chmod(0o755)
    variables = {"SLURM_JOB_ID": "71", "PATH": f"{tools}:{os.environ['PATH']}"}
    fit(*strike("dynamics", 1, 1, "SIGUSR1"), cwd=tmp_path, status=143, variables=variables)
    assert (tools / "called").read_text() == "requeue 71\n"
    # The same command again, in the same job; what it names is older by now.
    older = tmp_path / RUN / "checkpoints" / "epoch-0000.ckpt"
    output = fit("--ckpt_path", older, cwd=tmp_path, variables=variables | {"SLURM_RESTART_COUNT": "1"})
    assert "SLURM has started job 71 again: resuming" in output
    assert_equal_runs(tmp_path / RUN, finished / RUN, names=False)
