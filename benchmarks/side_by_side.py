"""How fast are runs on one, two and four devices, and how soon do they reach a return?

    python benchmarks/side_by_side.py lightning_logs/one/version_0 lightning_logs/four/version_0

Reads run folders and prints two tables in Markdown, a column or a row for each run:

- Scaling: frames/s of collection, of each phase and of whole epochs (an epoch's frames by the time that each takes), as
  medians after the first epoch, and how many times as fast as in the first run. The rest is evaluation, checkpoints and
  logs.
- Time to return: frames, minutes and device-minutes until the mean return of collected episodes, averaged over
  neighbouring epochs as in the report, first reaches each of `--returns`. The minutes count from the start of logging,
  after imports and before compilation.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from delta_iris.report.returns import training_band
from delta_iris.report.run import Run, read_runs
from delta_iris.report.speed import epoch_times


def num_devices(run: Run) -> int:
    """Processes of a run, each of which has a GPU, or a CPU's cores."""
    devices, nodes = (run.config.get(key, "not known") for key in ("trainer.devices", "trainer.num_nodes"))
    if not (devices.isdigit() and nodes.isdigit()):
        raise SystemExit(
            f"{run.path}: its config.yaml must say how many devices the run had, but trainer.devices is {devices} and "
            f"trainer.num_nodes {nodes}"
        )
    return int(devices) * int(nodes)


def _count(run: Run) -> str:
    number = num_devices(run)
    return f"{number} device{'s' if number > 1 else ''}"


def scaling_table(runs: list[Run]) -> list[list[str]]:
    """A row for each activity of an epoch, a column for each run.

    Args:
        runs: the first is what the others are compared with.
    """
    speeds = []
    for run in runs:
        times = epoch_times(run)
        if times is None:
            raise SystemExit(f"{run.path}: no epoch after the first is complete, so that there is no speed to show")
        speeds.append(times.frames_per_second)
    rows = [["frames/s", *(f"{run.name}, {_count(run)}" for run in runs)]]
    for name in dict.fromkeys(name for speed in speeds for name in speed):
        row = [name.replace("_", " ")]
        for speed in speeds:
            cell = f"{speed[name]:,.0f}" if name in speed else ""
            if cell and name in speeds[0] and speed is not speeds[0]:
                cell += f" (× {speed[name] / speeds[0][name]:.2f})"
            row.append(cell)
        rows.append(row)
    return rows


def time_to_return_table(runs: list[Run], returns: list[float]) -> list[list[str]]:
    """A row for each run, a column for each return.

    Args:
        runs: with collected episodes.
        returns: to reach.
    """
    rows = [["until a return of", *(f"{value:g}" for value in returns)]]
    for run in runs:
        frames, hours = training_band(run, "frames"), training_band(run, "hours")
        if frames is None or hours is None:
            raise SystemExit(f"{run.path}: no episode was collected")
        row = [f"{run.name}, {_count(run)}"]
        for value in returns:
            reached = np.flatnonzero(frames.mean >= value)
            if len(reached) == 0:
                row.append(f"not in {run.frames:,.0f} frames")
                continue
            minutes = 60 * hours.x[reached[0]]
            row.append(
                f"{frames.x[reached[0]]:,.0f} frames, {minutes:.1f} min, {minutes * num_devices(run):.0f} device-min"
            )
        rows.append(row)
    return rows


def print_table(rows: list[list[str]]) -> None:
    """Print rows as Markdown, the first as the header."""
    rows.insert(1, ["---"] * len(rows[0]))
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))


def main() -> None:
    """Read the runs and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders; others are compared with the first")
    parser.add_argument("--returns", nargs="+", type=float, default=[5.0, 7.7, 9.2], help="(default: %(default)s)")
    args = parser.parse_args()
    runs = read_runs(args.runs)
    print_table(scaling_table(runs))
    print()
    print_table(time_to_return_table(runs, args.returns))


if __name__ == "__main__":
    main()
