"""Which flags of Lightning's Trainer work, and what replaces those that do not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from delta_iris.errors import UserError

__all__ = ["FLAGS", "Flag", "check_trainer_flags"]

SCHEDULE = "set the steps and batch sizes of each phase in model.init_args.schedule"
OPTIMIZER = "set optimizer.max_grad_norm of each module, whose norm is the 2-norm"


@dataclass(frozen=True)
class Flag:
    """What a flag of the Trainer does here.

    Args:
        text: what it does or, where it is refused, what to use instead.
        accepted: the only values that are accepted; any value where empty.
        choices: whether these are choices, and not only the ways to leave the flag alone.
    """

    text: str
    accepted: tuple[Any, ...] = ()
    choices: bool = False

    @property
    def works(self) -> bool:
        """Whether the flag does something."""
        return self.choices or not self.accepted


FLAGS: dict[str, Flag] = {
    "accelerator": Flag(
        "`cpu` or `gpu`; `auto` takes a GPU where there is one. Apple's `mps` is used where it is named"
    ),
    "accumulate_grad_batches": Flag(
        "set model.init_args.schedule.<phase>.micro_batch_size to save memory, with the results of the whole batch",
        (None, 1),
    ),
    "barebones": Flag("time the phases with benchmarks/throughput.py", (None, False)),
    "benchmark": Flag("lets cuDNN choose its fastest kernels"),
    "callbacks": Flag("adds to the callbacks that every run has"),
    "check_val_every_n_epoch": Flag("epochs between test episodes and held-out measures"),
    "default_root_dir": Flag("the folder that holds the runs, by name; `lightning_logs` where null"),
    "detect_anomaly": Flag("names the operation whose gradient is NaN; set model.init_args.compile to false with it"),
    "deterministic": Flag("refuses kernels of PyTorch that are not deterministic"),
    "devices": Flag("processes, one for each device"),
    "enable_autolog_hparams": Flag("the configuration is in `config.yaml`; there are no other hyperparameters to log"),
    "enable_checkpointing": Flag("set checkpoint.every_n_epochs to save less often", (None, True)),
    "enable_model_summary": Flag("prints Lightning's table of modules"),
    "enable_progress_bar": Flag("false shows no bars and no line for each epoch"),
    "fast_dev_run": Flag("N batches of every phase in one epoch, a few frames, nothing kept: does everything run?"),
    "gradient_clip_algorithm": Flag(OPTIMIZER, (None,)),
    "gradient_clip_val": Flag(OPTIMIZER, (None,)),
    "inference_mode": Flag("of `test` and `validate`"),
    "limit_predict_batches": Flag("there is nothing to predict", (None, 1.0)),
    "limit_test_batches": Flag("of the held-out batches that `test` measures the world model on"),
    "limit_train_batches": Flag(SCHEDULE, (None, 1.0)),
    "limit_val_batches": Flag("of the held-out batches; 0 turns test episodes and held-out measures off"),
    "log_every_n_steps": Flag("steps that logged losses are means of"),
    "logger": Flag("any of Lightning's, several, or none; all write into the run folder"),
    "max_epochs": Flag("length of the run"),
    "max_steps": Flag(f"set trainer.max_epochs; {SCHEDULE}", (None, -1)),
    "max_time": Flag("stops with a checkpoint when it is over, with status 0; a resumed run has this time again"),
    "min_epochs": Flag("epochs before a callback such as EarlyStopping may end the run"),
    "min_steps": Flag("set trainer.min_epochs", (None,)),
    "model_registry": Flag("export an agent and upload that", (None,)),
    "num_nodes": Flag("with a launcher such as torchrun or srun on each node"),
    "num_sanity_val_steps": Flag("there is nothing to check before anything was collected", (None, 0, 2)),
    "overfit_batches": Flag(SCHEDULE, (None, 0, 0.0)),
    "plugins": Flag("of precision or cluster environments; checkpoints are always written by this program"),
    "precision": Flag("use bf16-mixed or 32-true", (None, "bf16-mixed", "32-true", "32", 32, "bf16"), choices=True),
    "profiler": Flag("any of Lightning's"),
    "reload_dataloaders_every_n_epochs": Flag("each phase draws new segments in every epoch already", (None, 0)),
    "strategy": Flag("`auto` or `delta_ddp`, which averages the gradients of one phase's module"),
    "sync_batchnorm": Flag("no module has batch statistics", (None, False)),
    "use_distributed_sampler": Flag("each process draws its own part of a batch already", (None, True)),
    "val_check_interval": Flag(
        "set trainer.check_val_every_n_epoch: an epoch ends with its validation", (None, 1, 1.0)
    ),
}
"""Every flag of the Trainer."""


def check_trainer_flags(trainer: Mapping[str, Any]) -> None:
    """Refuse values of flags that would have no effect or a wrong one.

    Args:
        trainer: flags and their values.

    Raises:
        UserError: names the flag and what replaces it.
    """
    for name, flag in FLAGS.items():
        value = trainer.get(name)
        if flag.accepted and not any(value is each or value == each for each in flag.accepted):
            raise UserError(f"trainer.{name} {value} is not supported here: {flag.text}")
    steps = trainer.get("log_every_n_steps")
    if steps is not None and steps < 1:
        raise UserError(f"trainer.log_every_n_steps is {steps}: it must be 1 or more")
    if str(trainer.get("strategy")).startswith("ddp"):
        raise UserError(
            f"trainer.strategy {trainer['strategy']} would reduce the gradients of all modules at every step: "
            "use auto or delta_ddp"
        )
