"""Small agents that play Catch, for the tests of playing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from delta_iris.envs.catch import CatchEnv
from delta_iris.pretrained import export_agent, load_pretrained
from tests.commands.config_helpers import ROOT, TINY, parse_fit, stack
from tests.systems.recurrent import GRUWorldModel
from tests.test_pretrained import build, save_run

CATCH = ["--data.environment=delta_iris/Catch-v0", "--data.num_actions=3"]
LONG = "--data.environment_options={cells: 8, pixels: 8, blocks: 1000}"
SMALL_ACTOR = "{base_channels: 4, channel_mults: [1, 2], downsample_after: [0, 1], latent_channels: 2}"


class FailingCatchEnv(CatchEnv):
    """Catch that breaks in the third step."""

    def step(self, action: np.int64 | int) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Catch a block, or fail."""
        if self._row == 2:
            raise RuntimeError("the paddle broke")
        return super().step(action)


gym.register("FailingCatch-v0", entry_point=f"{__name__}:FailingCatchEnv", disable_env_checker=True)


def export(folder: Path, values: dict[str, Any]) -> Path:
    """Export a random agent whose dreams do not end by themselves."""
    system: Any = build(values)
    if system.world_model is not None:
        is_recurrent = isinstance(system.world_model, GRUWorldModel)
        last = system.world_model.end[-1] if is_recurrent else system.dynamics.network.end_head[-1]
        with torch.no_grad():
            nn.init.zeros_(last.weight)
            last.bias.copy_(torch.tensor([20.0, -20.0]))
    export_agent(save_run(folder / "run", system, values), folder / "catch")
    return folder / "catch"


def export_catch(folder: Path, *options: str) -> Path:
    """Export a Δ-IRIS agent of Catch.

    Args:
        folder: for `catch`, the agent.
        options: of the command line, besides; without any, its episodes are long.
    """
    return export(folder, parse_fit(*stack(TINY), *CATCH, *(options or [LONG])))


def export_model_free(folder: Path) -> Path:
    """Export an agent of Catch that has no world model."""
    small = f"--model.init_args.actor_critic.init_args.cnn={SMALL_ACTOR}"
    return export(folder, parse_fit(*stack("model_free.yaml"), *CATCH, LONG, small))


def export_recurrent(folder: Path) -> Path:
    """Export an agent of Catch whose actor-critic sees a recurrent world model's features; trust `tests`."""
    return export(folder, parse_fit(*stack(ROOT / "tests" / "systems" / "recurrent.yaml"), "--trust=tests"))


def load(folder: Path) -> Any:
    """Load an agent of the tests."""
    return load_pretrained(folder, ["tests"])
