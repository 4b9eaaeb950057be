"""Tests that two and eight processes compute the same as one: gradients, codebook and initial weights."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch import distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.utils._pytree import tree_map

from delta_iris.actor_critic.batch import Rollout
from delta_iris.actor_critic.module import ActorCritic
from delta_iris.nn.loss import LossOutput
from delta_iris.nn.optim import make_optimizer, mask_step
from delta_iris.training.strategy import DeltaDDPStrategy
from delta_iris.world_models.tokens.base_dynamics import BaseDynamics
from delta_iris.world_models.tokens.tokenizer import Tokenizer
from tests.helpers import (
    ACTIONS,
    CODES,
    SIZE,
    make_actor_critic,
    make_dynamics,
    make_frame_dynamics,
    make_frame_tokenizer,
    make_schedule,
    make_segment,
    make_system,
    make_tokenizer,
)

BATCH = 16
PHASES = ["tokenizer", "dynamics", "actor_critic"]


def make_case(name: str) -> tuple[L.LightningModule, Any]:
    """Return a module and its prepared batch, of which the first rows contain padding."""
    segment = make_segment(BATCH, padded=True)
    segment.mask[0, :5] = False
    if name == "tokenizer":
        return make_tokenizer(), segment
    if name == "tokenizer, of frames":
        return make_frame_tokenizer(), segment
    generator = torch.Generator().manual_seed(1)
    if name == "dynamics":
        return make_dynamics(), (segment, torch.randint(0, CODES, (BATCH, 8, 4), generator=generator))
    if name == "dynamics, of frames":
        return make_frame_dynamics(), (segment, torch.randint(0, CODES, (BATCH, 9, 4), generator=generator))
    actor_critic = make_actor_critic(update_epochs=2 if name == "actor_critic, second epoch" else 1)
    burn_in, horizon = actor_critic.burn_in, actor_critic.horizon
    frames = torch.rand(BATCH, burn_in + horizon + 1, 3, *SIZE, generator=generator)
    terminated = torch.zeros(BATCH, horizon, dtype=torch.int64)
    terminated[0, 1] = 1
    actions = torch.randint(0, ACTIONS, (BATCH, horizon), generator=generator)
    rewards = torch.randn(BATCH, horizon, generator=generator)
    burn_in_mask = torch.ones(BATCH, burn_in, dtype=torch.bool)
    batch = actor_critic.compute_targets(Rollout(frames, burn_in_mask, actions, rewards, terminated))
    if actor_critic.is_multi_epoch:
        # As if there had been an optimizer step on this batch already.
        with torch.no_grad():
            actor_critic.network.actor.weight.mul_(1.5)
    return actor_critic, batch


def compute_step(
    name: str, module: L.LightningModule, batch: Any, micro_batch_size: int | None = None, device: str = "cpu"
) -> dict[str, Tensor]:
    """Return the gradients and buffers of a module after one step of the system; on a GPU, as a CUDA graph."""
    system = make_system(
        module if isinstance(module, Tokenizer) else None,
        module if isinstance(module, BaseDynamics) else None,
        module if isinstance(module, ActorCritic) else None,
        schedule=make_schedule(micro_batch_size=micro_batch_size),
    )
    # Without a Trainer; its version would only scale the loss.
    system.manual_backward = torch.Tensor.backward  # type: ignore[method-assign]
    system.to(device).start_phase(PHASES.index(name.split(",")[0]))
    assert system.phase.module is module
    _, forward_backward = system.step_functions(system.phase)
    forward_backward(tree_map(lambda x: x.to(device), batch))
    result = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    result |= {f"buffer {n}": b for n, b in module.named_buffers()}
    system.release_graphs()
    return {key: value.cpu() for key, value in result.items()}


def share(batch: Any, rank: int, ranks: int) -> Any:
    """This process's part of a batch."""
    size = BATCH // ranks
    return tree_map(lambda x: x[rank * size : (rank + 1) * size], batch)


def rank_step(rank: int, ranks: int, name: str, micro_batch_size: int | None, device: str) -> dict[str, Tensor]:
    """`compute_step` of this process's part of the batch."""
    torch.backends.cudnn.allow_tf32 = False
    module, batch = make_case(name)
    device = f"cuda:{rank}" if device == "cuda" else device
    return compute_step(name, module, share(batch, rank, ranks), micro_batch_size, device)


