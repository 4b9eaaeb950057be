"""The agent's network: CNN → LSTM → actor and critic (IRIS; paper §2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from delta_iris.nn.cnn import FrameEncoder

__all__ = ["ActorCritic", "State", "full_precision"]

State = tuple[Tensor, Tensor]
"""The LSTM's hidden and cell state, (1, B, hidden) each."""


def full_precision(device: torch.device) -> torch.autocast:
    """What is small or sums up (memory, policy, values, losses) is computed in float32, whatever autocast says."""
    return torch.autocast(device.type, enabled=False)


class ActorCritic(nn.Module):
    """Sees frames, remembers in an LSTM, gives logits of actions and of the value's bins.

    Args:
        frame_size: height and width of a frame, in pixels.
        num_actions: number of actions A.
        num_value_bins: bins of the value's two-hot distribution.
        hidden: width of the LSTM.
        critic_gradient: share of the critic's gradient that reaches the LSTM and the CNN.
        channels, multipliers, halvings, latent_channels: of the CNN; see `FrameEncoder`.
    """

    def __init__(
        self,
        frame_size: tuple[int, int],
        num_actions: int,
        num_value_bins: int = 255,
        hidden: int = 512,
        channels: int = 32,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        halvings: Sequence[int] = (1, 3, 4),
        latent_channels: int = 16,
        *,
        critic_gradient: float,
    ) -> None:
        super().__init__()
        self.hidden, self.critic_gradient = hidden, critic_gradient
        self.cnn = FrameEncoder(frame_size, channels, multipliers, halvings, latent_channels)
        self.lstm = nn.LSTM(self.cnn.num_features, hidden, batch_first=True)
        self.actor = nn.Linear(hidden, num_actions)
        self.critic = nn.Linear(hidden, num_value_bins)
        # The first policy is uniform and the first values are zero.
        for head in (self.actor, self.critic):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def initial_state(self, batch: int) -> State:
        """The state before an episode's first frame."""
        zeros = self.actor.weight.new_zeros(1, batch, self.hidden)
        return zeros, zeros

    def forward(self, frames: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """Look at consecutive frames.

        Args:
            frames: (B, T, 3, H, W) floats in [0, 1].
            state: the state before them.

        Returns:
            logits of the actions (B, T, A), of the values' bins (B, T, bins), and the state after the last frame.
        """
        hidden, state = self.remember(frames, state)
        with full_precision(frames.device):
            # The same numbers, with a share of their gradient.
            seen = torch.lerp(hidden.detach(), hidden, self.critic_gradient)
            return self.actor(hidden), self.critic(seen), state

    def remember(self, frames: Tensor, state: State) -> tuple[Tensor, State]:
        """What the LSTM gives for consecutive frames, (B, T, hidden), and its state after the last; see `forward`."""
        features = self._look(frames)
        with full_precision(frames.device):
            if frames.shape[1] > 1:
                hidden, state = self.lstm(features, state)
                return hidden, state
            state = self._step(features[:, 0], state)
            return state[0].transpose(0, 1), state

    @torch.no_grad()
    def burn_in(self, frames: Tensor, valid: Tensor) -> State:
        """The state after some real frames; padding before them leaves it as at an episode's start.

        Args:
            frames: (B, T, 3, H, W) floats in [0, 1].
            valid: (B, T) bool.
        """
        state = self.initial_state(len(frames))
        features = self._look(frames)
        with full_precision(frames.device):
            for t in range(frames.shape[1]):
                hidden, cell = self._step(features[:, t], state)
                keep = valid[:, t].view(1, -1, 1)
                state = (torch.where(keep, hidden, state[0]), torch.where(keep, cell, state[1]))
        return state

    def _look(self, frames: Tensor) -> Tensor:
        """Features of frames, float32; the CNN alone works in autocast's precision, where that is on."""
        features = self.cnn(rearrange(frames, "b t c h w -> (b t) c h w"))
        return rearrange(features.float(), "(b t) d -> b t d", b=len(frames))

    def _step(self, features: Tensor, state: State) -> State:
        """One step of the LSTM, on features (B, d): as a cell, which is a fraction of the launches of a sequence."""
        weights: Any = self.lstm.all_weights[0]
        hidden, cell = torch.lstm_cell(features, (state[0][0], state[1][0]), *weights)
        return hidden.unsqueeze(0), cell.unsqueeze(0)
