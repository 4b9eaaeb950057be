"""Runs that are stopped at any moment, by a signal or killed, and resumed: they end as one that was never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[3]
TINY = ROOT / "tests" / "tiny.yaml"
RUN = Path("lightning_logs") / "tiny" / "version_0"

CLOCK = ("throughput/", "frames_per_second")
"""What tags of wall-clock time contain."""


def fit(*arguments: object, cwd: Path, status: int = 0) -> str:
    """Run `fit` in `cwd` and assert its exit status; return its standard output and error together."""
    cwd.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "delta_iris", "fit", "--config", str(TINY), *map(str, arguments)],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=180,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )
    assert done.returncode == status, done.stdout
    assert status < 0 or "Traceback" not in done.stdout
    return done.stdout


def strike(activity: str, epoch: int, step: int, name: str) -> list[str]:
    """The options of a run that is struck by a signal."""
    values = {"activity": activity, "epoch": epoch, "step": step, "name": name}
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


def assert_equal_runs(run: Path, expected: Path) -> None:
    """Compare the checkpoints, replays and scalars of two runs, to the bit."""
    assert differences(checkpoint(run), checkpoint(expected)) == []
    replays = [
        {path.relative_to(each): path.read_bytes() for path in each.rglob("*") if path.is_file()}
        for each in (run / "replay", expected / "replay")
    ]
    assert replays[0] == replays[1]
    assert scalars(run) == scalars(expected)
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {"best.ckpt", "epoch-0001.ckpt", "last.ckpt"}


@pytest.fixture(scope="module")
def unstopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unstopped")
    fit(cwd=folder)
    return folder / RUN


SLOW = pytest.mark.slow
MOMENTS = [
    # Epoch 1 collects 100 steps of each environment, epoch 0 250; both have 4 batches of each phase of the world model.
    pytest.param("collect", 1, 37, "SIGTERM"),
    pytest.param("dynamics", 1, 1, "SIGKILL"),
    pytest.param("test", 1, 11, "SIGTERM"),
    pytest.param("save", 1, 0, "SIGKILL"),
    *(
        pytest.param(activity, epoch, step, name, marks=SLOW)
        for activity, epoch, step in (
            ("collect", 0, 100),
            ("collect", 1, 0),
            ("collect", 1, 99),
            ("tokenizer", 0, 0),
            ("tokenizer", 1, 3),
            ("dynamics", 1, 0),
            ("actor_critic", 0, 1),
            ("actor_critic", 1, 0),
            ("test", 0, 30),
            ("test", 1, 0),
            ("save", 0, 0),
        )
        for name in ("SIGTERM", "SIGKILL")
    ),
]


@pytest.mark.parametrize(("activity", "epoch", "step", "name"), MOMENTS)
def test_a_stopped_run_ends_as_one_that_was_never_stopped(
    tmp_path: Path, unstopped: Path, activity: str, epoch: int, step: int, name: str
) -> None:
    killed = name == "SIGKILL"
    output = fit(*strike(activity, epoch, step, name), cwd=tmp_path, status=-signal.SIGKILL if killed else 143)
    run = tmp_path / RUN
    if not killed:
        assert "Resume with:\n  --ckpt_path lightning_logs/tiny/version_0/checkpoints/interrupted.ckpt" in output
    resume = ["--ckpt_path", "last"] if list((run / "checkpoints").glob("*.ckpt")) else ["--version", "again"]
    fit(*resume, cwd=tmp_path)
    assert_equal_runs(run if "last" in resume else run.with_name("again"), unstopped)


def test_nothing_of_a_killed_run_outlives_it_or_the_next_start(tmp_path: Path) -> None:
    """Neither processes nor temporary folders."""
    marker = f"strike-{os.getpid()}"
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "TMPDIR": str(temporary),
        "MARKER": marker,
    }
    command = [sys.executable, "-m", "delta_iris", "fit", "--config", str(TINY)]
    # The pipe ends when the last process that has it open has ended.
    with subprocess.Popen(
        [*command, *strike("tokenizer", 1, 1, "SIGKILL")],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.read()
    assert process.returncode == -signal.SIGKILL
    assert not [each for each in Path("/proc").glob("[0-9]*/environ") if marker.encode() in _read(each)]
    # Its name is too long for sockets, which are in /tmp then.
    places = [folder / f"delta_iris-{os.getuid()}" for folder in (temporary, Path("/tmp"))]
    left = [place / str(process.pid) for place in places]
    assert all(each.is_dir() for each in left)
    resume = [*command, "--ckpt_path", "last", "--trainer.max_epochs", "1"]
    subprocess.run(resume, cwd=tmp_path, env=environment, check=True)
    assert not any(each.exists() for each in left)
    assert list(places[0].iterdir()) == []
    assert not any(each.name.startswith("pymp-") for each in temporary.iterdir())
    assert not (tmp_path / RUN / "scratch").exists()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_max_time_ends_a_run_with_a_checkpoint_that_it_resumes_from(tmp_path: Path, unstopped: Path) -> None:
    output = fit("--trainer.max_time", "00:00:00:00", cwd=tmp_path)
    assert "max_time is over" in output
    fit("--ckpt_path", "last", cwd=tmp_path)
    assert_equal_runs(tmp_path / RUN, unstopped)
