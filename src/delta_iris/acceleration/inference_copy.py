"""Copies of modules for inference in another dtype."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["InferenceCopy"]

M = TypeVar("M", bound=nn.Module)


class InferenceCopy(Generic[M]):
    """A copy of a module without gradients, whose parameters are stored in another dtype.

    With the parameters stored in autocast's dtype, autocast does not cast them again in every forward pass.

    Args:
        source: module to copy.
        dtype: dtype of the copy's parameters; buffers keep their own, and so do the parameters of modules with a true
            attribute `keeps_precision`.

    Attributes:
        module: the copy. `sync` updates it in place, so CUDA graphs may read its memory.
    """

    def __init__(self, source: M, dtype: torch.dtype) -> None:
        self._source = source
        self.module = copy.deepcopy(source).requires_grad_(False)
        for module in self.module.modules():
            for parameter in module.parameters(recurse=False):
                parameter.grad = None
                if not getattr(module, "keeps_precision", False):
                    parameter.data = parameter.data.to(dtype)

    @torch.no_grad()
    def sync(self) -> None:
        """Copy the current parameters and buffers of the source."""
        torch._foreach_copy_(_tensors(self.module), _tensors(self._source))


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
