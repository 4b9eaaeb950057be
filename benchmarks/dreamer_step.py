"""How long does an update of a Dreamer take, eager, compiled and as CUDA graphs, and how much memory does it need?

    python benchmarks/dreamer_step.py --config dreamer_v3.yaml
    python benchmarks/dreamer_step.py --config dreamer_catch.yaml --modes eager --steps 3 --device cpu

An update is all that a batch takes: random numbers, world model, imagination, both losses, gradients, clipping, the
optimizer's step and the slow critic. Frames are random. Prints a JSON line for each mode: milliseconds (the median of
single updates, and the mean of updates that do not wait for one another) and the peak of the GPU's memory in GiB.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable

import torch
from building import build_system, nest_keys

from delta_iris.acceleration.compile import compiled_regions
from delta_iris.data.segment import SegmentBatch
from delta_iris.nn.optim import mask_step
from delta_iris.training.learner import Learner
from delta_iris.training.systems import Dreamer
from delta_iris.training.systems.building import count_parameters

MODES = ("eager", "compiled", "captured")


def random_segments(system: Dreamer, frame_size: tuple[int, int], device: torch.device) -> SegmentBatch:
    """A batch of real steps in the middle of episodes.

    Args:
        system: whose batches have this size.
        frame_size: height and width of a frame.
        device: of the batch.
    """
    shape = (system.phases[0].schedule.batch_size, system.segment_length)
    no = torch.zeros(shape, dtype=torch.bool, device=device)
    frames = torch.randint(0, 256, (*shape, *frame_size, 3), dtype=torch.uint8, device=device)
    actions = torch.randint(0, system.world_model.num_actions, shape, device=device)
    return SegmentBatch(frames.permute(0, 1, 4, 2, 3), actions, torch.randn(shape, device=device), no.long(), ~no, no)


def make_update(system: Learner, segment: SegmentBatch, mode: str) -> Callable[[], None]:
    """A function that trains on the batch once.

    Args:
        system: on the batch's device.
        segment: the batch.
        mode: one of `MODES`.
    """
    system.manual_backward = torch.Tensor.backward  # type: ignore[method-assign]  # without a Trainer
    system.use_compile = mode == "captured"
    phase = system.phases[0]
    optimizer = phase.module.configure_optimizers()["optimizer"]

    def update() -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(compiled_regions(mode != "eager"))
            if segment.mask.is_cuda:
                stack.enter_context(torch.autocast("cuda", torch.bfloat16))
            prepare, forward_backward = system.step_functions(phase)
            metrics = forward_backward(prepare(segment))
        mask_step(optimizer, metrics["skipped"])
        optimizer.step()
        phase.after_batch(metrics["skipped"].bool())

    return update


def measure(update: Callable[[], None], steps: int, device: torch.device) -> dict[str, float]:
    """Time updates after a few that compile and capture.

    Args:
        update: trains on a batch.
        steps: number of updates to time in each of the two ways.
        device: where it computes.
    """
    on_gpu = device.type == "cuda"
    wait: Callable[[], None] = torch.cuda.synchronize if on_gpu else lambda: None
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        update()
    spans = []
    for _ in range(steps):
        wait()
        started = time.perf_counter()
        update()
        wait()
        spans.append(1000 * (time.perf_counter() - started))
    started = time.perf_counter()
    for _ in range(steps):
        update()
    wait()
    result = {"step_ms": statistics.median(spans), "free_ms": 1000 * (time.perf_counter() - started) / steps}
    if on_gpu:
        result["peak_gib"] = torch.cuda.max_memory_reserved() / 2**30
    return {name: round(value, 2) for name, value in result.items()}


def main() -> None:
    """Measure each mode with a system of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action="append", help="of the package, or a path; later ones override")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other integer keys of the system")
    args = parser.parse_args()
    device, names = torch.device(args.device), args.config or ["dreamer_v3.yaml"]
    torch.set_float32_matmul_precision("high")
    settings = {f"model.init_args.{key}": int(value) for key, _, value in (each.partition("=") for each in args.set)}
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    for mode in args.modes:
        if mode == "captured" and device.type != "cuda":
            raise SystemExit("dreamer_step: graphs are captured on a GPU only: leave out captured of --modes")
        torch.manual_seed(0)
        system = build_system(names, nest_keys(settings))
        assert isinstance(system, Dreamer)
        frames = system.world_model.decode(system.world_model.initial_state(1))
        system.to(device)
        segment = random_segments(system, (frames.shape[2], frames.shape[3]), device)
        line = {"config": names, "mode": mode, "device": name, "millions": round(count_parameters(system) / 1e6, 1)}
        print(json.dumps(line | measure(make_update(system, segment, mode), args.steps, device)), flush=True)
        system.release_graphs()
        del system


if __name__ == "__main__":
    main()
