"""How does the agent learn where nothing else can fail? The agent alone, on real Crafter in place of imagination.

    python benchmarks/agent.py --entropy_weight 0.001 0.01

64 games are played on, 15 steps an update, with frames of 36 × 36 pixels and a small CNN. Prints a JSON line every 10
updates: the policy's entropy, the mean reward of a step, the mean λ-return, the commonest action's share, and the
return of the last 60 finished episodes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from delta_iris.agent import Agent, ImaginedWindow
from delta_iris.data.window import to_float
from delta_iris.envs.crafter import CrafterEnv

SIZE, ACTIONS = 36, 17


class Games:
    """Games under way, at random moments, stepped together; the frames of each episode's last moments."""

    def __init__(self, number: int, burn_in: int, seed: int) -> None:
        self.envs = [CrafterEnv(SIZE) for _ in range(number)]
        self.seen = [deque([env.reset(seed=1000 * seed + i)[0]], burn_in + 1) for i, env in enumerate(self.envs)]
        self.returns, self._running = deque[float](maxlen=60), np.zeros(number)
        self.finished = 0
        random = np.random.default_rng(seed)
        for i in range(number):
            for _ in range(random.integers(1, 120)):
                self._step_one(i, int(random.integers(ACTIONS)))

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Rewards (B,) float, ends (B,) int64."""
        told = [self._step_one(i, action) for i, action in enumerate(actions.tolist())]
        return torch.tensor([reward for reward, _ in told]), torch.tensor([int(end) for _, end in told])

    def _step_one(self, i: int, action: int) -> tuple[float, bool]:
        frame, reward, terminated, truncated, _ = self.envs[i].step(action)
        self._running[i] += reward
        if end := terminated or truncated:
            self.returns.append(float(self._running[i]))
            self._running[i], self.finished = 0.0, self.finished + 1
            frame, _ = self.envs[i].reset()
            self.seen[i].clear()
        self.seen[i].append(frame)
        return reward, end

    def frames(self) -> Tensor:
        """The present ones, (B, 3, H, W) floats in [0, 1]."""
        return _floats([seen[-1] for seen in self.seen])

    def past(self) -> tuple[Tensor, Tensor]:
        """The frames before them, (B, burn-in, 3, H, W), and which are of the same episode."""
        length = (self.seen[0].maxlen or 1) - 1
        blank = np.zeros((SIZE, SIZE, 3), np.uint8)
        frames = [[blank] * (length + 1 - len(seen)) + list(seen)[:-1] for seen in self.seen]
        valid = [[t >= length + 1 - len(seen) for t in range(length)] for seen in self.seen]
        return torch.stack([_floats(row) for row in frames]), torch.tensor(valid)


def _floats(frames: list[NDArray[np.uint8]]) -> Tensor:
    return to_float(torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2))


@torch.no_grad()
def rollout(agent: Agent, games: Games) -> ImaginedWindow:
    """As `Imagination.rollout`, of the games themselves."""
    past, valid = games.past()
    state, frames = agent.network.burn_in(past, valid), [games.frames()]
    actions, rewards, ends = [], [], []
    for _ in range(agent.horizon):
        action, state = agent.act(frames[-1], state)
        reward, end = games.step(action)
        for values, value in ((frames, games.frames()), (actions, action), (rewards, reward), (ends, end)):
            values.append(value)
    seen, *rest = (torch.stack(values, 1) for values in (frames, actions, rewards, ends))
    return ImaginedWindow(torch.cat([past, seen], 1), valid, *rest)


def train(entropy_weight: float, args: argparse.Namespace) -> None:
    """Train one agent."""
    torch.manual_seed(args.seed)
    agent = Agent(
        (SIZE, SIZE), ACTIONS, hidden=512, channels=8, multipliers=(1, 2, 2), halvings=(0, 1), latent_channels=16,
        entropy_weight=entropy_weight, target_decay=args.target_decay, critic_gradient=args.critic_gradient,
        discount=args.discount, lambda_=args.lambda_, learning_rate=args.learning_rate,
    )  # fmt: skip
    optimizer, games = agent.configure_optimizers()["optimizer"], Games(args.batch, agent.burn_in, args.seed)
    started = time.monotonic()
    for update in range(1, args.updates + 1):
        window = rollout(agent, games)
        losses = agent.training_step(window)
        optimizer.zero_grad()
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(agent.parameters(), agent.gradient_clip)
        optimizer.step()
        agent.on_train_batch_end()
        if update % 10 == 0:
            told = {
                "entropy_weight": entropy_weight,
                "learning_rate": args.learning_rate,
                "target_decay": args.target_decay,
                "critic_gradient": args.critic_gradient,
                "discount": args.discount,
                "lambda_": args.lambda_,
                "seed": args.seed,
                "update": update,
                "policy_entropy": round(float(losses["policy_entropy"]), 3),
                "reward": round(float(losses["imagined_reward"]), 4),
                "return": round(float(losses["imagined_return"]), 3),
                "commonest_action": round(float(window.actions.flatten().bincount().max()) / window.actions.numel(), 3),
                "episodes": games.finished,
                "episode_return": round(sum(games.returns) / max(1, len(games.returns)), 3),
                "seconds": round(time.monotonic() - started),
            }
            print(json.dumps(told), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entropy_weight", type=float, nargs="+", default=[0.001, 0.01])
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--target_decay", type=float, default=0.99)
    parser.add_argument("--critic_gradient", type=float, default=0.01)
    parser.add_argument("--discount", type=float, default=0.997)
    parser.add_argument("--lambda_", type=float, default=0.95)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for weight in args.entropy_weight:
        train(weight, args)


if __name__ == "__main__":
    main()
