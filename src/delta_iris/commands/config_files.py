"""Configuration files named on the command line: where they are found, and what they must not contain."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from delta_iris.errors import UserError
from delta_iris.legacy import is_legacy_configuration, upgrade_configuration

__all__ = ["find_config", "prepare_arguments", "shipped_configs"]

LINKED = {
    "model.init_args.frame_size": "data.frame_size",
    "model.init_args.num_actions": "data.num_actions",
}
"""Keys that are taken from other keys."""


def shipped_configs() -> Path:
    """The folder of the configurations that come with the package: the clone's, or the installed one.

    Raises:
        UserError: if neither exists.
    """
    candidates = [Path(__file__).parents[3] / "configs", Path(sys.prefix) / "share" / "delta_iris" / "configs"]
    for folder in candidates:
        if (folder / "crafter.yaml").is_file():
            return folder
    raise UserError("the configurations of the package are missing: install it again")


def find_config(name: str) -> Path:
    """Find a configuration file: a path, or else the name of a file that comes with the package.

    Raises:
        UserError: if there is none; it lists the names that come with the package.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_configs()
    if (shipped / name).is_file():
        return shipped / name
    names = ", ".join(sorted(p.name for p in shipped.glob("*.yaml")))
    raise UserError(f"there is no configuration {name}; the package has: {names}")


def prepare_arguments(arguments: list[str]) -> list[str]:
    """Resolve every `--config` of a command line.

    Files that come with the package are found by name, files in the names of version 0.1 are translated, and keys that
    are taken from others are refused.

    Args:
        arguments: of the command line.

    Raises:
        UserError: if a file is missing or is no YAML, or a linked key is set.
    """
    prepared: list[str] = []
    iterator = iter(arguments)
    for argument in iterator:
        option, equals, value = argument.partition("=")
        _check_linked_option(option)
        if option not in ("--config", "-c"):
            prepared.append(argument)
            continue
        prepared += ["--config", _resolve(value if equals else next(iterator, ""))]
    return prepared


def _resolve(name: str) -> str:
    path = find_config(name)
    if str(path) != name:
        print(f"configuration {name}: {path}")
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from error
    if is_legacy_configuration(content):
        print(f"configuration {name}: translated from the names of version 0.1")
        return yaml.safe_dump(upgrade_configuration(content))
    for key in _keys(content):
        if key in LINKED:
            raise UserError(f"{path}: {key} is taken from {LINKED[key]}: set that instead")
    return str(path)


def _check_linked_option(option: str) -> None:
    for key, source in LINKED.items():
        if option in (f"--{key}", f"--{key.replace('init_args.', '')}"):
            raise UserError(f"{option} is taken from {source}: set --{source} instead")


def _keys(content: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield f"{prefix}{key}"
            yield from _keys(value, f"{prefix}{key}.")
