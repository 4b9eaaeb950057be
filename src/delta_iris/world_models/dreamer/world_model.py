"""The world model of DreamerV3: encoder, recurrent state-space model, and heads for frame, reward and continuation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import gymnasium as gym
import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from delta_iris.acceleration.compile import compile_region
from delta_iris.data.segment import SegmentBatch, to_float
from delta_iris.nn.layers import MLP
from delta_iris.nn.sampling import one_hot
from delta_iris.nn.statistics import WeightedMean, masked_mean
from delta_iris.nn.two_hot import SymexpTwoHot, SymlogTwoHot, UnitGaussian
from delta_iris.world_models.base import Evaluation, Prediction, WorldModel
from delta_iris.world_models.dreamer.arrivals import Arrivals
from delta_iris.world_models.dreamer.images import (
    ImageConfig,
    ImageDecoder,
    ImageEncoder,
    StridedDecoder,
    StridedEncoder,
)
from delta_iris.world_models.dreamer.rssm import RSSM, RSSMConfig, RSSMState, kl_divergence

__all__ = ["DreamerLossWeights", "DreamerWorldModel", "Posterior"]

CHUNK = 8
"""Frames that the recurrence takes in at a time; see `RSSM.observe_steps`. More take longer to compile."""


@dataclass(frozen=True)
class DreamerLossWeights:
    """Weights of the terms of the world model's loss.

    Args:
        image: of the squared error of a frame, summed over its pixels and channels.
        reward: of the reward's negative log-likelihood.
        continuation: of the continuation's binary cross-entropy.
        dynamics: of the KL divergence that trains the prior.
        representation: of the KL divergence that trains the posterior.
        free_nats: both divergences count as at least this.
    """

    image: float = 1.0
    reward: float = 1.0
    continuation: float = 1.0
    dynamics: float = 1.0
    representation: float = 0.1
    free_nats: float = 1.0


class Posterior(NamedTuple):
    """States that frames were taken into, with gradients.

    Attributes:
        deter: (B, T, deter).
        stoch: (B, T, latents · classes).
        log_probs: (B, T, latents, classes) of the posterior.
    """

    deter: Tensor
    stoch: Tensor
    log_probs: Tensor

    @property
    def features(self) -> Tensor:
        """(B, T, deter + latents · classes), what heads and the actor-critic see."""
        return torch.cat([self.deter, self.stoch], -1)


class DreamerWorldModel(L.LightningModule, WorldModel[RSSMState]):
    """A recurrent state-space model that is trained to reconstruct frames, rewards and ends.

    Args:
        frame_size: height and width of a frame, in pixels; the system passes it.
        num_actions: number of actions; the system passes it.
        units: width of the heads, and of all that is not given: recurrent state 8 · units, units / 16 classes and CNN
            channels. 256 is the published size 12M, 384 is 25M, 512 is 50M, 768 is 100M and 1024 is 200M.
        rssm: sizes of the recurrent state-space model.
        images: sizes of the image networks.
        head_layers: hidden layers of the reward and continuation heads.
        activation: `silu`, or `elu` as in DreamerV2.
        norm: whether heads, prior and posterior have RMSNorms.
        reward: distribution of the reward: `two_hot` over symexp-spaced bins, or `gaussian` of variance 1.
        discount: γ, by which the target of the continuation head is multiplied.
        loss_weights: weights of the loss's terms.

    Raises:
        ValueError: if sizes do not fit together.
    """

    headlines: ClassVar[dict[str, str]] = WorldModel.headlines | {"prior_kl": "KL to the prior"}

    def __init__(
        self,
        frame_size: tuple[int, int],
        num_actions: int,
        units: int = 384,
        rssm: RSSMConfig = RSSMConfig(),  # noqa: B008  (frozen)
        images: ImageConfig = ImageConfig(),  # noqa: B008
        head_layers: int = 1,
        activation: Literal["silu", "elu"] = "silu",
        norm: bool = True,
        reward: Literal["two_hot", "gaussian"] = "two_hot",
        discount: float = 1 - 1 / 333,
        loss_weights: DreamerLossWeights = DreamerLossWeights(),
    ) -> None:
        super().__init__()
        if not 0 < discount <= 1:
            raise ValueError(f"discount is {discount}: it must be above 0 and at most 1")
        if units < 16 and (rssm.classes is None or images.depth is None):
            raise ValueError(f"units is {units}: it must be at least 16, or give rssm.classes and images.depth")
        self.num_actions, self.discount, self.loss_weights = num_actions, discount, loss_weights
        self.encoder: ImageEncoder | StridedEncoder
        self.decoder: ImageDecoder | StridedDecoder
        depth = images.depth or units // 16
        if images.strided:
            self.encoder = StridedEncoder(frame_size, depth, activation)
        else:
            self.encoder = ImageEncoder(frame_size, depth, images, activation)
        if rssm.cell == "block_gru":
            _check_blocks(rssm.blocks, rssm.deter or 8 * units)
        if not images.strided:
            _check_blocks(rssm.blocks, self.encoder.num_features)
        self.rssm = RSSM(num_actions, self.encoder.num_features, units, rssm, activation, norm)
        deter, stoch = self.rssm.deter, self.rssm.latents * self.rssm.classes
        if isinstance(self.encoder, StridedEncoder):
            self.decoder = StridedDecoder(deter, stoch, depth, activation)
        else:
            self.decoder = ImageDecoder(deter, stoch, units, rssm.blocks, self.encoder, depth, images, activation)
        self.reward_codec: SymlogTwoHot | UnitGaussian = SymexpTwoHot() if reward == "two_hot" else UnitGaussian()
        self.num_features = deter + stoch
        bins, layers = self.reward_codec.num_bins, head_layers
        # The first predicted reward is zero.
        self.reward = MLP(self.num_features, units, layers, bins, activation, norm, output_scale=0.0)
        self.continuation = MLP(self.num_features, units, layers, 1, activation, norm)
        self.actor_input_space = gym.spaces.Box(-np.inf, np.inf, (self.num_features,), np.float32)

    # --- the interface ---

    def initial_state(self, batch: int) -> RSSMState:
        """See `WorldModel.initial_state`."""
        return self.rssm.initial_state(batch)

    @torch.no_grad()
    def observe(
        self, state: RSSMState, segment: SegmentBatch, last_action: Tensor | None = None
    ) -> tuple[RSSMState, Tensor]:
        """See `WorldModel.observe`. The state is forgotten where `segment.is_first`."""
        posterior = self.filter(state, segment, self._noise(segment.mask.shape), last_action)
        return RSSMState(posterior.deter[:, -1], posterior.stoch[:, -1]), posterior.features

    def actor_input(self, state: RSSMState) -> Tensor:
        """See `WorldModel.actor_input`: recurrent state and latents."""
        return torch.cat(state, -1)

    @torch.no_grad()
    def step(self, state: RSSMState, action: Tensor, latents: Tensor | None = None) -> tuple[RSSMState, Prediction]:
        """See `WorldModel.step`.

        Args:
            state: the present state.
            action: (B,) int64.
            latents: (B, latents) int64 classes of the next state's latents; sampled from the prior where None.
        """
        one_hot = self.one_hot(action)
        if latents is None:
            state = self.rssm.imagine_step(state, one_hot, self._noise(action.shape))
        else:
            state = self.rssm.force_step(state, one_hot, latents)
        return state, self._predict(self.actor_input(state))

    @torch.no_grad()
    def decode(self, state: RSSMState) -> Tensor:
        """See `WorldModel.decode`."""
        return self.decoder(*state).clamp(0, 1)

    @torch.no_grad()
    def reconstruct(self, segment: SegmentBatch) -> Tensor:
        """See `WorldModel.reconstruct`: decoded from states that have seen the frames."""
        return self._decode_all(self._filter_from_zero(segment))[:, 1:]

    @torch.no_grad()
    def evaluate(self, segment: SegmentBatch) -> Evaluation:
        """See `WorldModel.evaluate`.

        `reconstruction_l2` is of frames that the state has seen. `prior_kl` is the divergence of the posterior from the
        prior. `reward_l2`, a squared error, and `end_loss` are those of one imagined step after each real frame.
        """
        posterior, mask = self._filter_from_zero(segment), segment.mask
        frames = to_float(segment.frames)
        errors = (self._decode_all(posterior) - frames).square().mean((2, 3, 4))
        copies = (frames[:, 1:] - frames[:, :-1]).square().mean((2, 3, 4))
        divergence = kl_divergence(posterior.log_probs, self.rssm.prior_log_probs(posterior.deter))
        flat = RSSMState(posterior.deter.flatten(0, 1), posterior.stoch.flatten(0, 1))
        _, prediction = self.step(flat, segment.actions.flatten())
        ends = F.cross_entropy(prediction.end_logits, segment.terminated.flatten(), reduction="none")
        rewards = (prediction.reward - segment.rewards.flatten()).square()
        means = {
            "reconstruction_l2": WeightedMean.of(errors[:, 1:], segment.transition_mask),
            "copy_l2": WeightedMean.of(copies, segment.transition_mask),
            "prior_kl": WeightedMean.of(divergence, mask),
            "reward_l2": WeightedMean.of(rewards.view_as(mask), mask),
            "end_loss": WeightedMean.of(ends.view_as(mask), mask),
        }
        return Evaluation(means)

    # --- learning ---

    def one_hot(self, action: Tensor) -> Tensor:
        """Actions (…) int64 as (…, num_actions) float32."""
        return one_hot(action, self.num_actions)

    def filter(
        self, state: RSSMState, segment: SegmentBatch, uniform: Tensor, last_action: Tensor | None = None
    ) -> Posterior:
        """Take in the frames of a segment, with gradients.

        Args:
            state: before the segment.
            segment: B segments of T steps.
            uniform: (B, T, latents) random numbers in [0, 1).
            last_action: (B,) int64, the action that led to the first frame; None where there was none.
        """
        arrivals = Arrivals.of(segment, last_action)
        frames = to_float(segment.frames)
        features = self.encoder(frames.flatten(0, 1) - 0.5).unflatten(0, frames.shape[:2])
        actions = self.one_hot(arrivals.actions)
        if last_action is None:
            actions = torch.cat([torch.zeros_like(actions[:, :1]), actions[:, 1:]], 1)
        parts = []
        for chunk in zip(*(x.split(CHUNK, 1) for x in (actions, features, arrivals.fresh, uniform)), strict=True):
            state, states, log_probs = self.rssm.observe_steps(state, *chunk)
            parts.append(Posterior(*states, log_probs))
        return Posterior(*(torch.cat(part, 1) for part in zip(*parts, strict=True)))

    @compile_region()
    def losses(self, posterior: Posterior, segment: SegmentBatch) -> dict[str, tuple[Tensor, Tensor]]:
        """The terms of the loss, unweighted.

        Args:
            posterior: what `filter` returned.
            segment: B segments of T steps; each frame predicts what it arrived with.

        Returns:
            by the names of `DreamerLossWeights`: losses (B, T), and (B, T) bool where they count.
        """
        arrivals, mask, features = Arrivals.of(segment), segment.mask, posterior.features
        prior = self.rssm.prior_log_probs(posterior.deter)
        rewards = self.reward_codec.cross_entropy(self.reward(features), arrivals.rewards)
        continues = self.discount * (~arrivals.terminal).float()
        logits = self.continuation(features).float().squeeze(-1)
        least = self.loss_weights.free_nats
        return {
            "image": ((self._decode_all(posterior) - to_float(segment.frames)).square().sum((2, 3, 4)), mask),
            "reward": (rewards, arrivals.rewarded),
            "continuation": (F.binary_cross_entropy_with_logits(logits, continues, reduction="none"), mask),
            "dynamics": (kl_divergence(posterior.log_probs.detach(), prior).clamp(min=least), mask),
            "representation": (kl_divergence(posterior.log_probs, prior.detach()).clamp(min=least), mask),
        }

    def loss(
        self, posterior: Posterior, segment: SegmentBatch, batch: SegmentBatch | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its terms for logging.

        Args:
            posterior: what `filter` returned.
            segment: B segments of T steps.
            batch: where `segment` is a part of a batch, all of it: the losses of the parts add up to the batch's.
        """
        whole = None if batch is None else self._masks(batch)
        terms = {
            name: masked_mean(values, mask, None if whole is None else whole[name])
            for name, (values, mask) in self.losses(posterior, segment).items()
        }
        total = torch.stack([getattr(self.loss_weights, name) * term for name, term in terms.items()]).sum()
        return total, {f"{name}_loss": term.detach() for name, term in terms.items()}

    def predict(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Rewards (…) that states arrive with, and γ times the probability (…) that their episode continues.

        Args:
            features: (…, num_features) of the states.
        """
        rewards = self.reward_codec.mean(self.reward(features))
        return rewards, self.continuation(features).float().squeeze(-1).sigmoid()

    def _masks(self, segment: SegmentBatch) -> dict[str, Tensor]:
        """Where each term of the loss counts."""
        names = ("image", "reward", "continuation", "dynamics", "representation")
        return dict.fromkeys(names, segment.mask) | {"reward": Arrivals.of(segment).rewarded}

    def _predict(self, features: Tensor) -> Prediction:
        reward, discounted = self.predict(features)
        continues = (discounted / self.discount).clamp(1e-6, 1 - 1e-6)
        return Prediction(reward, torch.stack([continues.log(), (1 - continues).log()], -1))

    def _decode_all(self, posterior: Posterior) -> Tensor:
        """(B, T, 3, H, W), not clamped."""
        frames = self.decoder(posterior.deter.flatten(0, 1), posterior.stoch.flatten(0, 1))
        return frames.unflatten(0, posterior.deter.shape[:2])

    def _filter_from_zero(self, segment: SegmentBatch) -> Posterior:
        state = self.initial_state(len(segment.mask))
        return self.filter(state, segment, self._noise(segment.mask.shape))

    def _noise(self, shape: Any) -> Tensor:
        return torch.rand(*shape, self.rssm.latents, device=self.device)


def _check_blocks(blocks: int, width: int) -> None:
    if width % blocks:
        raise ValueError(
            f"rssm.blocks is {blocks}: it must divide the recurrent state and the decoder's first feature map, one of "
            f"which has {width} elements"
        )
