"""How does the critic's gradient into CNN and LSTM affect what the actor learns?

    python benchmarks/critic_gradient.py --critic_grad_scale 1 0.1 0.01 0
    python benchmarks/critic_gradient.py --critic_grad_scale 1 0.01 --lstm_size 512 --learning_rate 1e-4

Trains the actor-critic alone on the game Catch (see `delta_iris.envs.catch`), stepped as one batch of tensors. A random
policy catches 0.25 of the blocks; the first block of a trajectory may be out of reach.

Prints a JSON line every 100 updates: the share of blocks caught, the policy's entropy, the mean λ-return, the critic's
loss and, over the LSTM's units, the mean absolute output (`lstm_mean_abs`) and the mean standard deviation over frames
(`lstm_std`). If the outputs are close to ±1 and hardly vary with the frame, the actor cannot see the frame.
"""

from __future__ import annotations

import argparse
import json

import torch
from torch import Tensor, nn

from delta_iris.actor_critic.module import ActorCritic
from delta_iris.data.segment import SegmentBatch, to_float
from delta_iris.envs.catch import BACKGROUND, BLOCK, PADDLE
from delta_iris.imagination.rollout import rollout
from delta_iris.nn.cnn import CNNConfig
from delta_iris.nn.optim import OptimizerConfig

CELLS, PIXELS, BLOCKS = 4, 4, 6


class BatchedCatch:
    """Games of Catch, stepped together from random states. It implements `delta_iris.imagination.rollout.TensorEnv`.

    Args:
        batch: number of games B.
    """

    def __init__(self, batch: int) -> None:
        self.row = torch.randint(0, CELLS - 1, (batch,))
        self.column, self.paddle = (torch.randint(0, CELLS, (batch,)) for _ in range(2))
        self.blocks_left = torch.randint(1, BLOCKS + 1, (batch,))

    def render(self) -> Tensor:
        """The present frames, (B, 3, H, W) floats in [0, 1]."""
        batch = len(self.row)
        games = torch.arange(batch)
        cells = torch.tensor(BACKGROUND).view(1, 3, 1, 1).repeat(batch, 1, CELLS, CELLS)
        cells[games, :, CELLS - 1, self.paddle] = torch.tensor(PADDLE)
        cells[games, :, self.row, self.column] = torch.tensor(BLOCK)
        return (cells.float() / 255).repeat_interleave(PIXELS, 2).repeat_interleave(PIXELS, 3)

    def play_randomly(self, steps: int) -> SegmentBatch:
        """Take random actions.

        Args:
            steps: number of actions.

        Returns:
            segments of `steps` + 1 frames, of which the last is the present one, without rewards and ends.
        """
        batch, frames, actions = len(self.row), [self.render()], []
        for _ in range(steps):
            actions.append(torch.randint(0, 3, (batch,)))
            frames.append(self.step(actions[-1])[0])
        actions.append(torch.zeros_like(self.row))
        shape = (batch, steps + 1)
        real = torch.ones(shape, dtype=torch.bool)
        ends = torch.zeros(shape, dtype=torch.int64)
        return SegmentBatch(torch.stack(frames, 1), torch.stack(actions, 1), torch.zeros(shape), ends, real, ~real)

    def reset(self, segment: SegmentBatch) -> Tensor:
        """Continue from what `play_randomly` returned; see `TensorEnv.reset`."""
        return to_float(segment.frames)

    def prefetch(self) -> None:
        """Do nothing; see `TensorEnv.prefetch`."""

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Step all games; see `TensorEnv.step`. A game continues after its end."""
        self.paddle = (self.paddle + action - 1).clamp(0, CELLS - 1)
        self.row = self.row + 1
        landed = self.row == CELLS - 1
        reward = (landed & (self.paddle == self.column)).float()
        self.blocks_left = self.blocks_left - landed.long()
        self.row = torch.where(landed, 0, self.row)
        self.column = torch.where(landed, torch.randint_like(self.column, CELLS), self.column)
        return self.render(), reward, (landed & (self.blocks_left == 0)).long()


def train(critic_grad_scale: float, args: argparse.Namespace) -> None:
    """Train one actor-critic.

    Args:
        critic_grad_scale: factor on the critic's gradient.
        args: the options.
    """
    torch.manual_seed(args.seed)
    actor_critic = ActorCritic(
        (3, CELLS * PIXELS, CELLS * PIXELS),
        3,
        lstm_size=args.lstm_size,
        cnn=CNNConfig(base_channels=8, channel_mults=(1, 2), downsample_after=(0, 1), latent_channels=4),
        burn_in=1,
        horizon=7,
        entropy_coef=args.entropy_coef,
        target_ema_decay=0.98,
        critic_grad_scale=critic_grad_scale,
        optimizer=OptimizerConfig(learning_rate=args.learning_rate, weight_decay=0.0),
    )
    network, max_norm = actor_critic.network, actor_critic.optimizer_config.max_grad_norm
    optimizer = actor_critic.configure_optimizers()["optimizer"]
    caught: list[float] = []
    for update in range(1, args.updates + 1):
        env = BatchedCatch(args.batch_size)
        trajectories = rollout(env, actor_critic, env.play_randomly(actor_critic.burn_in))
        output = actor_critic.loss(actor_critic.compute_targets(trajectories))
        optimizer.zero_grad()
        output.loss.backward()
        nn.utils.clip_grad_norm_(actor_critic.parameters(), max_norm)
        optimizer.step()
        actor_critic.update_target()
        # A block lands every `CELLS` − 1 steps.
        caught.append(float(trajectories.rewards.mean()) * (CELLS - 1))
        if update % 100 == 0:
            with torch.no_grad():
                frames = BatchedCatch(1000).render()
                outputs, _ = network.remember(frames.unsqueeze(1), network.initial_memory(len(frames)))
            measured = {
                "critic_grad_scale": critic_grad_scale,
                "lstm_size": args.lstm_size,
                "learning_rate": args.learning_rate,
                "entropy_coef": args.entropy_coef,
                "seed": args.seed,
                "update": update,
                "caught": round(sum(caught[-50:]) / 50, 3),
                "policy_entropy": round(float(output.metrics["policy_entropy"]), 3),
                "return": round(float(output.metrics["imagined_return"]), 3),
                "critic_loss": round(float(output.metrics["critic_loss"]), 3),
                "lstm_mean_abs": round(float(outputs.abs().mean()), 3),
                "lstm_std": round(float(outputs.flatten(0, 1).std(0).mean()), 3),
            }
            print(json.dumps(measured), flush=True)


def main() -> None:
    """Train an actor-critic for each factor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--critic_grad_scale", type=float, nargs="+", default=[1.0, 0.01])
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--batch_size", type=int, default=128, help="games of each update")
    parser.add_argument("--lstm_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--entropy_coef", type=float, default=0.03)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for critic_grad_scale in args.critic_grad_scale:
        train(critic_grad_scale, args)


if __name__ == "__main__":
    main()
