"""The actor-critic of DreamerV3, which learns from features of a world model's states."""

from __future__ import annotations

import copy
from typing import Literal, NamedTuple

import lightning as L
import torch
from torch import Tensor

from delta_iris.acceleration.compile import compile_region
from delta_iris.actor_critic.losses import policy_entropy, taken_log_probs
from delta_iris.actor_critic.network import Memory
from delta_iris.actor_critic.return_normalizer import ReturnNormalizer
from delta_iris.actor_critic.returns import lambda_returns, replay_returns
from delta_iris.nn.layers import MLP
from delta_iris.nn.loss import LossOutput
from delta_iris.nn.sampling import categorical_from_uniform, mixed_log_probs
from delta_iris.nn.two_hot import SymexpTwoHot, SymlogTwoHot, UnitGaussian

__all__ = ["FeatureActorCritic", "Imagined", "Replayed"]


class Imagined(NamedTuple):
    """N imagined trajectories of H steps, without gradients.

    Attributes:
        features: (N, H + 1, F) of the states, the first of which saw a real frame.
        actions: (N, H) int64.
        rewards: (N, H) float32.
        continues: (N, H) float32, γ times the probability that the episode goes on after the step.
        alive: (N,) bool, false where the first state is the end of an episode: such a trajectory counts for nothing.
    """

    features: Tensor
    actions: Tensor
    rewards: Tensor
    continues: Tensor
    alive: Tensor


class Replayed(NamedTuple):
    """B real segments of T frames that the N = B · T imagined trajectories start from, in that order.

    Attributes:
        features: (B, T, F) of the states, without gradients.
        rewards: (B, T) float32 that frames arrived with.
        terminal: (B, T) bool, whether the episode terminated with the frame.
        last: (B, T) bool, whether the frame is the last of its episode.
    """

    features: Tensor
    rewards: Tensor
    terminal: Tensor
    last: Tensor


