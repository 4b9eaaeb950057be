"""The interface of tokenizers: discrete autoencoders of frames, or of transitions between them (paper §2.1)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import lightning as L
import torch
from torch import Tensor

from delta_iris.acceleration.compile import compile_region
from delta_iris.data.segment import SegmentBatch, to_float
from delta_iris.nn.loss import LossOutput
from delta_iris.nn.optim import OptimizerConfig, make_optimizer
from delta_iris.nn.statistics import WeightedMean, masked_mean
from delta_iris.world_models.tokens.quantizer import Quantizer

__all__ = ["Reconstruction", "ReconstructionLossWeights", "Tokenizer"]


@dataclass(frozen=True)
class ReconstructionLossWeights:
    """Weights of the terms of a tokenizer's loss (paper §2.1).

    Args:
        l1: of the mean absolute error.
        l2: of the mean squared error.
        max_error: of the largest squared error in a frame.
        commitment: of the squared distance between latents and their codewords.
    """

    l1: float = 0.1
    l2: float = 1.0
    max_error: float = 0.01
    commitment: float = 0.02


@dataclass
class Reconstruction:
    """The last n = T − `Tokenizer.context_frames` frames of a segment, encoded and decoded.

    Attributes:
        frames: (B, n, 3, H, W), not clamped.
        tokens: (B, n, K) int64.
        latents: (B, n, K, D) as the quantizer compares them with its codewords.
        commitment: (B, n, K, D) squared distance between latents and codewords.
    """

    frames: Tensor
    tokens: Tensor
    latents: Tensor
    commitment: Tensor


@compile_region()
def _frame_errors(predicted: Tensor, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean absolute, mean squared and largest squared error of each frame, (B, T, C, H, W) → (B, T)."""
    error = predicted.float().flatten(2) - to_float(frames).flatten(2)
    return error.abs().mean(2), error.square().mean(2), error.square().amax(2)


