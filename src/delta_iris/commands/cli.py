"""The `delta-iris` command: LightningCLI with this project's loop, strategy and messages."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from jsonargparse import Namespace
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException

from delta_iris.commands.config_errors import (
    explain_instantiation_error,
    parser_errors,
    root_cause,
    shorten_parser_message,
)
from delta_iris.commands.config_files import LINKED, prepare_arguments
from delta_iris.commands.console import quiet_libraries
from delta_iris.commands.trust import TrustOption
from delta_iris.errors import UserError
from delta_iris.pretrained import is_exported, load_exported
from delta_iris.training.callbacks import EpisodeStatistics, ImageLogger, PhaseProgress, RunSummary, Throughput
from delta_iris.training.checkpoint import check_weights, load_checkpoint, run_folder
from delta_iris.training.config_checks import check_configuration
from delta_iris.training.datamodule import ReplayDataModule
from delta_iris.training.learner import Learner
from delta_iris.training.lightning_private import SubprocessLauncher
from delta_iris.training.loop import CollectTrainLoop, install_loops
from delta_iris.training.strategy import DeltaDDPStrategy

__all__ = ["DeltaIrisCLI", "main"]

UNUSED = {"max_steps": -1, "min_steps": None, "limit_train_batches": 1.0, "overfit_batches": 0.0}
"""Trainer flags that Lightning's loop uses and this project's does not, with their defaults."""

TRAINER_DEFAULTS: dict[str, Any] = {
    "trainer.accelerator": "auto",
    "trainer.devices": 1,
    "trainer.precision": "bf16-mixed",
    "trainer.max_epochs": 1000,
    "trainer.check_val_every_n_epoch": 10,
    "trainer.log_every_n_steps": 50,
    "trainer.enable_model_summary": False,
    "trainer.logger": {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": "lightning_logs"},
    },
}

CHECKPOINT_DEFAULTS: dict[str, Any] = {
    "checkpoint.filename": "epoch-{epoch:04d}",
    "checkpoint.auto_insert_metric_name": False,
    "checkpoint.save_on_train_epoch_end": True,
    "checkpoint.save_last": "link",
    # last.ckpt is always the last one, after a resume too.
    "checkpoint.enable_version_counter": False,
}


class _SaveConfig(SaveConfigCallback):
    """Saves the configuration that a run began with; `test` and `validate` make no run folder."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        # All processes must ask, and the first one decides for all: it may have written before another one checks.
        folder = trainer.log_dir
        if not trainer.strategy.broadcast(folder is not None and (Path(folder) / self.config_filename).exists()):
            super().setup(trainer, pl_module, stage)


