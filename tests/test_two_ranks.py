"""Two processes equal one: gradients, codebook, means."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest
import torch
from conftest import make_agent, make_tokenizer, make_window, make_world_model
from torch import distributed as dist
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel

from delta_iris.agent import ImaginedWindow, Lesson
from delta_iris.data.window import Window
from delta_iris.strategy import _Losses
from delta_iris.system import DeltaIris

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


def outcome(name: str, module, inputs, micro_batch_size: int | None = None, reducer=None) -> dict[str, torch.Tensor]:
    """Gradients and buffers after one step of the system."""
    children = {"tokenizer": make_tokenizer, "world_model": make_world_model, "agent": make_agent}
    name = name.split()[0]
    system = DeltaIris(**({key: make() for key, make in children.items()} | {name: module}))
    # Without a Trainer there is nothing that would scale.
    system.manual_backward = lambda loss: loss.backward()
    if reducer is not None:
        system.steps[name] = reducer
    system.begin_phase(name, micro_batch_size)
    system.backward_step(inputs)
    result = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    return result | {f"buffer {n}": b for n, b in module.named_buffers()}


def work(rank: int, name: str, micro_batch_size: int | None, port: int, path: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    module, inputs = make_case(name)
    half = take(inputs, slice(rank * BATCH // 2, (rank + 1) * BATCH // 2))
    reducer = DistributedDataParallel(_Losses(module))  # kept: its hooks die with it
    result = outcome(name, module, half, micro_batch_size, reducer)
    torch.save(result, f"{path}/{rank}.pt")
    # One process must not tear down what the other still talks to, nor a reducer outlive its group.
    dist.barrier()
    del reducer
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("name", "micro_batch_size"),
    [("tokenizer", None), ("tokenizer", 1), ("world_model", 1), ("agent", None), ("agent again", 1)],
)
def test_gradients_and_codebook_equal_those_of_one_process(
    tmp_path: Path, name: str, micro_batch_size: int | None
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = multiprocessing.spawn(work, (name, micro_batch_size, port, str(tmp_path)), nprocs=2, join=False)
    deadline = time.monotonic() + 90
    while not processes.join(timeout=5):
        assert time.monotonic() < deadline, "the two processes hang"
    module, inputs = make_case(name)
    expected = outcome(name, module, inputs)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert expected.keys() == ranks[0].keys()
    assert any(value.abs().sum() > 0 for value in expected.values())
    for key, value in expected.items():
        assert torch.equal(ranks[0][key], ranks[1][key]), key
        # float32 sums in another order; gradients here are at most around one.
        torch.testing.assert_close(ranks[0][key], value, atol=2e-6, rtol=1e-4, msg=key)
