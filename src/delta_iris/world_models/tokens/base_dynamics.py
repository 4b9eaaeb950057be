"""What all token dynamics share: next tokens, rewards and ends by cross-entropy (paper §2.2)."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from delta_iris.data.segment import SegmentBatch
from delta_iris.nn.loss import LossOutput
from delta_iris.nn.optim import OptimizerConfig, make_optimizer
from delta_iris.nn.statistics import WeightedMean, masked_mean
from delta_iris.nn.two_hot import SymlogTwoHot
from delta_iris.world_models.tokens.dynamics_network import DynamicsLogits, DynamicsNetwork

__all__ = ["BaseDynamics", "TokenBatch"]

TokenBatch = tuple[SegmentBatch, Tensor]
"""Segments of T steps, and their tokens (B, T − context_frames, K)."""


class BaseDynamics(L.LightningModule):
    """Predicts token sequences, rewards and ends. The tokens come from a tokenizer that it does not know.

    Subclasses make the network, and with it choose the order of tokens.

    Args:
        network: predicts.
        reward_codec: encodes rewards as distributions over bins.
        optimizer: AdamW and its learning-rate schedule.
    """

    def __init__(self, network: DynamicsNetwork, reward_codec: SymlogTwoHot, optimizer: OptimizerConfig) -> None:
        super().__init__()
        self.tokens_per_frame, self.context_frames = network.tokens_per_frame, network.context_frames
        self.optimizer_config = optimizer
        self.reward_codec = reward_codec
        self.network = network

    def predict(self, segment: SegmentBatch, tokens: Tensor) -> DynamicsLogits:
        """Predict each step of a segment.

        Args:
            segment: B segments of T steps.
            tokens: (B, T − context_frames, K), theirs.
        """
        predicted: DynamicsLogits = self.network(segment.frames, segment.actions, tokens, segment.mask)
        return predicted

    def loss(self, batch_part: TokenBatch, batch: TokenBatch | None = None) -> LossOutput:
        """The sum of the cross-entropies of tokens, rewards and ends, in nats (paper §2.2).

        There are T − 1 token targets, because both frames of a transition must be real, and T reward and end targets.

        Args:
            batch_part: segments and tokens.
            batch: where `batch_part` is a part of a batch, all of it: the losses of the parts add up to the batch's.
        """
        segment, tokens = batch_part
        values = self._compare(self.predict(segment, tokens), segment, tokens)
        masks = self._masks(segment)
        batch_masks = masks if batch is None else self._masks(batch[0])
        terms = {name: masked_mean(value, masks[name], batch_masks[name]) for name, value in values.items()}
        loss = terms["token_loss"] + terms["reward_loss"] + terms["end_loss"]
        return LossOutput(loss, {name: term.detach() for name, term in terms.items()})

    def training_step(self, batch: TokenBatch, batch_idx: int = 0) -> dict[str, Tensor]:
        """Train the dynamics alone under a plain Trainer."""
        return self.loss(batch).to_dict()

    @torch.no_grad()
    def evaluate(self, segment: SegmentBatch, tokens: Tensor) -> dict[str, WeightedMean]:
        """Measure predictions on held-out segments.

        Args:
            segment: B segments of T steps.
            tokens: (B, T − context_frames, K), theirs.

        Returns:
            the terms of the loss and `token_accuracy`; the absolute error of rewards, `reward_error_zero` where the
            real one is zero and `reward_error_nonzero` elsewhere; `end_recall`, the share of ends predicted as likely.
        """
        logits = self.predict(segment, tokens)
        values, masks = self._compare(logits, segment, tokens), self._masks(segment)
        error = (self.reward_codec.mean(logits.rewards) - segment.rewards).abs()
        predicted_end, zero = logits.ends.argmax(-1).float(), segment.rewards == 0
        return {name: WeightedMean.of(value, masks[name]) for name, value in values.items()} | {
            "reward_error_zero": WeightedMean.of(error, segment.mask & zero),
            "reward_error_nonzero": WeightedMean.of(error, segment.mask & ~zero),
            "end_recall": WeightedMean.of(predicted_end, segment.mask & (segment.terminated == 1)),
        }

    def configure_optimizers(self) -> Any:
        """AdamW; see `make_optimizer`."""
        optimizer, schedule = make_optimizer(self, self.optimizer_config)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _compare(self, predicted: DynamicsLogits, segment: SegmentBatch, tokens: Tensor) -> dict[str, Tensor]:
        """Cross-entropies and accuracy of tokens (B, T − 1, K), cross-entropies of rewards and ends (B, T)."""
        # Nothing is predicted of the first frame.
        targets = tokens[:, 1 - self.context_frames :]
        logits = predicted.tokens[:, : targets.shape[1]].float()
        token_loss = F.cross_entropy(rearrange(logits, "b t k n -> (b t k) n"), targets.flatten(), reduction="none")
        end_loss = F.cross_entropy(predicted.ends.float().flatten(0, 1), segment.terminated.flatten(), reduction="none")
        return {
            "token_loss": token_loss.view_as(targets),
            "reward_loss": self.reward_codec.cross_entropy(predicted.rewards, segment.rewards),
            "end_loss": end_loss.view_as(segment.terminated),
            "token_accuracy": (logits.detach().argmax(-1) == targets).float(),
        }

    def _masks(self, segment: SegmentBatch) -> dict[str, Tensor]:
        """Which entries of `_compare` have a target."""
        transitions = segment.transition_mask
        tokens = transitions.unsqueeze(-1).expand(*transitions.shape, self.tokens_per_frame)
        return {
            "token_loss": tokens,
            "reward_loss": segment.mask,
            "end_loss": segment.mask,
            "token_accuracy": tokens,
        }
