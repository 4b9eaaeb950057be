"""Tests that an invalid configuration gives one line which names the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from delta_iris.commands.cli import DeltaIrisCLI
from delta_iris.commands.config_errors import explain_instantiation_error, root_cause, shorten_parser_message
from delta_iris.commands.config_files import merge_configs, prepare_arguments
from delta_iris.errors import UserError
from tests.commands.config_helpers import TINY, InstantiatedCommand, parse_fit, stack


def nest(key: str, value: object) -> Any:
    """A configuration with one dotted key; `value` is any YAML value."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def parser_error(*arguments: object) -> str:
    """What the parser says about arguments stacked on a small configuration."""
    with pytest.raises(UserError) as raised:
        parse_fit(*stack(TINY), *arguments)
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) <= 300
    return message


def instantiation_error(*arguments: object) -> str:
    """What instantiating the classes says about arguments stacked on a small configuration."""
    with pytest.raises(UserError) as raised:
        InstantiatedCommand(["fit", *stack(TINY), *map(str, arguments)])
    message = str(raised.value)
    assert "\n" not in message
    return message


# --- what the parser refuses ---


@pytest.mark.parametrize(
    ("group", "named"),
    [
        ("data", "data"),
        ("trainer", "trainer"),
        ("images", "images"),
        ("checkpoint", "checkpoint"),
        ("model", "model"),
        ("model.tokenizer", "model.tokenizer"),
        ("model.tokenizer.init_args", "model.tokenizer"),
        ("model.schedule", "schedule"),
        ("model.schedule.actor_critic", "schedule.actor_critic"),
        ("model.tokenizer.codebook", "codebook"),
        ("model.actor_critic.optimizer", "optimizer"),
    ],
)
def test_an_unknown_option_is_named_with_its_group(group: str, named: str) -> None:
    message = parser_error(f"--{group}.nosuch=3")
    assert f"{named} has no key 'nosuch': see --print_config for all keys" in message


def test_an_unknown_option_without_a_group_is_named() -> None:
    assert parser_error("--nosuch=3") == "there is no key 'nosuch': see --print_config for all keys"


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("nosuch", "nosuch"),
        ("data.nosuch", "data has no key 'nosuch'"),
        ("trainer.nosuch", "trainer has no key 'nosuch'"),
        ("images.nosuch", "images has no key 'nosuch'"),
        ("model.init_args.nosuch", "has no key 'nosuch'"),
        ("model.init_args.schedule.nosuch", "schedule has no key 'nosuch'"),
        ("model.init_args.schedule.actor_critic.nosuch", "schedule"),
        ("model.init_args.tokenizer.init_args.codebook.nosuch", "codebook has no key 'nosuch'"),
        ("model.init_args.actor_critic.init_args.optimizer.nosuch", "optimizer has no key 'nosuch'"),
        ("model.init_args.tokenizer.init_args.nosuch", "tokenizer has no key 'nosuch'"),
    ],
)
def test_an_unknown_key_of_a_file_is_named_with_its_group(tmp_path: Path, key: str, named: str) -> None:
    above = tmp_path / "above.yaml"
    above.write_text(yaml.safe_dump(nest(key, 3)))
    assert named in parser_error(*stack(above))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--data.num_envs=many", "data.num_envs: expected int"),
        ("--trainer.max_epochs=many", "trainer.max_epochs: expected int"),
        ("--images.segments=many", "images.segments: expected int"),
        ("--model.segment_length=many", "model.segment_length: expected int, got 'many'"),
        ("--model.schedule.actor_critic.steps=many", "model.schedule.actor_critic.steps: expected int, got 'many'"),
        ("--model.tokenizer.dim=wide", "model.tokenizer.dim: expected int, got 'wide'"),
        ("--model.tokenizer={nosuch: 3}", "model.tokenizer"),
        ("--model.tokenizer.codebook.size=many", "model.tokenizer.codebook.size: expected int"),
    ],
)
def test_an_option_of_the_wrong_type_is_named_with_its_type(option: str, message: str) -> None:
    assert message in parser_error(option)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("data.num_envs", "data.num_envs: expected int"),
        ("trainer.max_epochs", "trainer.max_epochs: expected int"),
        ("model.init_args.segment_length", "segment_length: expected int"),
        ("model.init_args.schedule.actor_critic.steps", "schedule.actor_critic.steps: expected int"),
        ("model.init_args.tokenizer.init_args.dim", "dim: expected int"),
        ("model.init_args.tokenizer.init_args.codebook.size", "codebook.size: expected int"),
    ],
)
def test_a_value_of_the_wrong_type_in_a_file_is_named_with_its_type(tmp_path: Path, key: str, message: str) -> None:
    above = tmp_path / "above.yaml"
    above.write_text(yaml.safe_dump(nest(key, "many")))
    assert message in parser_error(*stack(above))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--data.num_env=3", "data has no key 'num_env'"),
        ("--trainer.max_epoch=3", "trainer has no key 'max_epoch'"),
        # Not taken for `lr_decay_steps`.
        ("--model.tokenizer.optimizer.lr=3", "optimizer has no key 'lr'"),
        ("--seed=3", "'seed'"),
    ],
)
def test_an_abbreviated_option_is_refused(option: str, message: str) -> None:
    assert message in parser_error(option)


