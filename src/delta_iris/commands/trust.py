"""`--trust`: the packages whose classes a configuration may name, and the check of what it names."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

import yaml

from delta_iris.errors import UserError
from delta_iris.trust import is_dotted_name, refuse_foreign_classes, refuse_foreign_environment, walk
from delta_iris.yaml_files import has_aliases

__all__ = ["TrustOption", "check_file", "trusted_packages"]

ADVICE = "if you trust the code of {package}, add --trust {package}"

OPTIONS = ("data.environment_options", "data.wrappers", "data.training_wrappers")
"""Keys below which everything is an argument, and nothing a path."""

NAMES = {"name", "version", "filename", "sub_dir", "prefix"}
"""Keys that become part of a path."""

PLACES = {"save_dir", "dirpath", "dir", "default_root_dir", "root_dir", "recorded_episodes", "ckpt_path"}
"""Keys that are a path on this machine."""


class TrustOption(argparse.Action):
    """`--trust NAME[,NAME…]`. It leaves nothing in the configuration: a file can neither hold nor set it."""

    def __init__(self, option_strings: list[str], dest: str = argparse.SUPPRESS, **kwargs: Any) -> None:
        kwargs.pop("default", None)
        kwargs.setdefault("help", "top-level packages whose classes and environments the configuration may name")
        super().__init__(option_strings, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, metavar="NAME", **kwargs)

    def __call__(self, *args: object, **kwargs: object) -> None:
        """Do nothing: `trusted_packages` has read it before the parser was made."""


def trusted_packages(arguments: Iterable[str]) -> frozenset[str]:
    """The packages that a command line trusts: those of `--trust`, and those whose classes are typed.

    Who types `--model my_games.Model` could also type `--trust my_games`.

    Args:
        arguments: of the command line.
    """
    packages: set[str] = set()
    option = ""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if argument.startswith("--") and not equals:
            option = argument
            continue
        if argument.startswith("--"):
            option = name
        else:
            value = argument
        key = option.removeprefix("--").removesuffix("+")
        if key == "trust":
            packages.update(filter(None, (part.strip() for part in value.split(","))))
        elif key == "data.environment":
            module, colon, _ = value.partition(":")
            packages.update([module.partition(".")[0]] if colon else [])
        elif _may_be_class(key):
            packages.update(_typed_packages(value))
        option = ""
    return frozenset(packages)


def check_file(content: Mapping[str, Any], source: str, packages: Collection[str]) -> None:
    """Refuse what would run foreign code or leave its folder.

    Args:
        content: of a configuration.
        source: the file, for messages.
        packages: top-level packages that the user trusts.

    Raises:
        UserError: it names the key, the value and the way out.
    """
    if "trust" in content:
        raise UserError(f"{source}: trust stands in a file, which cannot vouch for itself: give --trust NAME")
    refuse_foreign_classes(content, source, packages, ADVICE)
    refuse_foreign_environment(content.get("data"), source, packages, ADVICE)
    for key, value in walk(content):
        if not key.startswith(OPTIONS):
            _check_path(key, value, source)


def _check_path(key: str, value: Any, source: str) -> None:
    last = key.rpartition(".")[2]
    if last == "dict_kwargs" and any(isinstance(item, Mapping) for name, item in walk(value) if name):
        raise UserError(
            f"{source}: {key} has groups of keys, but arguments that a class does not declare must be plain"
        )
    if not isinstance(value, str):
        return
    if "\0" in value:
        raise UserError(f"{source}: {key} has a null character: remove it")
    if "&" in value and "*" in value and has_aliases(value):  # the parser reads text as YAML where a group is expected
        raise UserError(f"{source}: {key} is text with YAML aliases: write it as YAML")
    # Neither is text the path of a file: it could be a pipe that nobody writes to.
    if last not in PLACES | NAMES and len(value) < 4096 and os.path.exists(value) and not os.path.isdir(value):
        raise UserError(
            f"{source}: {key} is {value[:100]!r}, a file: only a .yaml file can be included, in place of a group"
        )
    if last in NAMES:
        path = PurePosixPath(value)
        if path.is_absolute() or ".." in path.parts or value.startswith("~"):
            raise UserError(
                f"{source}: {key} is {value[:100]!r}, which leaves its folder: give a name without .., / or ~"
            )
    if last in PLACES | NAMES and ("://" in value or "::" in value):
        raise UserError(f"{source}: {key} is {value[:100]!r}: it must be a path of this machine")


def _may_be_class(key: str) -> bool:
    """Whether the value of an option can be the name of a class; that of `--ckpt_path` looks like one."""
    group, _, rest = key.partition(".")
    return (
        key.endswith("class_path")
        or group in ("model", "optimizer", "lr_scheduler")
        or rest in ("callbacks", "logger", "plugins", "profiler", "strategy", "accelerator")
    )


def _typed_packages(value: str) -> set[str]:
    if is_dotted_name(value):
        return {value.strip().partition(".")[0]}
    try:
        content = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        return set()
    names = [item for _, item in walk(content) if is_dotted_name(item)] if isinstance(content, dict | list) else []
    return {name.strip().partition(".")[0] for name in names}
