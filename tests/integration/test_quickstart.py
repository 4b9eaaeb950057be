"""It learns: the whole system, as a user runs it, on a game whose best return is known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from catch import OPTIMAL

ROOT = Path(__file__).parents[1]
CONFIGS = ("--config", ROOT / "configs" / "quickstart.yaml", "--config", ROOT / "tests" / "catch.yaml")
RANDOM = OPTIMAL / 4


def play(folder: Path, *options: object) -> float:
    """Train in `folder`, test, and return the mean return of 200 test episodes."""
    run = folder / "lightning_logs" / "quickstart" / "version_0"
    trained = ("--config", run / "config.yaml", "--ckpt_path", run / "checkpoints" / "last.ckpt")
    for arguments in (("fit", *CONFIGS, *options), ("test", *trained)):
        subprocess.run(
            [sys.executable, "-m", "delta_iris", *map(str, arguments)],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])},
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=1200,
        )
    result: float = json.loads((run / "evaluation" / "last.json").read_text())["return_mean"]
    return result


def test_it_gets_clearly_better_than_random(tmp_path) -> None:
    """The first epoch of the proof below, shortened."""
    steps = {"tokenizer.first_epoch_steps": 400, "world_model.first_epoch_steps": 500, "agent.steps": 200}
    options = [f"--loop.{name}={number}" for name, number in steps.items()]
    # A random player's mean of 200 episodes stays below 1.75 in 99.9% of all cases.
    assert play(tmp_path, "--trainer.max_epochs=1", *options) > 2 * RANDOM


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns_to_play_nearly_perfectly(tmp_path, seed: int) -> None:
    assert play(tmp_path, "--seed_everything", seed) >= 0.9 * OPTIMAL


@pytest.mark.slow
@pytest.mark.parametrize("module", ["tokenizer", "world_model", "agent"])
def test_it_does_not_where_one_of_the_three_never_learns(tmp_path, module: str) -> None:
    frozen = (f"--loop.{module}.steps", 0, f"--loop.{module}.first_epoch_steps", 0)
    assert play(tmp_path, *frozen) < 0.5 * OPTIMAL
