"""Helpers to build the modules of a system."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jsonargparse import ArgumentParser
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from delta_iris.errors import UserError
from delta_iris.training.learner import Learner

__all__ = ["argument_of", "at_most_parameters", "build_system", "count_parameters", "format_millions"]


def build_system(configuration: Mapping[str, Any]) -> Learner:
    """Build the untrained system of a configuration, on the CPU.

    Args:
        configuration: with `model`, and `data.frame_size` and `data.num_actions`.

    Raises:
        UserError: if arguments do not fit together.
        argparse.ArgumentError: if a key or the type of a value is wrong.
    """
    data, model = configuration["data"], configuration["model"]
    sizes = {key: data[key] for key in ("frame_size", "num_actions")}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Learner, "model")
    parsed = parser.parse_object({"model": {**model, "init_args": {**model["init_args"], **sizes}}})
    system: Learner = parser.instantiate_classes(parsed).model
    return system


@contextmanager
def at_most_parameters(number: int) -> Iterator[None]:
    """Stop building modules that have more parameters than a file has weights for.

    Args:
        number: of parameter tensors.

    Raises:
        UserError: as soon as there are more.
    """
    left = number

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise UserError(f"the model has more than the {number} weights that its file could hold")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


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
