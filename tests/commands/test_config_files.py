"""Tests of configuration files: how they are found, read, and merged into one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from delta_iris.commands.config_files import (
    LINKED,
    find_config,
    load_config,
    merge_configs,
    prepare_arguments,
    shipped_configs,
)
from delta_iris.errors import UserError
from delta_iris.legacy import upgrade_configuration
from tests.commands.config_helpers import CONFIGS, ROOT, TINY, parse_fit, stack

# A key is always a group or always a value, as in a configuration.
VALUES = st.dictionaries(st.sampled_from(["a", "b"]), st.integers(0, 3), max_size=2)
NESTED: st.SearchStrategy[dict[str, Any]] = st.recursive(
    VALUES,
    lambda inner: st.builds(dict.__or__, VALUES, st.dictionaries(st.sampled_from(["X", "Y"]), inner, max_size=2)),
    max_leaves=8,
)


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return path


# --- finding ---


def test_a_path_is_found_before_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config("crafter.yaml") == CONFIGS / "crafter.yaml"
    assert find_config(str(TINY)) == TINY
    write(tmp_path / "crafter.yaml", {"name": "mine"})
    assert find_config("crafter.yaml").resolve() == tmp_path / "crafter.yaml"


def test_shipped_configurations_are_those_of_the_clone() -> None:
    assert shipped_configs() == CONFIGS


def test_an_unknown_name_lists_the_shipped_names() -> None:
    with pytest.raises(UserError, match=r"there is no configuration nowhere\.yaml") as raised:
        find_config("nowhere.yaml")
    for path in CONFIGS.glob("*.yaml"):
        assert path.name in str(raised.value)


# --- reading ---


def test_an_included_file_is_relative_to_the_file_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    write(tmp_path / "parts" / "deep" / "cnn.yaml", {"base_channels": 4})
    write(tmp_path / "parts" / "module.yaml", {"init_args": {"cnn": "deep/cnn.yaml"}})
    main = write(tmp_path / "main.yaml", {"name": "x", "model": {"init_args": {"tokenizer": "parts/module.yaml"}}})
    tokenizer = {"init_args": {"cnn": {"base_channels": 4}}}
    assert load_config(main) == {"name": "x", "model": {"init_args": {"tokenizer": tokenizer}}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: nowhere.yaml", "nowhere.yaml cannot be read"),
        ("model: {", "main.yaml cannot be read as YAML"),
        ("- a list", "main.yaml is not a configuration: it must be a YAML mapping"),
        ("", "main.yaml is not a configuration: it must be a YAML mapping"),
    ],
)
def test_a_file_that_cannot_be_read_gives_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "main.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as raised:
        load_config(path)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_or_binary_file_gives_one_line(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(bytes(range(256)))
    for path in (tmp_path / "nowhere.yaml", binary):
        with pytest.raises(UserError, match="cannot be read") as raised:
            load_config(path)
        assert "\n" not in str(raised.value)


def test_files_that_include_each_other_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", {"model": "b.yaml"})
    write(tmp_path / "b.yaml", {"init_args": "a.yaml"})
    with pytest.raises(UserError, match=r"a\.yaml"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize("key", LINKED)
def test_a_file_may_not_set_a_key_that_is_taken_from_another(tmp_path: Path, key: str) -> None:
    content: Any = 3
    for part in reversed(key.split(".")):
        content = {part: content}
    path = write(tmp_path / "linked.yaml", content)
    with pytest.raises(UserError) as raised:
        load_config(path)
    assert str(raised.value) == f"{path}: {key} is taken from {LINKED[key]}: set that instead"


def test_a_file_in_the_names_of_version_0_1_is_translated(capsys: pytest.CaptureFixture[str]) -> None:
    path = ROOT / "benchmarks" / "reference" / "91e4ab1" / "transformer.yaml"
    assert load_config(path) == upgrade_configuration(yaml.safe_load(path.read_text()))
    assert f"configuration {path}: translated from the names of version 0.1" in capsys.readouterr().out


# --- merging ---


@given(NESTED, NESTED, NESTED)
def test_merging_is_associative(first: dict[str, Any], second: dict[str, Any], third: dict[str, Any]) -> None:
    left = merge_configs(merge_configs(first, second), third)
    assert left == merge_configs(first, merge_configs(second, third))


@given(NESTED)
def test_merging_with_itself_or_nothing_changes_nothing(config: dict[str, Any]) -> None:
    assert merge_configs(config, config) == config
    assert merge_configs(config, {}) == config
    assert merge_configs({}, config) == config


@given(NESTED, NESTED)
def test_the_configuration_above_wins_and_its_operands_stay_as_they_are(
    below: dict[str, Any], above: dict[str, Any]
) -> None:
    before = yaml.safe_dump([below, above])
    merged = merge_configs(below, above)
    assert merge_configs(merged, above) == merged
    assert merged.keys() == below.keys() | above.keys()
    assert yaml.safe_dump([below, above]) == before


def test_another_class_drops_the_arguments_of_the_class_below() -> None:
    below = {"class_path": "a.A", "init_args": {"size": 1, "dim": 2}, "other": 3}
    same = merge_configs(below, {"class_path": "a.A", "init_args": {"size": 4}})
    assert same == {"class_path": "a.A", "init_args": {"size": 4, "dim": 2}, "other": 3}
    other = merge_configs(below, {"class_path": "b.B", "init_args": {"size": 4}})
    assert other == {"class_path": "b.B", "init_args": {"size": 4}, "other": 3}
    assert merge_configs(below, {"class_path": "b.B"}) == {"class_path": "b.B", "other": 3}
    assert merge_configs(below, {"init_args": {"size": 4}})["init_args"] == {"size": 4, "dim": 2}


# --- the command line ---


def test_all_files_become_one_argument_in_the_place_of_the_last(tmp_path: Path) -> None:
    first = write(tmp_path / "first.yaml", {"name": "x", "data": {"num_envs": 4, "num_workers": 1}})
    second = write(tmp_path / "second.yaml", {"data": {"num_envs": 2}})
    arguments = ["fit", "--config", str(first), "--name", "y", f"--config={second}", "--data.num_envs=8"]
    prepared = prepare_arguments(arguments)
    assert prepared[:3] == ["fit", "--name", "y"]
    assert prepared[3] == "--config"
    assert prepared[5:] == ["--data.num_envs=8"]
    assert yaml.safe_load(prepared[4]) == {"name": "x", "data": {"num_envs": 2, "num_workers": 1}}


def test_a_command_line_without_files_stays_as_it_is() -> None:
    arguments = ["fit", "--name", "x", "--data.num_envs=8"]
    assert prepare_arguments(arguments) == arguments


@pytest.mark.parametrize("names", [["crafter.yaml"], ["crafter_cnn.yaml", "short.yaml"], [str(TINY)]])
def test_the_processes_of_other_ranks_get_the_merged_configuration(names: list[str]) -> None:
    """Lightning starts them with the prepared arguments, which they prepare again."""
    prepared = prepare_arguments(["fit", *(part for name in names for part in ("--config", name)), "--name=x"])
    assert prepare_arguments(prepared) == prepared


def test_the_place_of_a_shipped_configuration_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    prepare_arguments(["fit", "--config", "crafter.yaml"])
    assert capsys.readouterr().out == f"configuration crafter.yaml: {CONFIGS / 'crafter.yaml'}\n"
    prepare_arguments(["fit", "--config", str(TINY)])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("key", LINKED)
@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("equals", [False, True])
def test_an_option_may_not_set_a_key_that_is_taken_from_another(key: str, short: bool, equals: bool) -> None:
    option = f"--{key.replace('init_args.', '') if short else key}"
    with pytest.raises(UserError) as raised:
        prepare_arguments(["fit", "--config", str(TINY), *([f"{option}=3"] if equals else [option, "3"])])
    assert str(raised.value) == f"{option} is taken from {LINKED[key]}: set --{LINKED[key]} instead"


def test_an_option_without_a_file_gives_the_shipped_names() -> None:
    with pytest.raises(UserError, match=r"crafter\.yaml"):
        prepare_arguments(["fit", "--config"])


@pytest.mark.parametrize("equals", [False, True])
@pytest.mark.parametrize(
    ("option", "path"),
    [
        ("--model.schedule.collection.last_epoch", "schedule.collection.last_epoch"),
        ("--model.init_args.schedule.collection.last_epoch", "schedule.collection.last_epoch"),
        ("--model.imagination_recent_frames", "imagination_recent_frames"),
        ("--model.tokenizer.optimizer.lr_decay_steps", "tokenizer.init_args.optimizer.lr_decay_steps"),
    ],
)
def test_an_option_may_set_a_key_to_null(option: str, path: str, equals: bool) -> None:
    null = [f"{option}=null"] if equals else [option, "null"]
    stacked = ["--data.num_envs", "2", *stack("crafter_cnn.yaml", "short.yaml"), *null, "--model.segment_length=30"]
    values = parse_fit(*stacked)
    model: Any = values["model"]["init_args"]
    assert (values["data"]["num_envs"], model["segment_length"]) == (2, 30)
    for key in path.split("."):
        model = model[key]
    assert model is None


@pytest.mark.parametrize(("first", "second", "value"), [("5", "null", None), ("null", "5", 5)])
def test_the_later_option_wins_over_null_and_null_over_the_earlier(first: str, second: str, value: object) -> None:
    options = [
        "--model.schedule.collection.last_epoch",
        first,
        f"--model.init_args.schedule.collection.last_epoch={second}",
    ]
    values = parse_fit(*stack("crafter_cnn.yaml"), *options)
    assert values["model"]["init_args"]["schedule"]["collection"]["last_epoch"] == value


def test_arguments_of_a_class_below_may_be_given_as_on_the_command_line() -> None:
    below = {"model": {"class_path": "a.B", "init_args": {"tokenizer": {"class_path": "c.D", "init_args": {"dim": 1}}}}}
    merged = merge_configs(below, {"model": {"tokenizer": {"dim": 2}, "length": 3}})
    arguments = {"tokenizer": {"class_path": "c.D", "init_args": {"dim": 2}}, "length": 3}
    assert merged == {"model": {"class_path": "a.B", "init_args": arguments}}
    # An empty group changes nothing.
    assert merge_configs(below, {"model": {"tokenizer": {}}}) == below
