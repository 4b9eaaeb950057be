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

CONFIG = "quickstart.yaml"
BEST = float(make_env("delta_iris/Catch-v0").unwrapped.best_return)  # type: ignore[attr-defined]
RUN = Path("lightning_logs") / "quickstart" / "version_0"


def train_and_test(folder: Path, *options: object) -> tuple[float, str]:
    """Train in `folder` and test.

    Returns:
        the mean return of 200 test episodes, and what training printed.
    """
    trained = ("--config", RUN / "config.yaml", "--ckpt_path", RUN / "checkpoints" / "last.ckpt")
    printed = []
    for arguments in (("fit", "--config", CONFIG, *options), ("test", *trained)):
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
        printed.append(done.stdout)
    result = json.loads((folder / RUN / "evaluation" / "last.json").read_text())
    assert result["episodes"] == 200
    return float(result["return_mean"]), printed[0]


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
@pytest.mark.parametrize("phase", ["tokenizer", "dynamics", "actor_critic"])
def test_it_does_not_learn_if_one_of_the_three_modules_never_trains(tmp_path: Path, phase: str) -> None:
    frozen = (f"--model.schedule.{phase}.steps=0", f"--model.schedule.{phase}.first_epoch_steps=0")
    assert train_and_test(tmp_path, *frozen)[0] < 0.5 * BEST
