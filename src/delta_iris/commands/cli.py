"""The `delta-iris` command: LightningCLI with this project's loop, strategy and messages."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info

from delta_iris.commands.config_errors import (
    explain_instantiation_error,
    parser_errors,
    root_cause,
    shorten_parser_message,
)
from delta_iris.commands.config_files import LINKED, prepare_arguments
from delta_iris.commands.console import quiet_libraries
from delta_iris.commands.run_place import (
    expand_paths,
    find_checkpoint,
    place_new_run,
    place_resumed_run,
    requeued_checkpoint,
)
from delta_iris.commands.tools import TOOLS
from delta_iris.commands.trainer_flags import check_trainer_flags
from delta_iris.commands.trust import TrustOption
from delta_iris.errors import UserError
from delta_iris.pretrained import is_exported, load_exported
from delta_iris.scratch import process_scratch
from delta_iris.training.callbacks import (
    BoardOverview,
    EpisodeStatistics,
    ImageLogger,
    PhaseProgress,
    RunCheckpoint,
    RunSummary,
    Throughput,
)
from delta_iris.training.checkpoint import check_optimizers, check_weights, load_checkpoint
from delta_iris.training.config_checks import check_configuration
from delta_iris.training.datamodule import ReplayDataModule
from delta_iris.training.learner import Learner
from delta_iris.training.lightning_private import SubprocessLauncher
from delta_iris.training.logs import cut_back_logs, keep_csv_rows
from delta_iris.training.loop import CollectTrainLoop, install_loops
from delta_iris.training.run_folder import RunFolder, is_first_process
from delta_iris.training.strategy import DeltaDDPStrategy

__all__ = ["DeltaIrisCLI", "run_trainer"]

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
    "filename": "epoch-{epoch:04d}",
    "auto_insert_metric_name": False,
    "save_on_train_epoch_end": True,
    "save_last": "link",
    # last.ckpt is always the last one, after a resume too.
    "enable_version_counter": False,
}

BEST_DEFAULTS: dict[str, Any] = {
    "filename": "best",
    "monitor": "test/return",
    "mode": "max",
    "auto_insert_metric_name": False,
    "save_on_train_epoch_end": True,
    "enable_version_counter": False,
}

TOOLS_HELP = "other commands: " + "; ".join(f"{name}: {text}" for name, text in TOOLS.items())


class _Parser(LightningArgumentParser):
    """Takes no abbreviated options, nor do those that it makes for classes: `lr` is not `lr_decay_steps`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"allow_abbrev": False})


