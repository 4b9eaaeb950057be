"""Configuration files named on the command line: found, translated, and merged into one."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from delta_iris.commands.trust import check_file, trusted_packages
from delta_iris.errors import UserError
from delta_iris.files import read_text
from delta_iris.legacy import is_legacy_configuration, upgrade_configuration
from delta_iris.trust import enforce_trust
from delta_iris.yaml_files import parse_yaml

__all__ = ["LINKED", "NO_MODEL", "find_config", "load_config", "merge_configs", "prepare_arguments", "shipped_configs"]

NO_MODEL = "no configuration says what to train (model.class_path): name one first, such as --config crafter_cnn.yaml"

LINKED = {
    "model.init_args.frame_size": "data.frame_size",
    "model.init_args.num_actions": "data.num_actions",
}
"""Keys that are taken from other keys, and those keys."""

GROUPS = ("trainer", "data", "model", "checkpoint", "best_checkpoint", "episodes", "images")
"""Top-level keys that hold keys themselves."""

MAX_INCLUDES = 100
"""Most files that a configuration may consist of."""


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

    Args:
        name: as on the command line.

    Raises:
        UserError: if there is none; it lists the names that come with the package.
    """
    path = Path(name)
    if path.exists() and not path.is_dir():
        return path
    shipped = shipped_configs()
    if (shipped / name).is_file():
        return shipped / name
    names = ", ".join(sorted(p.name for p in shipped.glob("*.yaml")))
    raise UserError(f"there is no configuration {name}; the package has: {names}")


def load_config(path: Path) -> dict[str, Any]:
    """Read a configuration, with the files that it names in place of groups.

    A value that ends in `.yaml` is the path of such a file, relative to the file that names it and in its folder or
    below. Configurations in the names of version 0.1 are translated.

    Args:
        path: of the YAML file.

    Raises:
        UserError: if a file is missing or no mapping in YAML, or a key is set that is taken from another.
    """
    content = _include(_read(path), path.parent, (path.resolve(),), [MAX_INCLUDES])
    if is_legacy_configuration(content):
        print(f"configuration {path}: translated from the names of version 0.1")
        try:
            return upgrade_configuration(content)
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise UserError(f"{path} is written in the names of version 0.1, but not in its form: {error}") from error
    for key in _keys(content):
        if key in LINKED:
            raise UserError(f"{path}: {key} is taken from {LINKED[key]}: set that instead")
    for group in GROUPS:
        if not isinstance(content.get(group, {}), Mapping):
            raise UserError(f"{path}: {group} is {str(content[group])[:100]!r}: it must be a group of keys")
    return content


def merge_configs(base: Any, other: Any) -> Any:
    """Merge a configuration over another one, key by key.

    Where a `class_path` changes, the arguments of the other class are dropped: they mean something else or nothing.
    The arguments of a class that is configured below may be given without `init_args`, as on the command line.

    Args:
        base: the configuration below.
        other: the configuration above.
    """
    if not (isinstance(base, Mapping) and isinstance(other, Mapping)):
        return other
    merged = dict(base)
    if "class_path" in base and other and not {"class_path", "init_args", "dict_kwargs"} & set(other):
        other = {"init_args": other}
    if "class_path" in other and other["class_path"] != base.get("class_path"):
        merged.pop("init_args", None)
    for key, value in other.items():
        merged[key] = merge_configs(merged[key], value) if key in merged else value
    return merged


