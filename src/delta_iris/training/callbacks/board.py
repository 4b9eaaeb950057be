"""Lets TensorBoard open on what matters: a layout of charts, and hyperparameters with the returns."""

from __future__ import annotations

import json
import os
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from delta_iris.training.callbacks.phases import CollectionResult, PhaseCallback, PhaseResult
from delta_iris.training.phase import Activity
from delta_iris.yaml_files import flatten

__all__ = ["BoardOverview", "board_layout", "flat_hyperparameters"]

Layout = dict[str, dict[str, list[Any]]]
"""Charts by category and title: `["Multiline", patterns of tags]`."""


class BoardOverview(PhaseCallback):
    """Writes the layout of TensorBoard's Custom Scalars tab, and the run's row of its HParams tab.

    Both are written once in a run, when its first activity has ended: logs are kept from there on, so that a resumed
    run has them already, and checkpoints note it. The HParams tab takes its returns from the logged curves, which makes
    them those of the end. That the run has ended is written at its end, and is cut back with all that follows the last
    checkpoint if the run is resumed for more epochs.
    """

    def __init__(self) -> None:
        self._written = False

    def state_dict(self) -> dict[str, Any]:
        """Whether both are written."""
        return {"written": self._written}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what `state_dict` returned."""
        self._written = state_dict["written"]

    def on_phase_end(
        self, trainer: L.Trainer, module: Any, activity: Activity, result: CollectionResult | PhaseResult
    ) -> None:
        """Write both after the first activity."""
        if trainer.state.fn != "fit" or self._written:
            return
        self._written = True
        episodes = result.episodes if isinstance(result, CollectionResult) else []
        # Where no episode has ended yet, there may be achievements.
        achievements = not episodes or any(episode.achievements is not None for episode in episodes)
        metrics = ["test/return", "train/return", "throughput/frames_per_second"]
        if achievements:
            metrics.append("test/crafter_score")
        if module.world_model is not None:
            metrics += [f"held_out/{name}" for name in module.world_model.headlines]
        for logger in _boards(trainer):
            logger.experiment.add_custom_scalars(board_layout(module, achievements))
            experiment, session, _ = hparams(flat_hyperparameters(trainer, module), dict.fromkeys(metrics, 0.0))
            _write(logger, experiment, session)

    def on_fit_end(self, trainer: L.Trainer, module: Any) -> None:
        """Note that the run has ended."""
        loop: Any = trainer.fit_loop
        if loop.interrupted_checkpoint is None:
            for logger in _boards(trainer):
                _write(logger, hparams({}, {})[2])


def board_layout(module: Any, achievements: bool) -> Layout:
    """The charts of the Custom Scalars tab.

    Args:
        module: the learner, whose phases are shown.
        achievements: whether the environment has achievements.
    """
    phases = [phase.name for phase in module.phases]
    layout: Layout = {
        "return": {
            "return": ["Multiline", ["^(train|test)/return$"]],
            "episode length": ["Multiline", ["^(train|test)/length$"]],
        }
    }
    if achievements:
        layout["achievements"] = {
            "Crafter score": ["Multiline", ["^(train|test)/crafter_score$"]],
            "achievements an episode": ["Multiline", ["^(train|test)/achievements_per_episode$"]],
            "success rates, test episodes": ["Multiline", ["^test_achievements/"]],
            "success rates, collected episodes": ["Multiline", ["^train_achievements/"]],
        }
    layout["losses"] = {f"{name}: loss": ["Multiline", [f"^{name}/loss$"]] for name in phases} | {
        "gradient norm": ["Multiline", [f"^({'|'.join(phases)})/gradient_norm$"]],
        "learned from imagination": ["Multiline", [f"^({'|'.join(phases)})/(imagined_return|policy_entropy)$"]],
    }
    if module.world_model is not None:
        layout["world-model health"] = {
            "reconstruction L2, and of copying the last frame": ["Multiline", ["^held_out/(reconstruction|copy)_l2$"]],
            "held-out losses": ["Multiline", [r"^held_out/\w*_loss$"]],
            "open-loop error by imagined steps": ["Multiline", ["^open_loop_l2/"]],
            "rewards and ends": ["Multiline", [r"^held_out/\w*(reward_error_\w+|end_recall)$"]],
            "codebook entropy": ["Multiline", [rf"^(held_out|{'|'.join(phases)})/codebook_entropy$"]],
        }
    layout["speed"] = {
        "frames per second": ["Multiline", ["^throughput/frames_per_second$"]],
        "frames per second of collection": ["Multiline", ["^(train|test)/frames_per_second$"]],
        "milliseconds of a step": ["Multiline", ["^throughput/.*_ms$"]],
    }
    return layout


def flat_hyperparameters(trainer: L.Trainer, module: Any) -> dict[str, bool | int | float | str]:
    """The configuration by flat keys; lists and null as text, because the HParams tab takes plain values only.

    Args:
        trainer: the Trainer.
        module: the learner, with its configuration.
    """
    values = {
        "seed_everything": int(os.environ.get("PL_GLOBAL_SEED", 0)),
        "trainer.precision": str(trainer.precision),
        "trainer.world_size": trainer.world_size,
        "trainer.max_epochs": trainer.max_epochs,
    } | dict(flatten(module.configuration))
    return {
        key: value if isinstance(value, bool | int | float | str) else json.dumps(value, default=str)
        for key, value in values.items()
        if key
    }


def _boards(trainer: L.Trainer) -> list[TensorBoardLogger]:
    if not trainer.is_global_zero:
        return []
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def _write(logger: TensorBoardLogger, *summaries: Any) -> None:
    for summary in summaries:
        logger.experiment._get_file_writer().add_summary(summary)
