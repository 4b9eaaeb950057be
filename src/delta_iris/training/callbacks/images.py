"""Pictures for TensorBoard: how well the tokenizer sees and the world model dreams."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from einops import rearrange
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from delta_iris.data.segment import Window, to_float
from delta_iris.world_models.tokens.token_world_model import Imagination

__all__ = ["Pictures", "imagined_picture", "reconstruction_picture"]


def _rows(real: Tensor, made: Tensor) -> Tensor:
    """Pairs of rows, real over made, (3, 2·B·H, T·W), from two (B, T, 3, H, W)."""
    return rearrange([real.float(), made.float()], "two b t c h w -> c (b two h) (t w)").clamp(0, 1).cpu()


@torch.no_grad()
def reconstruction_picture(module: Any, window: Window) -> Tensor:
    """Real frames over their reconstructions; a window's first frame is given, so both rows begin with the second."""
    painted, _, _, _ = module.tokenizer.reconstruct(window)
    return _rows(to_float(window.frames[:, 1:]), painted)


@torch.no_grad()
def imagined_picture(module: Any, window: Window) -> Tensor:
    """Real frames over what is imagined from the same start under the same actions, the shared start included."""
    context = module.agent.burn_in + 1
    imagination = Imagination(module.tokenizer, module.world_model, context)
    imagination.reset(Window(*(field[:, :context] for field in window)))
    real = to_float(window.frames)
    steps = [imagination.step(window.actions[:, t])[0] for t in range(context - 1, real.shape[1] - 1)]
    return _rows(real, torch.cat([real[:, :context], torch.stack(steps, 1)], 1))


class Pictures(L.Callback):
    """Adds both pictures to TensorBoard at each validation.

    Args:
        windows: how many held-out windows to show.
    """

    def __init__(self, windows: int = 4) -> None:
        self.windows = windows

    def on_validation_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        """Draw them."""
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not boards or not trainer.is_global_zero or module.held_out_window is None:
            return
        window = Window(*(field[: self.windows] for field in module.held_out_window))
        with trainer.precision_plugin.forward_context():
            pictures = {
                "reconstruction (real above)": reconstruction_picture(module, window),
                "imagination (real above)": imagined_picture(module, window),
            }
        for board in boards:
            for name, picture in pictures.items():
                board.experiment.add_image(f"pictures/{name}", picture, trainer.global_step)
