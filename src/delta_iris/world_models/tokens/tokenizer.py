"""What every tokenizer is: an autoencoder whose bottleneck is a few discrete tokens a transition (paper §2.1)."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import lightning as L
import torch
from torch import Tensor

from delta_iris.acceleration.compile import region
from delta_iris.data.segment import Window, to_float
from delta_iris.errors import UserError
from delta_iris.nn.optim import check_decay, make_optimizer
from delta_iris.nn.statistics import Average, masked_mean
from delta_iris.world_models.tokens.quantizer import VectorQuantizer

__all__ = ["LossWeights", "Tokenizer"]

LossWeights = dict[str, float]

LOSS_WEIGHTS: LossWeights = {"l1": 0.1, "l2": 1.0, "max_pixel": 0.01, "commitment": 0.02}
"""Default weights of the terms of a tokenizer's loss."""


@region()
def _frame_errors(painted: Tensor, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean absolute, mean squared and largest squared error of each frame, (B, T, C, H, W) → (B, T)."""
    error = painted.float().flatten(2) - to_float(frames).flatten(2)
    return error.abs().mean(2), error.square().mean(2), error.square().amax(2)


class Tokenizer(L.LightningModule):
    """Encodes what changed between consecutive frames as `tokens_per_frame` tokens, and paints it back.

    Subclasses give the two networks: `embed` and `decode`. Time runs over the T − 1 transitions of a window of T
    frames: transition i leads from frame i to frame i + 1.

    Args:
        quantizer: the codebook.
        tokens_per_frame: K, tokens a transition.
        max_transitions: longest window that `embed` and `decode` accept, in transitions.
        learning_rate, weight_decay, warmup_steps, final_fraction, decay_steps: of AdamW; see `make_optimizer`.
        gradient_clip: largest gradient norm.
        loss_weights: of the terms `l1`, `l2`, `max_pixel` and `commitment`, where not the defaults.
    """

    def __init__(
        self,
        quantizer: VectorQuantizer,
        tokens_per_frame: int,
        max_transitions: int,
        learning_rate: float,
        weight_decay: float,
        warmup_steps: int,
        final_fraction: float,
        decay_steps: int,
        gradient_clip: float,
        loss_weights: LossWeights,
    ) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.tokens_per_frame = tokens_per_frame
        self.codebook_size = quantizer.codebook_size
        self.max_transitions = max_transitions
        self.learning_rate, self.weight_decay, self.warmup_steps = learning_rate, weight_decay, warmup_steps
        self.final_fraction, self.decay_steps = final_fraction, decay_steps
        self.gradient_clip = gradient_clip
        check_decay("model.tokenizer.init_args", final_fraction, decay_steps)
        unknown = set(loss_weights) - set(LOSS_WEIGHTS)
        if unknown:
            raise UserError(
                f"model.tokenizer.init_args.loss_weights has no {', '.join(sorted(unknown))}: give some of "
                f"{', '.join(LOSS_WEIGHTS)}"
            )
        self.loss_weights = LOSS_WEIGHTS | loss_weights
        # What was quantized since the codebook was last updated: latents, tokens and which of them count.
        self._quantized: list[tuple[Tensor, Tensor, Tensor]] = []

    @abstractmethod
    def embed(self, frames: Tensor, actions: Tensor, valid: Tensor) -> Tensor:
        """Continuous summaries of what changed in each transition, before quantization.

        Args:
            frames: (B, T, 3, H, W) floats in [0, 1].
            actions: (B, T) int64.
            valid: (B, T) bool, false for padding.

        Returns:
            (B, T − 1, K, code dimension); the i-th depends on nothing later than frame i + 1.
        """

    @abstractmethod
    def look(self, frames: Tensor) -> Tensor:
        """What `decode` sees of frames (B, n, 3, H, W) with its CNN, in the shape that it takes as `seen`."""

    @abstractmethod
    def decode(
        self,
        frames: Tensor,
        actions: Tensor,
        codes: Tensor,
        valid: Tensor,
        cache: Any | None = None,
        seen: Tensor | None = None,
    ) -> Tensor:
        """Paint the frame that each of n transitions leads to.

        Args:
            frames: (B, n, 3, H, W) floats in [0, 1]: the frame before each transition.
            actions: (B, n) int64: the action taken there.
            codes: (B, n, K, code dimension): codewords of the transition's tokens.
            valid: (B, n) bool: whether the transition is real.
            cache: from `start_decoding`; the transitions follow those decoded with it before.
            seen: `look(frames)`, where it has been computed already.

        Returns:
            (B, n, 3, H, W), not clamped; the i-th depends on nothing later than the i-th transition.
        """

    @abstractmethod
    def start_decoding(self, batch: int) -> Any:
        """An empty cache for decoding `batch` windows a few transitions at a time."""

    @torch.no_grad()
    def encode(self, frames: Tensor, actions: Tensor, valid: Tensor) -> Tensor:
        """Tokens of each transition, (B, T − 1, K) int64; arguments as for `embed`, frames may be uint8."""
        tokens, _ = self.quantizer(self.embed(to_float(frames), actions, valid))
        return tokens

    def reconstruct(self, window: Window) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Encode and decode a window, with the gradient passing straight through the codebook.

        Returns:
            frames (B, T − 1, 3, H, W) not clamped, tokens (B, T − 1, K), latents on the unit sphere and commitment
            errors (both (B, T − 1, K, code dimension)).
        """
        frames = to_float(window.frames)
        tokens, unit = self.quantizer(self.embed(frames, window.actions, window.valid))
        codes, commitment = self.quantizer.straight_through(unit, tokens)
        painted = self.decode(frames[:, :-1], window.actions[:, :-1], codes, window.transitions)
        return painted, tokens, unit, commitment

    def training_step(self, window: Window, batch_idx: int = 0, whole: Window | None = None) -> dict[str, Tensor]:
        """One step's losses; `loss` is the weighted sum (paper §2.1). `update_codebook` belongs after it.

        Where `window` is a part of a batch, `whole` is all of it: the losses of the parts add up to those of the batch.
        """
        painted, tokens, unit, commitment = self.reconstruct(window)
        mask, whole_mask = window.transitions, None if whole is None else whole.transitions
        l1, l2, max_pixel = _frame_errors(painted, window.frames[:, 1:])
        errors = {"l1": l1, "l2": l2, "max_pixel": max_pixel, "commitment": commitment.mean((2, 3))}
        terms = {name: masked_mean(error, mask, whole_mask) for name, error in errors.items()}
        loss = torch.stack([weight * terms[name] for name, weight in self.loss_weights.items()]).sum()
        token_mask = mask.unsqueeze(-1).expand_as(tokens)
        self._quantized.append((unit.detach().flatten(0, -2), tokens.flatten(), token_mask.flatten()))
        return {"loss": loss} | {name: term.detach() for name, term in terms.items()}

    def update_codebook(self) -> dict[str, Tensor]:
        """Move the codebook towards what `training_step` has quantized since the last time; see `VectorQuantizer`."""
        unit, tokens, mask = (torch.cat(field) for field in zip(*self._quantized, strict=True))
        self._quantized.clear()
        return self.quantizer.update(unit, tokens, mask)

    def on_after_backward(self) -> None:
        """Under a Trainer of its own, a tokenizer moves its codebook by itself."""
        if self._quantized:
            self.update_codebook()

    @torch.no_grad()
    def evaluate(self, window: Window) -> tuple[dict[str, Average], Tensor]:
        """Errors of a window never trained on: `l1` and `l2` of the frames as shown (clamped), `copy_l2` of copying the
        last frame; and the tokens of its transitions (B, T − 1, K)."""
        painted, tokens, _, _ = self.reconstruct(window)
        frames, mask = to_float(window.frames), window.transitions
        l1, l2, _ = _frame_errors(painted.float().clamp(0, 1), frames[:, 1:])
        _, copy_l2, _ = _frame_errors(frames[:, :-1], frames[:, 1:])
        errors = {"l1": l1, "l2": l2, "copy_l2": copy_l2}
        return {name: Average.of(error, mask) for name, error in errors.items()}, tokens

    def configure_optimizers(self) -> Any:
        """AdamW; see `make_optimizer`."""
        optimizer, schedule = make_optimizer(
            self,
            self.learning_rate,
            self.weight_decay,
            self.warmup_steps,
            self.final_fraction,
            self.decay_steps,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