class Tokenizer(L.LightningModule):
    """Encodes each frame of a segment, but for the first `context_frames`, as K tokens, and decodes it from them.

    Subclasses provide the two networks: `encode_latents` and `decode`. With one frame of context (Δ-IRIS), tokens say
    what changed in the *transition* from the frame before: transition i of a segment of T frames leads from frame i to
    frame i + 1, so that there are T − 1. With none (IRIS), tokens stand for a frame alone.

    Args:
        tokens_per_frame: K, tokens a frame or transition.
        max_transitions: longest segment that `encode_latents` and `decode` accept, in transitions.
        quantizer: the codebook.
        optimizer: AdamW and its learning-rate schedule.
        loss_weights: a dataclass with a weight for each of `loss_terms`.
    """

    context_frames: ClassVar[int] = 1
    """First frames of a segment that have no tokens, because they are only context."""

    def __init__(
        self,
        tokens_per_frame: int,
        max_transitions: int,
        quantizer: Quantizer,
        optimizer: OptimizerConfig,
        loss_weights: Any,
    ) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.tokens_per_frame, self.codebook_size = tokens_per_frame, quantizer.codebook_size
        self.max_transitions = max_transitions
        self.optimizer_config, self.loss_weights = optimizer, loss_weights
        # What the last `training_step` under a plain Trainer leaves for `on_after_backward`.
        self._codebook_batch: tuple[Tensor, Tensor, Tensor] | None = None

    @abstractmethod
    def encode_latents(self, frames: Tensor, actions: Tensor, mask: Tensor) -> Tensor:
        """Summarize each frame but the first `context_frames`, or what changed in it, before quantization.

        Args:
            frames: (B, T, 3, H, W) floats in [0, 1].
            actions: (B, T) int64.
            mask: (B, T) bool, false for padding.

        Returns:
            (B, T − context_frames, K, D) latents; the i-th depends on nothing later than frame i + context_frames.
        """

    @abstractmethod
    def encode_frame(self, frames: Tensor) -> Tensor | None:
        """Encode the frames (B, n, 3, H, W) before transitions, in the form that `decode` takes as `frame_features`.

        None if decoding needs tokens only.
        """

    @abstractmethod
    def decode(
        self,
        frames: Tensor,
        actions: Tensor,
        codes: Tensor,
        mask: Tensor,
        cache: Any | None = None,
        frame_features: Tensor | None = None,
    ) -> Tensor:
        """Predict the frame that each of n transitions leads to. Without context, only `codes` matter.

        Args:
            frames: (B, n, 3, H, W) floats in [0, 1], the frame before each transition.
            actions: (B, n) int64, the action taken there.
            codes: (B, n, K, D) codewords of the transition's tokens.
            mask: (B, n) bool, whether the transition is real.
            cache: from `make_decoder_cache`; the transitions follow those decoded with it before.
            frame_features: `encode_frame(frames)`, if it was computed already.

        Returns:
            (B, n, 3, H, W), not clamped; the i-th depends on nothing later than the i-th transition.
        """

    @abstractmethod
    def make_decoder_cache(self, batch: int) -> Any:
        """An empty cache for decoding `batch` segments a few transitions at a time; None if nothing is cached."""

    def perceive(self, frames: Tensor, tokens: Tensor) -> Tensor:
        """What the actor-critic sees of real frames. By default the frames themselves.

        Args:
            frames: (B, n, 3, H, W) floats in [0, 1].
            tokens: (B, n or n − 1, K) int64, those of the last of these frames that have tokens.

        Returns:
            (B, n, 3, H, W) floats in [0, 1].
        """
        return frames

    def token_mask(self, segment: SegmentBatch) -> Tensor:
        """Which frames or transitions of a segment are real: (B, T − context_frames) bool."""
        return segment.transition_mask if self.context_frames else segment.mask

    @torch.no_grad()
    def encode(self, frames: Tensor, actions: Tensor, mask: Tensor) -> Tensor:
        """Encode a segment as tokens.

        Args:
            frames: (B, T, 3, H, W) uint8, or floats in [0, 1].
            actions: (B, T) int64.
            mask: (B, T) bool, false for padding.

        Returns:
            (B, T − context_frames, K) int64.
        """
        tokens, _ = self.quantizer(self.encode_latents(to_float(frames), actions, mask))
        return tokens

    def reconstruct(self, segment: SegmentBatch) -> Reconstruction:
        """Encode and decode a segment, with the gradient passing straight through the codebook."""
        frames = to_float(segment.frames)
        tokens, latents = self.quantizer(self.encode_latents(frames, segment.actions, segment.mask))
        codes, commitment = self.quantizer.straight_through(latents, tokens)
        number = tokens.shape[1]
        decoded = self.decode(frames[:, :number], segment.actions[:, :number], codes, self.token_mask(segment))
        return Reconstruction(decoded, tokens, latents, commitment)

    def loss_terms(self, segment: SegmentBatch, reconstruction: Reconstruction) -> dict[str, Tensor]:
        """The terms of the loss, before they are weighted, of each frame that has tokens.

        Args:
            segment: B segments.
            reconstruction: of these segments.

        Returns:
            (B, T − context_frames) by the name of the weight.
        """
        l1, l2, max_error = _frame_errors(reconstruction.frames, segment.frames[:, self.context_frames :])
        commitment = reconstruction.commitment.mean((2, 3))
        return {"l1": l1, "l2": l2, "max_error": max_error, "commitment": commitment}

    def loss(self, segment: SegmentBatch, batch: SegmentBatch | None = None) -> LossOutput:
        """The weighted sum of reconstruction and commitment errors (paper §2.1).

        Args:
            segment: B segments.
            batch: where `segment` is a part of a batch, all of it: the losses of the parts add up to the batch's.

        Returns:
            the loss, and as `aux` what `update_codebook` takes.
        """
        reconstruction = self.reconstruct(segment)
        mask, batch_mask = self.token_mask(segment), None if batch is None else self.token_mask(batch)
        errors = self.loss_terms(segment, reconstruction)
        terms = {name: masked_mean(error, mask, batch_mask) for name, error in errors.items()}
        weights = asdict(self.loss_weights)
        loss = torch.stack([weight * terms[name] for name, weight in weights.items() if name in terms]).sum()
        tokens = reconstruction.tokens
        token_mask = mask.unsqueeze(-1).expand_as(tokens).flatten()
        quantized = (reconstruction.latents.detach().flatten(0, -2), tokens.flatten(), token_mask)
        return LossOutput(loss, {name: term.detach() for name, term in terms.items()}, quantized)

    def update_codebook(
        self, parts: list[tuple[Tensor, Tensor, Tensor]], skip: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Update the codebook after a batch; see `Quantizer.update`.

        Args:
            parts: `aux` of the losses of all parts of the batch.
            skip: () bool, true to leave the codebook unchanged. None stands for false.
        """
        unit, tokens, mask = (torch.cat(field) for field in zip(*parts, strict=True))
        return self.quantizer.update(unit, tokens, mask, skip)

    def training_step(self, segment: SegmentBatch, batch_idx: int = 0) -> dict[str, Tensor]:
        """Train a tokenizer alone under a plain Trainer."""
        output = self.loss(segment)
        self._codebook_batch = output.aux
        return output.to_dict()

    def on_after_backward(self) -> None:
        """Under a plain Trainer, update the codebook after each backward pass."""
        if self._codebook_batch is not None:
            self.update_codebook([self._codebook_batch])
            self._codebook_batch = None

    @torch.no_grad()
    def evaluate(self, segment: SegmentBatch) -> tuple[dict[str, WeightedMean], Tensor]:
        """Reconstruction errors of the frames 1 … T − 1 of held-out segments, for tokenizers with and without context.

        Returns:
            `l1` and `l2` of the clamped frames and `copy_l2`, the error of copying the last frame; and the tokens
            (B, T − context_frames, K).
        """
        reconstruction = self.reconstruct(segment)
        frames, mask = to_float(segment.frames), segment.transition_mask
        decoded = reconstruction.frames[:, 1 - self.context_frames :]
        l1, l2, _ = _frame_errors(decoded.float().clamp(0, 1), frames[:, 1:])
        _, copy_l2, _ = _frame_errors(frames[:, :-1], frames[:, 1:])
        errors = {"l1": l1, "l2": l2, "copy_l2": copy_l2}
        return {name: WeightedMean.of(error, mask) for name, error in errors.items()}, reconstruction.tokens

    def configure_optimizers(self) -> Any:
        """AdamW; see `make_optimizer`."""
        optimizer, schedule = make_optimizer(self, self.optimizer_config)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
