"""The actor-critic's network: encoder → LSTM → actor and critic (IRIS; paper §2)."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from delta_iris.nn.cnn import CNNConfig, FrameEncoder, MLPEncoder
from delta_iris.nn.precision import full_precision
from delta_iris.nn.residual_mlp import ResidualMLP

__all__ = ["ActorCriticNetwork", "Memory"]

Memory = tuple[Tensor, Tensor]
"""The LSTM's hidden and cell state, (1, B, lstm_size) each."""


class ActorCriticNetwork(nn.Module):
    """Encodes observations, remembers them in an LSTM, and gives logits of actions and of the value's bins.

    Args:
        input_shape: shape of an observation: (3, H, W) for pictures, which get a CNN, or (D,) for vectors, which get an
            MLP.
        num_actions: number of actions A.
        num_value_bins: bins of the value's two-hot distribution.
        lstm_size: width of the LSTM.
        cnn: the CNN for pictures.
        critic_grad_scale: factor on the critic's gradient into the LSTM and the encoder.
        head_layers: residual blocks between the LSTM and the output layer, of actor and critic each.
        head_units: width of such a block.

    Raises:
        ValueError: if `input_shape` is neither a picture's nor a vector's.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_actions: int,
        num_value_bins: int,
        lstm_size: int,
        cnn: CNNConfig,
        critic_grad_scale: float,
        head_layers: int = 0,
        head_units: int = 1024,
    ) -> None:
        super().__init__()
        self.lstm_size, self.critic_grad_scale = lstm_size, critic_grad_scale
        if len(input_shape) == 3:
            self.encoder: FrameEncoder | MLPEncoder = FrameEncoder((input_shape[1], input_shape[2]), cnn)
        elif len(input_shape) == 1:
            self.encoder = MLPEncoder(input_shape[0])
        else:
            raise ValueError(f"input_shape is {input_shape}: it must be (3, H, W) or (D,)")
        self.lstm = nn.LSTM(self.encoder.num_features, lstm_size, batch_first=True)
        self.actor_mlp = ResidualMLP(lstm_size, head_units, head_layers)
        self.critic_mlp = ResidualMLP(lstm_size, head_units, head_layers)
        self.actor = nn.Linear(lstm_size, num_actions)
        self.critic = nn.Linear(lstm_size, num_value_bins)
        # The first policy is uniform and the first values are zero.
        for head in (self.actor, self.critic):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def initial_memory(self, batch: int) -> Memory:
        """The memory before an episode's first observation."""
        zeros = self.actor.weight.new_zeros(1, batch, self.lstm_size)
        return zeros, zeros

    def forward(self, inputs: Tensor, memory: Memory) -> tuple[Tensor, Tensor, Memory]:
        """Evaluate actor and critic at consecutive observations.

        Args:
            inputs: (B, T, *input_shape) floats.
            memory: before them.

        Returns:
            logits of the actions (B, T, A), of the values' bins (B, T, bins), and the memory after the last.
        """
        hidden, memory = self.remember(inputs, memory)
        with full_precision(inputs.device):
            # Same values; the gradient is scaled by `critic_grad_scale`.
            critic_input = torch.lerp(hidden.detach(), hidden, self.critic_grad_scale)
            return self.action_logits(hidden), self.critic(self.critic_mlp(critic_input)), memory

    def action_logits(self, hidden: Tensor) -> Tensor:
        """Logits of the actions (…, A) from the LSTM's outputs (…, lstm_size)."""
        logits: Tensor = self.actor(self.actor_mlp(hidden))
        return logits

    def remember(self, inputs: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Run the LSTM over consecutive observations.

        Args:
            inputs: (B, T, *input_shape) floats.
            memory: before them.

        Returns:
            the LSTM's outputs (B, T, lstm_size), and the memory after the last.
        """
        features = self._encode(inputs)
        with full_precision(inputs.device):
            if inputs.shape[1] > 1:
                hidden, memory = self.lstm(features, memory)
                return hidden, memory
            memory = self._lstm_step(features[:, 0], memory)
            return memory[0].transpose(0, 1), memory

    @torch.no_grad()
    def burn_in(self, inputs: Tensor, mask: Tensor) -> Memory:
        """The memory after real observations. Padding before them leaves it as at an episode's start.

        Args:
            inputs: (B, T, *input_shape) floats.
            mask: (B, T) bool, false for padding.
        """
        memory = self.initial_memory(len(inputs))
        features = self._encode(inputs)
        with full_precision(inputs.device):
            for t in range(inputs.shape[1]):
                hidden, cell = self._lstm_step(features[:, t], memory)
                real = mask[:, t].view(1, -1, 1)
                memory = (torch.where(real, hidden, memory[0]), torch.where(real, cell, memory[1]))
        return memory

    def _encode(self, inputs: Tensor) -> Tensor:
        """Features (B, T, D) float32. Only the encoder works in autocast's precision."""
        features = self.encoder(rearrange(inputs, "b t ... -> (b t) ..."))
        return rearrange(features.float(), "(b t) d -> b t d", b=len(inputs))

    def _lstm_step(self, features: Tensor, memory: Memory) -> Memory:
        """One step of the LSTM on features (B, D), as a cell: a fraction of the kernel launches of a sequence."""
        weights: Any = self.lstm.all_weights[0]
        hidden, cell = torch.lstm_cell(features, (memory[0][0], memory[1][0]), *weights)
        return hidden.unsqueeze(0), cell.unsqueeze(0)