class DeltaIrisCLI(LightningCLI):
    """`fit`, `validate` and `test` of a system on a `ReplayDataModule`."""

    def __init__(self, args: ArgsType = None) -> None:
        self._run: RunFolder | None = None
        self._accepted = False
        try:
            super().__init__(
                Learner,
                ReplayDataModule,
                subclass_mode_model=True,
                save_config_callback=None,
                parser_class=_Parser,
                parser_kwargs={"epilog": TOOLS_HELP},
                args=args,
            )
        finally:
            if self._run is not None and self._accepted:
                self._run.release()
            elif self._run is not None:
                self._run.discard()

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
            "--version",
            type=int | str | None,
            default=None,
            help="folder of the run in lightning_logs/<name>, or the N of version_N; the next free one where null",
        )
        parser.add_argument(
            "--num_threads",
            type=int | None,
            default=None,
            help="CPU threads that PyTorch computes with; one is fastest for small models. PyTorch decides where null.",
        )
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="exported agent or checkpoint whose weights a new fit starts from. The replay starts empty, the "
            "agent collects the first epoch, and frames are counted from those that it was trained on. A run that is "
            "resumed does not read it again.",
        )
        parser.add_argument("--trust", action=TrustOption)
        # The best first: the checkpoint that runs are resumed from then knows of it.
        parser.add_lightning_class_args(RunCheckpoint, "best_checkpoint")
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(EpisodeStatistics, "episodes")
        parser.add_lightning_class_args(ImageLogger, "images")
        parser.set_defaults(TRAINER_DEFAULTS | {"seed_everything": 0})
        parser.set_defaults({f"checkpoint.{key}": value for key, value in CHECKPOINT_DEFAULTS.items()})
        parser.set_defaults({f"best_checkpoint.{key}": value for key, value in BEST_DEFAULTS.items()})
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
            # Where this is not set, Lightning's launcher shares the cores among the processes and sets threads anew.
            os.environ["OMP_NUM_THREADS"] = str(config.num_threads)
        trainer = config.trainer
        expand_paths(config)
        self._given = deepcopy(config)
        check_trainer_flags(trainer.as_dict())
        if trainer.accelerator == "auto" and not torch.cuda.is_available():
            # Apple's MPS is neither tested nor faster here; it is used only if it is asked for.
            trainer.accelerator = "cpu"
        if trainer.strategy == "auto" and trainer.devices not in ("auto", 1, "1"):
            trainer.strategy = "delta_ddp"
        # A job that is started again must not begin once more from the checkpoint that its command names.
        checkpoint = requeued_checkpoint(config) if self.subcommand == "fit" else None
        checkpoint = checkpoint or find_checkpoint(config)
        if checkpoint is not None and trainer.strategy == "delta_ddp":
            # For the processes that Lightning starts with this command line: a newer one may be there by then.
            sys.argv.append(f"--ckpt_path={checkpoint}")
        config.ckpt_path = None if checkpoint is None else str(checkpoint)
        if checkpoint is not None and is_exported(checkpoint):
            if self.subcommand == "fit":
                raise UserError(
                    f"{checkpoint} is an exported agent, without the replay and optimizers that training needs: it can "
                    "be tested, and --init_from starts a new run with its weights; to resume, give a checkpoint of a "
                    "run, <run>/checkpoints/last.ckpt"
                )
            self._exported = load_exported(checkpoint), checkpoint
            config.ckpt_path = None
        elif checkpoint is not None:
            self._checkpoint = load_checkpoint(checkpoint)
        elif config.init_from is not None and self.subcommand == "fit":
            initial = Path(config.init_from)
            if not initial.exists():
                raise UserError(f"--init_from: there is no exported agent or checkpoint {initial}")
            self._initial = load_exported(initial) if is_exported(initial) else load_checkpoint(initial), initial
        if self.subcommand != "fit":
            trainer.logger = False
        elif trainer.get("fast_dev_run"):
            trainer.default_root_dir = str(process_scratch() / "fast_dev_run")
        elif is_first_process():
            if checkpoint is None:
                self._run = place_new_run(config)
            else:
                assert self._checkpoint is not None
                self._run = place_resumed_run(config, checkpoint, self._checkpoint)

    @property
    def _own(self) -> Namespace:
        config: Namespace = self.config[self.subcommand]
        return config

    _checkpoint: dict[str, Any] | None = None
    _exported: tuple[dict[str, Any], Path] | None = None
    _initial: tuple[dict[str, Any], Path] | None = None

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
        callbacks: list[L.Callback] = [RunSummary(), Throughput(), BoardOverview()]
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
        for callback in trainer.checkpoint_callbacks:
            callback.dirpath = callback.dirpath or str(RunFolder.of(trainer).checkpoints)  # type: ignore[attr-defined]
        return trainer

    # --- before a command runs ---

    def _check(self) -> None:
        model, data = self.model, self.datamodule
        assert self.subcommand is not None
        assert isinstance(model, Learner)
        assert isinstance(data, ReplayDataModule)
        model.configuration = _to_plain({key: self._own[key].as_dict() for key in ("model", "data")})
        if self.subcommand == "fit" and self._checkpoint is not None:
            _check_same_environment(self._checkpoint["configuration"], model.configuration, Path(self._own.ckpt_path))
            # Before other numbers: those that suit these processes would not help a run of another number of them.
            data.check_state(self._checkpoint["ReplayDataModule"], self.trainer.world_size)
        check_configuration(model, data, self.trainer.world_size, self.subcommand, self._checkpoint is not None)
        if self.subcommand != "fit" and self._exported is None and self._checkpoint is None:
            rank_zero_info("No --ckpt_path is given: an untrained agent is tested.")
        if self._exported is not None:
            model.exported_to = self._exported[1]
            _load_weights(model, *self._exported)
            self._exported = None
        if self._initial is not None:
            content, path = self._initial
            _load_weights(model, content, path)
            loop = self.trainer.fit_loop
            assert isinstance(loop, CollectTrainLoop)
            loop.start_from(content["frames_collected"])
            self._initial = None
        if self._checkpoint is not None:
            path = Path(self._own.ckpt_path)
            check_weights(self._checkpoint, model.state_dict(), model.configuration, path)
            if self.subcommand == "fit":
                phases = [phase.name for phase in model.phases]
                check_optimizers(self._checkpoint, phases, model.configuration, path)
                _check_epochs(self._checkpoint, self.trainer.max_epochs, path)
        if self._run is not None:
            if self._checkpoint is not None:
                logs = self._checkpoint["loops"]["fit_loop"]["state_dict"].get("logs")
                if logs is not None:  # earlier versions did not note them
                    cut_back_logs(self._run.path, logs)
                keep_csv_rows(self.trainer)
            saved = self._run.path / "config.yaml"
            if not saved.exists():
                self._given.ckpt_path = None
                self._parser(self.subcommand).save(self._given, saved, skip_none=False)
        self._checkpoint, self._accepted = None, True

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


