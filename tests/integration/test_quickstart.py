"""Tests that the quickstart learns: the whole agent, as a user runs it, on a game whose best return is known.

`tests/docs/test_tutorial.py` trains its first epoch, in less time.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from delta_iris.envs.make import make_env
from delta_iris.pretrained import load_pretrained
from tests.integration.test_cli import refused_line

BEST = float(make_env("delta_iris/Catch-v0").unwrapped.best_return)  # type: ignore[attr-defined]
RANDOM = BEST / 4
RUNS = Path("lightning_logs")
RUN = RUNS / "quickstart" / "version_0"
EIGHT = ("--trainer.devices", 8, "--data.num_envs", 8, "--data.num_test_envs", 8)
"""The quickstart on eight processes: its other numbers are multiples of eight."""


def run(folder: Path, *arguments: object) -> str:
    """Run a command in `folder` and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "delta_iris", *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1500,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def train_and_test(folder: Path, *options: object, name: str = "quickstart") -> tuple[float, str]:
    """Train in `folder` and test.

    Args:
        folder: for the run.
        options: of `fit`.
        name: of the configuration.

    Returns:
        the mean return of 200 test episodes, and what training printed.
    """
    printed = run(folder, "fit", "--config", f"{name}.yaml", *options)
    return measure(folder, name=name), printed


def measure(folder: Path, *options: object, name: str = "quickstart") -> float:
    """Test the last checkpoint of a run in `folder`, with options of `test`; return the mean of 200 episodes."""
    found = RUNS / name / "version_0"
    trained = ("--config", found / "config.yaml", "--ckpt_path", found / "checkpoints" / "last.ckpt")
    run(folder, "test", *trained, *options)
    result = json.loads((folder / found / "evaluation" / "last.json").read_text())
    assert result["episodes"] == 200
    return float(result["return_mean"])


def test_iris_learns_in_a_shortened_first_epoch_and_its_agent_can_be_exported(tmp_path: Path) -> None:
    schedule = {"tokenizer.first_epoch_steps": 200, "dynamics.first_epoch_steps": 500}
    schedule |= {"actor_critic.steps": 80, "actor_critic.batch_size": 64}
    options = [f"--model.schedule.{name}={number}" for name, number in schedule.items()]
    options.append("--model.tokenizer.optimizer.lr_decay_steps=200")
    reached, _ = train_and_test(tmp_path, "--trainer.max_epochs=1", *options, name="iris_quickstart")
    # The mean of 200 episodes of random actions is below 1.75 in 99.9 % of all cases.
    assert reached > 2 * RANDOM
    assert_can_be_exported(tmp_path, "iris_quickstart", pixels=2)


def assert_can_be_exported(folder: Path, name: str = "quickstart", **game: Any) -> None:
    """Export the last checkpoint of a run in `folder`; the agent plays, with options of the game, and dreams."""
    run(folder, "export", RUNS / name / "version_0" / "checkpoints" / "last.ckpt", "agent")
    agent, env = load_pretrained(folder / "agent"), make_env("delta_iris/Catch-v0", **game)
    frame, _ = env.reset(seed=0)
    assert agent.act(frame) in range(3)
    assert "mean squared error of imagined frames" in run(folder, "dream", "agent")


def test_eight_processes_name_the_numbers_of_the_quickstart_that_they_cannot_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which the configuration's num_threads sets in this process
    needed: list[object] = list(EIGHT[:2])
    for key in ("num_envs", "num_test_envs"):
        line = refused_line(needed, tmp_path, monkeypatch, capfd, "quickstart.yaml")
        found = re.search(rf"data\.{key} is 4, .*: make it a multiple of 8, such as (\d+)", line)
        assert found is not None, line
        needed += [f"--data.{key}", int(found[1])]
    assert needed == list(EIGHT)


@pytest.mark.slow
def test_eight_processes_learn_in_a_shortened_first_epoch_and_their_agent_can_be_exported(tmp_path: Path) -> None:
    schedule = {"tokenizer.first_epoch_steps": 500, "dynamics.first_epoch_steps": 500}
    options = [f"--model.schedule.{name}={number}" for name, number in schedule.items()]
    options.append("--model.tokenizer.optimizer.lr_decay_steps=500")
    run(tmp_path, "fit", "--config", "quickstart.yaml", *EIGHT, "--trainer.max_epochs=1", *options)
    together, alone = measure(tmp_path), measure(tmp_path, "--trainer.devices", 1)
    # The run's configuration has eight processes test. They run other episodes than one does, of returns from 0 to 6:
    # the standard error of a mean of 200 is at most 0.21, and of the difference 0.3.
    assert min(together, alone) > 1.5 * RANDOM  # 2.25: a random mean of 200 is below 1.75 in 99.9 % of all cases
    assert abs(together - alone) < 0.6
    assert_can_be_exported(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_quickstart_reaches_nine_tenths_of_the_best_return(tmp_path: Path, seed: int) -> None:
    reached, printed = train_and_test(tmp_path, "--seed_everything", seed)
    assert reached >= 0.9 * BEST
    for row in ("random actions", "trained agent", "best possible", "Next:"):
        assert row in printed
    for name in ("agent.gif", "imagination.gif"):
        with Image.open(tmp_path / RUN / name) as animation:
            assert getattr(animation, "n_frames", 1) > 1


@pytest.mark.slow
def test_iris_reaches_four_fifths_of_the_best_return(tmp_path: Path) -> None:
    assert train_and_test(tmp_path, name="iris_quickstart")[0] > 0.8 * BEST


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["tokenizer", "dynamics", "actor_critic"])
def test_it_does_not_learn_if_one_of_the_three_modules_never_trains(tmp_path: Path, phase: str) -> None:
    frozen = (f"--model.schedule.{phase}.steps=0", f"--model.schedule.{phase}.first_epoch_steps=0")
    assert train_and_test(tmp_path, *frozen)[0] < 0.5 * BEST
