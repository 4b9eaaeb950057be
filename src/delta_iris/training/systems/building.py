"""Helpers to build the modules of a system."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from delta_iris.errors import UserError

__all__ = ["argument_of", "count_parameters", "format_millions"]


@contextmanager
def argument_of(key: str) -> Iterator[None]:
    """Turn a ValueError of a module into a UserError that names the configuration key.

    Args:
        key: path of the module's arguments, to which the ValueError's message adds the argument's name.

    Raises:
        UserError: for every ValueError.
    """
    try:
        yield
    except ValueError as error:
        raise UserError(f"{key}.{error}") from error


def count_parameters(module: nn.Module) -> int:
    """Number of parameters of a module, those of target networks included."""
    return sum(p.numel() for p in module.parameters())


def format_millions(module: nn.Module) -> str:
    """Number of parameters in millions, such as 1.23M."""
    return f"{count_parameters(module) / 1e6:.2f}M"
