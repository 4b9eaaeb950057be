"""A run's curves as CSV and PNG, and its event files made small enough to pass on.

    python benchmarks/curves.py lightning_logs/crafter/version_0 --out results/crafter
    python benchmarks/curves.py lightning_logs/crafter/version_0 --events lightning_logs/h200

Writes `<out>.csv` (tag, frames collected, seconds since the first event, value) and `<out>.png`; `--events` copies the
event files with all scalars and the last picture of each kind. Needs matplotlib: `pip install -e ".[plots]"`.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_ndarray

RANDOM_RETURN = 1.4
"""Of a uniform player on Crafter (517 episodes): the dotted line."""


class Point(NamedTuple):
    """A value, when it was written, and the step that it was written with."""

    wall: float
    step: int
    value: float


def events(run: Path) -> list[Event]:
    """All events of a run, in the order of time."""
    files = sorted(run.glob("events.out.tfevents.*"))
    if not files:
        raise SystemExit(f"curves: {run} holds no event files")
    found = [event for file in files for event in EventFileLoader(str(file)).Load()]
    return sorted(found, key=lambda event: event.wall_time)


def is_scalar(value: object) -> bool:
    return value.metadata.plugin_data.plugin_name == "scalars"  # type: ignore[attr-defined]


def scalars(found: list[Event]) -> dict[str, list[Point]]:
    """The curves, by tag."""
    curves: dict[str, list[Point]] = {}
    for event in found:
        for value in event.summary.value:
            if is_scalar(value):
                point = Point(event.wall_time, event.step, float(make_ndarray(value.tensor).item()))
                curves.setdefault(value.tag, []).append(point)
    return curves


class Clock:
    """Frames collected at any moment, from the curve whose steps are frames."""

    def __init__(self, curves: dict[str, list[Point]]) -> None:
        self.start = min(point.wall for points in curves.values() for point in points)
        if "train/frames_per_second" not in curves:
            raise SystemExit("curves: the run has collected nothing yet")
        told = curves["train/frames_per_second"]
        self._walls, self._frames = [p.wall for p in told], [p.step for p in told]

    def frames(self, wall: float) -> int:
        """Frames collected by then."""
        at = np.searchsorted(self._walls, wall, side="right")
        return self._frames[at - 1] if at > 0 else 0


def write_csv(path: Path, curves: dict[str, list[Point]], clock: Clock) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["tag", "frames", "seconds", "value"])
        for tag, points in sorted(curves.items()):
            for point in points:
                writer.writerow(
                    [tag, clock.frames(point.wall), round(point.wall - clock.start, 1), f"{point.value:.6g}"]
                )


def draw(path: Path, curves: dict[str, list[Point]], clock: Clock) -> None:
    """Return and achievements against frames, the return and the losses against wall time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(15, 8), constrained_layout=True)

    def plot(axis: pyplot.Axes, tags: dict[str, str], *, hours: bool = False, title: str) -> None:
        for tag, label in tags.items():
            points = curves.get(tag, [])
            x = [(p.wall - clock.start) / 3600 if hours else clock.frames(p.wall) / 1000 for p in points]
            axis.plot(x, [p.value for p in points], label=label, marker="o" if len(points) < 20 else None)
        axis.set(title=title, xlabel="hours" if hours else "thousand frames collected")
        if axis.lines:
            axis.legend(fontsize=8)

    returns = {"train/return": "while collecting", "test/return": "test episodes"}
    for axis, hours in ((axes[0, 0], False), (axes[0, 1], True)):
        plot(axis, returns, hours=hours, title="return of an episode")
        if any(tag.startswith("train_achievements/") for tag in curves):
            axis.axhline(RANDOM_RETURN, color="grey", linestyle=":")
    rates = {tag: points[-1].value for tag, points in curves.items() if tag.startswith("train_achievements/")}
    often = sorted(rates, key=lambda tag: -rates[tag])[:10]
    plot(
        axes[0, 2],
        {tag: tag.split("/")[1].replace("_", " ") for tag in often},
        title="success rates (%), the ten highest",
    )
    labels = {"tokenizer/l2": "training", "held_out/tokenizer_l2": "held out", "held_out/tokenizer_copy_l2": "copying"}
    plot(axes[1, 0], labels, hours=True, title="tokenizer: L2")
    axes[1, 0].set_yscale("log")
    names = {"token_loss": "tokens", "reward_loss": "rewards", "end_loss": "ends"}
    plot(
        axes[1, 1], {f"world_model/{name}": label for name, label in names.items()}, title="world model: losses (nats)"
    )
    axes[1, 1].set_yscale("log")
    names = {"policy_entropy": "entropy (nats)", "critic_loss": "critic's loss", "imagined_return": "imagined return"}
    plot(axes[1, 2], {f"agent/{name}": label for name, label in names.items()}, title="agent")
    figure.savefig(path, dpi=100)


def slim(found: list[Event], folder: Path) -> None:
    """Write all scalars, and the last picture of each kind."""
    last = {value.tag: event for event in found for value in event.summary.value if not is_scalar(value)}
    folder.mkdir(parents=True, exist_ok=True)
    writer = EventFileWriter(str(folder))
    for event in found:
        kept = [value for value in event.summary.value if is_scalar(value) or last[value.tag] is event]
        if kept:
            small = Event(wall_time=event.wall_time, step=event.step)
            small.summary.value.extend(kept)
            writer.add_event(small)
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--out", type=Path, help="of the CSV and the PNG, without their endings")
    parser.add_argument("--events", type=Path, help="folder for the small event file")
    args = parser.parse_args()
    if not (args.out or args.events):
        parser.error("give --out, --events or both")
    found = events(args.run)
    curves = scalars(found)
    if args.out:
        clock = Clock(curves)
        write_csv(args.out.with_name(f"{args.out.name}.csv"), curves, clock)
        draw(args.out.with_name(f"{args.out.name}.png"), curves, clock)
    if args.events:
        slim(found, args.events)


if __name__ == "__main__":
    main()
