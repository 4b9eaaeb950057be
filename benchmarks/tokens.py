"""What do tokens of transitions save? Δ-IRIS's four tokens a frame against IRIS's 16 and 64, on the same frames.

    python benchmarks/tokens.py --folder frames --out tokens.jsonl

Takes about an hour and a half on an H100. On a CPU, name small configurations and little of everything:

    python benchmarks/tokens.py --row "Δ-IRIS" crafter_small.yaml --row IRIS my_iris.yaml --frames 400 \\
        --held_out_frames 2000 --num_envs 2 --tokenizer_steps 4 --tokenizer_seconds 2 --dynamics_steps 4 --timed_steps 1

For each row: trains the tokenizer and then the dynamics of a configuration on frames of a sticky-action policy (see
tokenizer.py), measures both on the same held-out segments, and times all that an epoch does. Prints a JSON line for
each row, then a table:

- tokens: a frame; parameters: of the world model, in millions.
- L2, PSNR: reconstruction after equal numbers of steps, and L2 after equal seconds of training.
- nats a token, nats a frame: cross-entropy of the next tokens. Only the second can be compared across rows.
- open loop: L2 of the frame imagined last, 15 steps after the last real one, under the recorded actions.
- imagined frames/s: of a rollout.
- frames/s: of a whole epoch at 24 imagined frames for each collected one, with the configuration's other batches; and
  the hours that 10M frames take at this speed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from building import build_system, merged_config
from tokenizer import CONTEXT, SEGMENT_LENGTH, Frames, autocast, find_phase, to_device, train

from delta_iris.acceleration.compile import compiled_regions
from delta_iris.data.segment import SegmentBatch, to_float
from delta_iris.envs.vector import make_vector_env
from delta_iris.evaluation.world_model import WorldModelEvaluator
from delta_iris.training.learner import Learner
from delta_iris.training.phase import Phase
from delta_iris.training.systems.building import count_parameters
from delta_iris.training.systems.token_system import TokenSystem

ROWS = [
    ["Δ-IRIS, Transformer", "crafter.yaml"],
    ["Δ-IRIS, CNN", "crafter_cnn.yaml"],
    ["IRIS", "iris.yaml", "iris_16.yaml"],
    ["IRIS", "iris.yaml"],
]
CHUNK = 500
"""Training batches that are drawn at a time."""
RATIO = 24
"""Imagined frames for each collected one."""
COLUMNS = {
    "label": "model",
    "tokens": "tokens a frame",
    "parameters_m": "parameters (M)",
    "l2_steps": "L2, equal steps",
    "psnr_steps": "PSNR",
    "l2_seconds": "L2, equal time",
    "nats_a_token": "nats a token",
    "nats_a_frame": "nats a frame",
    "open_loop_l2": "open loop, L2",
    "imagined_frames_per_second": "imagined frames/s",
    "frames_per_second": "frames/s",
    "hours_10m": "hours for 10M",
}


def train_tokenizer(
    system: TokenSystem, data: Frames, args: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """Train a tokenizer for the given steps and for the given seconds, whichever is longer; measure it at both.

    Args:
        system: on `device`.
        data: to train on and to measure with.
        args: of the command line.
        device: where to train.
    """
    phase, result = find_phase(system, "tokenizer"), {}
    batches, length = (CHUNK, phase.schedule.batch_size, args.num_workers), phase.sampling.length
    # How many steps the seconds allow is not known beforehand.
    loader = itertools.chain.from_iterable(data.batches(*batches, length, seed) for seed in itertools.count())
    spent = 0.0
    for step, (_, seconds) in enumerate(train(phase, loader, device), start=1):
        spent += seconds
        if step == args.tokenizer_steps:
            l2 = _reconstruction_l2(system, data, device)
            result |= {"l2_steps": l2, "psnr_steps": -10 * np.log10(l2)}
        if spent >= args.tokenizer_seconds and "l2_seconds" not in result:
            result |= {"l2_seconds": _reconstruction_l2(system, data, device), "steps_in_equal_time": step}
        if step >= args.tokenizer_steps and spent >= args.tokenizer_seconds:
            break
    return result


def train_dynamics(system: TokenSystem, data: Frames, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Train dynamics on the tokens of the tokenizer; measure token losses and open-loop error.

    Args:
        system: on `device`.
        data: to train on and to measure with.
        args: of the command line.
        device: where to train.
    """
    phase = find_phase(system, "dynamics")
    phase.on_start()
    for _ in train(phase, data.batches(args.dynamics_steps, phase.schedule.batch_size, args.num_workers), device):
        pass
    system.eval()
    evaluator = WorldModelEvaluator(system.world_model, CONTEXT)
    with autocast(device):
        for segment in data.held_out:
            evaluator.update(segment)
    values, tokens = evaluator.compute(), system.tokenizer.tokens_per_frame
    system.train()
    nats = float(values["held_out/dynamics_token_loss"])
    last = float(values[f"open_loop_l2/{SEGMENT_LENGTH - CONTEXT:02}"])
    return {"nats_a_token": nats, "nats_a_frame": nats * tokens, "open_loop_l2": last}


