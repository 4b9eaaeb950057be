"""Parse and build configurations in this process, as the command line does, without running anything."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch.cli import LightningArgumentParser

from delta_iris.commands.cli import DeltaIrisCLI
from delta_iris.commands.config_files import prepare_arguments
from delta_iris.training.learner import Learner
from delta_iris.training.systems.building import build_system

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
TINY = ROOT / "tests" / "tiny.yaml"


class InstantiatedCommand(DeltaIrisCLI):
    """A command line whose classes are instantiated, but which is not run.

    Args:
        arguments: of the command, without the program's name.

    Attributes:
        parsers: the main parser, and those of the subcommands in their order: `fit` first.
    """

    def __init__(self, arguments: list[str]) -> None:
        self.parsers: list[LightningArgumentParser] = []
        # LightningCLI warns where the process, here pytest, has arguments besides these.
        with patch.object(sys, "argv", sys.argv[:1]):
            super().__init__(prepare_arguments(arguments))

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Keep each parser."""
        self.parsers.append(super().init_parser(**kwargs))
        return self.parsers[-1]

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


class ParsedCommand(InstantiatedCommand):
    """A command line that is parsed only; see `InstantiatedCommand`."""

    def instantiate_classes(self) -> None:
        """Instantiate nothing."""

    @property
    def values(self) -> dict[str, Any]:
        """The parsed configuration, defaults included."""
        parsed: dict[str, Any] = self.config[self.config["subcommand"]].as_dict()
        return parsed


def parse_fit(*arguments: object) -> dict[str, Any]:
    """The configuration that `fit` with these arguments amounts to, as nested dicts.

    Args:
        arguments: of the command.
    """
    return ParsedCommand(["fit", *map(str, arguments)]).values


def stack(*names: object) -> list[str]:
    """A `--config` for each name."""
    return [f"--config={name}" for name in names]


def build_on_meta(values: dict[str, Any]) -> Learner:
    """Build a system without memory for its weights.

    Args:
        values: a configuration with the groups `model` and `data`.
    """
    with torch.device("meta"):
        return build_system(values)
