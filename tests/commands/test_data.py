"""Tests of `delta-iris data`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from delta_iris.commands.main import main
from delta_iris.data.replay_reader import ReplayReader
from tests.data.replay_helpers import SHAPE
from tests.data.test_minari_datasets import write_replay

minari = pytest.importorskip("minari")
pytest.importorskip("h5py")


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of two processes, and Minari's folder beside it."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.chdir(tmp_path)
    for rank in range(2):
        write_replay(tmp_path / "run" / "replay" / f"rank_{rank}", [(5 + rank, "terminated", True)])
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"data": {"num_actions": 17}}))
    return tmp_path / "run"


def test_a_run_is_exported_and_imported_again(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "export", str(run_folder), "my/run-v0"])
    output = capsys.readouterr().out
    assert "Written: my/run-v0, 2 episodes of 11 steps, 4×6 frames and 17 actions" in output
    assert "minari.load_dataset('my/run-v0')" in output
    assert [len(episode) for episode in minari.load_dataset("my/run-v0")] == [5, 6]
    main(["data", "import", "my/run-v0", "episodes"])
    output = capsys.readouterr().out
    assert "--data.environment null --data.num_actions 17 --data.frame_size '[4, 6]'" in output
    reader, expected = (ReplayReader(path, SHAPE) for path in (Path("episodes"), run_folder / "replay" / "rank_1"))
    assert np.array_equal(reader.read(1, 0, 6).frames, expected.read(0, 0, 6).frames)


def test_a_replay_alone_needs_the_number_of_actions(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replay = str(run_folder / "replay" / "rank_0")
    with pytest.raises(SystemExit, match="2"):
        main(["data", "export", replay, "one-v0"])
    assert "a replay does not hold the number of actions: give --num_actions" in capsys.readouterr().err
    main(["data", "export", replay, "one-v0", "--num_actions", "17"])
    assert len(minari.load_dataset("one-v0")) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "run", "one-v0", "--key", "image"], "--key is for import"),
        (["import", "one-v0", "episodes", "--num_actions", "3"], "--num_actions is for export"),
        (["import", "one-v0", "episodes"], "there is no Minari dataset one-v0"),
        (["export", "nowhere", "one-v0", "--num_actions", "3"], "nowhere holds no replay"),
        (["copy", "one-v0", "episodes"], "import"),
    ],
)
def test_mistakes_are_one_line(
    run_folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["data", *arguments])
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
