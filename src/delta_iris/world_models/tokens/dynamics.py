"""The world model as a LightningModule: next tokens, rewards and ends by cross-entropy (paper §2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from delta_iris.data.segment import Window, to_float
from delta_iris.errors import UserError
from delta_iris.nn.cnn import FrameEncoder
from delta_iris.nn.optim import make_optimizer
from delta_iris.nn.statistics import Average, masked_mean
from delta_iris.nn.two_hot import SymlogTwoHot
from delta_iris.world_models.tokens.dynamics_network import Dynamics, Predictions

__all__ = ["WorldModel"]


class WorldModel(L.LightningModule):
    """Learns the dynamics of token sequences; the tokens come from a tokenizer that it does not know.

    Args:
        frame_size: height and width of a frame, in pixels.
        num_actions: number of actions A.
        window: longest window, in frames (= blocks).
        tokens_per_frame: K, tokens a transition.
        codebook_size: number of codewords N.
        dim, layers, heads: of the Transformer.
        dropout: of the Transformer while it trains, against knowing its windows by heart; none by default. Each part of
            a batch (`micro_batch_size`) has draws of its own.
        frame_channels, frame_multipliers, frame_halvings: of the frame CNN; see `FrameEncoder`.
        num_reward_bins: bins of the reward's two-hot distribution, on symlog [−20, 20].
        learning_rate, weight_decay, warmup_steps, gradient_clip: of the optimizer.

    Raises:
        UserError: where sizes do not fit together, or dropout is no share.
    """

    def __init__(
        self,
        frame_size: tuple[int, int],
        num_actions: int,
        window: int,
        tokens_per_frame: int,
        codebook_size: int,
        dim: int = 640,
        layers: int = 10,
        heads: int = 10,
        dropout: float = 0.0,
        frame_channels: int = 32,
        frame_multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        frame_halvings: Sequence[int] = (1, 3, 4),
        num_reward_bins: int = 255,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.01,
        warmup_steps: int = 0,
        gradient_clip: float = 10.0,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise UserError(f"model.world_model.init_args.dim {dim} is not a multiple of heads {heads}: change either")
        if not 0 <= dropout < 1:
            raise UserError(f"model.world_model.init_args.dropout {dropout} is no share: give 0 or more, below 1")
        self.tokens_per_frame = tokens_per_frame
        self.learning_rate, self.weight_decay, self.warmup_steps = learning_rate, weight_decay, warmup_steps
        self.gradient_clip = gradient_clip
        self.rewards = SymlogTwoHot(num_reward_bins)
        frame_encoder = FrameEncoder(frame_size, frame_channels, frame_multipliers, frame_halvings)
        first = self.rewards.first_logits()
        self.dynamics = Dynamics(
            frame_encoder, num_actions, tokens_per_frame, codebook_size, window, dim, layers, heads, first, dropout
        )

    def predict(self, window: Window, tokens: Tensor) -> Predictions:
        """Predictions of each step of a window.

        Args:
            window: B windows of T steps.
            tokens: (B, T − 1, K) of its transitions.
        """
        # The last block has no tokens within the window: what stands there is behind everything that is scored.
        padded = F.pad(tokens, (0, 0, 0, 1))
        return self.dynamics(to_float(window.frames), window.actions, padded, window.valid)

    def losses(self, window: Window, tokens: Tensor, whole: Window | None = None) -> dict[str, Tensor]:
        """Cross-entropies in nats of tokens, rewards and ends, and `token_accuracy`; see `training_step`."""
        values = self._compare(self.predict(window, tokens), window, tokens)
        masks, all_masks = (self._masks(w) for w in (window, window if whole is None else whole))
        return {name: masked_mean(value, masks[name], all_masks[name]) for name, value in values.items()}

    def _compare(self, predictions: Predictions, window: Window, tokens: Tensor) -> dict[str, Tensor]:
        """Each prediction against what came: of tokens (B, T − 1, K), of rewards and ends (B, T)."""
        logits = predictions.tokens[:, :-1].float()
        token_loss = F.cross_entropy(rearrange(logits, "b t k n -> (b t k) n"), tokens.flatten(), reduction="none")
        end_loss = F.cross_entropy(predictions.ends.float().flatten(0, 1), window.ends.flatten(), reduction="none")
        return {
            "token_loss": token_loss.view_as(tokens),
            "reward_loss": self.rewards.cross_entropy(predictions.rewards, window.rewards),
            "end_loss": end_loss.view_as(window.ends),
            "token_accuracy": (logits.detach().argmax(-1) == tokens).float(),
        }

    def _masks(self, window: Window) -> dict[str, Tensor]:
        """Which of these count."""
        tokens = window.transitions.unsqueeze(-1).expand(*window.transitions.shape, self.tokens_per_frame)
        return {
            "token_loss": tokens,
            "reward_loss": window.valid,
            "end_loss": window.valid,
            "token_accuracy": tokens,
        }

    def training_step(
        self, batch: tuple[Window, Tensor], batch_idx: int = 0, whole: tuple[Window, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """One step's losses; `batch` is a window of T steps and the tokens (B, T − 1, K) of its transitions.

        T − 1 token targets (both frames of a transition are real), T reward and end targets. Where `batch` is a part,
        `whole` is all of it: the losses of the parts add up to those of the batch.
        """
        terms = self.losses(*batch, None if whole is None else whole[0])
        loss = terms["token_loss"] + terms["reward_loss"] + terms["end_loss"]
        return {"loss": loss} | {name: term.detach() for name, term in terms.items()}

    @torch.no_grad()
    def evaluate(self, window: Window, tokens: Tensor) -> dict[str, Average]:
        """What `losses` holds, of a window never trained on; the absolute error of rewards, `reward_error_zero` where
        the real one is zero and `reward_error_nonzero` elsewhere; `end_recall`, the share of ends held for likely."""
        predictions = self.predict(window, tokens)
        values, masks = self._compare(predictions, window, tokens), self._masks(window)
        error = (self.rewards.mean(predictions.rewards) - window.rewards).abs()
        likely, zero = predictions.ends.argmax(-1).float(), window.rewards == 0
        return {name: Average.of(value, masks[name]) for name, value in values.items()} | {
            "reward_error_zero": Average.of(error, window.valid & zero),
            "reward_error_nonzero": Average.of(error, window.valid & ~zero),
            "end_recall": Average.of(likely, window.valid & (window.ends == 1)),
        }

    def configure_optimizers(self) -> Any:
        """AdamW; see `make_optimizer`."""
        optimizer, schedule = make_optimizer(self, self.learning_rate, self.weight_decay, self.warmup_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
