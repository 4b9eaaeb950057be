"""The configurations are what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from delta_iris.actor_critic.module import Agent
from delta_iris.training.callbacks.summary import count_parameters
from delta_iris.training.schedule import Collection, Phase, Schedule
from delta_iris.world_models.delta_iris.cnn_tokenizer import CNNTokenizer
from delta_iris.world_models.delta_iris.transformer_tokenizer import TransformerTokenizer
from delta_iris.world_models.tokens.dynamics import WorldModel
from delta_iris.world_models.tokens.tokenizer import Tokenizer

CONFIGS = Path(__file__).parents[1] / "configs"


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / name).read_text())


def schedule_of(config: dict[str, Any]) -> Schedule:
    loop = dict(config["loop"])
    return Schedule(Collection(**loop.pop("collection")), **{name: Phase(**plan) for name, plan in loop.items()})


def build(config: dict[str, Any], tokenizer_class: type[Tokenizer]) -> tuple[Tokenizer, WorldModel, Agent]:
    """The modules of a configuration for Crafter, without memory."""
    options = {name: module["init_args"] for name, module in config["model"].items()}
    sizes = {"frame_size": (64, 64), "num_actions": 17}
    tokens = {key: options["tokenizer"][key] for key in ("tokens_per_frame", "codebook_size")}
    with torch.device("meta"):
        tokenizer = tokenizer_class(**sizes, window=21, **options["tokenizer"])
        world_model = WorldModel(**sizes, window=21, **tokens, **options["world_model"])
        return tokenizer, world_model, Agent(**sizes, **options["agent"])


def test_crafter_is_the_papers_agent() -> None:
    config = load("crafter.yaml")
    tokenizer, world_model, agent = build(config, TransformerTokenizer)
    assert tokenizer.tokens_per_frame == 4
    assert count_parameters(tokenizer) + count_parameters(world_model) == pytest.approx(110e6, rel=0.03)
    assert count_parameters(agent) == pytest.approx(7.5e6, rel=0.01)
    schedule, epochs = schedule_of(config), config["trainer"]["max_epochs"]
    frames = schedule.frames_until(epochs)
    assert frames == 10_000_000
    assert schedule.imagined_until(epochs, agent.horizon) / frames == 24


def test_crafter_cnn_is_the_lean_agent() -> None:
    config = load("crafter_cnn.yaml")
    tokenizer, world_model, agent = build(config, CNNTokenizer)
    assert count_parameters(tokenizer.encoder) == pytest.approx(1.89e6, rel=0.005)
    assert count_parameters(tokenizer.frame) == pytest.approx(1.76e6, rel=0.005)
    assert count_parameters(tokenizer.decoder) == pytest.approx(1.55e6, rel=0.005)
    assert count_parameters(tokenizer) == pytest.approx(5.4e6, rel=0.01)
    assert count_parameters(world_model) == pytest.approx(11.9e6, rel=0.005)
    assert sum(map(count_parameters, (tokenizer, world_model, agent))) == pytest.approx(24.8e6, rel=0.005)
    schedule, epochs = schedule_of(config), config["trainer"]["max_epochs"]
    assert schedule.frames_until(epochs) == 10_000_000
    assert schedule.imagined_until(epochs, agent.horizon) / 10_000_000 == 64.5


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_sizes_are_written_once(name: str) -> None:
    # A configuration to be stacked on another may have no modules of its own.
    arguments = {name: set(module["init_args"]) for name, module in load(name).get("model", {}).items()}
    assert all(not {"frame_size", "num_actions", "window"} & names for names in arguments.values())
    assert not {"tokens_per_frame", "codebook_size"} & arguments.get("world_model", set())
