"""Recorded and made runs for the tests of reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.summary.writer.event_file_writer import EventFileWriter  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "lightning_logs" / "reference" / "crafter_small"
TEST_FILE = ROOT / "results" / "raw" / "crafter-cnn-749k-h100x4-test256.json"

Logged = tuple[str, int, float, float]
"""Tag, step, value and wall time of a scalar."""


def write_events(folder: Path, logged: list[Logged], opened: float, number: int = 0) -> Path:
    """Write an event file as TensorBoard's writers do.

    Args:
        folder: of the run.
        logged: scalars in order.
        opened: wall time at which the writer was opened.
        number: of the file in the folder; a resumed run has several.
    """
    writer = EventFileWriter(str(folder), filename_suffix=f".{number}")
    writer.add_event(Event(wall_time=opened))
    for tag, step, value, wall in logged:
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
        writer.add_event(Event(wall_time=wall, step=step, summary=summary))
    writer.close()
    (path,) = folder.glob(f"events*.{number}")
    # The writer notes its own time first, which in these tests is not when the run began.
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    path.write_bytes(content[16 + length :])
    return path


def epoch(frames: int, value: float, wall: float) -> list[Logged]:
    """What one epoch of a run on a game without achievements logs."""
    return [
        ("train/frames_per_second", frames, 100.0, wall),
        ("train/return", frames, value, wall),
        ("train/episodes", frames, 8.0, wall),
        ("tokenizer/loss", frames // 10, 1 / frames, wall + 2),
        ("throughput/tokenizer_ms", frames // 10, 20.0, wall + 3),
        ("dynamics/loss", frames // 10 + 5, 2.0, wall + 4),
        ("throughput/dynamics_ms", frames // 10 + 5, 30.0, wall + 6),
        ("throughput/frames_per_second", frames // 10 + 5, 40.0, wall + 6),
    ]


def crafter_file(method: str, seed: int, top: float, episodes: int = 40) -> dict[str, Any]:
    """A run in Crafter's format, whose return rises to `top`."""
    return {
        "task": "crafter_reward",
        "method": method,
        "seed": str(seed),
        "xs": [1000 * (i + 1) for i in range(episodes)],
        "reward": [top * i / episodes + 0.1 * seed for i in range(episodes)],
        "length": [100 + i for i in range(episodes)],
        "achievement_collect_wood": [i % 2 for i in range(episodes)],
        "achievement_wake_up": [2 * (i % 4 == 0) for i in range(episodes)],
        "achievement_collect_diamond": [0] * episodes,
    }
