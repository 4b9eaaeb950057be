"""How fast does a configuration train, phase by phase, and how close is it to the GPU's limits?

    python benchmarks/throughput.py --config configs/crafter.yaml
    python benchmarks/throughput.py --memory_gib 12 --model.schedule.tokenizer.micro_batch_size 16

Runs `delta-iris fit` on real Crafter frames: a first epoch to compile and capture, a second that is measured. In each
phase half of the steps are timed one by one, the device synchronized after each (`step_ms`, the median), and half as
they run in training (`free_ms`, their mean, which an epoch is made of); a few more are profiled, to measure the share
of the time in which the GPU computes. FLOPs are counted on the eager step, with attention in full, masked or not.
Further arguments go to `delta-iris fit`. Prints a JSON line for each phase, then a table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from building import build_system
from torch.utils.flop_counter import FlopCounterMode

from delta_iris.commands.cli import DeltaIrisCLI
from delta_iris.commands.config_files import prepare_arguments
from delta_iris.errors import UserError
from delta_iris.training.callbacks import CollectionResult, PhaseCallback, PhaseResult
from delta_iris.training.learner import Learner
from delta_iris.training.phase import COLLECT, Activity

WARM_UP, PROFILED = 10, 10


def matrix_peak() -> float:
    """FLOP/s of a large bf16 matrix product."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(20):
        a @ b
    end.record()
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (start.elapsed_time(end) / 1000)


class Clock(PhaseCallback):
    """Times the second epoch, counts operations in the first."""

    def __init__(self, steps: int, flops: bool) -> None:
        self.steps, self.count_flops = steps, flops
        self.results: dict[str, dict[str, Any]] = {}
        self.collection: CollectionResult | None = None
        self.reserved = 0.0
        self._ends: list[float] = []
        self._profiler: torch.profiler.profile | None = None

    def on_phase_start(self, trainer: L.Trainer, module: Any, activity: Activity, total: int, done: int) -> None:
        self._ends = []
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_phase_end(
        self, trainer: L.Trainer, module: Any, activity: Activity, result: CollectionResult | PhaseResult
    ) -> None:
        if isinstance(result, CollectionResult):
            if activity is COLLECT:
                self.collection = result
        elif torch.cuda.is_available():
            self.reserved = max(self.reserved, torch.cuda.max_memory_reserved() / 2**30)
            if trainer.current_epoch == 0:
                self.results[activity.name]["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        phase = module.phase
        self.results.setdefault(phase.name, {})
        if self.count_flops and trainer.current_epoch == 0 and batch_idx == 0:
            with FlopCounterMode(display=False) as counter, trainer.precision_plugin.train_step_context():
                for minibatch in phase.minibatches(phase.prepare(batch)):
                    module.forward_backward(phase, minibatch)
            self.results[phase.name]["tflop"] = round(counter.get_total_flops() / 1e12, 3)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 0:
            return
        step, result, last = batch_idx + 1, self.results[module.phase.name], WARM_UP + 2 * self.steps
        if WARM_UP <= step <= WARM_UP + self.steps or step == last:
            _synchronize()
            self._ends.append(time.perf_counter())
        if step == last:
            spans = [b - a for a, b in zip(self._ends[:-2], self._ends[1:-1], strict=True)]
            result["step_ms"] = round(1000 * statistics.median(spans), 2)
            result["free_ms"] = round(1000 * (self._ends[-1] - self._ends[-2]) / self.steps, 2)
            if torch.cuda.is_available():
                self._profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
                self._profiler.__enter__()
                self._ends.append(time.perf_counter())
        if step == last + PROFILED and self._profiler is not None:
            torch.cuda.synchronize()
            wall = time.perf_counter() - self._ends[-1]
            self._profiler.__exit__(None, None, None)
            result |= _kernels(self._profiler, wall)
            self._profiler = None


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _kernels(profiler: torch.profiler.profile, wall: float) -> dict[str, Any]:
    """Share of the time in which the device computed, kernels a step, and the longest: name, ms, launches."""
    spans, by_name, counts = [], {}, {}
    for event in profiler.profiler.kineto_results.events():
        if event.device_type() == torch.autograd.DeviceType.CUDA:
            spans.append((event.start_ns(), event.start_ns() + event.duration_ns()))
            name = event.name()[:70]
            by_name[name] = by_name.get(name, 0) + event.duration_ns()
            counts[name] = counts.get(name, 0) + 1
    busy, reached = 0, 0
    for start, end in sorted(spans):
        busy += max(0, end - max(start, reached))
        reached = max(reached, end)
    longest = sorted(by_name, key=lambda name: -by_name[name])[:40]
    return {
        "gpu_busy": round(busy / 1e9 / wall, 3),
        "kernels": len(spans) // PROFILED,
        "longest": {
            name: {"ms": round(by_name[name] / 1e6 / PROFILED, 3), "launches": counts[name] / PROFILED}
            for name in longest
        },
    }


class TimedCLI(DeltaIrisCLI):
    """`delta-iris` with a clock."""

    clock: Clock

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks.append(self.clock)
        return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/crafter.yaml"))
    parser.add_argument("--steps", type=int, default=60, help="steps timed one by one, and as many timed as they run")
    parser.add_argument("--frames", type=int, default=6_000, help="frames collected by the policy")
    parser.add_argument("--memory_gib", type=float, help="refuse to take more of the GPU's memory than this")
    parser.add_argument("--label", default="")
    parser.add_argument("--no_flops", action="store_true", help="count no operations (the plain step needs memory)")
    parser.add_argument("--out", type=Path, help="append the JSON lines to this file, the longest kernels too")
    args, further = parser.parse_known_args()
    sys.argv = sys.argv[:1]  # Lightning warns of arguments that are given twice
    peak = None
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
        peak = matrix_peak()
        if args.memory_gib:
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(args.memory_gib * 2**30 / total)
    TimedCLI.clock = clock = Clock(args.steps, not args.no_flops)
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "trainer.max_epochs": 2,
            "trainer.check_val_every_n_epoch": 1000,
            "trainer.logger.init_args.save_dir": folder,
            "model.schedule.collection.first_epoch_frames": 6_000,
            "model.schedule.collection.frames": args.frames,
        }
        usual = build_system([str(args.config)])
        for phase in usual.phases:
            options[f"model.schedule.{phase.name}.start_epoch"] = 0
            options[f"model.schedule.{phase.name}.first_epoch_steps"] = 12
            options[f"model.schedule.{phase.name}.steps"] = WARM_UP + 2 * args.steps + PROFILED + 1
        arguments = ["fit", "--config", str(args.config), *(f"--{k}={v}" for k, v in options.items()), *further]
        cli = TimedCLI(prepare_arguments(arguments))
    assert isinstance(cli.model, Learner)
    report(args, usual, cli.model, clock, peak)


