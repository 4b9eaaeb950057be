"""How did a run learn? Its curves as CSV and PNG, and its event files small enough to publish.

    python benchmarks/curves.py lightning_logs/crafter/version_0 --out docs/assets/crafter
    python benchmarks/curves.py lightning_logs/crafter/version_0 --events lightning_logs/reference/crafter

Reads runs of this version and of version 0.1, whose tags are translated to the present names.

`--out` writes `<out>.csv` (tag, frames collected, seconds since the first event, value) and `<out>.png`; `--events`
writes an event file with all scalars and the last image of each tag. Prints the paths of what it wrote. Needs
matplotlib: `pip install -e ".[plots]"`.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_ndarray

from delta_iris.legacy import canonical_tag

RANDOM_RETURN = 1.4
"""Return of a random policy on Crafter (517 episodes), drawn as a dotted line."""


class Point(NamedTuple):
    """A logged value.

    Attributes:
        wall: time at which it was written, in seconds.
        step: step that it was written with.
        value: the value.
    """

    wall: float
    step: int
    value: float


Curves = dict[str, list[Point]]
"""Points by tag, in the order of time."""


def read_events(run: Path) -> list[Event]:
    """Read all events of a run in the order of time, with the present names of their tags.

    Args:
        run: folder of the event files.
    """
    files = sorted(run.glob("events.out.tfevents.*"))
    if not files:
        raise SystemExit(f"curves: {run} holds no event files")
    events = [event for file in files for event in EventFileLoader(str(file)).Load()]
    for event in events:
        for value in event.summary.value:
            value.tag = canonical_tag(value.tag)
    return sorted(events, key=lambda event: event.wall_time)


def is_scalar(value: Any) -> bool:
    """Whether a summary value is a scalar."""
    return value.metadata.plugin_data.plugin_name == "scalars"


def read_scalars(events: list[Event]) -> Curves:
    """Take the scalars out of events."""
    curves: Curves = {}
    for event in events:
        for value in event.summary.value:
            if is_scalar(value):
                point = Point(event.wall_time, event.step, float(make_ndarray(value.tensor).item()))
                curves.setdefault(value.tag, []).append(point)
    return curves


class FrameClock:
    """Tells how many frames were collected at a time, from a curve whose steps are frames.

    Args:
        curves: of the run.

    Attributes:
        start: time of the first value.
    """

    def __init__(self, curves: Curves) -> None:
        if "train/frames_per_second" not in curves:
            raise SystemExit("curves: the run has not collected anything yet")
        self.start = min(point.wall for points in curves.values() for point in points)
        points = curves["train/frames_per_second"]
        self._walls, self._frames = [p.wall for p in points], [p.step for p in points]

    def frames(self, wall: float) -> int:
        """Number of frames collected until a time."""
        index = int(np.searchsorted(self._walls, wall, side="right"))
        return self._frames[index - 1] if index > 0 else 0


def write_csv(path: Path, curves: Curves, clock: FrameClock) -> None:
    """Write all curves as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["tag", "frames", "seconds", "value"])
        for tag, points in sorted(curves.items()):
            for point in points:
                writer.writerow(
                    [tag, clock.frames(point.wall), round(point.wall - clock.start, 1), f"{point.value:.6g}"]
                )


def draw(path: Path, curves: Curves, clock: FrameClock) -> None:
    """Plot return, achievements and losses against frames, and return and reconstruction error against time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(15, 8), constrained_layout=True)

    def plot(axis: pyplot.Axes, labels: dict[str, str], *, title: str, hours: bool = False, log: bool = False) -> None:
        for tag, label in labels.items():
            if tag not in curves:
                continue
            points = curves[tag]
            x = [(p.wall - clock.start) / 3600 if hours else clock.frames(p.wall) / 1000 for p in points]
            axis.plot(x, [p.value for p in points], label=label, marker="o" if len(points) < 20 else None)
        axis.set(title=title, xlabel="hours" if hours else "thousand frames collected")
        if axis.lines:
            axis.legend(fontsize=8)
            axis.set_yscale("log" if log else "linear")

    returns = {"train/return": "collected episodes", "test/return": "test episodes"}
    for axis, hours in ((axes[0, 0], False), (axes[0, 1], True)):
        plot(axis, returns, hours=hours, title="episode return")
        if any(tag.startswith("train_achievements/") for tag in curves):
            axis.axhline(RANDOM_RETURN, color="grey", linestyle=":")
    rates = {tag: points[-1].value for tag, points in curves.items() if tag.startswith("train_achievements/")}
    highest = sorted(rates, key=lambda tag: -rates[tag])[:10]
    labels = {tag: tag.split("/")[1].replace("_", " ") for tag in highest}
    plot(axes[0, 2], labels, title="success rates (%), the ten highest")
    labels = {"tokenizer/l2": "training", "held_out/reconstruction_l2": "held out", "held_out/copy_l2": "copy"}
    plot(axes[1, 0], labels, hours=True, log=True, title="reconstruction: L2")
    names = {"token_loss": "tokens", "reward_loss": "rewards", "end_loss": "ends"}
    labels = {f"dynamics/{name}": label for name, label in names.items()}
    plot(axes[1, 1], labels, log=True, title="dynamics: losses (nats)")
    names = {"policy_entropy": "entropy (nats)", "critic_loss": "critic loss", "imagined_return": "imagined return"}
    plot(axes[1, 2], {f"actor_critic/{name}": label for name, label in names.items()}, title="actor-critic")
    figure.savefig(path, dpi=100)


def write_events(events: list[Event], folder: Path) -> None:
    """Write all scalars, and the last image of each tag, to a new event file.

    Args:
        events: of the run.
        folder: to write to.
    """
    last = {value.tag: event for event in events for value in event.summary.value if not is_scalar(value)}
    folder.mkdir(parents=True, exist_ok=True)
    writer = EventFileWriter(str(folder))
    for event in events:
        kept = [value for value in event.summary.value if is_scalar(value) or last[value.tag] is event]
        if kept:
            small = Event(wall_time=event.wall_time, step=event.step)
            small.summary.value.extend(kept)
            writer.add_event(small)
    writer.close()


def main() -> None:
    """Write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--out", type=Path, help="path of the CSV and the PNG, without their suffixes")
    parser.add_argument("--events", type=Path, help="folder for the small event file")
    args = parser.parse_args()
    if not (args.out or args.events):
        parser.error("give --out, --events or both")
    events = read_events(args.run)
    curves = read_scalars(events)
    if args.out:
        clock = FrameClock(curves)
        table, picture = (args.out.with_name(f"{args.out.name}{suffix}") for suffix in (".csv", ".png"))
        table.parent.mkdir(parents=True, exist_ok=True)
        write_csv(table, curves, clock)
        draw(picture, curves, clock)
        print(f"{table}\n{picture}")
    if args.events:
        write_events(events, args.events)
        print(args.events)


if __name__ == "__main__":
    main()