def initial_weights(rank: int, ranks: int) -> dict[str, Tensor]:
    """The weights of a system that were different in each process, once the strategy has set up."""
    strategy, system = DeltaDDPStrategy(), make_system()
    strategy.connect(system)
    generator = torch.Generator().manual_seed(rank)
    with torch.no_grad():
        system.actor_critic.network.actor.weight.normal_(generator=generator)
    strategy.configure_ddp()
    return system.state_dict()


def skipped_step(rank: int, ranks: int, name: str, gradients: bool) -> dict[str, Tensor]:
    """The state of a module before and after a step whose loss is NaN on process 1 only, and after a step like others.

    Args:
        rank: of this process.
        ranks: number of processes.
        name: of the phase.
        gradients: whether the gradients are NaN too.
    """
    module, batch = make_case(name)
    system = make_system(
        module if isinstance(module, Tokenizer) else None,
        module if isinstance(module, BaseDynamics) else None,
        module if isinstance(module, ActorCritic) else None,
    )
    system.manual_backward = torch.Tensor.backward  # type: ignore[method-assign]
    system.start_phase(PHASES.index(name))
    phase: Any = system.phase
    optimizer, _ = make_optimizer(module, phase.module.optimizer_config)
    original = phase.loss

    def state() -> dict[str, Tensor]:
        return {key: value.clone() for key, value in module.state_dict().items()}

    states = [state()]
    for is_bad in (rank == 1, False):

        def loss(part: Any, whole: Any, is_bad: bool = is_bad) -> LossOutput:
            output: LossOutput = original(part, whole)
            bad = output.loss * torch.nan if gradients else output.loss + torch.nan
            return output._replace(loss=bad) if is_bad else output

        phase.loss = loss
        metrics = system.forward_backward(phase, share(batch, rank, ranks))
        mask_step(optimizer, metrics["skipped"])
        optimizer.step()
        phase.after_batch(metrics["skipped"].bool())
        states.append(state())
    return {f"{n} {k}": v for n, each in enumerate(states) for k, v in each.items()}


Job = tuple[Callable[..., dict[str, Tensor]], tuple[Any, ...]]
"""A function of a rank, the number of ranks and further arguments, and these arguments."""


def run_process(rank: int, ranks: int, port: int, backend: str, path: str, jobs: list[Job]) -> None:
    """Join the process group, do one job after another and save what they return."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if backend == "nccl":
        torch.cuda.set_device(rank)
    dist.init_process_group(backend, rank=rank, world_size=ranks)
    torch.save([function(rank, ranks, *arguments) for function, arguments in jobs], f"{path}/{rank}.pt")
    # No process may end the group while another still communicates.
    dist.barrier()
    dist.destroy_process_group()


def run_ranks(ranks: int, path: Path, backend: str, jobs: list[Job]) -> list[list[dict[str, Tensor]]]:
    """Do jobs together in several processes.

    Args:
        ranks: number of processes.
        path: folder for results.
        backend: `gloo` or `nccl`.
        jobs: done one after the other.

    Returns:
        for each job, what it returned in each process.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes: Any = spawn(run_process, (ranks, port, backend, str(path), jobs), nprocs=ranks, join=False)
    deadline = time.monotonic() + 60 + 30 * ranks
    try:
        while not processes.join(timeout=5):
            assert time.monotonic() < deadline, "the processes hang"
    finally:
        for process in processes.processes:
            process.kill()
    saved = [torch.load(path / f"{rank}.pt", weights_only=True) for rank in range(ranks)]
    return [list(job) for job in zip(*saved, strict=True)]


STEPS = [
    ("tokenizer", None),
    ("tokenizer", 1),
    ("tokenizer, of frames", 1),
    ("dynamics", 1),
    ("dynamics, of frames", None),
    ("actor_critic", None),
    ("actor_critic, second epoch", 1),
]
SKIPPED = [*((name, False) for name in PHASES), ("tokenizer", True)]
RANKS = (2, 8)

Run = Callable[[Callable[..., Any], tuple[Any, ...]], list[dict[str, Tensor]]]