def time_epoch(system: TokenSystem, data: Frames, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Time an epoch's parts as they are accelerated in a run, and add them up.

    Args:
        system: on `device`.
        data: gives the batches.
        args: of the command line.
        device: where to compute.
    """
    system.manual_backward = torch.Tensor.backward  # type: ignore[method-assign,assignment]  (there is no Trainer)
    schedule, horizon = system.schedule, system.actor_critic.horizon
    frames = schedule.collection.frames
    result: dict[str, Any] = {"collection_ms": 1000 / _collected_frames_per_second(system, data, device)}
    seconds = frames * result["collection_ms"] / 1000
    for phase in system.phases:
        batch_size = phase.schedule.batch_size
        (segment,) = data.batches(1, batch_size, 0, phase.sampling.length)
        if phase.name == "actor_critic":  # its segments end with real frames
            segment = data.held_out[0].slice_time(0, phase.sampling.length)
            segment = segment.select(torch.arange(batch_size, device=segment.mask.device) % len(segment.mask))
        prepare, step = _time_phase(system, phase, to_device(segment, device), args.timed_steps, device)
        steps: float = phase.schedule.steps
        if phase.name == "actor_critic":
            steps = RATIO * frames / (batch_size * horizon)
            result["imagined_frames_per_second"] = batch_size * horizon / prepare
        seconds += steps * (prepare + step)
        result[f"{phase.name}_ms"] = 1000 * (prepare + step)
    system.release_graphs()
    rate = frames / seconds
    return result | {"frames_per_second": rate, "hours_10m": 1e7 / rate / 3600}


def _reconstruction_l2(system: TokenSystem, data: Frames, device: torch.device) -> float:
    total = weight = 0.0
    with torch.no_grad(), autocast(device):
        for segment in data.held_out:
            l2 = system.tokenizer.evaluate(segment)[0]["l2"]
            total, weight = total + float(l2.total), weight + float(l2.weight)
    return total / weight


def _time_phase(
    system: Learner, phase: Phase, segment: SegmentBatch, number: int, device: torch.device
) -> tuple[float, float]:
    """Seconds that a batch takes to prepare, and to train on, without the optimizer."""

    def timed(function: Callable[[], Any]) -> float:
        for _ in range(2):  # compiles and captures
            function()
        _synchronize(device)
        started = time.perf_counter()
        for _ in range(number):
            function()
        _synchronize(device)
        return (time.perf_counter() - started) / number

    with autocast(device), compiled_regions(system.is_accelerated):
        prepare, forward_backward = system.step_functions(phase)
        seconds = timed(lambda: prepare(segment)) if phase.captures_prepare or phase.name == "actor_critic" else 0.0
        batch = prepare(segment)
        return seconds, timed(lambda: [forward_backward(part) for part in phase.minibatches(batch)])


def _collected_frames_per_second(system: TokenSystem, data: Frames, device: torch.device, steps: int = 50) -> float:
    number = 16
    envs = make_vector_env("delta_iris/Crafter-v1", {"size": data.shape[0]}, number)
    observations, _ = envs.reset(seed=0)
    policy = system.make_policy()
    memory, started = policy.initial_memory(number), 0.0
    for step in range(steps + 5):
        if step == 5:
            started = time.perf_counter()
        frames = to_float(torch.from_numpy(observations).to(device).permute(0, 3, 1, 2))
        actions, memory = policy.act(frames, memory)
        observations, *_ = envs.step(actions.cpu().numpy())
    seconds = time.perf_counter() - started
    envs.close()
    return number * steps / seconds


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(row: list[str], data: Frames, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Train and measure one row of the table.

    Args:
        row: its label, and its configurations.
        data: the frames of all rows.
        args: of the command line.
        device: where to compute.
    """
    torch.manual_seed(args.seed)
    system = build_system(row[1:])
    assert isinstance(system, TokenSystem)
    system.to(device)
    parameters = count_parameters(system.tokenizer) + count_parameters(system.dynamics)
    result: dict[str, Any] = {"label": row[0], "tokens": system.tokenizer.tokens_per_frame}
    result |= {
        "parameters_m": parameters / 1e6,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
    }
    for part in (train_tokenizer, train_dynamics, time_epoch):
        result |= part(system, data, args, device)
    return result


def main() -> None:
    """Measure all rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", nargs="+", action="append", help="a label, and names or paths of configurations")
    parser.add_argument("--frames", type=int, default=80_000)
    parser.add_argument("--held_out_frames", type=int, default=6_400)
    parser.add_argument("--num_envs", type=int, default=16)
    parser.add_argument("--num_workers", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="keep the collected frames here, and reuse those that are here")
    parser.add_argument("--tokenizer_steps", type=int, default=5000)
    parser.add_argument("--tokenizer_seconds", type=float, default=600)
    parser.add_argument("--dynamics_steps", type=int, default=2500)
    parser.add_argument("--timed_steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="append the JSON lines to this file")
    args = parser.parse_args()
    rows = args.row or ROWS
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    with tempfile.TemporaryDirectory() as temporary:
        size = merged_config(rows[0][1:])["data"]["frame_size"][0]
        data = Frames(args.folder or Path(temporary), size, args.frames, args.held_out_frames, args.num_envs, device)
        results = []
        for row in rows:
            results.append(measure(row, data, args, device))
            line = json.dumps(results[-1], ensure_ascii=False)
            print(line, flush=True)
            if args.out:
                with args.out.open("a") as file:
                    file.write(line + "\n")
    print(f"\n| {' | '.join(COLUMNS.values())} |\n|{'---|' * len(COLUMNS)}")
    for result in results:
        cells = (result[name] for name in COLUMNS)
        print(f"| {' | '.join(f'{cell:.4g}' if isinstance(cell, float) else str(cell) for cell in cells)} |")


if __name__ == "__main__":
    main()
