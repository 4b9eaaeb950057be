"""Test that the tutorial does what it says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.docs.pages import DOCS, FENCE

RUN = Path("lightning_logs") / "tutorial" / "version_0"


def test_the_tutorial_runs_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # The shell finds the command of this environment.
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "",
    }
    variables: dict[str, Any] = {"__name__": "__main__"}
    languages = []
    for match in FENCE.finditer((DOCS / "tutorial.md").read_text()):
        language, *options = match["info"].split()
        if options[:1] == ["no-run"]:
            continue
        languages.append(language)
        if language == "python":
            exec(compile(match["code"], "tutorial.md", "exec"), variables)
        else:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", match["code"]],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=900,
            )
            assert done.returncode == 0, done.stdout
    assert languages == ["bash", "bash", "python", "python", "bash", "bash"]
    # It says: 5 of 6 blocks or more. A random player's mean over 200 episodes is below 1.75 in 99.9 % of all cases.
    assert json.loads((RUN / "evaluation" / "last.json").read_text())["return_mean"] > 4
    # The paddle is green.
    paddles = [_green_column(variables[name]) for name in ("left", "stay", "right")]
    assert paddles == sorted(paddles)
    assert paddles[0] < paddles[2]
    with Image.open("tutorial_dream/dream.gif") as animation:
        assert getattr(animation, "n_frames", 1) == 18
    assert {path.name for path in Path("my_catch_agent").iterdir()} > {"about.json", "config.yaml", "README.md"}
    assert re.search(r"<html", Path("tutorial.html").read_text())


def _green_column(frame: Any) -> float:
    """The mean column of the pixels that are greener than they are red."""
    return float((frame[..., 1] > frame[..., 0].astype(int) + 60).nonzero()[1].mean())
