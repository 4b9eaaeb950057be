"""One line for an invalid configuration, which names the key."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import lightning as L

from delta_iris.commands.config_files import NO_MODEL
from delta_iris.commands.key_suggestions import explain_unknown_key
from delta_iris.errors import UserError

__all__ = ["explain_instantiation_error", "parser_errors", "root_cause", "shorten_parser_message"]


def explain_instantiation_error(error: BaseException, config: Mapping[str, Any]) -> UserError | None:
    """Find the key whose value a class refused.

    Args:
        error: what jsonargparse raised; the class's own error is among its causes.
        config: the configuration as nested dicts.

    Returns:
        an error that names the key, or None if the error is from a user's own code.
    """
    for cause in _causes(error):
        if isinstance(cause, UserError):
            return cause
        if isinstance(cause, ValueError) and (owner := _raising_object(cause)) is not None:
            key = "data" if isinstance(owner, L.LightningDataModule) else _find(owner, config)
            if key is not None:
                return UserError(f"{key}.{cause}")
    cause = root_cause(error)
    if _raised_by_libraries(cause):
        text = " ".join(str(cause).split())[:300]
        return UserError(f"the configuration cannot be used: {type(cause).__name__}: {text}")
    return None


@contextmanager
def parser_errors() -> Iterator[None]:
    """Turn what the parser raises for a strange configuration into one message.

    Raises:
        UserError: for every other exception of the parser.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause = root_cause(error)
        text = shorten_parser_message(str(cause) or type(cause).__name__)
        raise UserError(f"the configuration cannot be parsed: {text}") from error


def root_cause(error: BaseException) -> BaseException:
    """The error that the others were raised from."""
    return list(_causes(error))[-1]


UNKNOWN_KEYS = (
    r"Option '([\w.]+)' is not accepted",
    r"Group '([\w.]+)' does not accept (?:nested )?(?:option|key) '([\w.]+)'",
    r"nrecognized arguments: --([\w.-]+)",
    r"Subcommand '\w+' does not accept option '([\w.]+)'",
)
"""Of messages about a key that is not known below the keys that the message names."""


def shorten_parser_message(message: str) -> str:
    """Reduce jsonargparse's message about the arguments to one line.

    Args:
        message: of several lines, which list why each type that would be possible does not fit.
    """
    keys = list(dict.fromkeys(re.findall(r"Parser key \"([\w.]+)\"", message)))
    path = ".".join(keys)
    if foreign := re.search(r"Importing '((\w+)[\w.]*)' is not allowed", message):
        return f"{path} names {foreign.group(1)}, which is not trusted: if you trust it, add --trust {foreign.group(2)}"
    if re.search(r"arguments are required: (?:\w+\.)?model\b", message):
        return NO_MODEL
    for unknown in UNKNOWN_KEYS:
        if found := re.search(unknown, message):
            return explain_unknown_key(".".join([*keys, *found.groups()]))
    wrong = re.search(r"Expected an? <class '(?:\w+\.)*(?!NoneType)(\w+)'>", message)
    value = re.search(r"Got value: (.+?)(?:\. Got value|\n|$)", message)
    if path and wrong:
        return f"{path}: expected {wrong.group(1)}" + (f", got {value.group(1)!r}" if value else "")
    text = " ".join(line.strip(" -") for line in message.splitlines() if line.strip())
    return text if len(text) < 300 else text[:297] + "..."


LIBRARIES = ("delta_iris", "lightning", "torch", "jsonargparse", "lightning_utilities")


def _raised_by_libraries(error: BaseException) -> bool:
    """Whether no code of the user's own is among what was running."""
    traceback, packages = error.__traceback__, set()
    while traceback is not None:
        packages.add(str(traceback.tb_frame.f_globals.get("__name__", "")).partition(".")[0])
        traceback = traceback.tb_next
    return bool(packages & set(LIBRARIES)) and packages <= {*LIBRARIES, *sys.stdlib_module_names}


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _raising_object(error: BaseException) -> Any:
    """The dataclass or data module whose construction raised the error."""
    traceback, owner = error.__traceback__, None
    while traceback is not None:
        function, candidate = traceback.tb_frame.f_code.co_name, traceback.tb_frame.f_locals.get("self")
        is_group = function == "__post_init__" and is_dataclass(candidate)
        if is_group or (function == "__init__" and isinstance(candidate, L.LightningDataModule)):
            owner = candidate
        traceback = traceback.tb_next
    return owner


def _find(owner: Any, config: Any, path: str = "") -> str | None:
    """The key of the group whose values are those of a dataclass."""
    if not isinstance(config, Mapping):
        return None
    names = {field.name for field in fields(owner)}
    if set(config) == names and all(config[name] == getattr(owner, name) for name in names):
        return path.removesuffix(".")
    found = (_find(owner, value, f"{path}{key}.") for key, value in config.items())
    return next((key for key in found if key is not None), None)