class FeatureActorCritic(L.LightningModule):
    """MLPs for actor and critic, trained by REINFORCE on normalized advantages and by λ-returns.

    It remembers nothing: the world model's state does. Returns of imagined trajectories weigh less the likelier it is
    that the episode has ended.

    Args:
        num_features: width of the features; the system passes it.
        num_actions: number of actions; the system passes it.
        discount: γ; the system passes the world model's.
        units: width of the hidden layers.
        layers: number of hidden layers of each MLP.
        activation: `silu`, or `elu` as in DreamerV2.
        norm: whether hidden layers have an RMSNorm.
        value: distribution of the value: `two_hot` over symexp-spaced bins, or `gaussian` of variance 1.
        burn_in: frames before the present one that the world model's state is warmed up on when the policy takes over
            in the middle of an episode.
        horizon: imagined steps H.
        lambda_: λ of the λ-returns.
        entropy_coef: weight of the policy's entropy.
        actor_unimix: share of the uniform distribution in the policy.
        actor_output_scale: factor on the initial weights of the actor's last layer.
        critic_output_scale: factor on the initial weights of the critic's last layer.
        slow_decay: decay of the slow critic, a moving average; 0 copies the critic.
        slow_period: batches after which the slow critic moves.
        slow_coef: weight of the critic's cross-entropy to the slow critic's values.
        bootstrap: the critic that λ-returns and baselines come from.
        normalize_returns: whether advantages are divided by the moving range of the returns' percentiles.
        replay_coef: weight of the critic's loss on real segments.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        num_features: int,
        num_actions: int,
        discount: float,
        units: int = 384,
        layers: int = 3,
        activation: Literal["silu", "elu"] = "silu",
        norm: bool = True,
        value: Literal["two_hot", "gaussian"] = "two_hot",
        burn_in: int = 16,
        horizon: int = 15,
        lambda_: float = 0.95,
        entropy_coef: float = 3e-4,
        actor_unimix: float = 0.01,
        actor_output_scale: float = 0.01,
        critic_output_scale: float = 0.0,
        slow_decay: float = 0.98,
        slow_period: int = 1,
        slow_coef: float = 1.0,
        bootstrap: Literal["critic", "slow_critic"] = "critic",
        normalize_returns: bool = True,
        replay_coef: float = 0.3,
    ) -> None:
        super().__init__()
        for name, number, least in (("burn_in", burn_in, 0), ("horizon", horizon, 1), ("slow_period", slow_period, 1)):
            if number < least:
                raise ValueError(f"{name} is {number}: it must be at least {least}")
        fractions = {"lambda_": lambda_, "actor_unimix": actor_unimix, "slow_decay": slow_decay}
        for name, fraction in fractions.items():
            if not 0 <= fraction <= 1:
                raise ValueError(f"{name} is {fraction}: it must be from 0 to 1")
        self.discount, self.burn_in, self.horizon, self.lambda_ = discount, burn_in, horizon, lambda_
        self.entropy_coef, self.actor_unimix, self.replay_coef = entropy_coef, actor_unimix, replay_coef
        self.slow_decay, self.slow_period, self.slow_coef = slow_decay, slow_period, slow_coef
        self.bootstrap, self.normalize_returns = bootstrap, normalize_returns
        self.codec: SymlogTwoHot | UnitGaussian = SymexpTwoHot() if value == "two_hot" else UnitGaussian()
        self.actor = MLP(num_features, units, layers, num_actions, activation, norm, actor_output_scale)
        self.critic = MLP(num_features, units, layers, self.codec.num_bins, activation, norm, critic_output_scale)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.normalizer = ReturnNormalizer()
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    # --- acting ---

    def initial_memory(self, batch: int) -> Memory:
        """No memory."""
        empty = self.normalizer.spread.new_zeros(1, batch, 0)
        return empty, empty

    def warm_up(self, inputs: Tensor, mask: Tensor) -> Memory:
        """No memory."""
        return self.initial_memory(len(inputs))

    @torch.no_grad()
    def act(self, inputs: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Sample an action for each state.

        Args:
            inputs: (B, F) features.
            memory: what `initial_memory` returned.

        Returns:
            actions (B,) int64, and the memory.
        """
        return self.sample(inputs, torch.rand(len(inputs), device=inputs.device)), memory

    @torch.no_grad()
    def evaluate(self, inputs: Tensor, memory: Memory) -> tuple[Tensor, Tensor, Memory]:
        """Evaluate actor and critic.

        Args:
            inputs: (B, F) features.
            memory: what `initial_memory` returned.

        Returns:
            log-probabilities of the actions (B, A), values (B,), and the memory.
        """
        return self.log_policy(inputs), self.codec.mean(self.critic(inputs)), memory

    @compile_region()
    def sample(self, features: Tensor, uniform: Tensor) -> Tensor:
        """Actions (N,) int64 for features (N, F), a function of random numbers (N,) in [0, 1)."""
        return categorical_from_uniform(self.log_policy(features).exp(), uniform)

    def log_policy(self, features: Tensor) -> Tensor:
        """Log-probabilities of the actions (…, A) in states with features (…, F)."""
        return mixed_log_probs(self.actor(features), self.actor_unimix)

    # --- learning ---

    @compile_region()
    def loss(self, imagined: Imagined, replayed: Replayed, share: float = 1.0) -> LossOutput:
        """The losses of actor and critic.

        Args:
            imagined: trajectories that start from the states of `replayed`.
            replayed: real segments.
            share: of the batch; the losses of the parts of a batch add up to that of the batch.

        Returns:
            the loss; in `aux` the λ-returns (N, H), for `after_backward`.
        """
        log_policy = self.log_policy(imagined.features[:, :-1])
        value_outputs = self.critic(imagined.features).float()
        with torch.no_grad():
            slow_values = self.codec.mean(self.slow_critic(imagined.features))
            values = slow_values if self.bootstrap == "slow_critic" else self.codec.mean(value_outputs)
            returns = lambda_returns(imagined.rewards, 1 - imagined.continues, values[:, 1:], 1.0, self.lambda_)
            scale = self.normalizer.scale if self.normalize_returns else 1.0
            advantages = (returns - values[:, :-1]) / scale
            # A state counts as much as it is likely to be reached.
            reached = torch.cat([imagined.alive.float().unsqueeze(1), imagined.continues[:, :-1]], 1).cumprod(1)
        log_probs, entropy = taken_log_probs(log_policy, imagined.actions), policy_entropy(log_policy)
        actor_loss = -(reached * (log_probs * advantages + self.entropy_coef * entropy)).mean() * share
        errors = self._critic_errors(value_outputs[:, :-1], returns, slow_values[:, :-1])
        critic_loss = (reached * errors).mean() * share
        loss = actor_loss + critic_loss
        metrics = {
            "actor_loss": actor_loss.detach(),
            "critic_loss": critic_loss.detach(),
            "policy_entropy": entropy.detach().mean() * share,
            "imagined_return": returns.mean() * share,
            "imagined_reward": imagined.rewards.mean() * share,
            "advantage_size": advantages.abs().mean() * share,
        }
        if self.replay_coef > 0:
            replay_loss = self._replay_loss(replayed, returns[:, 0].view(replayed.rewards.shape)) * share
            loss = loss + self.replay_coef * replay_loss
            metrics["replay_critic_loss"] = replay_loss.detach()
        return LossOutput(loss, metrics, returns)

    def _replay_loss(self, replayed: Replayed, bootstrap: Tensor) -> Tensor:
        """The critic's loss on real frames, whose returns are bootstrapped by those imagined from them."""
        outputs = self.critic(replayed.features[:, :-1]).float()
        with torch.no_grad():
            slow_values = self.codec.mean(self.slow_critic(replayed.features[:, :-1]))
            terminal, last = replayed.terminal, replayed.last
            returns = replay_returns(replayed.rewards, terminal, last, bootstrap, self.discount, self.lambda_)
        return (self._critic_errors(outputs, returns, slow_values) * (~last[:, :-1]).float()).mean()

    def _critic_errors(self, outputs: Tensor, returns: Tensor, slow_values: Tensor) -> Tensor:
        errors = self.codec.cross_entropy(outputs, returns)
        if self.slow_coef > 0:
            errors = errors + self.slow_coef * self.codec.cross_entropy(outputs, slow_values)
        return errors

    def after_backward(self, returns: list[Tensor], skip: Tensor | None = None) -> dict[str, Tensor]:
        """Move the normalizer.

        Args:
            returns: `aux` of the losses of all parts of a batch.
            skip: see `Phase.after_backward`.
        """
        if not self.normalize_returns:
            return {}
        self.normalizer.update(torch.cat(returns), skip)
        return {"return_spread": self.normalizer.spread.clone()}

    @torch.no_grad()
    def update_slow_critic(self, skip: Tensor | None = None) -> None:
        """Move the slow critic towards the critic, once in `slow_period` batches.

        Args:
            skip: () bool, true to leave it unchanged and not to count the batch; read on the device. None stands for
                false.
        """
        batches: Tensor = self.batches  # type: ignore[assignment]
        taken = torch.ones_like(batches) if skip is None else (~skip).to(batches.dtype)
        batches += taken
        weight = ((batches % self.slow_period == 0) & (taken == 1)).float() * (1 - self.slow_decay)
        slow: list[Tensor] = list(self.slow_critic.parameters())
        torch._foreach_lerp_(slow, list[Tensor](self.critic.parameters()), [weight] * len(slow))
