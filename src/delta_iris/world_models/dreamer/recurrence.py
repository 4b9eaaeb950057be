"""The deterministic part of the recurrent state-space model: a block-diagonal GRU, or a dense one with LayerNorm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from delta_iris.nn.layers import ACTIVATIONS, MLP, BlockLinear, RMSNorm, initialize

__all__ = ["BlockGRU", "LayerNormGRU"]


def _gated(reset: Tensor, candidate: Tensor, update: Tensor, deter: Tensor) -> Tensor:
    """The next state. The gate starts near 1 / 4, so that the state is remembered at first."""
    candidate = torch.tanh(reset.sigmoid() * candidate)
    return torch.lerp(deter, candidate, (update - 1).sigmoid())


class BlockGRU(nn.Module):
    """The GRU of DreamerV3 (2024), whose recurrent matrices are block-diagonal.

    State, latents and action are projected and concatenated; each block sees them and its own slice of the state. A
    hidden layer then gives the gates of the block.

    Args:
        deter: width of the state, a multiple of `blocks`.
        stoch: width of the flattened latents.
        num_actions: number of actions.
        hidden: width of each of the three projections.
        blocks: number of blocks.
        activation: name of the activation.
    """

    def __init__(self, deter: int, stoch: int, num_actions: int, hidden: int, blocks: int, activation: str) -> None:
        super().__init__()
        self.blocks = blocks
        self.inputs = nn.ModuleList(
            MLP(width, hidden, 1, activation=activation) for width in (deter, stoch, num_actions)
        )
        self.hidden = BlockLinear(deter + blocks * 3 * hidden, deter, blocks)
        self.norm, self.activation = RMSNorm(deter), ACTIVATIONS[activation]()
        self.gates = BlockLinear(deter, 3 * deter, blocks)

    def forward(self, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
        """Return the next state.

        Args:
            deter: (B, deter) float32.
            stoch: (B, stoch) latents.
            action: (B, num_actions), one-hot; zero where there was none.

        Returns:
            (B, deter) float32.
        """
        projected = [layer(each) for layer, each in zip(self.inputs, (deter, stoch, action), strict=True)]
        shared = torch.cat(projected, -1).unsqueeze(1).expand(-1, self.blocks, -1)
        slices = deter.unflatten(-1, (self.blocks, -1))
        hidden = self.hidden(torch.cat([slices, shared], -1)).flatten(1)
        hidden = self.activation(self.norm(hidden)).unflatten(-1, (self.blocks, -1))
        reset, candidate, update = self.gates(hidden).float().chunk(3, -1)
        return _gated(reset, candidate, update, slices).flatten(1)


class LayerNormGRU(nn.Module):
    """The dense GRU of DreamerV2: one hidden layer on latents and action, and LayerNorm on all gates together.

    Args:
        deter: width of the state.
        stoch: width of the flattened latents.
        num_actions: number of actions.
        hidden: width of the hidden layer.
        activation: name of the hidden layer's activation.
    """

    def __init__(self, deter: int, stoch: int, num_actions: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.inputs = MLP(stoch + num_actions, hidden, 1, activation=activation, norm=False)
        self.gates = nn.Linear(hidden + deter, 3 * deter, bias=False)
        initialize(self.gates.weight, hidden + deter)
        self.norm = nn.LayerNorm(3 * deter, eps=1e-3)

    def forward(self, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
        """Return the next state; see `BlockGRU.forward`."""
        hidden = self.inputs(torch.cat([stoch, action], -1))
        reset, candidate, update = self.norm(self.gates(torch.cat([hidden, deter], -1)).float()).chunk(3, -1)
        return _gated(reset, candidate, update, deter)
