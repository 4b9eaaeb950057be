"""Copies of modules that compute without gradients, in a smaller type."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["FrozenCopy"]

M = TypeVar("M", bound=nn.Module)


class FrozenCopy(Generic[M]):
    """A copy whose parameters have another type: autocast would cast them anew at every pass.

    Args:
        source: the module to copy.
        dtype: of the copy's parameters; buffers keep theirs.

    Attributes:
        module: the copy. Its memory stays where it is when it is refreshed.
    """

    def __init__(self, source: M, dtype: torch.dtype) -> None:
        self._source = source
        self.module = copy.deepcopy(source).requires_grad_(False)
        for parameter in self.module.parameters():
            parameter.grad = None
            parameter.data = parameter.data.to(dtype)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over what the source has become."""
        torch._foreach_copy_(_tensors(self.module), _tensors(self._source))


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
