"""The `delta-iris` command: LightningCLI with this project's loop, strategy and errors."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning.pytorch.utilities.exceptions import SIGTERMException

from delta_iris.errors import UserError
from delta_iris.pretrained import is_published, load_published
from delta_iris.training.checkpoint import check_weights, load_checkpoint, run_folder
from delta_iris.training.config_checks import check_configuration
from delta_iris.training.datamodule import ReplayDataModule
from delta_iris.training.learner import DeltaIris
from delta_iris.training.loop import CollectTrainLoop, install_loops
from delta_iris.training.schedule import Schedule
from delta_iris.training.strategy import DeltaDDPStrategy

__all__ = ["DeltaIrisCLI", "main"]


UNUSED = {"max_steps": -1, "min_steps": None, "limit_train_batches": 1.0, "overfit_batches": 0.0}
"""Settings of Lightning's Trainer that its own loop would heed and this project's does not, with their defaults."""


class _SaveConfig(SaveConfigCallback):
    """Saves the configuration that a run began with; `test` and `validate` make no run folder."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        # All processes must ask, and the first one answers for all: it may have written before another one looks.
        folder = trainer.log_dir
        if not trainer.strategy.broadcast(folder is not None and (Path(folder) / self.config_filename).exists()):
            super().setup(trainer, pl_module, stage)


