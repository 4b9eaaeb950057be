"""Commands that an experiment runs side by side, in real processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "experiment.py"
SLEEP = f"{sys.executable} -c 'import time; print(1, flush=True); time.sleep(60)'"


def start(folder: Path, seconds: float, runs: dict[str, list[str]], *options: str) -> subprocess.Popen[str]:
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump({"question": "?", "prediction": "!", "seconds": seconds, "runs": runs}))
    command = [sys.executable, str(SCRIPT), str(path), "--logs", str(folder / "logs"), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def statuses(output: str) -> dict[str, list[int]]:
    """The statuses of each run's commands."""
    ended: dict[str, list[int]] = {}
    for line in output.splitlines():
        entry: dict[str, Any] = json.loads(line)
        ended.setdefault(entry["run"], []).append(entry["status"])
    return ended


def test_commands_run_one_after_the_other_and_those_under_way_are_stopped_in_time(tmp_path: Path) -> None:
    runs = {"long": [SLEEP, "echo later"], "short": ["false", "no-such-command", "echo 'a word'"], "other": ["false"]}
    process = start(tmp_path, 2, runs, "--runs", "long", "short")
    output, errors = process.communicate(timeout=50)
    assert process.returncode == 0, errors
    assert statuses(output) == {"long": [-signal.SIGINT, 0], "short": [1, 127, 0]}
    assert (tmp_path / "logs" / "long.log").read_text().endswith("$ echo later\nlater\n")
    assert (tmp_path / "logs" / "short.log").read_text().endswith("$ echo 'a word'\na word\n")


def test_stopping_it_stops_what_it_has_started(tmp_path: Path) -> None:
    process = start(tmp_path, 60, {"long": [SLEEP, "echo later"]})
    log = tmp_path / "logs" / "long.log"
    deadline = time.monotonic() + 40
    while not (log.exists() and log.read_text().endswith("1\n")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert statuses(output) == {"long": [-signal.SIGINT]}
    assert "later\n" not in log.read_text()


def test_an_unknown_run_or_entry_is_refused(tmp_path: Path) -> None:
    process = start(tmp_path, 1, {"a": ["true"]}, "--runs", "b")
    assert process.communicate(timeout=50)[1].endswith("experiment.yaml has no runs b\n")
    assert process.returncode == 1
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump({"prediction": "!", "seconds": 1, "runs": {"a": ["true"]}}))
    command = [sys.executable, str(SCRIPT), str(path), "--logs", str(tmp_path / "logs")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert done.stderr.endswith("has the entries prediction, question, runs, seconds, and no others\n")
