"""The token dynamics as a LightningModule: next tokens, rewards and ends by cross-entropy (paper §2.2)."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from delta_iris.data.segment import SegmentBatch, to_float
from delta_iris.nn.cnn import CNNConfig, FrameEncoder
from delta_iris.nn.loss import LossOutput
from delta_iris.nn.optim import OptimizerConfig, make_optimizer
from delta_iris.nn.statistics import WeightedMean, masked_mean
from delta_iris.nn.transformer import TransformerConfig
from delta_iris.nn.two_hot import SymlogTwoHot
from delta_iris.world_models.tokens.dynamics_network import DynamicsLogits, DynamicsNetwork

__all__ = ["TokenBatch", "TokenDynamics"]

TokenBatch = tuple[SegmentBatch, Tensor]
"""Segments of T steps, and the tokens (B, T − 1, K) of their transitions."""


class TokenDynamics(L.LightningModule):
    """Predicts token sequences, rewards and ends. The tokens come from a tokenizer that it does not know.

    Args:
        frame_size: height and width of a frame, in pixels.
        num_actions: number of actions A.
        max_blocks: longest segment, in frames; each is a block of the Transformer.
        tokens_per_frame: K, tokens a transition.
        codebook_size: number of codewords N.
        transformer: the Transformer. Its dropout keeps it from memorizing segments; each part of a batch
            (`micro_batch_size`) draws its own.
        frame_cnn: the CNN that gives one vector a frame.
        num_reward_bins: bins of the reward's two-hot distribution, on symlog [−20, 20].
        symlog_mean: decode that distribution as the symexp of its mean in symlog space, as the paper does, instead of
            as its mean; see `SymlogTwoHot`.
        optimizer: AdamW and its learning-rate schedule.

    Raises:
        ValueError: if sizes do not fit together.
    """

    def __init__(
        self,
        frame_size: tuple[int, int],
        num_actions: int,
        max_blocks: int,
        tokens_per_frame: int,
        codebook_size: int,
        transformer: TransformerConfig = TransformerConfig(dim=640, layers=10, heads=10),  # noqa: B008  (frozen)
        frame_cnn: CNNConfig = CNNConfig(),  # noqa: B008
        num_reward_bins: int = 255,
        symlog_mean: bool = False,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008
    ) -> None:
        super().__init__()
        self.tokens_per_frame = tokens_per_frame
        self.optimizer_config = optimizer
        self.reward_codec = SymlogTwoHot(num_reward_bins, symlog_mean=symlog_mean)
        self.network = DynamicsNetwork(
            FrameEncoder(frame_size, frame_cnn),
            num_actions,
            tokens_per_frame,
            codebook_size,
            max_blocks,
            transformer,
            self.reward_codec.initial_logits(),
        )

    def predict(self, segment: SegmentBatch, tokens: Tensor) -> DynamicsLogits:
        """Predict each step of a segment.

        Args:
            segment: B segments of T steps.
            tokens: (B, T − 1, K) of their transitions.
        """
        # The last block has no tokens within the segment. Causality keeps the padding out of everything that is scored.
        padded = F.pad(tokens, (0, 0, 0, 1))
        return self.network(to_float(segment.frames), segment.actions, padded, segment.mask)

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
            tokens: (B, T − 1, K) of their transitions.

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
        logits = predicted.tokens[:, :-1].float()
        token_loss = F.cross_entropy(rearrange(logits, "b t k n -> (b t k) n"), tokens.flatten(), reduction="none")
        end_loss = F.cross_entropy(predicted.ends.float().flatten(0, 1), segment.terminated.flatten(), reduction="none")
        return {
            "token_loss": token_loss.view_as(tokens),
            "reward_loss": self.reward_codec.cross_entropy(predicted.rewards, segment.rewards),
            "end_loss": end_loss.view_as(segment.terminated),
            "token_accuracy": (logits.detach().argmax(-1) == tokens).float(),
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
