"""Images for TensorBoard: reconstructions and imagined frames beneath the real ones."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from einops import rearrange
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from delta_iris.data.segment import SegmentBatch, to_float
from delta_iris.evaluation.world_model import imagine_open_loop
from delta_iris.world_models.base import WorldModel

__all__ = ["ImageLogger", "imagination_image", "reconstruction_image"]


def _pair_rows(real: Tensor, predicted: Tensor) -> Tensor:
    """Rows of real frames, each above its predicted row: two (B, T, 3, H, W) → (3, 2 · B · H, T · W)."""
    return rearrange([real.float(), predicted.float()], "two b t c h w -> c (b two h) (t w)").clamp(0, 1).cpu()


@torch.no_grad()
def reconstruction_image(world_model: WorldModel[Any], segment: SegmentBatch) -> Tensor:
    """Real frames above their reconstructions, from the second frame on: (3, 2 · B · H, (T − 1) · W)."""
    return _pair_rows(to_float(segment.frames[:, 1:]), world_model.reconstruct(segment))


@torch.no_grad()
def imagination_image(world_model: WorldModel[Any], segment: SegmentBatch, context: int) -> Tensor:
    """Real frames above those imagined from the same start under the same actions: (3, 2 · B · H, T · W).

    Args:
        world_model: imagines.
        segment: B segments of T > `context` steps.
        context: real frames to start from, which are shown in both rows.
    """
    real = to_float(segment.frames)
    imagined = imagine_open_loop(world_model, segment, context)
    return _pair_rows(real, torch.cat([real[:, :context], imagined], 1))


class ImageLogger(L.Callback):
    """Adds both images to TensorBoard at each validation.

    Args:
        segments: number of held-out segments to show.
    """

    def __init__(self, segments: int = 4) -> None:
        self.segments = segments

    def on_validation_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        """Draw the images."""
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not boards or not trainer.is_global_zero or module.held_out_segment is None:
            return
        segment = module.held_out_segment.select(slice(0, self.segments))
        with trainer.precision_plugin.forward_context():
            images = {"reconstruction (real above)": reconstruction_image(module.world_model, segment)}
            if segment.mask.shape[1] > module.context:
                imagined = imagination_image(module.world_model, segment, module.context)
                images["imagination (real above)"] = imagined
        for board in boards:
            for name, image in images.items():
                board.experiment.add_image(f"images/{name}", image, trainer.global_step)
