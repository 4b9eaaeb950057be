"""An MLP of residual blocks."""

from __future__ import annotations

from torch import Tensor, nn

from delta_iris.acceleration.compile import compile_region

__all__ = ["ResidualMLP"]


class ResidualMLP(nn.Module):
    """Residual blocks of LayerNorm, a wide linear layer, SiLU and a linear layer back. At first it is the identity.

    Args:
        dim: width of input and output.
        hidden: width in a block.
        layers: number of blocks, 0 for the identity without parameters.
    """

    def __init__(self, dim: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for _ in range(layers):
            last = nn.Linear(hidden, dim)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.blocks.append(nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.SiLU(), last))

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, dim) to (…, dim)."""
        return self._transform(x) if self.blocks else x

    @compile_region()
    def _transform(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x
