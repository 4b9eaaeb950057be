"""Tests of `delta-iris report` as a process, and of what TensorBoard serves of a run and of its resume."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import quote

import pytest

from delta_iris.commands.main import main
from tests.integration.faults.runs import ROOT, environment, fit
from tests.report.report_helpers import RECORDED, TEST_FILE

CATCH = ROOT / "configs" / "quickstart.yaml"
SHORT = [
    *("--trainer.check_val_every_n_epoch", "1", "--trainer.callbacks", "null", "--data.val_episodes", "4"),
    *("--model.schedule.collection.first_epoch_frames", "300", "--data.val_batches", "1"),
    *(each for phase in ("tokenizer", "dynamics") for each in (f"--model.schedule.{phase}.first_epoch_steps", "2")),
    *(each for phase in ("tokenizer", "dynamics", "actor_critic") for each in (f"--model.schedule.{phase}.steps", "2")),
]


def report(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "delta_iris", "report", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment(), text=True, capture_output=True, timeout=180)


def test_runs_become_a_page_and_pictures(tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    cut.mkdir()
    (source,) = RECORDED.iterdir()
    (cut / source.name).write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    done = report(cut, TEST_FILE, "--output", "out/page.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1
    assert "ends within a record" in done.stderr
    page = (tmp_path / "out" / "page.html").read_text()
    assert "ends within a record" in page
    assert "8.54 ± 0.21" in page
    pictures = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert {"page.html", "page-return.png", "page-achievements.png", "page-world_model.png"} <= set(pictures)
    assert all(name == "page.html" or name.startswith("page-") for name in pictures)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        ([str(TEST_FILE), "--output", "page.pdf"], "the report is a page, such as report.html"),
        ([str(TEST_FILE), "--output", "folder.html"], "which is a folder"),
        ([str(TEST_FILE), "--output", "file/page.html"], "cannot be written"),
        ([], "runs"),
    ],
)
def test_bad_input_gives_one_line_and_writes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as raised:
        main(["report", *arguments])
    error = capsys.readouterr().err
    assert raised.value.code == 2
    assert error.startswith("delta-iris: ")
    assert error.count("\n") == 1
    assert message in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.html"]


@pytest.mark.parametrize("library", ["matplotlib.figure", "jinja2"])
def test_a_missing_library_gives_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], library: str
) -> None:
    for name in [name for name in sys.modules if name.startswith("delta_iris.report.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["report", str(TEST_FILE)])
    assert f"{library.split('.')[0]} is missing: install it with" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_tensorboard_opens_on_what_matters_and_after_a_resume_too(tmp_path: Path) -> None:
    fit(*SHORT, "--trainer.max_epochs", 1, cwd=tmp_path, config=CATCH)
    (run,) = (tmp_path / "lightning_logs").glob("*/version_0")
    shutil.copytree(run, tmp_path / "before" / "run")
    fit(*SHORT, "--trainer.max_epochs", 2, "--ckpt_path", run / "checkpoints" / "last.ckpt", cwd=tmp_path, config=CATCH)
    assert len(list(run.glob("events*"))) == 2
    for logs, epochs in ((tmp_path / "before", 1), (tmp_path / "lightning_logs", 2)):
        with tensorboard(logs) as get:
            (name,) = get("/data/runs")
            layout = get("/data/plugin/custom_scalars/layout")["category"]
            # Catch has no achievements.
            assert [each["title"] for each in layout] == ["return", "losses", "world-model health", "speed"]
            titles = [chart["title"] for each in layout for chart in each["chart"]]
            assert len(titles) == len(set(titles))
            for category in layout:
                for chart in category["chart"]:
                    for pattern in chart["multiline"]["tag"]:
                        found = get(f"/data/plugin/custom_scalars/scalars?run={quote(name)}&tag={quote(pattern)}")
                        assert found["regex_valid"]
                        assert found["tag_to_events"], pattern
            groups = get("/data/plugin/hparams/session_groups", QUERY)["sessionGroups"]
            assert len(groups) == 1
            assert [session["name"] for session in groups[0]["sessions"]] == [name]
            assert groups[0]["sessions"][0]["status"] == "STATUS_SUCCESS"
            assert groups[0]["hparams"]["data.environment"] == "delta_iris/Catch-v0"
            logged = get(f"/data/plugin/scalars/scalars?run={quote(name)}&tag=test%2Freturn")
            assert len(logged) == epochs
            values = {each["name"]["tag"]: each["value"] for each in groups[0]["metricValues"]}
            assert values["test/return"] == logged[-1][2]


QUERY = {
    "experimentName": "",
    "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
    "colParams": [],
    "startIndex": 0,
    "sliceSize": 100,
}
"""Asks the HParams tab for all rows."""


@contextmanager
def tensorboard(logs: Path) -> Iterator[Any]:
    """A TensorBoard process over a folder of runs; gives a function that gets or posts JSON."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(logs),
        "--port",
        str(port),
        "--load_fast=false",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def get(path: str, data: Any = None) -> Any:
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(f"http://localhost:{port}{path}", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def loaded() -> bool:
        try:
            return bool(get("/data/plugin/hparams/session_groups", QUERY).get("sessionGroups"))
        except (URLError, ConnectionError):  # not up yet, or nothing read yet
            return False

    try:
        for _ in range(120):
            if loaded():
                break
            assert process.poll() is None
            time.sleep(1)
        yield get
    finally:
        process.terminate()
        process.wait()
