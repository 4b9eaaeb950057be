"""Tests of reading run folders and run files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from delta_iris.errors import UserError
from delta_iris.report.achievements import achievement_rates
from delta_iris.report.configuration import differences
from delta_iris.report.groups import group_runs
from delta_iris.report.returns import final_return, training_band
from delta_iris.report.run import read_runs
from delta_iris.report.speed import epoch_times
from delta_iris.report.statistics import mean_interval
from tests.report.report_helpers import RECORDED, TEST_FILE, crafter_file, epoch, write_events


def test_values_are_placed_at_the_frames_collected_before() -> None:
    (run,) = read_runs([RECORDED])
    returns = run.series["train/return"]
    assert run.frames == returns.frames[-1] == 29_000
    losses = run.series["tokenizer/loss"]
    assert set(losses.frames) <= set(returns.frames)
    assert (np.diff(losses.frames) >= 0).all()
    assert (np.diff(losses.hours) >= 0).all()
    first = losses.frames == returns.frames[0]
    # The first epoch trains 1,000 steps and logs every tenth.
    assert first.sum() == 100


def test_epochs_are_divided_into_collection_phases_and_rest(tmp_path: Path) -> None:
    for index in range(5):  # an epoch every 10 s: 1 s of collection before, 3 s and 3 s of training, 3 s of rest
        write_events(tmp_path, epoch(100 * (index + 1), 1.0, 100 + 10 * index), 99 + 10 * index, index)
    (whole,) = read_runs([tmp_path])
    logged = [each for index in range(5) for each in epoch(100 * (index + 1), 1.0, 100 + 10 * index)]
    times = epoch_times(read_runs([_made(tmp_path / "one", logged)])[0])
    assert times is not None
    assert times.seconds == pytest.approx({"collection": 1, "tokenizer": 3, "dynamics": 3, "rest": 3})
    assert times.frames_per_second == pytest.approx(
        {"collection": 100, "tokenizer": 100 / 3, "dynamics": 100 / 3, "rest": 100 / 3, "in all": 10}
    )
    # In five files, with a stop between each, the rest is not counted.
    assert whole.hours == pytest.approx(5 * 7 / 3600)


def test_a_run_file_gives_the_numbers_that_it_holds() -> None:
    (run,) = read_runs([TEST_FILE])
    content = json.loads(TEST_FILE.read_text())
    measured = final_return(run)
    assert measured is not None
    assert measured[:2] == pytest.approx((content["return_mean"], content["return_interval"]))
    assert measured[2] == "256 test episodes"
    rates = achievement_rates(run)
    assert rates is not None
    assert rates.percent == pytest.approx(content["achievements"])
    assert rates.score == pytest.approx(content["score"])
    assert run.is_crafter


def test_learning_episodes_are_averaged_in_bins(tmp_path: Path) -> None:
    content = crafter_file("agent", 0, 10.0, episodes=80)
    order = np.random.default_rng(0).permutation(80)
    mixed = {key: [value[i] for i in order] if isinstance(value, list) else value for key, value in content.items()}
    (tmp_path / "a.json").write_text(json.dumps(content))
    (tmp_path / "b.json").write_text(json.dumps([mixed]))
    a, b = (training_band(run, "frames") for run in read_runs([tmp_path / "a.json", tmp_path / "b.json"]))
    assert a is not None
    assert b is not None
    assert np.array_equal(a.mean, b.mean)
    assert (a.mean[-1], a.half[-1]) == pytest.approx(mean_interval(content["reward"][-3:]))


def test_success_rates_count_crafters_budget_only(tmp_path: Path) -> None:
    content = crafter_file("agent", 0, 10.0, episodes=4)
    content["xs"] = [1, 500_000, 1_000_000, 1_000_001]
    content["achievement_wake_up"] = [0, 0, 3, 1]
    (tmp_path / "run.json").write_text(json.dumps(content))
    rates = achievement_rates(read_runs([tmp_path / "run.json"])[0])
    assert rates is not None
    assert rates.percent["wake_up"] == pytest.approx(100 / 3)


def test_a_folders_test_file_is_its_finished_agent(tmp_path: Path) -> None:
    run_folder = _made(tmp_path / "run", epoch(100, 1.0, 100))
    (run_folder / "evaluation").mkdir()
    (run_folder / "evaluation" / "last.json").write_text(TEST_FILE.read_text())
    (run_folder / "run.json").write_text("{}")
    (run_folder / "other.json").write_text("{}")
    (run,) = read_runs([run_folder])
    measured = final_return(run)
    assert measured is not None
    assert measured[0] == pytest.approx(8.5414, abs=1e-4)
    assert [note for note in run.notes if "other.json is not a Crafter run" in note] == run.notes


def test_runs_that_differ_in_their_seed_only_are_one_group(tmp_path: Path) -> None:
    for seed, rate in ((0, 1), (1, 1), (2, 5)):
        folder = _made(tmp_path / f"version_{seed}", epoch(100, 1.0, 100))
        text = f"seed_everything: {seed}\nname: agent\nmodel:\n  init_args:\n    optimizer: {{learning_rate: {rate}}}\n"
        (folder / "config.yaml").write_text(text)
    runs = read_runs(sorted(tmp_path.iterdir()))
    assert [(group.name, len(group.runs)) for group in group_runs(runs)] == [
        ("agent (2 runs)", 2),
        (f"{tmp_path.name}/version_2", 1),
    ]
    everywhere, somewhere = differences(runs)
    assert everywhere == [("seed_everything", ["0", "1", "2"]), ("model.optimizer.learning_rate", ["1", "1", "5"])]
    assert somewhere == []


def test_names_differ(tmp_path: Path) -> None:
    folders = [_made(tmp_path / name / "version_0", epoch(100, 1.0, 100)) for name in ("a", "b")]
    runs = read_runs([*folders, folders[0]])
    assert [run.name for run in runs][1] == "b/version_0"
    assert len({run.name for run in runs}) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "is not JSON"),
        ("[]", "holds no runs"),
        ("{}", "is not a Crafter run"),
        ("[3]", "is not a Crafter run"),
        ({"xs": [1], "reward": ["a"]}, "'reward' is not a list of numbers"),
        ({"xs": [1, 2], "reward": [1]}, "'reward' has 1 entries, and 'xs' has 2"),
        ({"xs": [1], "reward": [1], "achievement_a": [1, 2]}, "'achievement_a' has 2 entries"),
        ({"xs": [], "reward": []}, "is an empty run"),
        ('{"xs": [1], "reward": [NaN]}', "values that are not finite"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=message) as raised:
        read_runs([path])
    assert str(path) in str(raised.value)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_runs([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="is not a run: it holds no event files"):
        read_runs([tmp_path])
    (tmp_path / "version_3").mkdir()
    (tmp_path / "version_3" / "events.out.tfevents.1").touch()
    with pytest.raises(UserError, match=r"name the folder of a run, such as .*version_3"):
        read_runs([tmp_path])
    with pytest.raises(UserError, match="is an empty run"):
        read_runs([tmp_path / "version_3"])


def test_a_configuration_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    folder = _made(tmp_path / "run", epoch(100, 1.0, 100))
    (folder / "config.yaml").write_text("a: !!python/object/apply:os.system [ls]")
    (run,) = read_runs([folder])
    assert run.config == {}
    assert "the configuration is left out" in run.notes[0]


def _made(folder: Path, logged: list[tuple[str, int, float, float]]) -> Path:
    folder.mkdir(parents=True)
    write_events(folder, logged, 99)
    return folder