@pytest.mark.parametrize("arguments", [[], ["--config", "short.yaml"]])
def test_a_missing_model_is_told_with_a_configuration_that_has_one(arguments: list[str]) -> None:
    with pytest.raises(UserError, match=r"what to train .*--config crafter_cnn\.yaml"):
        DeltaIrisCLI(prepare_arguments(["fit", *arguments]))


def test_a_message_of_another_form_becomes_one_line() -> None:
    assert shorten_parser_message("first\n  - second\n\n") == "first second"
    shortened = shorten_parser_message("a word " * 100)
    assert len(shortened) == 300
    assert shortened.endswith("...")


# --- what the classes refuse ---


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "--model.schedule.collection.epsilon=2",
            "model.init_args.schedule.collection.epsilon is 2.0: it must lie between 0 and 1",
        ),
        ("--model.schedule.dynamics.batch_size=0", "model.init_args.schedule.dynamics.batch_size is 0"),
        ("--model.schedule.tokenizer.steps=-1", "model.init_args.schedule.tokenizer.steps is -1"),
        (
            "--model.dynamics.optimizer.min_lr_factor=0.5",
            "model.init_args.dynamics.init_args.optimizer.min_lr_factor is 0.5 and lr_decay_steps is 0",
        ),
        ("--data.num_envs=0", "data.num_envs is 0: it must be 1 or more"),
        ("--data.val_batches=-3", "data.val_batches is -3: it must be 1 or more"),
        ("--model.tokenizer.dim=6", "model.init_args.tokenizer.init_args.dim 6 is not a multiple of twice heads 2"),
        ("--model.tokenizer.tokens_per_frame=5", "model.init_args.tokenizer.init_args.tokens_per_frame 5"),
        ("--model.segment_length=12", "model.init_args.segment_length 12 is too short"),
        ("--model.priority_exponent=-1", "model.init_args.priority_exponent is -1"),
    ],
)
def test_a_value_out_of_range_is_named_by_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert instantiation_error(option).startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_the_group_that_is_named_is_the_one_with_the_invalid_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for phase in ("tokenizer", "dynamics", "actor_critic"):
        message = instantiation_error(f"--model.schedule.{phase}.micro_batch_size=0")
        assert message.startswith(f"model.init_args.schedule.{phase}.micro_batch_size is 0")


def test_valid_values_raise_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = InstantiatedCommand(["fit", *stack(TINY), "--model.segment_length=26"])
    assert command.model.segment_length == 26
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_other_code_is_not_explained() -> None:
    try:
        try:
            raise ValueError("of a library")
        except ValueError as error:
            raise RuntimeError("outer") from error
    except RuntimeError as error:
        outer = error
    assert explain_instantiation_error(outer, merge_configs(nest("data.num_envs", 1), {})) is None
    assert str(root_cause(outer)) == "of a library"


def test_a_user_error_among_the_causes_is_returned_as_it_is() -> None:
    inner = UserError("segment_length is wrong")
    outer = RuntimeError("outer")
    outer.__cause__ = inner
    assert explain_instantiation_error(outer, {}) is inner
