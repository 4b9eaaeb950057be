"""The agent as a LightningModule: actor-critic learning on imagined windows (IRIS; paper §2)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional as F

from delta_iris.actor_critic.network import ActorCritic, State, full_precision
from delta_iris.actor_critic.returns import lambda_returns
from delta_iris.errors import UserError
from delta_iris.nn.optim import check_decay, make_optimizer
from delta_iris.nn.sampling import sample
from delta_iris.nn.statistics import masked_mean, normalized
from delta_iris.nn.two_hot import SymlogTwoHot

__all__ = ["Agent", "ImaginedWindow", "Lesson"]


class ImaginedWindow(NamedTuple):
    """Real burn-in frames, then H imagined steps.

    Attributes:
        frames: (B, burn-in + H + 1, 3, H, W) floats in [0, 1]; the first after the burn-in is real and acted on, the
            last only bootstraps.
        burn_in_valid: (B, burn-in) bool, false for padding before an episode's start.
        actions: (B, H) int64.
        rewards: (B, H) float32.
        ends: (B, H) int64.
    """

    frames: Tensor
    burn_in_valid: Tensor
    actions: Tensor
    rewards: Tensor
    ends: Tensor


class Lesson(NamedTuple):
    """What the agent learns from in one or more optimizer steps: B imagined windows, appraised.

    Attributes:
        frames: (B, H, 3, H, W) floats in [0, 1], those acted on.
        hidden, cell: (B, hidden) the LSTM's state before the first of them.
        actions: (B, H) int64.
        rewards: (B, H) float32.
        counts: (B, H) bool, false after the first end.
        returns: (B, H) float32, λ-returns.
        advantages: (B, H) float32, how much more they are than the target network's values.
        log_probs: (B, H) float32 of the actions, under the policy as it was before it learned from these windows;
            (B, 0) where it learns from them once, which takes none.
    """

    frames: Tensor
    hidden: Tensor
    cell: Tensor
    actions: Tensor
    rewards: Tensor
    counts: Tensor
    returns: Tensor
    advantages: Tensor
    log_probs: Tensor


def until_first_end(ends: Tensor) -> Tensor:
    """(B, H) bool, true up to and including the first step that ends the episode."""
    return (ends.cumsum(1) - ends) == 0


class Agent(L.LightningModule):
    """Actor-critic with a target network, trained by REINFORCE and two-hot λ-returns.

    Imagined windows may be learned from more than once, which costs a fraction of imagining others: in `passes`, each
    over all windows in `parts` optimizer steps, with the clipped objective and normalized advantages of PPO (Schulman
    et al., 2017) in place of REINFORCE. The paper's is one pass in one part.

    Args:
        frame_size: height and width of a frame, in pixels.
        num_actions: number of actions A.
        hidden, channels, multipliers, halvings, latent_channels: of the network; see `ActorCritic`.
        num_value_bins: bins of the value's two-hot distribution, on symlog [−20, 20].
        burn_in: real frames that warm the LSTM, without gradient.
        horizon: imagined steps H.
        discount: γ.
        lambda_: λ of the λ-returns.
        entropy_weight: of the policy's entropy in the actor's loss.
        target_decay: of the target network's moving average, a batch of imagined windows.
        critic_gradient: share of the critic's gradient that reaches what it has in common with the actor, the LSTM and
            the CNN; 1 is the paper's. All values move the same way at first, and the whole gradient makes the LSTM's
            units the same for all frames before the actor has learned anything from them.
        passes: how often each imagined window is learned from.
        parts: optimizer steps a pass, each on another part of the windows.
        clip: how far the probability of an action may move, as a share of what it was before the first pass, until it
            has no more gradient.
        learning_rate, weight_decay, warmup_steps, final_fraction, decay_steps, gradient_clip: of the optimizer;
            see `make_optimizer`. Their steps are optimizer steps, `passes` × `parts` a batch.

    Raises:
        UserError: where `passes`, `parts` or `clip` make no sense.
    """

    def __init__(
        self,
        frame_size: tuple[int, int],
        num_actions: int,
        hidden: int = 512,
        channels: int = 32,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        halvings: Sequence[int] = (1, 3, 4),
        latent_channels: int = 16,
        num_value_bins: int = 255,
        burn_in: int = 5,
        horizon: int = 15,
        discount: float = 0.997,
        lambda_: float = 0.95,
        entropy_weight: float = 0.001,
        target_decay: float = 0.995,
        critic_gradient: float = 0.01,
        passes: int = 1,
        parts: int = 1,
        clip: float = 0.2,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        final_fraction: float = 1.0,
        decay_steps: int = 0,
        gradient_clip: float = 10.0,
    ) -> None:
        super().__init__()
        self.burn_in, self.horizon = burn_in, horizon
        self.discount, self.lambda_ = discount, lambda_
        self.entropy_weight, self.target_decay = entropy_weight, target_decay
        self.passes, self.parts, self.clip = passes, parts, clip
        self.learning_rate, self.weight_decay, self.warmup_steps = learning_rate, weight_decay, warmup_steps
        self.final_fraction, self.decay_steps = final_fraction, decay_steps
        self.gradient_clip = gradient_clip
        check_decay("model.agent.init_args", final_fraction, decay_steps)
        if passes < 1 or parts < 1 or clip <= 0:
            raise UserError(
                f"model.agent.init_args: passes is {passes}, parts {parts}, clip {clip}; the first two are 1 or more, "
                "the last above 0"
            )
        self.values = SymlogTwoHot(num_value_bins)
        self.network = ActorCritic(
            frame_size,
            num_actions,
            num_value_bins,
            hidden,
            channels,
            multipliers,
            halvings,
            latent_channels,
            critic_gradient=critic_gradient,
        )
        with torch.no_grad():
            self.network.critic.bias.copy_(self.values.first_logits())
        self.target = copy.deepcopy(self.network).requires_grad_(False)

    @torch.no_grad()
    def act(self, frames: Tensor, state: State) -> tuple[Tensor, State]:
        """Sample an action for each frame.

        Args:
            frames: (B, 3, H, W) floats in [0, 1].
            state: the LSTM's state before them.

        Returns:
            actions (B,) int64, the state after the frames.
        """
        hidden, state = self.network.remember(frames.float().unsqueeze(1), state)
        with full_precision(frames.device):
            return sample(self.network.actor(hidden[:, 0])), state

    @property
    def reuses(self) -> bool:
        """Whether imagined windows are learned from in more than one optimizer step."""
        return self.passes * self.parts > 1

    @torch.no_grad()
    def appraise(self, imagined: ImaginedWindow) -> Lesson:
        """What there is to learn from imagined windows: how their returns compare with what was expected of them.

        The frames carry no gradient: actor and critic are evaluated over the whole sequence at once.
        """
        warm, frames = imagined.frames[:, : self.burn_in], imagined.frames[:, self.burn_in :]
        _, value_logits, _ = self.target(frames, self.target.burn_in(warm, imagined.burn_in_valid))
        state = self.network.burn_in(warm, imagined.burn_in_valid)
        with full_precision(frames.device):
            values = self.values.mean(value_logits)
            returns = lambda_returns(imagined.rewards, imagined.ends, values[:, 1:], self.discount, self.lambda_)
        acted_on = frames[:, :-1]
        log_probs = returns[:, :0]
        if self.reuses:
            hidden, _ = self.network.remember(acted_on, state)
            with full_precision(frames.device):
                log_probs = _of_taken(F.log_softmax(self.network.actor(hidden), dim=-1), imagined.actions)
        return Lesson(
            acted_on,
            state[0][0],
            state[1][0],
            imagined.actions,
            imagined.rewards,
            until_first_end(imagined.ends),
            returns,
            returns - values[:, :-1],
            log_probs,
        )

    def lessons(self, lesson: Lesson) -> Iterator[Lesson]:
        """The lessons of a batch's optimizer steps: in each pass every window once, in random order."""
        if not self.reuses:
            yield lesson
            return
        for _ in range(self.passes):
            for rows in torch.randperm(len(lesson.frames), device=lesson.frames.device).chunk(self.parts):
                yield Lesson(*(field[rows] for field in lesson))

    def training_step(self, lesson: Lesson, batch_idx: int = 0, whole: Lesson | None = None) -> dict[str, Tensor]:
        """One optimizer step's losses; nothing after the first imagined end counts.

        Where `lesson` is a part of a batch, `whole` is all of it: the losses of the parts add up to the batch's.
        """
        state = lesson.hidden.unsqueeze(0), lesson.cell.unsqueeze(0)
        logits, value_logits, _ = self.network(lesson.frames, state)
        with full_precision(lesson.frames.device):
            mask, all_steps = lesson.counts, (whole or lesson).counts
            log_policy = F.log_softmax(logits, dim=-1)
            log_taken = _of_taken(log_policy, lesson.actions)
            gain, more = log_taken * lesson.advantages, {}
            if self.reuses:
                log_ratio = log_taken - lesson.log_probs
                ratio = log_ratio.exp()
                advantages = normalized(lesson.advantages, (whole or lesson).advantages, all_steps)
                within = ratio.clamp(1 - self.clip, 1 + self.clip)
                gain = torch.minimum(ratio * advantages, within * advantages)
                more = {
                    "approx_kl": masked_mean((ratio - 1 - log_ratio).detach(), mask, all_steps),
                    "clip_fraction": masked_mean((within != ratio).float(), mask, all_steps),
                }
            actor_loss = masked_mean(-gain, mask, all_steps)
            entropy = masked_mean(-(log_policy.exp() * log_policy).sum(-1), mask, all_steps)
            critic_loss = masked_mean(self.values.cross_entropy(value_logits, lesson.returns), mask, all_steps)
            loss = actor_loss + critic_loss - self.entropy_weight * entropy
        return {
            "loss": loss,
            "actor_loss": actor_loss.detach(),
            "critic_loss": critic_loss.detach(),
            "policy_entropy": entropy.detach(),
            "imagined_return": masked_mean(lesson.returns, mask, all_steps),
            "imagined_reward": masked_mean(lesson.rewards, mask, all_steps),
            "imagined_steps": mask.float().sum() / len(all_steps),
        } | more

    @torch.no_grad()
    def on_train_batch_end(self, *_: Any) -> None:
        """Move the target network, the CNN and the LSTM included, towards the network."""
        targets: list[Tensor] = list(self.target.parameters())
        sources: list[Tensor] = list(self.network.parameters())
        torch._foreach_lerp_(targets, sources, 1 - self.target_decay)

    def configure_optimizers(self) -> Any:
        """Adam; see `make_optimizer`."""
        optimizer, schedule = make_optimizer(
            self, self.learning_rate, self.weight_decay, self.warmup_steps, self.final_fraction, self.decay_steps
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _of_taken(log_policy: Tensor, actions: Tensor) -> Tensor:
    """(B, H) of (B, H, A): the actions' own."""
    return log_policy.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
