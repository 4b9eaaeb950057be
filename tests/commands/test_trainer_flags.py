"""Tests that every flag of Lightning's Trainer either works or is refused with what replaces it."""

from __future__ import annotations

import inspect
import json
from typing import Any

import lightning as L
import pytest

from delta_iris.commands.trainer_flags import FLAGS, check_trainer_flags
from delta_iris.errors import UserError
from tests.commands.config_helpers import TINY, InstantiatedCommand, stack

VALUES: dict[str, Any] = {
    "accelerator": "cpu",
    "accumulate_grad_batches": 2,
    "barebones": True,
    "benchmark": True,
    "callbacks": [{"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "test/return"}}],
    "check_val_every_n_epoch": 3,
    "default_root_dir": "runs",
    "detect_anomaly": True,
    "deterministic": True,
    "devices": 2,
    "enable_autolog_hparams": False,
    "enable_checkpointing": False,
    "enable_model_summary": True,
    "enable_progress_bar": False,
    "fast_dev_run": True,
    "gradient_clip_algorithm": "norm",
    "gradient_clip_val": 1.0,
    "inference_mode": False,
    "limit_predict_batches": 2,
    "limit_test_batches": 1,
    "limit_train_batches": 0.5,
    "limit_val_batches": 1,
    "log_every_n_steps": 7,
    "logger": False,
    "max_epochs": 5,
    "max_steps": 10,
    "max_time": "00:01:00:00",
    "min_epochs": 2,
    "min_steps": 3,
    "model_registry": "mine",
    "num_nodes": 1,
    "num_sanity_val_steps": 3,
    "overfit_batches": 4,
    "plugins": [{"class_path": "lightning.pytorch.plugins.environments.LightningEnvironment"}],
    "precision": "bf16-mixed",
    "profiler": "simple",
    "reload_dataloaders_every_n_epochs": 2,
    "strategy": "delta_ddp",
    "sync_batchnorm": True,
    "use_distributed_sampler": False,
    "val_check_interval": 0.5,
}
"""A value of each flag that does not leave it alone."""


def test_the_table_has_every_flag() -> None:
    flags = set(inspect.signature(L.Trainer.__init__).parameters) - {"self"}
    assert set(FLAGS) == set(VALUES) == flags


@pytest.mark.parametrize("name", [name for name, flag in FLAGS.items() if not flag.works])
def test_a_flag_without_effect_is_refused_with_what_replaces_it(name: str) -> None:
    with pytest.raises(UserError) as raised:
        check_trainer_flags({name: VALUES[name]})
    assert str(raised.value) == f"trainer.{name} {VALUES[name]} is not supported here: {FLAGS[name].text}"


@pytest.mark.parametrize("name", [name for name, flag in FLAGS.items() if flag.works])
def test_the_other_flags_are_taken(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    value = VALUES[name] if isinstance(VALUES[name], str) else json.dumps(VALUES[name])
    runs = ["--trainer.default_root_dir", str(tmp_path_factory.mktemp("runs"))]
    taken = InstantiatedCommand(["fit", *stack(TINY), *runs, f"--trainer.{name}", value])
    assert isinstance(taken.trainer, L.Trainer)


@pytest.mark.parametrize(
    ("name", "value"), [("precision", "16-mixed"), ("precision", "bf16-true"), ("strategy", "ddp")]
)
def test_values_that_cannot_work_are_refused(name: str, value: str) -> None:
    with pytest.raises(UserError, match=rf"trainer\.{name} {value}"):
        check_trainer_flags({name: value})


def test_defaults_are_taken() -> None:
    check_trainer_flags({name: each.default for name, each in inspect.signature(L.Trainer).parameters.items()})
