"""Which part of an unknown configuration key is wrong, and what was probably meant."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from functools import cache
from importlib import import_module
from typing import Any, get_args, get_type_hints

import lightning as L

from delta_iris.commands.config_files import GROUPS, load_config, shipped_configs
from delta_iris.training.callbacks import EpisodeStatistics, ImageLogger, RunCheckpoint
from delta_iris.training.datamodule import ReplayDataModule

__all__ = ["did_you_mean", "explain_unknown_key"]

GROUP_CLASSES = {
    "trainer": L.Trainer,
    "data": ReplayDataModule,
    "checkpoint": RunCheckpoint,
    "best_checkpoint": RunCheckpoint,
    "episodes": EpisodeStatistics,
    "images": ImageLogger,
}
"""Classes whose arguments are the keys of top-level groups."""

TOP_LEVEL = (
    *GROUPS,
    *("name", "version", "num_threads", "init_from", "trust", "seed_everything", "ckpt_path"),
    *("config", "print_config", "help"),
)
"""Options and groups of the commands."""


def explain_unknown_key(path: str) -> str:
    """One line for a key that no class has.

    Args:
        path: the key as it was given, from the top: `model.tokeniser.init_args.num_transforms`.

    Returns:
        a line that names the part that is wrong, and the key that is most like it: the part that is no key of any
        class of the package, if it is the only one, and otherwise the last.
    """
    parts = [part for part in path.split(".") if part != "init_args"]
    words = _words()
    if parts[0] not in TOP_LEVEL and parts[0] in words:
        return f"there is no key {parts[0]!r}: did you mean {_home(parts[0]) + '.' + parts[0]!r}?"
    foreign = [index for index, part in enumerate(parts) if part not in words]
    wrong = foreign[0] if len(foreign) == 1 else len(parts) - 1
    owner, key = ".".join(parts[:wrong]), parts[wrong]
    what = f"{owner} has no key {key!r}" if owner else f"there is no key {key!r}"
    if owner in GROUP_CLASSES:
        own = inspect.signature(GROUP_CLASSES[owner]).parameters
        hint = did_you_mean(key, own) or (f": did you mean '{_home(key)}.{key}'?" if key in words else "")
    elif key in words:  # of another class, which may be anywhere
        hint = ""
    else:
        hint = did_you_mean(key, words if owner else TOP_LEVEL)
    return what + (hint or ": see --print_config for all keys")


def _home(key: str) -> str:
    """The group that has a key; those of the model are its classes'."""
    return next((each for each, kind in GROUP_CLASSES.items() if key in inspect.signature(kind).parameters), "model")


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """The end of a message about a word that is not known.

    Args:
        word: as it was given.
        words: those that are known.

    Returns:
        `: did you mean 'x'?`, or nothing where none is similar.
    """
    similar = difflib.get_close_matches(word, words, n=1, cutoff=0.75)
    return f": did you mean {similar[0]!r}?" if similar else ""


@cache
def _words() -> frozenset[str]:
    """All words that keys consist of, in any of the configurations that come with the package."""
    words, kinds = {*TOP_LEVEL}, {*GROUP_CLASSES.values()}
    for path in shipped_configs().glob("*.yaml"):
        kinds |= set(_classes(load_config(path)))
    for kind in kinds:
        words |= set(_arguments(kind))
    return frozenset(words)


def _classes(config: Any) -> Iterator[type]:
    """The classes that a configuration names."""
    if isinstance(config, Mapping):
        if isinstance(path := config.get("class_path"), str):
            module, _, name = path.rpartition(".")
            yield getattr(import_module(module), name)
        for value in config.values():
            yield from _classes(value)


def _arguments(kind: type) -> Iterator[str]:
    """The arguments of a class, and the fields of dataclasses among them."""
    # mypy warns of constructors that subclasses override; this one is only read.
    hints = get_type_hints(kind if is_dataclass(kind) else kind.__init__)  # type: ignore[misc]
    for name in inspect.signature(kind).parameters:
        yield name
        for each in (hints.get(name), *get_args(hints.get(name))):
            if isinstance(each, type) and is_dataclass(each):
                yield from _arguments(each)
