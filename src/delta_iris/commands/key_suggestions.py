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
    "episodes": EpisodeStatistics,
    "images": ImageLogger,
}
"""Classes whose arguments are the keys of top-level groups."""

TOP_LEVEL = (*GROUPS, "name", "version", "num_threads", "init_from", "trust", "seed_everything", "ckpt_path", "config")
"""Options and groups of the commands."""


def explain_unknown_key(path: str) -> str:
    """One line for a key that no class has.

    Args:
        path: the key as it was given, from the top: `model.tokeniser.init_args.num_transforms`.

    Returns:
        a line that names the first part that is no key anywhere (the last part, if all are), and the key that is most
        like it.
    """
    parts = [part for part in path.split(".") if part != "init_args"]
    words = _words()
    wrong = next((index for index, part in enumerate(parts) if part not in words), len(parts) - 1)
    owner, key = ".".join(parts[:wrong]), parts[wrong]
    what = f"{owner} has no key {key!r}" if owner else f"there is no key {key!r}"
    if owner in ("", *GROUP_CLASSES):
        for group, kind in GROUP_CLASSES.items():
            if key in inspect.signature(kind).parameters:
                return f"{what}: did you mean '{group}.{key}'?"
        words = frozenset(inspect.signature(GROUP_CLASSES[owner]).parameters) if owner else frozenset(TOP_LEVEL)
    return what + (did_you_mean(key, words - {key}) or ": see --print_config for those that it has")


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """The end of a message about a word that is not known.

    Args:
        word: as it was given.
        words: those that are known.

    Returns:
        `: did you mean 'x'?`, or nothing where none is similar.
    """
    similar = difflib.get_close_matches(word, words, n=1, cutoff=0.7)
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
    hints = get_type_hints(kind if is_dataclass(kind) else kind.__init__)  # type: ignore[misc]
    for name in inspect.signature(kind).parameters:
        yield name
        for each in (hints.get(name), *get_args(hints.get(name))):
            if isinstance(each, type) and is_dataclass(each):
                yield from _arguments(each)
