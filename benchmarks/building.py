"""Build a system from configurations by name, for the other benchmarks; not a script."""

from __future__ import annotations

from functools import reduce
from typing import Any

from delta_iris.commands.config_files import find_config, load_config, merge_configs
from delta_iris.training.learner import Learner
from delta_iris.training.systems import building

__all__ = ["DATA_DEFAULTS", "build_system", "merged_config", "nest_keys"]

DATA_DEFAULTS: dict[str, Any] = {"frame_size": [64, 64], "num_actions": 17}
"""Those of `ReplayDataModule`, where a configuration sets nothing else."""


def merged_config(names: list[str], overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """Merge configurations as the command line does.

    Args:
        names: of configurations that come with the package, such as `crafter_cnn.yaml`, or paths; a later one
            overrides an earlier one.
        overrides: nested keys that override all of them.

    Returns:
        The merged configuration, `data.frame_size` and `data.num_actions` included.

    Raises:
        UserError: if a file is missing or is not a configuration.
    """
    layers = [{"data": DATA_DEFAULTS}, *(load_config(find_config(name)) for name in names), overrides or {}]
    config: dict[str, Any] = reduce(merge_configs, layers)
    return config


def build_system(names: list[str], overrides: dict[str, Any] | None = None) -> Learner:
    """Build the system of a configuration, untrained and on the CPU.

    Args:
        names: see `merged_config`.
        overrides: see `merged_config`.

    Raises:
        UserError: if a file is missing or is not a configuration, or arguments do not fit together.
        argparse.ArgumentError: if a key or the type of a value is wrong.
    """
    return building.build_system(merged_config(names, overrides))


def nest_keys(values: dict[str, Any]) -> dict[str, Any]:
    """Turn dotted keys such as `optimizer.learning_rate` into nested mappings.

    Args:
        values: by dotted key.
    """
    nested: dict[str, Any] = {}
    for key, value in values.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        nested = merge_configs(nested, value)
    return nested
