"""Data parallelism whose steps can be CUDA graphs."""

from __future__ import annotations

import os
import signal
import threading
import time
from datetime import timedelta
from typing import Any

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch import distributed as dist
from torch.distributed.constants import default_pg_timeout

from delta_iris.training.learner import Learner

__all__ = ["DeltaDDPStrategy", "end_with_parent"]


def end_with_parent(poll_seconds: float = 1.0, grace_seconds: float = 10.0) -> None:
    """Kill this process some time after its parent process has ended.

    Lightning's first process ends all others when one of them dies, but nothing ends them when the first one is killed:
    they would wait for a message inside a CUDA graph and keep their GPUs busy.

    Args:
        poll_seconds: time between checks.
        grace_seconds: time for processes that end by themselves.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(poll_seconds)
        time.sleep(grace_seconds)
        os.kill(os.getpid(), signal.SIGKILL)  # a thread that waits for a GPU reacts to no other signal

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


class DeltaDDPStrategy(DDPStrategy):
    """DDP without PyTorch's reducer: `Learner.forward_backward` averages the gradients of the module that it trains.

    The reducer sends gradients from Python hooks while others are still computed. Here losses, gradients, their average
    and clipping are one CUDA graph, because thousands of launches cost more than waiting for one message. Registered as
    `delta_ddp`; what `--trainer.devices N` uses. DDP's other options (communication hooks, bucket sizes) configure the
    reducer, so they are not accepted.

    Args:
        process_group_backend: `nccl` on GPUs and `gloo` on CPUs where None.
        timeout: of messages between processes.
    """

    def __init__(
        self, process_group_backend: str | None = None, timeout: timedelta | None = default_pg_timeout
    ) -> None:
        super().__init__(process_group_backend=process_group_backend, timeout=timeout)

    def setup_environment(self) -> None:
        """Join the other processes, and end with the parent process: the first rank, or a launcher such as torchrun."""
        # The first process that Lightning itself launches from may outlive its shell.
        if self.local_rank != 0 or not isinstance(self.cluster_environment, LightningEnvironment):
            end_with_parent()
        super().setup_environment()
        if self.lightning_module is not None:
            # Only the first process knows the run folder: it has made and owns it.
            trainer: Any = self.lightning_module.trainer
            trainer._default_root_dir = self.broadcast(trainer.default_root_dir)

    def configure_ddp(self) -> None:
        """Start with the weights of process 0 on all processes."""
        assert self.lightning_module is not None
        for tensor in self.lightning_module.state_dict().values():
            dist.broadcast(tensor, src=0)

    def teardown(self) -> None:
        """Free the CUDA graphs first: the process group cannot end while one holds messages of its own."""
        if isinstance(self.lightning_module, Learner):
            self.lightning_module.release_graphs()
        super().teardown()


if "delta_ddp" not in StrategyRegistry:
    StrategyRegistry.register("delta_ddp", DeltaDDPStrategy, "DDP that averages the gradients of one phase's module")
