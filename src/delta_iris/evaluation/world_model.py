"""How good tokenizer and world model are on windows that they were never trained on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from delta_iris.data.segment import Window, to_float
from delta_iris.nn.statistics import Average
from delta_iris.world_models.tokens.dynamics import WorldModel
from delta_iris.world_models.tokens.quantizer import code_entropy
from delta_iris.world_models.tokens.token_world_model import Imagination
from delta_iris.world_models.tokens.tokenizer import Tokenizer

__all__ = ["HeldOut", "drift"]


@torch.no_grad()
def drift(tokenizer: Tokenizer, world_model: WorldModel, window: Window, context: int) -> dict[str, Average]:
    """How far imagination strays: squared errors of frames imagined under the real actions, from `context` real frames.

    Args:
        tokenizer, world_model: what imagines.
        window: B windows of T > `context` steps.
        context: real frames that each starts from.

    Returns:
        of each step from 1 to T − context, `imagined_…` frames and, to compare, the last real frame `copied_…`.
    """
    imagination = Imagination(tokenizer, world_model, context)
    start = imagination.reset(Window(*(field[:, :context] for field in window)))
    values = {}
    for step, t in enumerate(range(context, window.valid.shape[1]), start=1):
        imagined, _, _ = imagination.step(window.actions[:, t - 1])
        real, valid = to_float(window.frames[:, t]), window.valid[:, context - 1] & window.valid[:, t]
        for name, frame in (("imagined", imagined), ("copied", start)):
            values[f"{name}_{step:02}"] = Average.of((frame - real).square().mean((1, 2, 3)), valid)
    return values


class HeldOut:
    """Adds up, window by window, and then tells the means over all of them.

    Args:
        tokenizer, world_model: what is looked at.
        context: real frames that imagination starts from.
    """

    def __init__(self, tokenizer: Tokenizer, world_model: WorldModel, context: int) -> None:
        self.tokenizer, self.world_model, self.context = tokenizer, world_model, context
        self._averages: dict[str, Average] = {}
        self._codes: Tensor | None = None

    @torch.no_grad()
    def update(self, window: Window) -> None:
        """Take a batch of windows."""
        averages, tokens = self.tokenizer.evaluate(window)
        values = {f"held_out/tokenizer_{name}": value for name, value in averages.items()}
        averages = self.world_model.evaluate(window, tokens)
        values |= {f"held_out/world_model_{name}": value for name, value in averages.items()}
        if window.valid.shape[1] > self.context:
            averages = drift(self.tokenizer, self.world_model, window, self.context)
            values |= {f"drift/{name}": value for name, value in averages.items()}
        for name, value in values.items():
            self._averages[name] = self._averages[name] + value if name in self._averages else value
        codes = tokens[window.transitions].flatten().bincount(minlength=self.tokenizer.codebook_size)
        self._codes = codes if self._codes is None else self._codes + codes

    def compute(self, add_up: Callable[[Tensor], Tensor] = lambda x: x) -> dict[str, Tensor]:
        """The means; what there was nothing of (ends, say) is left out.

        Args:
            add_up: gives the sum of a tensor over all processes.

        Returns:
            `held_out/tokenizer_…`: `l1`, `l2` and `psnr` (in decibels) of frames as shown, `copy_l2` and `copy_psnr` of
            copying the last frame; `held_out/codebook_entropy` in bits; `held_out/world_model_…`: cross-entropies in
            nats and their sum `loss`, `token_accuracy` and `token_perplexity`, mean absolute error of rewards that are
            zero and of those that are not, `end_recall`; `drift/…`: see `drift`.
        """
        assert self._codes is not None
        sums = add_up(torch.stack([torch.stack(average) for average in self._averages.values()]))
        values = {name: total / count for name, (total, count) in zip(self._averages, sums, strict=True) if count > 0}
        for name in ("held_out/tokenizer_", "held_out/tokenizer_copy_"):
            if f"{name}l2" in values:
                # Frames that are the same to the bit would be infinitely alike.
                values[f"{name}psnr"] = -10 * values[f"{name}l2"].clamp(min=1e-10).log10()
        model = "held_out/world_model_"
        if f"{model}token_loss" in values:
            values[f"{model}token_perplexity"] = values[f"{model}token_loss"].exp()
        losses = (f"{model}{part}_loss" for part in ("token", "reward", "end"))
        values[f"{model}loss"] = torch.stack([values[name] for name in losses if name in values]).sum()
        values["held_out/codebook_entropy"] = code_entropy(add_up(self._codes.float()))
        return values
