"""How much of the critic's gradient may CNN and LSTM see? The agent alone, on a true game in place of imagination.

    python benchmarks/critic_gradient.py --share 1 0.1 0.01 0

Catch (see tests/catch.py), batched: a block falls a row a step, every third step one is caught or missed. Prints a JSON
line every 100 updates: the share of blocks caught (0.25 at random; the first may be out of reach), the policy's
entropy, the mean λ-return and, of the LSTM's units, the mean of their absolute values and their standard deviation over
frames: where they are at their limits whatever the frame, the actor is blind.
"""

from __future__ import annotations

import argparse
import json

import torch
from torch import Tensor, nn

from delta_iris.actor_critic.module import Agent, ImaginedWindow

CELLS, PIXELS, BLOCKS = 4, 4, 6


class Game:
    """Games under way, at random moments, stepped together."""

    def __init__(self, batch: int) -> None:
        self.row = torch.randint(0, CELLS - 1, (batch,))
        self.column, self.paddle = (torch.randint(0, CELLS, (batch,)) for _ in range(2))
        self.blocks = torch.randint(1, BLOCKS + 1, (batch,))

    def frames(self) -> Tensor:
        """(B, 3, H, W) floats in [0, 1]."""
        cells, game = torch.full((len(self.row), 3, CELLS, CELLS), 20.0), torch.arange(len(self.row))
        cells[game, :, CELLS - 1, self.paddle] = torch.tensor([60.0, 180.0, 75.0])
        cells[game, :, self.row, self.column] = torch.tensor([230.0, 25.0, 75.0])
        return (cells / 255).repeat_interleave(PIXELS, 2).repeat_interleave(PIXELS, 3)

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Rewards (B,) float, ends (B,) int64."""
        self.paddle = (self.paddle + actions - 1).clamp(0, CELLS - 1)
        self.row = self.row + 1
        landed = self.row == CELLS - 1
        rewards = (landed & (self.paddle == self.column)).float()
        self.blocks = self.blocks - landed.long()
        self.row = torch.where(landed, 0, self.row)
        self.column = torch.where(landed, torch.randint_like(self.column, CELLS), self.column)
        return rewards, (landed & (self.blocks == 0)).long()


@torch.no_grad()
def rollout(agent: Agent, batch: int) -> ImaginedWindow:
    """As `Imagination.rollout`, of the game itself."""
    game = Game(batch)
    frames, actions, rewards, ends = [game.frames()], [], [], []
    valid = torch.ones(batch, 1, dtype=torch.bool)
    state = agent.network.burn_in(frames[0].unsqueeze(1), valid)
    game.step(torch.randint(0, 3, (batch,)))
    frames.append(game.frames())
    for _ in range(agent.horizon):
        action, state = agent.act(frames[-1], state)
        reward, end = game.step(action)
        for values, value in ((frames, game.frames()), (actions, action), (rewards, reward), (ends, end)):
            values.append(value)
    seen, *rest = (torch.stack(values, 1) for values in (frames, actions, rewards, ends))
    return ImaginedWindow(seen, valid, *rest)


def train(share: float, args: argparse.Namespace) -> None:
    """Train one agent."""
    torch.manual_seed(args.seed)
    agent = Agent(
        (CELLS * PIXELS, CELLS * PIXELS), 3, hidden=args.hidden, channels=8, multipliers=(1, 2), halvings=(0, 1),
        latent_channels=4, burn_in=1, horizon=7, entropy_weight=args.entropy_weight, target_decay=0.98,
        critic_gradient=share, learning_rate=args.learning_rate,
    )  # fmt: skip
    optimizer = agent.configure_optimizers()["optimizer"]
    caught: list[float] = []
    for update in range(1, args.updates + 1):
        window = rollout(agent, args.batch)
        losses = agent.training_step(agent.appraise(window))
        optimizer.zero_grad()
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(agent.parameters(), agent.gradient_clip)
        optimizer.step()
        agent.on_train_batch_end()
        caught.append(float(window.rewards.mean()) * (CELLS - 1))
        if update % 100 == 0:
            with torch.no_grad():
                units, _ = agent.network.remember(Game(1000).frames().unsqueeze(1), agent.network.initial_state(1000))
            told = {
                "critic_gradient": share,
                "hidden": args.hidden,
                "learning_rate": args.learning_rate,
                "entropy_weight": args.entropy_weight,
                "seed": args.seed,
                "update": update,
                "caught": round(sum(caught[-50:]) / 50, 3),
                "policy_entropy": round(float(losses["policy_entropy"]), 3),
                "return": round(float(losses["imagined_return"]), 3),
                "critic_loss": round(float(losses["critic_loss"]), 3),
                "units_magnitude": round(float(units.abs().mean()), 3),
                "units_deviation": round(float(units.flatten(0, 1).std(0).mean()), 3),
            }
            print(json.dumps(told), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, nargs="+", default=[1.0, 0.01])
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--entropy_weight", type=float, default=0.03)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for share in args.share:
        train(share, args)


if __name__ == "__main__":
    main()
