"""Returns that others have published, with their sources."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml

__all__ = ["Level", "PublishedReturn", "PublishedScore", "published"]


@dataclass(frozen=True)
class PublishedReturn:
    """A return at a number of frames; see `published.yaml` for the fields."""

    label: str
    frames: float
    return_: float
    source: str
    interval: float | None = None
    note: str = ""
    url: str = ""


@dataclass(frozen=True)
class Level:
    """A return that does not depend on training."""

    label: str
    return_: float
    source: str
    note: str = ""
    url: str = ""


@dataclass(frozen=True)
class PublishedScore:
    """A Crafter score, in percent."""

    label: str
    score: float
    source: str
    frames: float | None = None
    url: str = ""


@cache
def published() -> tuple[list[PublishedReturn], list[Level], list[PublishedScore]]:
    """Published returns, levels and scores on Crafter."""
    content = yaml.safe_load(files("delta_iris.report").joinpath("published.yaml").read_text(encoding="utf-8"))
    returns, levels = (
        [{("return_" if key == "return" else key): value for key, value in each.items()} for each in content[group]]
        for group in ("points", "levels")
    )
    return (
        [PublishedReturn(**each) for each in returns],
        [Level(**each) for each in levels],
        [PublishedScore(**each) for each in content["scores"]],
    )
