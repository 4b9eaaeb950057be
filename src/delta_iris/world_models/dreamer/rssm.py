"""The recurrent state-space model: a recurrent state, and categorical latents with a prior and a posterior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from delta_iris.acceleration.compile import compile_region
from delta_iris.nn.layers import MLP
from delta_iris.nn.sampling import categorical_from_uniform, mixed_log_probs, one_hot
from delta_iris.world_models.dreamer.recurrence import BlockGRU, LayerNormGRU

__all__ = ["RSSM", "RSSMConfig", "RSSMState", "kl_divergence"]


@dataclass(frozen=True)
class RSSMConfig:
    """Sizes of the recurrent state-space model.

    Args:
        deter: width of the recurrent state; 8 times the world model's `units` where null.
        hidden: width of hidden layers; the world model's `units` where null.
        latents: number of categorical latents.
        classes: classes of each latent; a sixteenth of the world model's `units` where null.
        cell: `block_gru` for DreamerV3's recurrence, `layer_norm_gru` for DreamerV2's.
        blocks: number of blocks of the block GRU and of the map from its state to the decoder.
        prior_layers: hidden layers of the prior.
        posterior_layers: hidden layers of the posterior.
        unimix: share of the uniform distribution in every latent's distribution, so that no logarithm diverges.

    Raises:
        ValueError: if a number is out of range.
    """

    deter: int | None = None
    hidden: int | None = None
    latents: int = 32
    classes: int | None = None
    cell: Literal["block_gru", "layer_norm_gru"] = "block_gru"
    blocks: int = 8
    prior_layers: int = 2
    posterior_layers: int = 1
    unimix: float = 0.01

    def __post_init__(self) -> None:
        least = {
            "deter": 1,
            "hidden": 1,
            "latents": 1,
            "classes": 2,
            "blocks": 1,
            "prior_layers": 0,
            "posterior_layers": 0,
        }
        for name, number in least.items():
            value = getattr(self, name)
            if value is not None and value < number:
                raise ValueError(f"{name} is {value}: it must be at least {number}")
        if not 0 <= self.unimix < 1:
            raise ValueError(f"unimix is {self.unimix}: it must be at least 0 and below 1")


class RSSMState(NamedTuple):
    """The state of B episodes.

    Attributes:
        deter: (B, deter) float32, the recurrent state.
        stoch: (B, latents · classes) float32, one-hot latents.
    """

    deter: Tensor
    stoch: Tensor


class RSSM(nn.Module):
    """h' = GRU(h, z, a); z from h' alone (prior) or from h' and the encoded frame (posterior).

    Random numbers are arguments: a state is a function of them.

    Args:
        num_actions: number of actions.
        num_features: width of encoded frames.
        units: the world model's width, which sizes that are not given follow from.
        config: sizes.
        activation: name of the activation.
        norm: whether the hidden layers of prior and posterior have an RMSNorm.

    Attributes:
        deter: width of the recurrent state.
        latents: number of latents.
        classes: classes of each latent.
    """

    def __init__(
        self, num_actions: int, num_features: int, units: int, config: RSSMConfig, activation: str, norm: bool
    ) -> None:
        super().__init__()
        self.deter = config.deter or 8 * units
        self.latents, self.classes = config.latents, config.classes or units // 16
        self.unimix, hidden, stoch = config.unimix, config.hidden or units, self.latents * self.classes
        if config.cell == "block_gru":
            cell: nn.Module = BlockGRU(self.deter, stoch, num_actions, hidden, config.blocks, activation)
        else:
            cell = LayerNormGRU(self.deter, stoch, num_actions, hidden, activation)
        self.cell = cell
        self.prior = MLP(self.deter, hidden, config.prior_layers, stoch, activation, norm)
        self.posterior = MLP(self.deter + num_features, hidden, config.posterior_layers, stoch, activation, norm)

    def initial_state(self, batch: int) -> RSSMState:
        """The state before an episode's first frame: zeros."""
        zeros = next(self.prior.parameters()).new_zeros(batch, self.deter + self.latents * self.classes)
        return RSSMState(*zeros.split([self.deter, self.latents * self.classes], -1))

    def prior_log_probs(self, deter: Tensor) -> Tensor:
        """Log-probabilities of the latents from recurrent states alone: (…, deter) → (…, latents, classes)."""
        return self._log_probs(self.prior(deter))

    @compile_region()
    def observe_steps(
        self, state: RSSMState, actions: Tensor, features: Tensor, fresh: Tensor, uniform: Tensor
    ) -> tuple[RSSMState, RSSMState, Tensor]:
        """Take in a few frames; compiled together, so that weights are cast, and their gradients summed, less often.

        Args:
            state: before them.
            actions: (B, T, num_actions) one-hot, the actions that led to them.
            features: (B, T, num_features) the encoded frames.
            fresh: (B, T) bool; see `observe_step`.
            uniform: (B, T, latents) random numbers in [0, 1).

        Returns:
            the state after them, the states (B, T, …) after each, and the posteriors' log-probabilities
            (B, T, latents, classes).
        """
        states, log_probs = [], []
        for t in range(actions.shape[1]):
            state, posterior = self.observe_step(state, actions[:, t], features[:, t], fresh[:, t], uniform[:, t])
            states.append(state)
            log_probs.append(posterior)
        deter, stoch = (torch.stack(parts, 1) for parts in zip(*states, strict=True))
        return state, RSSMState(deter, stoch), torch.stack(log_probs, 1)

    def observe_step(
        self, state: RSSMState, action: Tensor, features: Tensor, fresh: Tensor, uniform: Tensor
    ) -> tuple[RSSMState, Tensor]:
        """Take in a frame.

        Args:
            state: before it.
            action: (B, num_actions) one-hot, the action that led to it.
            features: (B, num_features) the encoded frame.
            fresh: (B,) bool, true to forget state and action, because the frame begins an episode.
            uniform: (B, latents) random numbers in [0, 1).

        Returns:
            the state, with gradients straight through the latents, and the posterior's log-probabilities
            (B, latents, classes).
        """
        keep = (~fresh).float().unsqueeze(-1)
        deter = self.cell(state.deter * keep, state.stoch * keep, action * keep)
        log_probs = self._log_probs(self.posterior(torch.cat([deter, features.to(deter.dtype)], -1)))
        return RSSMState(deter, _sample(log_probs, uniform)), log_probs

    @compile_region()
    def imagine_step(self, state: RSSMState, action: Tensor, uniform: Tensor) -> RSSMState:
        """Predict the next state.

        Args:
            state: the present one.
            action: (B, num_actions) one-hot.
            uniform: (B, latents) random numbers in [0, 1).
        """
        deter = self.cell(state.deter, state.stoch, action)
        return RSSMState(deter, _sample(self.prior_log_probs(deter), uniform))

    def force_step(self, state: RSSMState, action: Tensor, latents: Tensor) -> RSSMState:
        """The next state with given latents (B, latents) int64; see `imagine_step`."""
        deter = self.cell(state.deter, state.stoch, action)
        return RSSMState(deter, one_hot(latents, self.classes).flatten(-2))

    def _log_probs(self, logits: Tensor) -> Tensor:
        return mixed_log_probs(logits.unflatten(-1, (self.latents, self.classes)), self.unimix)


def _sample(log_probs: Tensor, uniform: Tensor) -> Tensor:
    """One-hot samples (B, latents · classes) whose gradient is that of the probabilities."""
    probabilities = log_probs.exp()
    sampled = one_hot(categorical_from_uniform(probabilities.detach(), uniform), log_probs.shape[-1])
    return (sampled + probabilities - probabilities.detach()).flatten(-2)


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL divergence of p from q in nats, summed over the latents.

    Args:
        p: (…, latents, classes) log-probabilities.
        q: likewise.

    Returns:
        (…).
    """
    return (p.exp() * (p - q)).sum((-1, -2))
