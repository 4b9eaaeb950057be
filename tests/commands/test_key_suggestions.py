"""Tests of what is suggested for unknown keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from delta_iris.commands.config_files import load_config, shipped_configs
from delta_iris.commands.key_suggestions import TOP_LEVEL, explain_unknown_key
from delta_iris.commands.main import main


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("trainer.max_epoch", "trainer has no key 'max_epoch': did you mean 'max_epochs'?"),
        ("data.num_env", "data has no key 'num_env': did you mean 'num_envs'?"),
        ("data.num-envs", "data has no key 'num-envs': did you mean 'num_envs'?"),
        ("print_cofig", "there is no key 'print_cofig': did you mean 'print_config'?"),
        # The first part that is wrong, not the last one.
        ("model.tokeniser.num_transforms", "model has no key 'tokeniser': did you mean 'tokenizer'?"),
        (
            "model.init_args.schedule.tokeniser.steps",
            "model.schedule has no key 'tokeniser': did you mean 'tokenizer'?",
        ),
        ("model.schedule.tokenizer.step", "model.schedule.tokenizer has no key 'step': did you mean 'steps'?"),
        ("model.init_args.actor_critic.init_args.gama", "model.actor_critic has no key 'gama': did you mean 'gamma'?"),
        ("modle.segment_length", "there is no key 'modle': did you mean 'model'?"),
        ("tokenizer.num_transforms", "there is no key 'tokenizer': did you mean 'model.tokenizer'?"),
        # A key of another group.
        ("max_epochs", "there is no key 'max_epochs': did you mean 'trainer.max_epochs'?"),
        ("trainer.num_envs", "trainer has no key 'num_envs': did you mean 'data.num_envs'?"),
        ("data.nosuch", "data has no key 'nosuch': see --print_config for all keys"),
        ("best_checkpoint.monitr", "best_checkpoint has no key 'monitr': did you mean 'monitor'?"),
        # A key of another class is no misspelt one.
        ("model.tokenizer.gamma", "model.tokenizer has no key 'gamma': see --print_config for all keys"),
        ("model.schedule.steps", "model.schedule has no key 'steps': see --print_config for all keys"),
        # Below a class of the user's own, whose arguments are not known, the parser is right.
        ("model.backbone.widht", "model.backbone has no key 'widht': see --print_config for all keys"),
    ],
)
def test_the_wrong_part_is_named_with_what_is_like_it(path: str, line: str) -> None:
    assert explain_unknown_key(path) == line


def keys(config: Any, path: str = "") -> Iterator[str]:
    """The keys of a configuration, but not what environments, wrappers and loggers are given."""
    for key, value in config.items():
        yield f"{path}{key}"
        if isinstance(value, dict) and key not in ("environment_options", "logger"):
            yield from keys(value, f"{path}{key}.")


@pytest.mark.parametrize("path", sorted(shipped_configs().glob("*.yaml")), ids=lambda path: str(path.name))
def test_every_key_of_the_shipped_configurations_is_known(path: Path) -> None:
    """Otherwise a misspelt key below it would not be found."""
    for key in keys(load_config(path)):
        if not key.endswith("class_path"):
            assert "no key 'nosuch'" in explain_unknown_key(f"{key}.nosuch"), key


def test_the_options_of_the_command_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as status:
        main(["fit", "--config", "quickstart.yaml", "--print_config"])
    assert not status.value.code
    _, _, printed = capsys.readouterr().out.partition("\n#")
    config = yaml.safe_load("#" + printed)
    # Lightning's, which systems do not use.
    assert set(config) - set(TOP_LEVEL) == {"optimizer", "lr_scheduler", "weights_only"}
    assert set(TOP_LEVEL) - set(config) == {"config", "trust", "print_config", "help"}
