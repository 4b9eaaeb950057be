"""Event files of TensorBoard, read as plain tables, with notes on what could not be read."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader  # type: ignore[import-untyped]
from tensorboard.util.tensor_util import make_ndarray  # type: ignore[import-untyped]

from delta_iris.files import open_regular
from delta_iris.legacy import canonical_tag

__all__ = ["EVENT_FILES", "EventLog", "Point", "read_events"]

EVENT_FILES = "events.out.tfevents.*"
"""Names of event files."""


class Point(NamedTuple):
    """A logged scalar.

    Attributes:
        seconds: since the run began. The time between a stop and the resume is left out.
        step: step that it was logged with.
        value: the value.
    """

    seconds: float
    step: int
    value: float


@dataclass
class EventLog:
    """What the event files of a run hold.

    Attributes:
        scalars: points by tag, in the order in which they were logged.
        images: the last image of each tag, encoded as in the file.
        notes: what could not be read, one line each.
    """

    scalars: dict[str, list[Point]] = field(default_factory=dict)
    images: dict[str, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_events(folder: Path) -> EventLog:
    """Read all event files of a run. Tags of version 0.1 get their present names.

    A resumed run has several files. Where a later one logs a tag again, from a step on, it replaces the earlier values.

    Args:
        folder: of the run.

    Raises:
        UserError: if a file cannot be opened.
    """
    log = EventLog()
    files = [(path, list(_load(path, log.notes))) for path in sorted(folder.glob(EVENT_FILES))]
    logged = [(path, events, _span(events)) for path, events in files if any(event.summary.value for event in events)]
    begun = 0.0
    for path, events, (start, stop) in sorted(logged, key=lambda each: each[2]):
        scalars: dict[str, list[Point]] = {}
        for event in events:
            seconds = begun + event.wall_time - start
            for value in event.summary.value:
                _add(value, seconds, event.step, scalars, log.images)
        _append(log, scalars, path)
        begun += stop - start
    return log


def _span(events: list[Any]) -> tuple[float, float]:
    """From when the writer was opened, or the first value, to the last value."""
    return min(event.wall_time for event in events), max(event.wall_time for event in events if event.summary.value)


def _load(path: Path, notes: list[str]) -> Iterator[Any]:
    """The events of a file up to where it is damaged, which is noted."""
    records, rest = _count_records(path)
    loaded = 0
    try:
        for event in EventFileLoader(str(path)).Load():
            loaded += 1
            yield event
    except (DecodeError, MemoryError, OverflowError, ValueError, TypeError):
        pass  # counted below
    if loaded < records:
        notes.append(f"{path} is damaged after {loaded} of {records} records: what comes before is shown")
    elif rest:
        notes.append(f"{path} ends within a record: its {loaded} whole records are shown")


def _count_records(path: Path) -> tuple[int, int]:
    """The whole records of a file and the bytes after them. A record is a length, a checksum, data, and a checksum."""
    records, position = 0, 0
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        while position + 16 <= size:
            file.seek(position)
            (length,) = struct.unpack("<Q", file.read(8))
            if position + 16 + length > size:
                break
            records, position = records + 1, position + 16 + length
    return records, size - position


def _add(value: Any, seconds: float, step: int, scalars: dict[str, list[Point]], images: dict[str, bytes]) -> None:
    plugin, tag = value.metadata.plugin_data.plugin_name, canonical_tag(value.tag)
    # A scalar has no dimensions: what a file says about its size is not believed.
    if plugin == "scalars" and not value.tensor.tensor_shape.dim:
        scalars.setdefault(tag, []).append(Point(seconds, step, float(make_ndarray(value.tensor))))
    elif plugin == "images" and len(value.tensor.string_val) > 2:  # width, height, and the images
        images[tag] = value.tensor.string_val[2]


def _append(log: EventLog, scalars: dict[str, list[Point]], path: Path) -> None:
    """Add a later file's points in place of those that it logs again."""
    replaced = 0
    for tag, points in scalars.items():
        before = log.scalars.setdefault(tag, [])
        first = min(point.step for point in points)
        kept = [point for point in before if point.step < first]
        replaced += len(before) - len(kept)
        log.scalars[tag] = kept + points
    if replaced:
        log.notes.append(f"{path} logs {replaced} values again after a resume: the later ones are shown")
