"""Data parallelism whose steps can be CUDA graphs."""

from __future__ import annotations

import os
import signal
import threading
import time
from datetime import timedelta

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch import distributed as dist
from torch.distributed.constants import default_pg_timeout

from delta_iris.training.learner import DeltaIris

__all__ = ["DeltaDDPStrategy", "end_with_parent"]


def end_with_parent(poll_seconds: float = 1.0, grace_seconds: float = 10.0) -> None:
    """From now on, kill this process where the one that started it has been gone for a while.

    Lightning's first process ends all when one of the others dies, but nobody ends them when it is itself killed: they
    would wait in a message of a CUDA graph, and keep their GPU busy with that. The grace is for those that end anyway.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(poll_seconds)
        time.sleep(grace_seconds)
        os.kill(os.getpid(), signal.SIGKILL)  # a thread that waits for a GPU hears nothing less

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


class DeltaDDPStrategy(DDPStrategy):
    """DDP without a wrapper: `DeltaIris.backward_step` averages the gradients of the module that it trains.

    PyTorch's reducer sends gradients while others are still computed, from hooks that Python runs at every step. Here a
    step's losses, gradients, their average and clipping are one CUDA graph: thousands of launches cost more than what
    a GPU waits for one message. Registered as `delta_ddp`; what `--trainer.devices N` uses. What else DDP can be told
    (communication hooks, bucket sizes) is for that reducer, so it is not taken.

    Args:
        process_group_backend: `nccl` on GPUs and `gloo` on CPUs where None.
        timeout: of the processes' messages to each other.
    """

    def __init__(
        self, process_group_backend: str | None = None, timeout: timedelta | None = default_pg_timeout
    ) -> None:
        super().__init__(process_group_backend=process_group_backend, timeout=timeout)

    def setup_environment(self) -> None:
        """Join the other processes, and end with the one that started this: the first, or one such as torchrun."""
        # The first process that Lightning itself knows may outlive the shell that it was typed in.
        if self.local_rank != 0 or not isinstance(self.cluster_environment, LightningEnvironment):
            end_with_parent()
        super().setup_environment()

    def configure_ddp(self) -> None:
        """Begin with the weights of process 0 on all of them."""
        assert self.lightning_module is not None
        for tensor in self.lightning_module.state_dict().values():
            dist.broadcast(tensor, src=0)

    def teardown(self) -> None:
        """Take away the graphs first: the process group cannot end while one with messages of its own is left."""
        if isinstance(self.lightning_module, DeltaIris):
            self.lightning_module.forget_graphs()
        super().teardown()


if "delta_ddp" not in StrategyRegistry:
    StrategyRegistry.register("delta_ddp", DeltaDDPStrategy, "DDP that averages one module's gradients a step")
