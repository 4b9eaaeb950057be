"""Tests that a run learns from recorded episodes without any environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from delta_iris.commands.dream import dream
from delta_iris.data.replay import Replay
from delta_iris.data.replay_reader import ReplayReader
from delta_iris.errors import UserError
from tests.integration.faults.runs import RUN, fit, scalars
from tests.integration.test_cli import run

LENGTHS = (40, 30)
NONE = ("--data.environment", "null", "--model.schedule.collection.last_epoch", 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs on a replay of two episodes, the second of which was stopped and resumed."""
    folder = tmp_path_factory.mktemp("recorded")
    replay, generator = Replay(folder / "episodes", (64, 64, 3)), np.random.default_rng(0)
    frames = generator.integers(0, 256, (41, 64, 64, 3), dtype=np.uint8)
    for length in LENGTHS:
        for t in range(length):
            last = t == length - 1
            replay.append(0, frames[t], t % 17, 0.5, last, False, frames[t + 1] if last else None)
    replay.close()
    recorded = (*NONE, "--data.recorded_episodes", "episodes")
    output = fit(*recorded, "--trainer.max_epochs", 1, cwd=folder)
    assert "recordings   2 episodes of episodes" in output
    assert "nothing is collected or tested" in output
    output = fit(*recorded, "--ckpt_path", "last", "--trainer.max_epochs", 2, cwd=folder)
    assert "Done: 2 epochs, 0 frames" in output
    return folder


def test_the_recorded_episodes_are_the_replay(folder: Path) -> None:
    mine, theirs = (
        ReplayReader(path, (64, 64, 3)) for path in (folder / RUN / "replay" / "rank_0", folder / "episodes")
    )
    assert [mine.length(i) for i in range(mine.num_episodes)] == list(LENGTHS)
    for i, length in enumerate(LENGTHS):
        pairs: zip[tuple[Any, Any]] = zip(mine.read(i, 0, length), theirs.read(i, 0, length), strict=True)
        assert all(np.array_equal(one, other) for one, other in pairs)
        final, expected = mine.final_frame(i), theirs.final_frame(i)
        assert final is not None
        assert expected is not None
        assert np.array_equal(final, expected)


def test_all_phases_train_and_nothing_is_tested(folder: Path) -> None:
    tags = scalars(folder / RUN)
    assert {tag.partition("/")[0] for tag in tags} >= {"tokenizer", "dynamics", "actor_critic"}
    assert not [tag for tag in tags if tag.startswith(("test/", "val/"))]
    output = run(
        *("test", "--config", RUN / "config.yaml", "--ckpt_path", RUN / "checkpoints" / "last.ckpt"),
        cwd=folder,
        status=2,
    )
    assert "data.environment is null, so that there is no game to test an agent in" in output


def test_the_world_model_dreams_of_the_recorded_episodes(folder: Path, tmp_path: Path) -> None:
    last = folder / RUN / "checkpoints" / "last.ckpt"
    dream(last, tmp_path / "dream", folder / "episodes", episode=1, steps=20)
    assert (tmp_path / "dream" / "dream.png").stat().st_size > 0
    with pytest.raises(UserError, match="was trained without an environment: there is no game for it to play"):
        dream(last, tmp_path / "dream")


def test_a_run_without_environment_and_episodes_is_refused(tmp_path: Path) -> None:
    output = fit("--data.environment", "null", cwd=tmp_path, status=2)
    assert "data.environment is null, so that nothing can be collected: set data.recorded_episodes" in output
