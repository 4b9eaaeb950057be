"""Does a run that lasts need more and more memory, files, threads or processes?

    python benchmarks/long_run.py --epochs 2000

Starts `delta-iris fit` with a tiny agent on Catch, whose epochs take a fraction of a second, and looks at its processes
from outside. Prints a table: the mean of each tenth of the run after its first tenth, which is left out because it
imports, allocates and fills caches.

What must grow is listed too: the replay, whose index is held in memory (8 bytes an episode), and the event file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OPTIONS = """
--name long_run --version run --trainer.check_val_every_n_epoch 20 --trainer.callbacks null
--trainer.enable_progress_bar false --data.num_envs 2 --data.num_test_envs 2 --data.val_episodes 2
--model.schedule.collection.frames 40 --model.schedule.collection.first_epoch_frames 400
"""
PHASES = ("tokenizer", "dynamics", "actor_critic")
STEPS = {"steps": 1, "first_epoch_steps": 1, "batch_size": 4}

MIB = 1 << 20


def private(process: str) -> float:
    """The memory that a process shares with no other one, in MiB: what a forked process has changed or added."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def resident(process: str) -> float:
    """The memory of a process that is not of a file, in MiB. What it shares with forked processes counts."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return 0


def children(process: str) -> set[str]:
    """The processes that a process has started."""
    try:
        tasks = list(Path(f"/proc/{process}/task").iterdir())
        return {child for task in tasks for child in (task / "children").read_text().split()}
    except OSError:
        return set()


def sample(process: str, run: Path, temporary: Path) -> dict[str, float]:
    """Look at a run and at the processes that it has started: environments, and one that reads segments."""
    started = children(process)
    checkpoints = sorted(run.glob("checkpoints/epoch-*.ckpt"))
    sizes = [path.stat().st_size for path in (run / "checkpoints").glob("last.ckpt")]
    return {
        "epoch": int(checkpoints[-1].stem.removeprefix("epoch-")) + 1 if checkpoints else 0,
        "memory, MiB": resident(process),
        "memory of its processes, MiB": sum(map(private, started)),
        "open files": len(os.listdir(f"/proc/{process}/fd")),
        "threads": len(os.listdir(f"/proc/{process}/task")),
        "its processes": len(started),
        "checkpoint, KiB": sizes[0] / 1024 if sizes else 0,
        "temporary files": sum(len(files) for _, _, files in os.walk(temporary)),
        "files in the run folder": sum(len(files) for _, _, files in os.walk(run)),
        "replay, MiB": sum(path.stat().st_size for path in run.glob("replay/*/*")) / MIB,
        "event file, MiB": sum(path.stat().st_size for path in run.glob("events*")) / MIB,
    }


def main() -> None:
    """Run and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2000)
    parser.add_argument("--every", type=float, default=3.0, help="seconds between two samples")
    parser.add_argument("--out", type=Path, help="for the samples, a JSON line each")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / "tmp"
        temporary.mkdir()
        command = [sys.executable, "-m", "delta_iris", "fit", "--config", "quickstart.yaml", *OPTIONS.split()]
        for phase in PHASES:
            for key, value in STEPS.items():
                command += [f"--model.schedule.{phase}.{key}", str(value)]
        process = subprocess.Popen(
            [*command, "--trainer.max_epochs", str(arguments.epochs)],
            cwd=folder,
            env=os.environ | {"TMPDIR": str(temporary)},
            stdout=subprocess.DEVNULL,
        )
        run, samples = Path(folder) / "lightning_logs" / "long_run" / "run", []
        started = time.monotonic()
        while process.poll() is None:
            time.sleep(arguments.every)
            try:
                samples.append(sample(str(process.pid), run, temporary))
            except OSError:  # a file was replaced, or the run has ended
                continue
        if process.returncode:
            sys.exit(f"the run ended with status {process.returncode}")
        seconds = time.monotonic() - started
    if arguments.out:
        arguments.out.write_text("".join(json.dumps(each) + "\n" for each in samples))
    print(f"{arguments.epochs} epochs in {seconds:.0f} s, {len(samples)} samples\n")
    last = samples[-1]["epoch"]
    for key in samples[-1]:
        means = []
        for tenth in range(1, 10):
            own = [each[key] for each in samples if tenth * last / 10 <= each["epoch"] < (tenth + 1) * last / 10]
            means.append(statistics.mean(own) if own else float("nan"))
        print(f"{key:<30}" + "".join(f"{mean:>9.1f}" for mean in means))


if __name__ == "__main__":
    main()