class DeltaIrisCLI(LightningCLI):
    """`fit`, `validate` and `test` of a `DeltaIris` on a `ReplayDataModule`, with a `loop` group for the schedule."""

    def __init__(self, args: ArgsType = None) -> None:
        super().__init__(
            DeltaIris,
            ReplayDataModule,
            save_config_callback=_SaveConfig,
            # Several processes come to write it; folders of other runs are refused before.
            save_config_kwargs={"overwrite": True},
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's, but for `predict`: there is nothing to predict from files."""
        return {name: keys for name, keys in LightningCLI.subcommands().items() if name != "predict"}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the schedule, and derive sizes from one another so that none is written twice."""
        parser.add_class_arguments(Schedule, "loop")
        for module in ("tokenizer", "world_model", "agent"):
            parser.link_arguments("data.frame_size", f"model.{module}.init_args.frame_size")
            parser.link_arguments("data.num_actions", f"model.{module}.init_args.num_actions")
        for module in ("tokenizer", "world_model"):
            parser.link_arguments("data.window", f"model.{module}.init_args.window")
        for size in ("tokens_per_frame", "codebook_size"):
            parser.link_arguments(f"model.tokenizer.init_args.{size}", f"model.world_model.init_args.{size}")
        parser.link_arguments("model.agent.init_args.burn_in", "data.burn_in")

    # --- before the classes are made ---

    def _parse_ckpt_path(self) -> None:
        """Lightning would look for hyperparameters in the checkpoint here; ours come from config files alone, and a
        damaged checkpoint deserves a better message than that look would give."""

    def before_instantiate_classes(self) -> None:
        """Settle what depends on the command: where runs live, and how several devices work together."""
        config = self._own
        trainer = config.trainer
        checkpoint = config.get("ckpt_path")
        if checkpoint is not None and is_published(Path(checkpoint)):
            if self.subcommand == "fit":
                raise UserError(
                    f"{checkpoint} is a published agent, without the replay and optimizers that training goes on with: "
                    "it can be tested; to resume, give a run's checkpoint, <run>/checkpoints/last.ckpt"
                )
            self._published = load_published(Path(checkpoint)), Path(checkpoint)
            checkpoint = config.ckpt_path = None
        elif checkpoint is not None:
            self._checkpoint = load_checkpoint(Path(checkpoint))
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
                    f"trainer.{key} {trainer[key]} has no meaning here: an epoch's steps and batches are set by "
                    "loop.<module>.steps and loop.<module>.batch_size, the run's length by trainer.max_epochs"
                )
        if trainer.log_every_n_steps is not None and trainer.log_every_n_steps < 1:
            raise UserError(f"trainer.log_every_n_steps is {trainer.log_every_n_steps}: give 1 or more")
        if self.subcommand != "fit":
            trainer.logger = False
        elif isinstance(trainer.logger, Namespace) and "save_dir" in trainer.logger.init_args:
            _place_run(trainer.logger.init_args, Path(checkpoint) if checkpoint else None)

    @property
    def _own(self) -> Namespace:
        config: Namespace = self.config[self.subcommand]
        return config

    _checkpoint: dict[str, Any] | None = None
    _published: tuple[dict[str, Any], Path] | None = None

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """A Trainer with the custom loops."""
        trainer = super().instantiate_trainer(**kwargs)
        if isinstance(trainer.strategy, DDPStrategy) and not isinstance(trainer.strategy, DeltaDDPStrategy):
            raise UserError(
                "several devices or nodes need trainer.strategy delta_ddp; Lightning's own would reduce the gradients "
                "of all modules at every step: set it, or trainer.devices 1"
            )
        install_loops(trainer, self._get(self.config_init, "loop"))
        return trainer

    # --- before a command runs ---

    def _check(self) -> None:
        model, data = self.model, self.datamodule
        assert isinstance(model, DeltaIris)
        assert isinstance(data, ReplayDataModule)
        model.configuration = {key: self._own[key].as_dict() for key in ("model", "data")}
        model.configuration = _plain(model.configuration)
        check_configuration(model, data, self._get(self.config_init, "loop"), self.trainer.world_size)
        if self._published is not None:
            content, path = self._published
            check_weights(content, model.state_dict(), model.configuration, path)
            model.load_state_dict(content["state_dict"])
            model.frames_trained_on, model.published_in = content["frames_collected"], path
            self._published = None
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
            if isinstance(launcher, _SubprocessScriptLauncher):
                launcher.kill(signal.SIGTERM)
            # Lightning tears down only what ends well; environments left open would complain over the error itself.
            assert self.datamodule is not None
            with contextlib.suppress(Exception):
                self.datamodule.teardown(subcommand)
            raise

    before_fit = before_validate = before_test = _check

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        # Only tensors and plain values are ever loaded.
        return super()._prepare_subcommand_kwargs(subcommand) | {"weights_only": True}


def _place_run(logger: Namespace, checkpoint: Path | None) -> None:
    """Let a resumed run log to its own folder, and a new one to a free one."""
    if checkpoint is not None:
        run = run_folder(checkpoint)
        logger.save_dir, logger.name, logger.version = str(run.parent), "", run.name
    elif logger.get("version") is not None:
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        run = Path(logger.save_dir) / (logger.name or "") / version
        # Other processes of the same run come later and find what the first has made.
        if (run / "replay").exists() and int(os.environ.get("LOCAL_RANK", 0)) == 0:
            raise UserError(
                f"the run folder {run} already holds a run: resume it with --ckpt_path {run}/checkpoints/last.ckpt, or "
                "choose another trainer.logger.init_args.version (null takes the next free one)"
            )


def _plain(value: Any) -> Any:
    """Configuration values as YAML would write them: what `weights_only` loading accepts."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def main(args: ArgsType = None) -> None:
    """Run the command line; a `UserError` becomes one message and exit status 2, an interruption status 130 or 143."""
    # Hints about matters that are settled here: workers read ahead, the loops log by themselves, a softmax over the few
    # sources of a pixel is unrolled.
    for message in (
        ".*does not have many workers.*",
        ".*`isinstance\\(treespec, LeafSpec\\)`.*",
        ".*pin_memory.*",
        "\\s*Online softmax is disabled",
    ):
        warnings.filterwarnings("ignore", message)
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    try:
        cli = DeltaIrisCLI(args)
    except UserError as error:
        print(f"delta-iris: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except SIGTERMException:
        # Lightning would exit with status 0; what waits for the run must not take it for a finished one.
        raise SystemExit(143) from None
    loop = cli.trainer.fit_loop
    if isinstance(loop, CollectTrainLoop) and loop.interrupted_checkpoint is not None:
        raise SystemExit(130)
