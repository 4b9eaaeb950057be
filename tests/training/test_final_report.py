"""Tests of what a short run ends with: a table of returns and two animations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from delta_iris.training.callbacks import FinalReport
from delta_iris.training.learner import Learner
from delta_iris.training.loop import install_loops
from tests.integration.test_recurrent_system import make_recurrent
from tests.training.catch_helpers import (
    EPISODE_LENGTH,
    FRAME_SIZE,
    make_catch_data,
    make_model_free,
    make_trainer,
)

NEXT = ["first thing to do", "second thing to do"]


def run(folder: Path, system: Learner, report: FinalReport, **options: object) -> None:
    """Train one epoch on Catch."""
    torch.manual_seed(0)
    trainer = make_trainer(
        folder, max_epochs=1, check_val_every_n_epoch=1, log_every_n_steps=1, callbacks=[report], **options
    )
    install_loops(trainer)
    trainer.fit(system, make_catch_data())


def values_of(printed: str) -> dict[str, float]:
    """The rows of the table that was printed."""
    lines = printed.split("return of an episode", 1)[1].splitlines()[1:]
    rows = {}
    for line in lines:
        name, _, value = line.strip().rpartition(" ")
        try:
            rows[name.strip()] = float(value)
        except ValueError:
            break
    return rows


def test_a_run_ends_with_a_table_two_animations_and_what_to_do_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    system = make_recurrent()
    run(tmp_path, system, FinalReport(episodes=2, next_steps=NEXT))
    printed = capsys.readouterr().out
    assert "(trained: mean of 2 test episodes)" in printed
    rows = values_of(printed)
    assert list(rows) == ["random actions", "trained agent", "best possible"]
    assert rows["best possible"] == 6.0
    assert 0 <= rows["random actions"] <= 6
    assert 0 <= rows["trained agent"] <= 6
    for name in ("agent.gif", "imagination.gif"):
        assert f"{tmp_path / name}: " in printed
    assert printed.rstrip().endswith("Next:\n  first thing to do\n  second thing to do")
    height, width = FRAME_SIZE
    with Image.open(tmp_path / "agent.gif") as agent, Image.open(tmp_path / "imagination.gif") as imagination:
        # Frames may be enlarged by a whole factor.
        assert agent.width * height == agent.height * 2 * width
        assert agent.width % (2 * width) == 0
        # Real frames above imagined ones.
        assert imagination.height > imagination.width / 2
        for animation in (agent, imagination):
            assert 1 < getattr(animation, "n_frames", 1) <= EPISODE_LENGTH


def test_a_model_free_run_has_no_imagination(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, make_model_free(), FinalReport())
    printed = capsys.readouterr().out
    assert "trained agent" in printed
    assert (tmp_path / "agent.gif").exists()
    assert not (tmp_path / "imagination.gif").exists()
    assert "imagination.gif" not in printed
    assert "Next:" not in printed


def test_nothing_is_printed_if_no_test_episodes_were_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    trainer = make_trainer(tmp_path, max_epochs=1, check_val_every_n_epoch=9, callbacks=[FinalReport()])
    install_loops(trainer)
    trainer.fit(make_model_free(), make_catch_data())
    assert "return of an episode" not in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.gif"))