def _load_weights(model: Learner, content: dict[str, Any], path: Path) -> None:
    check_weights(content, model.state_dict(), model.configuration, path)
    model.load_state_dict(content["state_dict"])
    model.frames_trained_on = content["frames_collected"]


def _raise_parser_error(message: str, ex: Exception | None = None) -> NoReturn:
    raise UserError(shorten_parser_message(message)) from ex


def _check_same_environment(theirs: dict[str, Any], ours: dict[str, Any], path: Path) -> None:
    """Refuse to mix two games in one replay."""
    for key in ("environment", "environment_options", "wrappers", "training_wrappers"):
        there, here = (each.get("data", {}).get(key) for each in (theirs, ours))
        if (there or None) != (here or None):
            raise UserError(
                f"{path} was trained with data.{key} {there}, now it is {here}: a replay holds one game; use the "
                "config.yaml of its run folder, or start a new run without --ckpt_path"
            )


def _check_epochs(checkpoint: dict[str, Any], max_epochs: int | None, path: Path) -> None:
    done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if max_epochs is not None and 0 <= max_epochs < done:
        raise UserError(f"{path} has {done} epochs, and trainer.max_epochs is {max_epochs}: the run is longer already")
    if max_epochs == done:
        rank_zero_info(f"The run has all its {done} epochs: set a larger trainer.max_epochs to go on.")


def _to_plain(value: Any) -> Any:
    """Convert configuration values to what YAML holds and `weights_only` loading accepts."""
    if isinstance(value, dict):
        return {str(key): _to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def run_trainer(args: ArgsType = None) -> int:
    """Run `fit`, `validate` or `test`.

    Args:
        args: of the command line; those of the process where None.

    Returns:
        exit status.

    Raises:
        UserError: if something is wrong that the user can put right.
    """
    quiet_libraries()
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    if args is None:
        # LightningCLI warns if it is given arguments while the process has some.
        sys.argv[1:] = prepare_arguments(sys.argv[1:])
    cli = DeltaIrisCLI(prepare_arguments(list(args)) if isinstance(args, list) else args)
    loop = cli.trainer.fit_loop
    # Lightning's first process would take the status of another one for a failure, and kill everything.
    return loop.exit_status if isinstance(loop, CollectTrainLoop) and is_first_process() else 0
