"""What a configuration may name: classes of this package, Lightning, PyTorch and Gymnasium, and of packages named by
the user."""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from jsonargparse import set_parsing_settings

from delta_iris.errors import UserError

__all__ = [
    "enforce_trust",
    "is_dotted_name",
    "is_trusted",
    "refuse_foreign_classes",
    "refuse_foreign_environment",
    "refuse_foreign_name",
    "walk",
]

ALLOWED = (
    "delta_iris",
    "gymnasium.wrappers",
    "lightning.fabric.accelerators",
    "lightning.fabric.plugins",
    "lightning.fabric.strategies",
    "lightning.pytorch.accelerators",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.plugins",
    "lightning.pytorch.profilers",
    "lightning.pytorch.strategies",
    "torch.nn",
    "torch.optim",
)
"""Where the classes are that a file may name; the rest of PyTorch and Lightning can load code and start processes."""

ENVIRONMENT_PACKAGES = ("delta_iris", "gymnasium", "ale_py", "minigrid")
"""Whose modules a file may name before the colon of `data.environment`."""

DENIED = (
    # The command line, its web page and the reader of agents make no part of a configuration.
    "delta_iris.commands",
    "delta_iris.play",
    "delta_iris.pretrained",
    # Its arguments are functions to call.
    "lightning.pytorch.callbacks.LambdaCallback",
    "lightning.pytorch.callbacks.lambda_function",
)
"""Exceptions within `ALLOWED`."""

_enforced: set[str] = set()


def is_trusted(name: str, packages: Collection[str] = ()) -> bool:
    """Whether a file may name a class or a function.

    Args:
        name: dotted import path.
        packages: top-level packages that the user trusts.
    """
    if name.partition(".")[0] in packages:
        return True
    return _is_under(name, ALLOWED) and not _is_under(name, DENIED)


def is_dotted_name(value: object) -> bool:
    """Whether a value could be the import path of a class or a function.

    Args:
        value: of a configuration.
    """
    return isinstance(value, str) and re.fullmatch(r"\s*[^\W\d]\w*(\.[^\W\d]\w*)+\s*", value) is not None


def walk(content: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys of all values of a configuration, groups included, and the values.

    Args:
        content: mappings, lists and plain values.
        key: of the content.
    """
    yield key, content
    if isinstance(content, Mapping):
        for name, value in content.items():
            yield from walk(value, f"{key}.{name}" if key else str(name))
    elif isinstance(content, list | tuple):
        for value in content:
            yield from walk(value, key)


def refuse_foreign_classes(content: Any, source: str, packages: Collection[str], advice: str) -> None:
    """Check every `class_path` of a configuration before anything is imported.

    Args:
        content: of the configuration.
        source: the file, for the message.
        packages: top-level packages that the user trusts.
        advice: how to trust one more, with `{package}` in it.

    Raises:
        UserError: if a class is of no trusted package; it names the key and the class.
    """
    for key, value in walk(content):
        if not key.endswith("class_path"):
            continue
        if not isinstance(value, str) or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", value):
            raise UserError(f"{source}: {key} is {str(value)[:100]!r}: it must be the name of a class")
        if "." in value:
            refuse_foreign_name(value, f"{source}: {key}", packages, advice)


def refuse_foreign_name(name: str, where: str, packages: Collection[str], advice: str) -> None:
    """Check one name, and what it stands for: `delta_iris.pretrained.shutil.rmtree` is none of this package's.

    Args:
        name: dotted import path.
        where: the file and the key, for the message.
        packages: top-level packages that the user trusts.
        advice: how to trust one more, with `{package}` in it.

    Raises:
        UserError: if it is not trusted.
    """
    origin = name
    if is_trusted(name, packages):  # only then may its module be imported
        origin = _origin(name)
        if is_trusted(origin, packages):
            return
    package = origin.partition(".")[0]
    raise UserError(f"{where} names {name}, which a file may not use: {advice.format(package=package)}")


def refuse_foreign_environment(data: Any, source: str, packages: Collection[str], advice: str) -> None:
    """Refuse Gymnasium ids `module:Id` that would import a module of another package.

    Some environments make another one, whose id is among their options.

    Args:
        data: the group `data` of a configuration.
        source: where it is from, for messages.
        packages: top-level packages that the user trusts.
        advice: the way out, with `{package}`.

    Raises:
        UserError: it names the id and the way out.
    """
    if not isinstance(data, Mapping):
        return
    for value in [data.get("environment"), *(option for _, option in walk(data.get("environment_options")))]:
        if not isinstance(value, str) or not re.match(r"\s*[^\W\d][\w.]*\s*:", value):
            continue
        package = re.split(r"[.:]", value.strip(), maxsplit=1)[0].strip()
        if package not in packages and package not in ENVIRONMENT_PACKAGES:
            raise UserError(
                f"{source}: data.environment names {value[:100]}, which imports {package}: "
                + advice.format(package=package)
            )


def enforce_trust(packages: Collection[str]) -> None:
    """Let the parser of this process import nothing for a configuration but what is trusted.

    Values of keys without a type make no objects, and a value is never taken for the path or the URL of a file.

    Args:
        packages: top-level packages that the user trusts, instead of those of an earlier call.

    Raises:
        UserError: if one is not the name of a package.
    """
    for package in packages:
        if not package.isidentifier() or package == "jsonargparse":
            raise UserError(f"{package!r} cannot be trusted: give the name of a top-level package, such as my_games")
    lifted = [name for name in DENIED if name.partition(".")[0] in packages]
    set_parsing_settings(
        instantiate_subclass_spec_in_any=False,
        config_read_mode_urls_enabled=False,
        config_read_mode_fsspec_enabled=False,
        import_path_denylist=["*", *DENIED, *(_enforced - set(packages))],
        import_path_allowlist=[*ALLOWED, *lifted, *packages],
    )
    _enforced.clear()
    _enforced.update(packages)


def _is_under(name: str, entries: Collection[str]) -> bool:
    return any(name == entry or name.startswith(f"{entry}.") for entry in entries)


def _origin(name: str) -> str:
    """Where the object of this name is defined; the name itself where there is none, which the parser reports."""
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        return _through_attributes(name)
    return _defined_in(found, name)


def _through_attributes(name: str) -> str:
    """As the parser does, look for `package.module.other.name`, where `other` is what the module has imported."""
    module, _, attributes = name.rpartition(".")
    module, _, first = module.rpartition(".")
    try:
        found = getattr(getattr(importlib.import_module(module), first), attributes)
    except (ImportError, AttributeError, ValueError):
        return name
    return _defined_in(found, name)


def _defined_in(found: Any, name: str) -> str:
    module = getattr(found, "__module__", None)
    qualified = getattr(found, "__qualname__", None)
    if isinstance(module, str) and isinstance(qualified, str):
        return f"{module}.{qualified}"
    return f"{type(found).__module__}.{name.rpartition('.')[2]}"
