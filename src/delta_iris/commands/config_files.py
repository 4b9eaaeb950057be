"""Configuration files named on the command line: found, translated, and merged into one."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from delta_iris.errors import UserError
from delta_iris.legacy import is_legacy_configuration, upgrade_configuration

__all__ = ["LINKED", "find_config", "load_config", "merge_configs", "prepare_arguments", "shipped_configs"]

LINKED = {
    "model.init_args.frame_size": "data.frame_size",
    "model.init_args.num_actions": "data.num_actions",
}
"""Keys that are taken from other keys, and those keys."""


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
    if path.is_file():
        return path
    shipped = shipped_configs()
    if (shipped / name).is_file():
        return shipped / name
    names = ", ".join(sorted(p.name for p in shipped.glob("*.yaml")))
    raise UserError(f"there is no configuration {name}; the package has: {names}")


def load_config(path: Path) -> dict[str, Any]:
    """Read a configuration, with the files that it names in place of groups.

    A value that ends in `.yaml` is the path of such a file, relative to the file that names it. Configurations in the
    names of version 0.1 are translated.

    Args:
        path: of the YAML file.

    Raises:
        UserError: if a file is missing or no mapping in YAML, or a key is set that is taken from another.
    """
    content = _include(_read(path), path.parent, (path.resolve(),))
    if is_legacy_configuration(content):
        print(f"configuration {path}: translated from the names of version 0.1")
        return upgrade_configuration(content)
    for key in _keys(content):
        if key in LINKED:
            raise UserError(f"{path}: {key} is taken from {LINKED[key]}: set that instead")
    for group in ("trainer", "data", "model"):
        if not isinstance(content.get(group, {}), Mapping):
            raise UserError(f"{path}: {group} is {content[group]!r}: it must be a group of keys")
    return content


def merge_configs(base: Any, other: Any) -> Any:
    """Merge a configuration over another one, key by key.

    Where a `class_path` changes, the arguments of the other class are dropped: they mean something else or nothing.

    Args:
        base: the configuration below.
        other: the configuration above.
    """
    if not (isinstance(base, Mapping) and isinstance(other, Mapping)):
        return other
    merged = dict(base)
    if "class_path" in other and other["class_path"] != base.get("class_path"):
        merged.pop("init_args", None)
    for key, value in other.items():
        merged[key] = merge_configs(merged[key], value) if key in merged else value
    return merged


def prepare_arguments(arguments: list[str]) -> list[str]:
    """Replace all `--config` of a command line by one that holds their merged content.

    Args:
        arguments: of the command line. A later file overrides an earlier one; other options follow and override both.

    Raises:
        UserError: see `find_config` and `load_config`; also if an option sets a key that is taken from another.
    """
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
            merged = merge_configs(merged, _parse(name, "--config"))
            continue
        path = find_config(name)
        if str(path) != name:
            print(f"configuration {name}: {path}")
        merged = merge_configs(merged, load_config(path))
    if position is None:
        return rest
    return [*rest[:position], "--config", yaml.safe_dump(merged, sort_keys=False), *rest[position:]]


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as YAML: {error}") from error
    return _parse(text, str(path))


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{source} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{source} is not a configuration: it must be a YAML mapping")
    return content


def _include(value: Any, folder: Path, includes: tuple[Path, ...]) -> Any:
    """Replace the paths of files by their content.

    Args:
        value: part of a configuration.
        folder: of the file that it stands in.
        includes: the files that led to it, none of which may be included again.
    """
    if isinstance(value, Mapping):
        return {key: _include(item, folder, includes) for key, item in value.items()}
    if isinstance(value, str) and value.endswith(".yaml"):
        path = (folder / value).resolve()
        if path in includes:
            raise UserError(f"{includes[-1]} includes {value}, which includes it: one of the two must not")
        return _include(_read(path), path.parent, (*includes, path))
    return value


def _keys(content: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield f"{prefix}{key}"
            yield from _keys(value, f"{prefix}{key}.")
