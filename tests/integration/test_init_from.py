"""New runs that start from the weights of an agent."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from delta_iris.data.replay_reader import ReplayReader
from delta_iris.pretrained import export_agent, load_exported
from tests.commands.config_helpers import TINY, parse_fit, stack
from tests.integration.faults.runs import RUN, fit, scalars, strike
from tests.test_pretrained import build, save_run

ACTION = 3
OPTIONS = [
    *("--model.schedule.dynamics.steps", "0"),
    *("--model.schedule.actor_critic.steps", "0"),
    *("--model.schedule.collection.epsilon", "0"),
]
"""Only the tokenizer trains, and no action is random."""


def save_agent(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """Save a checkpoint of 700 frames whose agent always takes the same action, which a random player does not.

    Returns:
        its path, and its weights.
    """
    values = parse_fit(*stack(TINY))
    system = build(values)
    with torch.no_grad():
        system.get_parameter("actor_critic.network.actor.weight").zero_()
        system.get_parameter("actor_critic.network.actor.bias").zero_()[ACTION] = 1000
    return save_run(folder, system, values), system.state_dict()


def collected_actions(run: Path) -> set[int]:
    """All actions in the replay of a run."""
    reader = ReplayReader(run / "replay" / "rank_0", (64, 64, 3))
    episodes = [reader.read(number, 0, reader.length(number)) for number in range(reader.num_episodes)]
    return {action for steps in episodes for action in steps.actions.tolist()}


@pytest.mark.parametrize("exported", [True, False])
def test_a_run_starts_from_an_agent_that_collects_its_first_epoch(tmp_path: Path, exported: bool) -> None:
    source, expected = save_agent(tmp_path / "before")
    if exported:
        export_agent(source, tmp_path / "agent")
        source = tmp_path / "agent"
        expected = load_exported(source)["state_dict"]

    output = fit("--init_from", source, *OPTIONS, "--trainer.max_epochs", "1", cwd=tmp_path)
    assert "trained on 700 frames, from which this run counts" in output
    run = tmp_path / RUN
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["state_dict"].keys() == expected.keys()
    untrained = {name: value for name, value in content["state_dict"].items() if not name.startswith("tokenizer.")}
    assert untrained
    assert all(torch.equal(value, expected[name]) for name, value in untrained.items())
    assert content["frames_collected"] == 700 + 500
    assert collected_actions(run) == {ACTION}

    # Without a look at the agent: its folder is gone.
    source.rename(tmp_path / "elsewhere")
    fit("--init_from", source, *OPTIONS, "--ckpt_path", "last", cwd=tmp_path)
    assert [step for step, _ in scalars(run)["train/return"]] == [1200, 1400]


def test_the_agent_collects_on_where_its_first_epoch_was_stopped(tmp_path: Path) -> None:
    source, _ = save_agent(tmp_path / "before")
    options = [*OPTIONS, "--trainer.max_epochs", "1"]
    fit("--init_from", source, *options, *strike("collect", 0, 100, "SIGTERM"), cwd=tmp_path, status=143)
    run = tmp_path / RUN
    fit(*options, "--ckpt_path", run / "checkpoints" / "interrupted.ckpt", cwd=tmp_path)
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["frames_collected"] == 700 + 500
    assert collected_actions(run) == {ACTION}


def test_weights_of_another_size_are_refused_by_the_key(tmp_path: Path) -> None:
    values = parse_fit(*stack(TINY))
    source = save_run(tmp_path / "before", build(values), values)
    key = "--model.actor_critic.init_args.lstm_size"
    message = fit("--init_from", source, key, "32", cwd=tmp_path, status=2)
    assert str(source) in message
    assert "lstm_size" in message
    assert not (tmp_path / RUN).exists()
    assert "there is no exported agent or checkpoint nowhere" in fit("--init_from", "nowhere", cwd=tmp_path, status=2)
