"""Runs on two nodes, which are two agents of `torchrun` on the loopback interface."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.faults.runs import RUN, assert_equal_runs, command, environment, share, strike


def start_nodes(processes: int, *arguments: object, cwd: Path) -> list[subprocess.Popen[str]]:
    """Start `fit` on two nodes.

    Args:
        processes: of each node.
        arguments: of the command.
        cwd: its working directory, which the nodes share.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options: list[object] = ["--trainer.devices", processes, "--trainer.num_nodes", 2]
    options += ["--trainer.strategy", "delta_ddp", *share(2 * processes)]
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", str(processes)]
    agent += ["--rdzv-backend", "c10d", "--rdzv-id", "1", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    agent += ["--local-addr", "127.0.0.1", "--monitor-interval", "0.2"]
    return [
        subprocess.Popen(
            [*agent, *command(*options, *arguments)[1:]],
            cwd=cwd,
            env=environment(GLOO_SOCKET_IFNAME="lo", TORCH_NCCL_ASYNC_ERROR_HANDLING="1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for _ in range(2)
    ]


def wait(nodes: Sequence[subprocess.Popen[str]], timeout: float = 240) -> list[str]:
    """Wait until all processes of all nodes have ended; return what each node printed."""
    try:
        # The pipe of a node ends with the last of its processes. All are read at once, because a full one blocks.
        with ThreadPoolExecutor(len(nodes)) as readers:
            return list(readers.map(lambda node: node.communicate(timeout=timeout)[0], nodes))
    finally:
        for node in nodes:
            if node.poll() is None:
                os.killpg(node.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_on_two_nodes_ends_with_one_of_them_and_resumes(tmp_path: Path, processes: int) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    nodes = start_nodes(processes, cwd=whole)
    outputs = wait(nodes)
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(outputs)

    nodes = start_nodes(processes, *strike("dynamics", 1, 1, "NODE"), cwd=broken)
    outputs = wait(nodes)
    assert all(node.returncode != 0 for node in nodes), "\n".join(outputs)
    nodes = start_nodes(processes, "--ckpt_path", "last", cwd=broken)
    outputs = wait(nodes)
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(outputs)
    assert_equal_runs(broken / RUN, whole / RUN)
