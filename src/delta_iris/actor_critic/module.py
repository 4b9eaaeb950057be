"""The actor-critic as a LightningModule, trained on imagined trajectories (IRIS; paper §2)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional as F

from delta_iris.actor_critic.batch import ActorCriticBatch, Rollout
from delta_iris.actor_critic.losses import (
    clipped_surrogate,
    mix_uniform,
    policy_entropy,
    reinforce_objective,
    taken_log_probs,
)
from delta_iris.actor_critic.network import ActorCriticNetwork, Memory
from delta_iris.actor_critic.returns import alive_mask, lambda_returns
from delta_iris.nn.cnn import CNNConfig
from delta_iris.nn.loss import LossOutput
from delta_iris.nn.optim import OptimizerConfig, make_optimizer
from delta_iris.nn.precision import full_precision
from delta_iris.nn.sampling import sample_categorical
from delta_iris.nn.statistics import masked_mean, normalize_advantages
from delta_iris.nn.two_hot import SymlogTwoHot

__all__ = ["ActorCritic"]


class ActorCritic(L.LightningModule):
    """An actor-critic with a target network, trained by REINFORCE or PPO and two-hot λ-returns.

    With one update epoch and one minibatch it is the paper's REINFORCE. With more of either, a batch of trajectories is
    used for several optimizer steps, with PPO's clipped objective and normalized advantages.

    Args:
        input_shape: shape of an observation, (3, H, W) or (D,).
        num_actions: number of actions A.
        lstm_size: width of the LSTM.
        cnn: the CNN for pictures.
        num_value_bins: bins of the value's two-hot distribution, on symlog [−20, 20].
        symlog_mean: decode that distribution as the symexp of its mean in symlog space, as the paper does, instead of
            as its mean; see `SymlogTwoHot`.
        burn_in: real observations that warm up the LSTM, without gradient.
        horizon: steps H of a trajectory.
        gamma: discount γ.
        lambda_: λ of the λ-returns.
        entropy_coef: weight of the policy's entropy.
        target_ema_decay: decay of the target network's moving average, for each batch of trajectories.
        critic_grad_scale: factor on the critic's gradient into the LSTM and the encoder; the paper's is 1. At first all
            values move in the same direction, and the full gradient makes the LSTM's outputs equal for all observations
            before the actor has learned anything from them.
        head_layers: residual blocks between the LSTM and the output layer, of actor and critic each; the paper has
            none.
        head_units: width of such a block.
        update_epochs: passes over each batch of trajectories.
        num_minibatches: optimizer steps in each pass, each on another part of the batch.
        clip_coef: PPO's clipping range.
        optimizer: AdamW and its learning-rate schedule; its steps are optimizer steps, of which a batch takes
            `update_epochs` × `num_minibatches`.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_actions: int,
        lstm_size: int = 512,
        cnn: CNNConfig = CNNConfig(latent_channels=16),  # noqa: B008  (frozen)
        num_value_bins: int = 255,
        symlog_mean: bool = False,
        burn_in: int = 5,
        horizon: int = 15,
        gamma: float = 0.997,
        lambda_: float = 0.95,
        entropy_coef: float = 0.001,
        target_ema_decay: float = 0.995,
        critic_grad_scale: float = 0.01,
        head_layers: int = 0,
        head_units: int = 1024,
        update_epochs: int = 1,
        num_minibatches: int = 1,
        clip_coef: float = 0.2,
        optimizer: OptimizerConfig = OptimizerConfig(weight_decay=0.0),  # noqa: B008
    ) -> None:
        super().__init__()
        if head_layers < 0:
            raise ValueError(f"head_layers is {head_layers}: it must be 0 or more")
        at_least_one = {
            "head_units": head_units,
            "burn_in": burn_in,
            "horizon": horizon,
            "update_epochs": update_epochs,
            "num_minibatches": num_minibatches,
        }
        for name, value in at_least_one.items():
            if value < 1:
                raise ValueError(f"{name} is {value}: it must be 1 or more")
        if clip_coef <= 0:
            raise ValueError(f"clip_coef is {clip_coef}: it must be above 0")
        self.burn_in, self.horizon = burn_in, horizon
        self.gamma, self.lambda_ = gamma, lambda_
        self.entropy_coef, self.target_ema_decay = entropy_coef, target_ema_decay
        self.update_epochs, self.num_minibatches, self.clip_coef = update_epochs, num_minibatches, clip_coef
        self.optimizer_config = optimizer
        self.value_codec = SymlogTwoHot(num_value_bins, symlog_mean=symlog_mean)
        self.network = ActorCriticNetwork(
            input_shape, num_actions, num_value_bins, lstm_size, cnn, critic_grad_scale, head_layers, head_units
        )
        with torch.no_grad():
            self.network.critic.bias.copy_(self.value_codec.initial_logits())
        self.target = copy.deepcopy(self.network).requires_grad_(False)

    @property
    def is_multi_epoch(self) -> bool:
        """Whether a batch of trajectories is used for more than one optimizer step."""
        return self.update_epochs * self.num_minibatches > 1

    def initial_memory(self, batch: int) -> Memory:
        """The memory before the first observation of `batch` episodes."""
        return self.network.initial_memory(batch)

    def warm_up(self, inputs: Tensor, mask: Tensor) -> Memory:
        """The memory after real observations; see `ActorCriticNetwork.burn_in`."""
        return self.network.burn_in(inputs, mask)

    @torch.no_grad()
    def act(self, inputs: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Sample an action for each observation.

        Args:
            inputs: (B, *input_shape) floats.
            memory: the LSTM's state before them.

        Returns:
            actions (B,) int64, and the memory after them.
        """
        hidden, memory = self.network.remember(inputs.float().unsqueeze(1), memory)
        with full_precision(inputs.device):
            return sample_categorical(self.network.action_logits(hidden[:, 0])), memory

    @torch.no_grad()
    def evaluate(self, inputs: Tensor, memory: Memory) -> tuple[Tensor, Tensor, Memory]:
        """Evaluate actor and critic at an observation.

        Args:
            inputs: (B, *input_shape) floats.
            memory: before it.

        Returns:
            logits of the actions (B, A), values (B,), and the memory after it.
        """
        logits, value_logits, memory = self.network(inputs.float().unsqueeze(1), memory)
        return logits[:, 0], self.value_codec.mean(value_logits)[:, 0], memory

    @torch.no_grad()
    def compute_targets(self, rollout: Rollout, epsilon: float = 0.0) -> ActorCriticBatch:
        """Compute λ-returns and advantages with the target network.

        The observations carry no gradient, so actor and critic are evaluated over the whole sequence at once.

        Args:
            rollout: B trajectories, acted by the present policy.
            epsilon: probability with which its actions were replaced by uniformly random ones.
        """
        warm_up, inputs = rollout.inputs[:, : self.burn_in], rollout.inputs[:, self.burn_in :]
        _, value_logits, _ = self.target(inputs, self.target.burn_in(warm_up, rollout.burn_in_mask))
        memory = self.network.burn_in(warm_up, rollout.burn_in_mask)
        with full_precision(inputs.device):
            values = self.value_codec.mean(value_logits)
            returns = lambda_returns(rollout.rewards, rollout.terminated, values[:, 1:], self.gamma, self.lambda_)
        acted_on = inputs[:, :-1]
        log_probs = returns[:, :0]
        if self.is_multi_epoch:
            hidden, _ = self.network.remember(acted_on, memory)
            with full_precision(inputs.device):
                log_policy = F.log_softmax(self.network.action_logits(hidden), dim=-1)
                log_probs = mix_uniform(
                    taken_log_probs(log_policy, rollout.actions), epsilon, num_actions=log_policy.shape[-1]
                )
        return ActorCriticBatch(
            acted_on,
            memory[0][0],
            memory[1][0],
            rollout.actions,
            rollout.rewards,
            alive_mask(rollout.terminated),
            returns,
            returns - values[:, :-1],
            log_probs,
        )

    def minibatches(self, batch: ActorCriticBatch) -> Iterator[ActorCriticBatch]:
        """The batches of the optimizer steps: in each update epoch every trajectory once, in random order."""
        if not self.is_multi_epoch:
            yield batch
            return
        for _ in range(self.update_epochs):
            for rows in torch.randperm(len(batch.inputs), device=batch.inputs.device).chunk(self.num_minibatches):
                yield ActorCriticBatch(*(field[rows] for field in batch))

    def loss(self, part: ActorCriticBatch, batch: ActorCriticBatch | None = None) -> LossOutput:
        """Policy gradient, critic cross-entropy and entropy bonus; nothing after the first end is included.

        Args:
            part: B trajectories with targets.
            batch: where `part` is a part of a minibatch, all of it: the losses of the parts add up to the minibatch's.
        """
        memory = part.hidden.unsqueeze(0), part.cell.unsqueeze(0)
        logits, value_logits, _ = self.network(part.inputs, memory)
        with full_precision(part.inputs.device):
            mask, batch_mask = part.alive, (batch or part).alive
            log_policy = F.log_softmax(logits, dim=-1)
            log_probs = taken_log_probs(log_policy, part.actions)
            more: dict[str, Tensor] = {}
            if self.is_multi_epoch:
                advantages = normalize_advantages(part.advantages, (batch or part).advantages, batch_mask)
                objective, more = clipped_surrogate(log_probs, part.log_probs, advantages, self.clip_coef)
            else:
                objective = reinforce_objective(log_probs, part.advantages)
            actor_loss = masked_mean(-objective, mask, batch_mask)
            entropy = masked_mean(policy_entropy(log_policy), mask, batch_mask)
            critic_loss = masked_mean(self.value_codec.cross_entropy(value_logits, part.returns), mask, batch_mask)
            loss = actor_loss + critic_loss - self.entropy_coef * entropy
        metrics = {
            "actor_loss": actor_loss.detach(),
            "critic_loss": critic_loss.detach(),
            "policy_entropy": entropy.detach(),
            "imagined_return": masked_mean(part.returns, mask, batch_mask),
            "imagined_reward": masked_mean(part.rewards, mask, batch_mask),
            "imagined_steps": mask.float().sum() / len(batch_mask),
        }
        return LossOutput(loss, metrics | {name: masked_mean(value, mask, batch_mask) for name, value in more.items()})

    def training_step(self, batch: ActorCriticBatch, batch_idx: int = 0) -> dict[str, Tensor]:
        """Train the actor-critic alone under a plain Trainer, on batches with targets."""
        return self.loss(batch).to_dict()

    @torch.no_grad()
    def update_target(self, skip: Tensor | None = None) -> None:
        """Move the target network, encoder and LSTM included, towards the network.

        Args:
            skip: () bool, true to leave the target network unchanged; read on the device. None stands for false.
        """
        targets: list[Tensor] = list(self.target.parameters())
        sources: list[Tensor] = list(self.network.parameters())
        if skip is None:
            torch._foreach_lerp_(targets, sources, 1 - self.target_ema_decay)
            return
        torch._foreach_lerp_(targets, sources, [~skip * (1 - self.target_ema_decay)] * len(targets))

    def configure_optimizers(self) -> Any:
        """AdamW, which is Adam without weight decay; see `make_optimizer`."""
        optimizer, schedule = make_optimizer(self, self.optimizer_config)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
