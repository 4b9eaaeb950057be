"""Saving checkpoints so that at every moment a whole one is on the disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from delta_iris.data.disk import is_disk_full, replace_by
from delta_iris.errors import UserError
from delta_iris.training.checkpoint import load_checkpoint

__all__ = ["RunCheckpointIO"]


class RunCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, syncs it, and only then puts it there. Reads with all checks.

    Lightning's own writes to memory first, then to the system's temporary folder, and syncs nothing.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save a checkpoint; see the class.

        Args:
            checkpoint: what to save.
            path: where.
            storage_options: must be None.

        Raises:
            UserError: if the disk is full; the file that was at `path` is still there.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        try:
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            replace_by(path, part)
        except (OSError, RuntimeError) as error:
            part.unlink(missing_ok=True)
            if is_disk_full(error, path.parent):
                raise UserError(
                    f"the disk of {path.parent} is full: {path.name} was not saved: free some space, then resume with "
                    "--ckpt_path last if an earlier checkpoint is there, which is whole"
                ) from error
            raise

    def load_checkpoint(
        self, path: Any, map_location: Callable[..., Any] | None = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Load a checkpoint; see `load_checkpoint`.

        Args:
            path: of the file.
            map_location: not used: checkpoints are mapped into memory.
            weights_only: not used: code is never loaded.

        Raises:
            UserError: if there is none, or it is damaged.
        """
        return load_checkpoint(Path(path))
