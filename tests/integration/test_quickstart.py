"""Tests that the quickstart learns: the whole agent, as a user runs it, on a game whose best return is known.

`tests/docs/test_tutorial.py` trains its first epoch, in less time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from delta_iris.envs.make import make_env
from delta_iris.pretrained import load_pretrained

BEST = float(make_env("delta_iris/Catch-v0").unwrapped.best_return)  # type: ignore[attr-defined]
RANDOM = BEST / 4
RUNS = Path("lightning_logs")
RUN = RUNS / "quickstart" / "version_0"


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
    found = RUNS / name / "version_0"
    printed = run(folder, "fit", "--config", f"{name}.yaml", *options)
    run(folder, "test", "--config", found / "config.yaml", "--ckpt_path", found / "checkpoints" / "last.ckpt")
    result = json.loads((folder / found / "evaluation" / "last.json").read_text())
    assert result["episodes"] == 200
    return float(result["return_mean"]), printed


def test_iris_learns_in_a_shortened_first_epoch_and_its_agent_can_be_exported(tmp_path: Path) -> None:
    schedule = {"tokenizer.first_epoch_steps": 200, "dynamics.first_epoch_steps": 500}
    schedule |= {"actor_critic.steps": 80, "actor_critic.batch_size": 64}
    options = [f"--model.schedule.{name}={number}" for name, number in schedule.items()]
    options.append("--model.tokenizer.optimizer.lr_decay_steps=200")
    reached, _ = train_and_test(tmp_path, "--trainer.max_epochs=1", *options, name="iris_quickstart")
    # The mean of 200 episodes of random actions is below 1.75 in 99.9 % of all cases.
    assert reached > 2 * RANDOM
    checkpoint = RUNS / "iris_quickstart" / "version_0" / "checkpoints" / "last.ckpt"
    run(tmp_path, "export", checkpoint, "agent")
    agent, env = load_pretrained(tmp_path / "agent"), make_env("delta_iris/Catch-v0", pixels=2)
    frame, _ = env.reset(seed=0)
    assert agent.act(frame) in range(3)
    assert "mean squared error of imagined frames" in run(tmp_path, "dream", "agent")


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