def report(args: argparse.Namespace, usual: Learner, measured: Learner, clock: Clock, peak: float | None) -> None:
    """Print the results, and those of an epoch of the configuration's usual length.

    Args:
        args: of the command line.
        usual: the system as configured.
        measured: the system that was measured, whose batch sizes may have been changed.
        clock: what was measured.
        peak: FLOP/s of a large matrix product, or None.
    """
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    common = {"config": args.config.name, "label": args.label, "device": device, "torch": torch.__version__}
    collection, frames = clock.collection, usual.schedule.collection.frames
    assert collection is not None
    lines, seconds = [], collection.seconds / collection.frames * frames
    for planned, phase in zip(usual.phases, measured.phases, strict=True):
        result = clock.results[phase.name]
        # An epoch has the same number of segments, whatever the batch size.
        batch_size = phase.schedule.batch_size
        seconds += planned.schedule.steps * planned.schedule.batch_size / batch_size * result["free_ms"] / 1000
        result["frames_per_second"] = round(batch_size * phase.sampling.length / result["free_ms"] * 1000)
        horizon = getattr(phase.module, "horizon", None)
        if horizon:
            result["imagined_frames_per_second"] = round(batch_size * horizon / result["free_ms"] * 1000)
        if peak and "tflop" in result:
            result["share_of_peak"] = round(result["tflop"] * 1e12 / (result["free_ms"] / 1000) / peak, 3)
        lines.append(common | {"phase": phase.name} | result)
    lines.append(
        common
        | {
            "phase": "epoch",
            "collected_frames_per_second": round(collection.frames / collection.seconds),
            "frames_per_second": round(frames / seconds, 1),
            "seconds": round(seconds, 1),
            "matrix_peak_tflops": peak and round(peak / 1e12),
            "reserved_gib": round(clock.reserved, 2) if peak else None,
        }
    )
    for line in lines:
        print(json.dumps({name: value for name, value in line.items() if name != "longest"}))
        if args.out:
            with args.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
    columns = ("step_ms", "free_ms", "peak_gib", "tflop", "share_of_peak", "gpu_busy", "kernels")
    print(f"\n{'phase':<12}" + "".join(f"{name:>15}" for name in columns))
    for line in lines[:-1]:
        print(f"{line['phase']:<12}" + "".join(f"{line.get(name, '')!s:>15}" for name in columns))
    last = lines[-1]
    print(
        f"epoch: {last['frames_per_second']} frames/s, collection {last['collected_frames_per_second']} frames/s, "
        f"memory reserved {last['reserved_gib']} GiB",
        flush=True,
    )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"throughput: {error}") from None
