"""Running `fit` in its own processes, and comparing runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

__all__ = [
    "ROOT",
    "RUN",
    "TINY",
    "assert_equal_runs",
    "checkpoint",
    "command",
    "differences",
    "environment",
    "fit",
    "scalars",
    "share",
    "strike",
    "survivors",
]

ROOT = Path(__file__).parents[3]
TINY = ROOT / "tests" / "tiny.yaml"
RUN = Path("lightning_logs") / "tiny" / "version_0"

CLOCK = ("throughput/", "frames_per_second")
"""What tags of wall-clock time contain."""


def command(*arguments: object, config: object = TINY) -> list[str]:
    """The command line of `fit`."""
    return [sys.executable, "-m", "delta_iris", "fit", "--config", str(config), *map(str, arguments)]


def environment(**variables: str) -> dict[str, str]:
    """This process's environment variables and further ones, in which the tests' classes are found."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])} | variables


def fit(
    *arguments: object, cwd: Path, status: int = 0, variables: dict[str, str] | None = None, config: object = TINY
) -> str:
    """Run `fit` and assert how it ends.

    Args:
        arguments: of the command.
        cwd: its working directory.
        status: that it must end with.
        variables: of its environment, besides this process's.
        config: a configuration.

    Returns:
        its standard output and error together.
    """
    done = subprocess.run(
        command(*arguments, config=config),
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,  # eight processes may share two cores
        start_new_session=True,
        env=environment(**(variables or {})),
    )
    assert done.returncode == status, done.stdout
    assert status < 0 or "Traceback" not in done.stdout, done.stdout
    return done.stdout


def share(processes: int) -> list[object]:
    """Options of a run in which each of the processes gets one environment, one test episode and one segment."""
    keys = [f"data.{name}" for name in ("num_envs", "num_test_envs", "val_episodes", "test_episodes")]
    keys += [f"model.schedule.{phase}.batch_size" for phase in ("tokenizer", "dynamics", "actor_critic")]
    return [part for key in keys for part in (f"--{key}", processes)]


def survivors(marker: str) -> list[Path]:
    """The processes that have a text in their environment variables, as folders of `/proc`."""
    return [each.parent for each in Path("/proc").glob("[0-9]*/environ") if marker.encode() in _read(each)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def strike(activity: str, epoch: int, step: int, name: str, rank: int | None = None) -> list[str]:
    """The options of a run that is struck by a signal; see `Strike`."""
    values = {"activity": activity, "epoch": epoch, "step": step, "name": name, "rank": rank}
    callback = {"class_path": "tests.integration.faults.strike.Strike", "init_args": values}
    return ["--trainer.callbacks", json.dumps([callback])]


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars in TensorBoard's event files that do not depend on how fast the machine is."""
    board = EventAccumulator(str(run), size_guidance={"scalars": 0})
    board.Reload()
    tags = [tag for tag in board.Tags()["scalars"] if not any(part in tag for part in CLOCK)]
    return {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in tags}


def checkpoint(run: Path) -> dict[str, Any]:
    """What `last.ckpt` holds, without paths and the lengths of files with times in them."""
    content: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    del content["callbacks"]
    for key in ("run_folder", "logs"):
        del content["loops"]["fit_loop"]["state_dict"][key]
    return content


def differences(a: Any, b: Any, name: str = "") -> list[str]:
    """Names of the values that differ in a bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{name}: {set(a) ^ set(b)}"]
        return [line for key in a for line in differences(a[key], b[key], f"{name}.{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [line for i, pair in enumerate(zip(a, b, strict=True)) for line in differences(*pair, f"{name}.{i}")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.shape == b.shape and torch.equal(a, b) else [name]
    return [] if a == b else [f"{name}: {a!r} {b!r}"]


def assert_equal_runs(run: Path, expected: Path, names: bool = True) -> None:
    """Compare the last checkpoints, replays and scalars of two runs, to the bit.

    Args:
        run: folder of the one.
        expected: folder of the other.
        names: whether to compare the names of the checkpoints as well.
    """
    assert differences(checkpoint(run), checkpoint(expected)) == []
    replays = [
        {path.relative_to(each): path.read_bytes() for path in each.rglob("*") if path.is_file()}
        for each in (run / "replay", expected / "replay")
    ]
    assert replays[0] == replays[1]
    assert scalars(run) == scalars(expected)
    if names:
        kept = [sorted(path.name for path in (each / "checkpoints").iterdir()) for each in (run, expected)]
        assert kept[0] == kept[1]
