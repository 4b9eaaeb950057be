"""How does the agent learn where nothing else can fail? The agent alone, on real Crafter in place of imagination.

    python benchmarks/agent.py --set entropy_weight=0.001
    python benchmarks/agent.py --size 64 --windows 256 --set passes=3 parts=8 discount=0.95 lambda_=0.65    # on a GPU

Games in processes of their own are played on, 15 steps a window, until there are windows for a batch; then the agent
learns from it as it does from an imagined one. Frames of 36 × 36 pixels get a small CNN, those of 64 × 64 that of
`crafter.yaml`. Prints a JSON line every 10 batches: what `Agent.training_step` gives, the commonest action's share, and
the return of the last 100 finished episodes, with the share of them that had each achievement.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections import Counter, deque
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from delta_iris.actor_critic.module import Agent, ImaginedWindow
from delta_iris.data.segment import to_float
from delta_iris.envs.vector import make_vector_env

ACTIONS = 17
SMALL = {"channels": 8, "multipliers": (1, 2, 2), "halvings": (0, 1)}


class Games:
    """Games under way, stepped together; the last frames of each, and how many of them are of its present episode."""

    def __init__(self, number: int, size: int, burn_in: int, seed: int) -> None:
        self.envs = make_vector_env("delta_iris/Crafter-v1", {"size": size}, number)
        first, _ = self.envs.reset(seed=1000 * seed)
        self.seen = deque([np.zeros_like(first)] * burn_in + [first], burn_in + 1)
        self.ages, self._running = np.zeros(number, np.int64), np.zeros(number)
        self.returns, self.unlocked = deque[float](maxlen=100), deque[list[str]](maxlen=100)
        self.finished = 0

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Rewards (B,) float, ends (B,) int64."""
        frames, rewards, terminated, truncated, infos = self.envs.step(actions.cpu().numpy())
        ended = terminated | truncated
        self._running += rewards
        for i in np.flatnonzero(ended):
            self.returns.append(float(self._running[i]))
            told = infos["final_info"]["achievements"]
            self.unlocked.append([name for name, counts in told.items() if name[0] != "_" and counts[i] > 0])
            self.finished += 1
        self._running[ended] = 0
        self.ages = np.where(ended, 0, self.ages + 1)
        self.seen.append(frames)
        return torch.from_numpy(rewards).float(), torch.from_numpy(ended).long()

    def past(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The frames before the present ones, (B, burn-in, 3, H, W), and which are of the same episode."""
        length = len(self.seen) - 1
        return (
            torch.stack([_floats(frames, device) for frames in list(self.seen)[:-1]], 1),
            torch.from_numpy(np.arange(length, 0, -1) <= self.ages[:, None]).to(device),
        )


def _floats(frames: Any, device: torch.device) -> Tensor:
    return to_float(torch.from_numpy(frames).to(device).permute(0, 3, 1, 2))


@torch.no_grad()
def rollout(agent: Agent, games: Games) -> ImaginedWindow:
    """As `Imagination.rollout`, of the games themselves."""
    device = agent.device
    past, valid = games.past(device)
    state, frames = agent.network.burn_in(past, valid), [_floats(games.seen[-1], device)]
    actions, rewards, ends = [], [], []
    for _ in range(agent.horizon):
        action, state = agent.act(frames[-1], state)
        reward, end = games.step(action)
        frames.append(_floats(games.seen[-1], device))
        for values, value in ((actions, action), (rewards, reward.to(device)), (ends, end.to(device))):
            values.append(value)
    seen, *rest = (torch.stack(values, 1) for values in (frames, actions, rewards, ends))
    return ImaginedWindow(torch.cat([past, seen], 1), valid, *rest)


def train(args: argparse.Namespace) -> None:
    """Train one agent."""
    torch.manual_seed(args.seed)
    options = {name: yaml.safe_load(value) for name, value in (item.split("=") for item in args.set)}
    options = {"entropy_weight": 0.01, "target_decay": 0.99, "learning_rate": 3e-4} | options
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    agent = Agent((args.size, args.size), ACTIONS, **(({} if args.size == 64 else SMALL) | options)).to(device)
    optimizer, games = agent.configure_optimizers()["optimizer"], Games(args.games, args.size, agent.burn_in, args.seed)
    # As Lightning does: cached copies of the weights would be those of the batch's first optimizer step.
    autocast = (
        torch.autocast("cuda", torch.bfloat16, cache_enabled=False)
        if device.type == "cuda"
        else contextlib.nullcontext()
    )
    started, batches = time.monotonic(), 0
    while time.monotonic() - started < args.seconds:
        batches += 1
        with autocast:
            windows = [rollout(agent, games) for _ in range(args.windows // args.games)]
            batch = ImaginedWindow(*(torch.cat(parts) for parts in zip(*windows, strict=True)))
            for lesson in agent.lessons(agent.appraise(batch)):
                losses = agent.training_step(lesson)
                optimizer.zero_grad()
                losses["loss"].backward()
                nn.utils.clip_grad_norm_(agent.parameters(), agent.gradient_clip)
                optimizer.step()
        agent.on_train_batch_end()
        if batches % 10 == 0:
            unlocked = Counter(name for names in games.unlocked for name in names)
            told = {
                **options,
                "seed": args.seed,
                "frames": batches * args.windows * agent.horizon,
                "episode_return": round(sum(games.returns) / max(1, len(games.returns)), 3),
                "episodes": games.finished,
                **{name: round(value.item(), 4) for name, value in losses.items()},
                "commonest_action": round(float(batch.actions.flatten().bincount().max()) / batch.actions.numel(), 3),
                "unlocked": {name: round(n / len(games.unlocked), 2) for name, n in unlocked.most_common()},
                "seconds": round(time.monotonic() - started),
            }
            print(json.dumps(told), flush=True)
    games.envs.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="arguments of Agent")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--games", type=int, default=64)
    parser.add_argument("--windows", type=int, default=64, help="of a batch, a multiple of the games")
    parser.add_argument("--size", type=int, default=36, choices=[36, 64])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.windows < 1 or args.windows % args.games:
        parser.error(f"--windows {args.windows} is no multiple of --games {args.games}")
    train(args)


if __name__ == "__main__":
    main()
