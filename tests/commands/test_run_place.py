"""Tests of where a run is placed."""

from __future__ import annotations

from pathlib import Path

import pytest
from jsonargparse import Namespace

from delta_iris.commands.run_place import expand_paths


def test_paths_are_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "/data/runs")
    monkeypatch.setenv("HOME", "/home/somebody")
    logger = Namespace(class_path="CSVLogger", init_args=Namespace(save_dir="$PLACE/logs"))
    config = Namespace(
        ckpt_path="~/last.ckpt",
        trainer=Namespace(default_root_dir="$PLACE/a", logger=[logger]),
        data=Namespace(recorded_episodes=Path("~/episodes")),
        episodes=Namespace(path=None),
    )
    expand_paths(config)
    assert config.ckpt_path == "/home/somebody/last.ckpt"
    assert config.trainer.default_root_dir == "/data/runs/a"
    assert config.data.recorded_episodes == Path("/home/somebody/episodes")
    assert logger.init_args.save_dir == "/data/runs/logs"
    assert config.episodes.path is None