class DeltaIrisCLI(LightningCLI):
    """`fit`, `validate` and `test` of a system on a `ReplayDataModule`."""

    def __init__(self, args: ArgsType = None) -> None:
        super().__init__(
            Learner,
            ReplayDataModule,
            subclass_mode_model=True,
            save_config_callback=_SaveConfig,
            # Several processes reach the file; folders of other runs are refused before.
            save_config_kwargs={"overwrite": True},
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's, without `predict`: there is nothing to predict from files."""
        return {name: keys for name, keys in LightningCLI.subcommands().items() if name != "predict"}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run's name and the callbacks that every run has, set defaults, and link sizes."""
        parser.add_argument(
            "--name", type=str, default="delta_iris", help="name of the run, whose folder is in lightning_logs/<name>"
        )
        parser.add_argument(
            "--num_threads",
            type=int | None,
            default=None,
            help="CPU threads that PyTorch computes with; one is fastest for small models. PyTorch decides where null.",
        )
        parser.add_argument("--trust", action=TrustOption)
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(EpisodeStatistics, "episodes")
        parser.add_lightning_class_args(ImageLogger, "images")
        parser.set_defaults(TRAINER_DEFAULTS | CHECKPOINT_DEFAULTS | {"seed_everything": 0})
        for target, source in LINKED.items():
            parser.link_arguments(source, target)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; whatever the parser raises for a strange configuration becomes one message."""
        with parser_errors():
            super().parse_arguments(parser, args)

    # --- before the classes are instantiated ---

    def _set_seed(self) -> None:
        seed = self._own.seed_everything
        if isinstance(seed, int) and not 0 <= seed < 1 << 32:  # true and false lie within
            raise UserError(f"seed_everything is {seed}: it must be between 0 and {(1 << 32) - 1}")
        super()._set_seed()

    def _parse_ckpt_path(self) -> None:
        """Do not read hyperparameters from the checkpoint: ours come from configuration files, and a damaged checkpoint
        deserves a clearer message than Lightning's."""

    def before_instantiate_classes(self) -> None:
        """Decide what depends on the command: the run folder, and how several devices work together."""
        config = self._own
        if config.num_threads is not None:
            if config.num_threads < 1:
                raise UserError(f"num_threads is {config.num_threads}: it must be 1 or more")
            torch.set_num_threads(config.num_threads)
        trainer = config.trainer
        checkpoint = config.get("ckpt_path")
        if checkpoint is not None and is_exported(Path(checkpoint)):
            if self.subcommand == "fit":
                raise UserError(
                    f"{checkpoint} is an exported agent, without the replay and optimizers that training needs: it can "
                    "be tested; to resume, give a checkpoint of a run, <run>/checkpoints/last.ckpt"
                )
            self._exported = load_exported(Path(checkpoint)), Path(checkpoint)
            checkpoint = config.ckpt_path = None
        elif checkpoint is not None:
            self._checkpoint = load_checkpoint(Path(checkpoint))
        if trainer.accelerator == "auto" and not torch.cuda.is_available():
            # Apple's MPS is neither tested nor faster here; it is used only if it is asked for.
            trainer.accelerator = "cpu"
        if trainer.strategy == "auto" and trainer.devices not in ("auto", 1, "1"):
            trainer.strategy = "delta_ddp"
        if str(trainer.strategy).startswith("ddp"):
            raise UserError(
                f"trainer.strategy {trainer.strategy} would reduce the gradients of all modules at every step: "
                "use auto or delta_ddp"
            )
        if str(trainer.precision) in ("16-mixed", "16", "16-true"):
            raise UserError(f"trainer.precision {trainer.precision} is not supported: use bf16-mixed or 32-true")
        for key, default in UNUSED.items():
            if trainer.get(key) not in (None, default):
                raise UserError(
                    f"trainer.{key} {trainer[key]} has no effect here: the steps and batches of an epoch are set by "
                    "model.init_args.schedule, the length of the run by trainer.max_epochs"
                )
        if trainer.log_every_n_steps is not None and trainer.log_every_n_steps < 1:
            raise UserError(f"trainer.log_every_n_steps is {trainer.log_every_n_steps}: it must be 1 or more")
        if self.subcommand != "fit":
            trainer.logger = False
        elif isinstance(trainer.logger, Namespace) and "save_dir" in trainer.logger.init_args:
            _place_run(trainer.logger.init_args, config.name, Path(checkpoint) if checkpoint else None)

    @property
    def _own(self) -> Namespace:
        config: Namespace = self.config[self.subcommand]
        return config

    _checkpoint: dict[str, Any] | None = None
    _exported: tuple[dict[str, Any], Path] | None = None

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser whose errors are one line."""
        parser = super().init_parser(**kwargs)
        parser.error = _raise_parser_error  # type: ignore[method-assign]
        return parser

    def instantiate_classes(self) -> None:
        """Instantiate Trainer, system and data module; an invalid value becomes an error that names its key."""
        try:
            super().instantiate_classes()
        except Exception as error:
            explained = explain_instantiation_error(error, self._own.as_dict())
            if explained is None:
                # jsonargparse's own message lists the whole configuration.
                raise root_cause(error) from None
            raise explained from error

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """A Trainer with the custom loops and the callbacks that every run has."""
        callbacks: list[L.Callback] = [RunSummary(), Throughput()]
        if self._own.trainer.get("enable_progress_bar") is not False:
            callbacks.insert(1, PhaseProgress())
        self.trainer_defaults["callbacks"] = callbacks
        trainer = super().instantiate_trainer(**kwargs)
        if isinstance(trainer.strategy, DDPStrategy) and not isinstance(trainer.strategy, DeltaDDPStrategy):
            raise UserError(
                "several devices or nodes need trainer.strategy delta_ddp; Lightning's own would reduce the gradients "
                "of all modules at every step: set it, or trainer.devices 1"
            )
        install_loops(trainer)
        return trainer

    # --- before a command runs ---

    def _check(self) -> None:
        model, data = self.model, self.datamodule
        assert isinstance(model, Learner)
        assert isinstance(data, ReplayDataModule)
        model.configuration = _to_plain({key: self._own[key].as_dict() for key in ("model", "data")})
        check_configuration(model, data, self.trainer.world_size)
        if self._exported is not None:
            content, path = self._exported
            check_weights(content, model.state_dict(), model.configuration, path)
            model.load_state_dict(content["state_dict"])
            model.frames_trained_on, model.exported_to = content["frames_collected"], path
            self._exported = None
        if self._checkpoint is not None:
            path = Path(self._own.ckpt_path)
            check_weights(self._checkpoint, model.state_dict(), model.configuration, path)
            self._checkpoint = None
            if self.subcommand == "fit" and not (run_folder(path) / "replay").is_dir():
                raise UserError(
                    f"{run_folder(path)} holds no replay, and resuming needs the run folder that the checkpoint lies "
                    "in (<run>/checkpoints/….ckpt): bring it back, or start a new run without --ckpt_path"
                )

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except BaseException:
            # The other processes would wait for this one for ever.
            launcher = self.trainer.strategy.launcher
            if isinstance(launcher, SubprocessLauncher):
                launcher.kill(signal.SIGTERM)
            # Lightning only tears down what ends well. Environments left open would hide the error by their own.
            assert self.datamodule is not None
            with contextlib.suppress(Exception):
                self.datamodule.teardown(subcommand)
            raise

    before_fit = before_validate = before_test = _check

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        # Only tensors and plain values are ever loaded.
        return super()._prepare_subcommand_kwargs(subcommand) | {"weights_only": True}


def _raise_parser_error(message: str, ex: Exception | None = None) -> NoReturn:
    raise UserError(shorten_parser_message(message)) from ex


def _place_run(logger: Namespace, name: str, checkpoint: Path | None) -> None:
    """Let a resumed run log to its own folder, and a new one to a free one."""
    if checkpoint is not None:
        run = run_folder(checkpoint)
        logger.save_dir, logger.name, logger.version = str(run.parent), "", run.name
        return
    logger.name = name
    if logger.get("version") is not None:
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        run = Path(logger.save_dir) / name / version
        # Other processes of the same run come later and find what the first one has made.
        if (run / "replay").exists() and int(os.environ.get("LOCAL_RANK", 0)) == 0:
            raise UserError(
                f"the run folder {run} already holds a run: resume it with --ckpt_path {run}/checkpoints/last.ckpt, or "
                "choose another trainer.logger.init_args.version (null takes the next free one)"
            )


def _to_plain(value: Any) -> Any:
    """Convert configuration values to what YAML holds and `weights_only` loading accepts."""
    if isinstance(value, dict):
        return {str(key): _to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def main(args: ArgsType = None) -> None:
    """Run the command line.

    A `UserError` becomes one message and exit status 2; an interruption gives status 130, SIGTERM 143.

    Args:
        args: of the command line; those of the process where None.
    """
    quiet_libraries()
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    try:
        if args is None:
            # LightningCLI warns if it is given arguments while the process has some.
            sys.argv[1:] = prepare_arguments(sys.argv[1:])
        cli = DeltaIrisCLI(prepare_arguments(list(args)) if isinstance(args, list) else args)
    except UserError as error:
        print(f"delta-iris: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except SIGTERMException:
        # Lightning would exit with status 0, which a caller would take for a finished run.
        raise SystemExit(143) from None
    loop = cli.trainer.fit_loop
    if isinstance(loop, CollectTrainLoop) and loop.interrupted_checkpoint is not None:
        raise SystemExit(130)
