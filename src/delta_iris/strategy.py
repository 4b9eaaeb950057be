"""Data parallelism with one gradient reducer a module."""

from __future__ import annotations

import inspect
from typing import Any

from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from delta_iris.schedule import PHASES
from delta_iris.system import DeltaIris

__all__ = ["DeltaDDPStrategy"]


# PyTorch 2.13 renamed the argument and warns of the old one.
_PARAMETERS = inspect.signature(DistributedDataParallel.__init__).parameters
_NO_BUFFER_SYNC = "forward_sync_buffers" if "forward_sync_buffers" in _PARAMETERS else "broadcast_buffers"


class _Losses(nn.Module):
    """A module whose forward computes the losses: what DistributedDataParallel can wrap."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any) -> dict[str, Tensor]:
        return self.module.training_step(*inputs)


class DeltaDDPStrategy(DDPStrategy):
    """DDP around each of the three modules instead of around the whole.

    One reducer for all would have to look for unused parameters and would reduce all three modules at every step,
    though each step trains one. Registered as `delta_ddp`; what `--trainer.devices N` uses.
    """

    def __init__(self, **kwargs: Any) -> None:
        # Buffers need no broadcast: codebooks are updated from reduced statistics, alike on all ranks.
        options: dict[str, Any] = {_NO_BUFFER_SYNC: False} | kwargs
        super().__init__(**options)

    def configure_ddp(self) -> None:
        """Wrap each module's losses; the root itself stays as it is."""
        root = self.lightning_module
        assert isinstance(root, DeltaIris)
        for phase in PHASES:
            root.steps[phase] = self._setup_model(_Losses(root.child(phase)))

    def teardown(self) -> None:
        """Take the reducers away with the process group."""
        if isinstance(self.lightning_module, DeltaIris):
            self.lightning_module.steps.clear()
        super().teardown()


if "delta_ddp" not in StrategyRegistry:
    StrategyRegistry.register("delta_ddp", DeltaDDPStrategy, "DDP with one gradient reducer a module")