def prepare_arguments(arguments: list[str]) -> list[str]:
    """Replace all `--config` of a command line by one that holds their merged content.

    From here on, the parser of this process imports only what `--trust` and the rest of the command line allow.

    Args:
        arguments: of the command line. A later file overrides an earlier one; other options follow and override both.

    Raises:
        UserError: see `find_config`, `load_config` and `check_file`; also if an option sets a key that is taken from
            another.
    """
    packages = trusted_packages(arguments)
    enforce_trust(packages)
    rest: list[str] = []
    merged: Any = {}
    position: int | None = None
    iterator = iter(arguments)
    for argument in iterator:
        option, equals, value = argument.partition("=")
        for key, source in LINKED.items():
            if option in (f"--{key}", f"--{key.replace('init_args.', '')}"):
                raise UserError(f"{option} is taken from {source}: set --{source} instead")
        if option not in ("--config", "-c"):
            rest.append(argument)
            continue
        name = value if equals else next(iterator, "")
        position = len(rest)
        if "\n" in name:  # merged before: Lightning starts the other processes with the arguments of this one
            content, source = parse_yaml(name, "--config"), "--config"
        else:
            path = find_config(name)
            if str(path) != name:
                print(f"configuration {name}: {path}")
            content, source = load_config(path), str(path)
        check_file(content, source, packages)
        merged = merge_configs(merged, content)
    if position is None:
        return rest
    (before, nulls_before), (after, nulls_after) = _split_nulls(rest[:position]), _split_nulls(rest[position:])
    merged = merge_configs(merged, merge_configs(nulls_before, nulls_after))
    chosen = any(argument.partition("=")[0] in ("--model", "--model.class_path") for argument in rest)
    if "class_path" not in (merged.get("model") or {"class_path": None}) and not chosen:
        raise UserError(NO_MODEL)
    return [*before, "--config", yaml.safe_dump(merged, sort_keys=False), *after]


def _split_nulls(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Take the options that set a key of the model to null out of a command line.

    As options, jsonargparse (4.53) passes them on to nested groups as the word "None".

    Args:
        arguments: of the command line, without `--config`.

    Returns:
        the other arguments, and the configuration that these options amount to.
    """
    others: list[str] = []
    nulls: dict[str, Any] = {}
    iterator = iter(arguments)
    for argument in iterator:
        option, equals, value = argument.partition("=")
        if not option.startswith("--model."):
            others.append(argument)
            continue
        given = [argument] if equals else [argument, *islice(iterator, 1)]
        if (value if equals else given[-1]) != "null":
            others += given
            continue
        content: Any = None
        for key in reversed(option.removeprefix("--").split(".")):
            content = {key: content}
        nulls = merge_configs(nulls, content)
        others = _without(others, option)
    return others, nulls


def _without(arguments: list[str], option: str) -> list[str]:
    """A command line without the options that set the same key, with or without `init_args` in it."""
    key = option.replace(".init_args.", ".")
    kept: list[str] = []
    iterator = iter(arguments)
    for argument in iterator:
        name, equals, _ = argument.partition("=")
        if name.replace(".init_args.", ".") != key:
            kept.append(argument)
        elif not equals:
            next(iterator, None)
    return kept


def _read(path: Path) -> dict[str, Any]:
    return parse_yaml(read_text(path), str(path))


def _include(value: Any, folder: Path, includes: tuple[Path, ...], left: list[int]) -> Any:
    """Replace the paths of files by their content.

    Args:
        value: part of a configuration.
        folder: of the file that it stands in.
        includes: the files that led to it, none of which may be included again.
        left: how many files may still be included; counted down.
    """
    if isinstance(value, Mapping):
        return {key: _include(item, folder, includes, left) for key, item in value.items()}
    if isinstance(value, str) and value.endswith(".yaml"):
        path = _included_path(value, folder, includes[-1])
        if path in includes:
            raise UserError(f"{includes[-1]} includes {value}, which includes it: one of the two must not")
        left[0] -= 1
        if left[0] < 0:
            raise UserError(f"{includes[0]} includes more than {MAX_INCLUDES} files")
        return _include(_read(path), path.parent, (*includes, path), left)
    return value


def _included_path(value: str, folder: Path, source: Path) -> Path:
    """A file of a stranger must not show what lies elsewhere on this machine."""
    try:
        path = (folder / value).resolve()
        inside = any(path.is_relative_to(root.resolve()) for root in (folder, shipped_configs()))
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{source} includes {value[:100]!r}, which is no path: {error}") from error
    if not inside:
        raise UserError(f"{source} includes {value[:200]}, which lies outside of its folder: move it there")
    return path


def _keys(content: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield f"{prefix}{key}"
            yield from _keys(value, f"{prefix}{key}.")