@pytest.fixture(scope="module", params=RANKS)
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Gives what a job returned in each of two or eight processes, which do all jobs one after the other."""
    jobs: list[Job] = [(rank_step, (*step, "cpu")) for step in STEPS]
    jobs += [*((skipped_step, skipped) for skipped in SKIPPED), (initial_weights, ())]
    results = run_ranks(request.param, tmp_path_factory.mktemp("ranks"), "gloo", jobs)
    assert all(len(ranks) == request.param for ranks in results)
    return lambda function, arguments: results[jobs.index((function, arguments))]


def assert_equal_ranks(ranks: list[dict[str, Tensor]]) -> None:
    """Weights that are updated by different gradients would drift apart."""
    for other in ranks[1:]:
        assert other.keys() == ranks[0].keys()
        for key, value in ranks[0].items():
            assert torch.equal(value, other[key]), key


@pytest.mark.parametrize(("name", "micro_batch_size"), STEPS)
def test_gradients_and_codebook_equal_those_of_one_process(done: Run, name: str, micro_batch_size: int | None) -> None:
    ranks = done(rank_step, (name, micro_batch_size, "cpu"))
    assert_equal_ranks(ranks)
    module, batch = make_case(name)
    expected = compute_step(name, module, batch)
    assert expected.keys() == ranks[0].keys()
    assert any(value.abs().sum() > 0 for value in expected.values())
    for key, value in expected.items():
        # float32 sums in another order; gradients here are at most around one. Those of IRIS's deep CNN differ by 4e-6
        # from what float64 gives.
        atol = 1e-5 if name == "tokenizer, of frames" else 2e-6
        torch.testing.assert_close(ranks[0][key], value, atol=atol, rtol=1e-4, msg=key)


@pytest.mark.parametrize(("name", "gradients"), SKIPPED)
def test_a_loss_that_is_nan_on_one_process_skips_the_step_on_all(done: Run, name: str, gradients: bool) -> None:
    ranks = done(skipped_step, (name, gradients))
    assert_equal_ranks(ranks)
    first = ranks[0]
    names = [key[2:] for key in first if key.startswith("0 ")]
    assert all(torch.equal(first[f"0 {key}"], first[f"1 {key}"]) for key in names)
    assert not all(torch.equal(first[f"1 {key}"], first[f"2 {key}"]) for key in names)
    assert all(bool(value.isfinite().all()) for value in first.values())


def test_all_processes_start_with_the_weights_of_the_first(done: Run) -> None:
    assert_equal_ranks(done(initial_weights, ()))


@pytest.mark.gpu
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize(("name", "micro_batch_size"), STEPS)
def test_graphs_on_several_gpus_compute_the_same_as_one_process(
    tmp_path: Path, ranks: int, name: str, micro_batch_size: int | None
) -> None:
    """The graphs contain the communication."""
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} GPUs")
    (results,) = run_ranks(ranks, tmp_path, "nccl", [(rank_step, (name, micro_batch_size, "cuda"))])
    assert_equal_ranks(results)
    module, batch = make_case(name)
    expected = compute_step(name, module, batch)
    assert expected.keys() == results[0].keys()
    for key, value in expected.items():
        # The tolerance of tests/training/test_learner.py for one GPU.
        difference, size = (results[0][key] - value).double().norm(), value.double().norm()
        assert difference < 1e-4 * size + 1e-6, f"{key}: difference {difference:.2e} of {size:.2e}"


STARTED = """
import os, time, torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from delta_iris.training import strategy
end_with_parent = strategy.end_with_parent
strategy.end_with_parent = lambda: end_with_parent(0.1, 0.5)
os.environ.setdefault("LOCAL_RANK", "0")  # as Lightning does in its first process
ddp = strategy.DeltaDDPStrategy()
ddp.accelerator, ddp.parallel_devices = CPUAccelerator(), [torch.device("cpu")]
ddp.cluster_environment = TorchElasticEnvironment() if TorchElasticEnvironment.detect() else LightningEnvironment()
ddp.setup_environment()
print("started", flush=True)
time.sleep(4)
print("finished", flush=True)
"""


@pytest.mark.parametrize(
    ("starter", "output"),
    [
        (["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"], b""),
        (["-c", "import subprocess, sys; subprocess.run([sys.executable, sys.argv[1]])"], b"finished\n"),
    ],
    ids=["torchrun", "shell"],
)
def test_the_first_process_ends_with_torchrun_but_not_with_a_shell(
    tmp_path: Path, starter: list[str], output: bytes
) -> None:
    (tmp_path / "first.py").write_text(STARTED)
    command = [sys.executable, *starter, str(tmp_path / "first.py")]
    # The pipe ends when the last process that can write to it has ended.
    with subprocess.Popen(command, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"started\n"
        first.kill()
        assert first.stdout.read() == output


def test_a_process_ends_with_its_parent() -> None:
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
        first.communicate(timeout=20)  # waits until both processes have ended
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGKILL)
