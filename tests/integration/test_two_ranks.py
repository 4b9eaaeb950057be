"""Two processes equal one: gradients, codebook, means."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import make_agent, make_tokenizer, make_window, make_world_model
from torch import distributed as dist
from torch import multiprocessing
from torch.utils._pytree import tree_map

from delta_iris.actor_critic.module import ImaginedWindow, Lesson
from delta_iris.data.segment import Window
from delta_iris.training.learner import DeltaIris
from delta_iris.training.strategy import DeltaDDPStrategy

BATCH = 4


def make_case(name: str):
    """A module and its inputs for the whole batch; the halves hold different amounts of padding."""
    window = make_window(BATCH, padded=True)
    window.valid[0, :5] = False
    if name == "tokenizer":
        return make_tokenizer(), window
    if name == "world_model":
        tokens = torch.randint(
            0, 32, (BATCH, window.actions.shape[1] - 1, 4), generator=torch.Generator().manual_seed(1)
        )
        return make_world_model(), (window, tokens)
    agent = make_agent(passes=2) if name == "agent again" else make_agent()
    generator = torch.Generator().manual_seed(1)
    frames = torch.rand(BATCH, agent.burn_in + agent.horizon + 1, 3, 32, 32, generator=generator)
    ends = torch.zeros(BATCH, agent.horizon, dtype=torch.long)
    ends[0, 1] = 1
    actions = torch.randint(0, 5, (BATCH, agent.horizon), generator=generator)
    rewards = torch.randn(BATCH, agent.horizon, generator=generator)
    valid = torch.ones(BATCH, agent.burn_in, dtype=torch.bool)
    lesson = agent.appraise(ImaginedWindow(frames, valid, actions, rewards, ends))
    if name == "agent again":
        # The policy has moved since.
        with torch.no_grad():
            agent.network.actor.weight.mul_(1.5)
    return agent, lesson


def take(inputs, rows: slice):
    if isinstance(inputs, torch.Tensor):
        return inputs[rows]
    parts = [take(part, rows) for part in inputs]
    return type(inputs)(*parts) if isinstance(inputs, Window | Lesson) else tuple(parts)


def outcome(name: str, module, inputs, micro_batch_size: int | None = None, device="cpu") -> dict[str, torch.Tensor]:
    """Gradients and buffers after one step of the system; on a GPU, as a CUDA graph."""
    children = {"tokenizer": make_tokenizer, "world_model": make_world_model, "agent": make_agent}
    name = name.split()[0]
    system = DeltaIris(**({key: make() for key, make in children.items()} | {name: module}))
    # Without a Trainer there is nothing that would scale.
    system.manual_backward = lambda loss: loss.backward()
    system.to(device).begin_phase(name, micro_batch_size)
    _, learn = system._step_functions()
    learn(tree_map(lambda x: x.to(device), inputs))
    result = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    result |= {f"buffer {n}": b for n, b in module.named_buffers()}
    system.forget_graphs()
    return {key: value.cpu() for key, value in result.items()}


def step(rank: int, path: str, name: str, micro_batch_size: int | None, device: str) -> None:
    """One step on this process's half of the batch."""
    torch.backends.cudnn.allow_tf32 = False
    module, inputs = make_case(name)
    half = take(inputs, slice(rank * BATCH // 2, (rank + 1) * BATCH // 2))
    result = outcome(name, module, half, micro_batch_size, f"cuda:{rank}" if device == "cuda" else device)
    torch.save(result, f"{path}/{rank}.pt")


def begin(rank: int, path: str) -> None:
    """The strategy's beginning, with weights of this process's own."""
    strategy = DeltaDDPStrategy()
    strategy.connect(DeltaIris(make_tokenizer(), make_world_model(), make_agent()))
    generator = torch.Generator().manual_seed(rank)
    with torch.no_grad():
        strategy.lightning_module.agent.network.actor.weight.normal_(generator=generator)
    strategy.configure_ddp()
    torch.save(strategy.lightning_module.state_dict(), f"{path}/{rank}.pt")


def work(rank: int, port: int, backend: str, function, *args) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if backend == "nccl":
        torch.cuda.set_device(rank)
    dist.init_process_group(backend, rank=rank, world_size=2)
    function(rank, *args)
    # One process must not tear down what the other still talks to.
    dist.barrier()
    dist.destroy_process_group()


def run_two(path: Path, backend: str, function, *args) -> list[dict[str, torch.Tensor]]:
    """What two processes saved."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = multiprocessing.spawn(work, (port, backend, function, str(path), *args), nprocs=2, join=False)
    deadline = time.monotonic() + 90
    try:
        while not processes.join(timeout=5):
            assert time.monotonic() < deadline, "the two processes hang"
    finally:
        for process in processes.processes:
            process.kill()
    return [torch.load(path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


CASES = [("tokenizer", None), ("tokenizer", 1), ("world_model", 1), ("agent", None), ("agent again", 1)]


@pytest.mark.parametrize(("name", "micro_batch_size"), CASES)
def test_gradients_and_codebook_equal_those_of_one_process(
    tmp_path: Path, name: str, micro_batch_size: int | None
) -> None:
    ranks = run_two(tmp_path, "gloo", step, name, micro_batch_size, "cpu")
    module, inputs = make_case(name)
    expected = outcome(name, module, inputs)
    assert expected.keys() == ranks[0].keys()
    assert any(value.abs().sum() > 0 for value in expected.values())
    for key, value in expected.items():
        assert torch.equal(ranks[0][key], ranks[1][key]), key
        # float32 sums in another order; gradients here are at most around one.
        torch.testing.assert_close(ranks[0][key], value, atol=2e-6, rtol=1e-4, msg=key)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize(("name", "micro_batch_size"), CASES)
def test_graphs_of_two_gpus_compute_what_one_process_does(
    tmp_path: Path, name: str, micro_batch_size: int | None
) -> None:
    """Messages between processes are part of the graphs."""
    ranks = run_two(tmp_path, "nccl", step, name, micro_batch_size, "cuda")
    module, inputs = make_case(name)
    for key, value in outcome(name, module, inputs).items():
        assert torch.equal(ranks[0][key], ranks[1][key]), key
        # As for one GPU in test_acceleration.py.
        off, size = (ranks[0][key] - value).double().norm(), value.double().norm()
        assert off < 1e-4 * size + 1e-6, f"{key}: off by {off:.2e} of {size:.2e}"


def test_processes_begin_with_the_weights_of_the_first(tmp_path: Path) -> None:
    first, second = run_two(tmp_path, "gloo", begin)
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


STARTED = """
import os, time, torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from delta_iris.training import strategy
watch = strategy.end_with_parent
strategy.end_with_parent = lambda: watch(0.1, 0.5)
os.environ.setdefault("LOCAL_RANK", "0")  # Lightning sets it in its first process too
ddp = strategy.DeltaDDPStrategy()
ddp.accelerator, ddp.parallel_devices = CPUAccelerator(), [torch.device("cpu")]
ddp.cluster_environment = TorchElasticEnvironment() if TorchElasticEnvironment.detect() else LightningEnvironment()
ddp.setup_environment()
print("started", flush=True)
time.sleep(4)
print("finished", flush=True)
"""


@pytest.mark.parametrize(
    ("starter", "told"),
    [
        (["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"], b""),
        (["-c", "import subprocess, sys; subprocess.run([sys.executable, sys.argv[1]])"], b"finished\n"),
    ],
    ids=["torchrun", "shell"],
)
def test_the_first_process_ends_with_torchrun_but_not_with_a_shell(
    tmp_path: Path, starter: list[str], told: bytes
) -> None:
    (tmp_path / "first.py").write_text(STARTED)
    command = [sys.executable, *starter, str(tmp_path / "first.py")]
    # Whoever has the pipe can write to it: it ends with the last of them.
    with subprocess.Popen(command, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"started\n"
        first.kill()
        assert first.stdout.read() == told


def test_a_process_ends_with_the_one_that_started_it() -> None:
    watching = (
        "import time; from delta_iris.training.strategy import end_with_parent; end_with_parent(0.1, 0.5); "
        "print('watching', flush=True); time.sleep(60)"
    )
    starting = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {watching!r}]); time.sleep(60)"
    first = subprocess.Popen([sys.executable, "-c", starting], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == b"watching\n"
        first.kill()
        first.communicate(timeout=20)  # until the last process that holds the pipe is gone
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGKILL)
