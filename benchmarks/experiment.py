"""Runs lists of commands side by side on separate GPUs, for a limited time.

    python benchmarks/experiment.py benchmarks/experiments/real_segments.yaml --logs experiment

The file states the question and the prediction before anything runs:

    question: Does more exploration help at equal frames?
    prediction: + 0.3 at 360,000 frames
    seconds: 1340 # after which a command is sent Ctrl-C, at which a run saves a checkpoint
    runs:
      more: # one command after the other
        - delta-iris fit --config crafter_cnn.yaml --name more --model.actor_critic.entropy_coef 0.02
        - delta-iris test --config lightning_logs/more/version_0/config.yaml --ckpt_path last

Commands that begin after that time run to their end. The GPUs are shared evenly among the runs. What a run prints goes
to LOGS/<run>.log; the statuses of all commands are printed as JSON lines. Ctrl-C stops everything.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import torch
import yaml

GRACE = 120.0
"""Seconds that a command has to end after Ctrl-C, before it is killed."""


def read_experiment(path: Path) -> dict[str, Any]:
    """Read an experiment.

    Args:
        path: of its YAML file.

    Returns:
        its entries.
    """
    experiment = yaml.safe_load(path.read_text())
    wanted = {"question", "prediction", "seconds", "runs"}
    if not isinstance(experiment, dict) or set(experiment) != wanted:
        raise SystemExit(f"{path}: an experiment has the entries {', '.join(sorted(wanted))}, and no others")
    return experiment


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    limited = os.environ.get("CUDA_VISIBLE_DEVICES")
    return limited.split(",") if limited else [str(index) for index in range(torch.cuda.device_count())]


def run_command(command: str, log: Path, gpus: list[str], deadline: float, stop: threading.Event) -> int:
    """Run a command to its end, or to the deadline if it begins before.

    Args:
        command: as in a shell, but no shell runs it.
        log: what it prints is appended to it.
        gpus: which it sees.
        deadline: a time of `time.monotonic`.
        stop: ends it like the deadline.

    Returns:
        its status: negative if it was killed, 127 if it could not be started.
    """
    visible = ",".join(gpus)
    begun = time.monotonic()
    with log.open("a") as output:
        print(f"$ {command}", file=output, flush=True)
        try:
            process = subprocess.Popen(
                shlex.split(command),
                env=os.environ | {"CUDA_VISIBLE_DEVICES": visible},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            print(error, file=output)
            return 127
        while process.poll() is None:
            if stop.wait(0.2) or begun < deadline < time.monotonic():
                break
        else:
            return process.wait()
        process.send_signal(signal.SIGINT)
        try:
            return process.wait(GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return process.wait()


def run_commands(
    name: str, commands: list[str], log: Path, gpus: list[str], deadline: float, stop: threading.Event
) -> None:
    """Run commands one after the other, and print how each ended. One that fails does not keep the next from running.

    Args:
        name: of the run.
        commands: see `run_command`.
        log: see `run_command`.
        gpus: see `run_command`.
        deadline: see `run_command`.
        stop: see `run_command`; no further command begins.
    """
    for command in commands:
        if stop.is_set():
            return
        started = time.monotonic()
        status = run_command(command, log, gpus, deadline, stop)
        seconds = round(time.monotonic() - started, 1)
        print(json.dumps({"run": name, "command": command, "status": status, "seconds": seconds}), flush=True)


def main() -> None:
    """Start all runs, and wait for them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--logs", type=Path, required=True, help="folder for what the runs print")
    parser.add_argument("--runs", nargs="+", help="some of the experiment's runs; all where not given")
    args = parser.parse_args()
    experiment = read_experiment(args.experiment)
    names = args.runs or list(experiment["runs"])
    if unknown := sorted(set(names) - set(experiment["runs"])):
        raise SystemExit(f"{args.experiment} has no runs {', '.join(unknown)}")
    devices = visible_gpus()
    share = len(devices) // len(names)
    if devices and not share:
        raise SystemExit(f"there are {len(devices)} GPUs for {len(names)} runs: choose some with --runs")
    args.logs.mkdir(parents=True, exist_ok=True)
    deadline, stop = time.monotonic() + experiment["seconds"], threading.Event()
    # Handled also in the background of a shell, where Ctrl-C is ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    threads = []
    for number, name in enumerate(names):
        gpus = devices[number * share : (number + 1) * share]
        arguments = (name, experiment["runs"][name], args.logs / f"{name}.log", gpus, deadline, stop)
        threads.append(threading.Thread(target=run_commands, args=arguments))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if stop.is_set():
        raise SystemExit(130)


if __name__ == "__main__":
    main()
