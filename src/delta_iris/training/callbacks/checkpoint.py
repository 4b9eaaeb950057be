"""When checkpoints are saved, and which are kept."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from delta_iris.data.disk import replace_by
from delta_iris.training.run_folder import RunFolder

__all__ = ["RunCheckpoint"]


class RunCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, saving to the run folder, with a `last.ckpt` that is whole at every moment.

    `last.ckpt` is a second name (a hard link) of the newest checkpoint, which is put in place of the older one in a
    single step. Lightning's is a symbolic link, which dangles from the moment that its target is removed. It is always
    that of the newest epoch that is saved, also where `monitor` chooses which others are kept.

    `interrupted.ckpt`, of a run that was stopped within an epoch, is removed when a later checkpoint is there.
    """

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save what is due."""
        super().on_train_epoch_end(trainer, pl_module)
        if (trainer.current_epoch + 1) % max(1, self._every_n_epochs) == 0:
            self._save_newest(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last epoch of a run that has ended, and nothing of one that was stopped within an epoch."""
        if trainer.fit_loop.interrupted_checkpoint is None:  # type: ignore[attr-defined]
            self._save_newest(trainer)

    def _save_newest(self, trainer: L.Trainer) -> None:
        # Neither where this step was saved just now.
        if self.save_last and not self._should_skip_saving_checkpoint(trainer):
            assert self.dirpath is not None
            self.last_model_path = os.path.join(self.dirpath, self.CHECKPOINT_NAME_LAST + self.FILE_EXTENSION)
            self._save_checkpoint(trainer, self.last_model_path)

    def _save_topk_checkpoint(self, trainer: L.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        # A measure of test episodes is there from the first of them on.
        if self.monitor is None or self.monitor in monitor_candidates:
            super()._save_topk_checkpoint(trainer, monitor_candidates)

    @staticmethod
    def _link_checkpoint(trainer: L.Trainer, filepath: str, linkpath: str) -> None:
        if trainer.is_global_zero and os.path.abspath(filepath) != os.path.abspath(linkpath):
            link = Path(linkpath)
            part = link.with_name(f".{link.name}.part")
            part.unlink(missing_ok=True)
            try:
                os.link(filepath, part)
            except OSError:  # a file system without hard links
                shutil.copyfile(filepath, part)
            replace_by(link, part)
        trainer.strategy.barrier()

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        if trainer.is_global_zero:
            RunFolder.of(trainer).interrupted.unlink(missing_ok=True)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what is known of the checkpoints kept, also where the run folder was moved since.

        Args:
            state_dict: what `state_dict` returned.
        """
        there, here = state_dict.get("dirpath"), self.dirpath
        if there is not None and here is not None:
            state_dict = _move(state_dict, str(there), str(here))
        super().load_state_dict(state_dict)


def _move(value: Any, there: str, here: str) -> Any:
    """Replace a folder by another one in all paths."""
    if isinstance(value, dict):
        return {_move(key, there, here): _move(item, there, here) for key, item in value.items()}
    if isinstance(value, str) and (value == there or value.startswith(there + os.sep)):
        return here + value.removeprefix(there)
    return value
