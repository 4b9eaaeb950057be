"""Tests that every key of the command line and of the classes that a configuration names has a help text."""

from __future__ import annotations

from typing import Any

import pytest
from jsonargparse import ArgumentParser

from delta_iris.actor_critic.feature_actor_critic import FeatureActorCritic
from delta_iris.actor_critic.module import ActorCritic
from delta_iris.nn.cnn import CNNConfig
from delta_iris.nn.optim import OptimizerConfig
from delta_iris.nn.transformer import TransformerConfig
from delta_iris.training import callbacks
from delta_iris.training.datamodule import ReplayDataModule
from delta_iris.training.schedule import CollectionSchedule, PhaseSchedule
from delta_iris.training.systems import DeltaIris, Dreamer, Iris, ModelFree
from delta_iris.training.systems.dreamer import TrainRatio
from delta_iris.training.systems.dreamer_optimizers import AdamConfig, OneLaProp, ThreeAdams
from delta_iris.world_models.delta_iris import CNNTokenizer, TransformerTokenizer
from delta_iris.world_models.dreamer.images import ImageConfig
from delta_iris.world_models.dreamer.rssm import RSSMConfig
from delta_iris.world_models.dreamer.world_model import DreamerLossWeights, DreamerWorldModel
from delta_iris.world_models.iris import FrameDynamics, FrameTokenizer
from delta_iris.world_models.iris.autoencoder import AutoencoderConfig
from delta_iris.world_models.iris.frame_tokenizer import FrameLossWeights
from delta_iris.world_models.iris.gradient_quantizer import GradientCodebookConfig
from delta_iris.world_models.tokens.dynamics import TokenDynamics
from delta_iris.world_models.tokens.quantizer import CodebookConfig
from delta_iris.world_models.tokens.tokenizer import ReconstructionLossWeights
from tests.commands.config_helpers import ParsedCommand, stack

MODULES = [
    DeltaIris,
    Iris,
    ModelFree,
    TransformerTokenizer,
    CNNTokenizer,
    FrameTokenizer,
    TokenDynamics,
    FrameDynamics,
    ActorCritic,
    ReplayDataModule,
]
MODULES += [Dreamer, DreamerWorldModel, FeatureActorCritic, OneLaProp, ThreeAdams]
GROUPS = [
    AutoencoderConfig,
    CNNConfig,
    CodebookConfig,
    CollectionSchedule,
    FrameLossWeights,
    GradientCodebookConfig,
    ReconstructionLossWeights,
    OptimizerConfig,
    PhaseSchedule,
    TransformerConfig,
    AdamConfig,
    DreamerLossWeights,
    ImageConfig,
    RSSMConfig,
    TrainRatio,
]
CALLBACKS = [
    callbacks.EpisodeStatistics,
    callbacks.FinalReport,
    callbacks.ImageLogger,
    callbacks.PhaseProgress,
    callbacks.RunSummary,
    callbacks.Throughput,
]
OF_LIBRARIES = ("trainer", "checkpoint", "optimizer", "lr_scheduler", "ckpt_path", "weights_only")
"""Keys of Lightning, whose documentation is its own."""


def keys_without_help(parser: Any) -> list[str]:
    """The keys of a parser that have no help text, and the groups that have no title."""
    actions = [action for action in parser._actions if not action.dest.startswith(OF_LIBRARIES)]
    titles = {name: group.title for name, group in parser.groups.items() if not name.startswith(OF_LIBRARIES)}
    missing = [action.dest for action in actions if not str(action.help or "").strip()]
    return missing + [name for name, title in titles.items() if not str(title or "").strip()]


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_every_option_of_a_command_has_a_help_text(command: str) -> None:
    parsers = ParsedCommand([command, *stack("crafter.yaml")]).parsers
    assert len(parsers) == 4
    parser: Any = parsers[["main", "fit", "validate", "test"].index(command)]
    keys = {action.dest for action in parser._actions}
    assert {"name", "model", "data.environment", "episodes.method", "images.segments", "ckpt_path"} <= keys
    assert keys_without_help(parser) == []


@pytest.mark.parametrize("cls", [*MODULES, *GROUPS, *CALLBACKS], ids=lambda cls: cls.__name__)
def test_every_argument_of_a_class_has_a_help_text(cls: type) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(cls, "key")
    keys = {action.dest for action in parser._actions} - {"help", "key"}
    assert keys or cls in CALLBACKS
    assert keys_without_help(parser) == []


def test_an_argument_without_a_help_text_is_found() -> None:
    class Undocumented:
        """A class.

        Args:
            documented: a number.
        """

        def __init__(self, documented: int = 1, undocumented: int = 2) -> None:
            self.both = documented, undocumented

    parser = ArgumentParser()
    parser.add_class_arguments(Undocumented, "key")
    assert keys_without_help(parser) == ["key.undocumented"]
