"""How well does a tokenizer see? Held-out reconstruction error after so many steps, on frames of a lazy player.

    python benchmarks/tokenizer.py --config configs/crafter.yaml --steps 250 500 1000

Collects frames of a player that repeats its last action with probability 1/2 and else draws uniformly, trains the
configuration's tokenizer on windows of them, and evaluates it on 6 × 32 windows of further frames, of other seeds,
none across an episode's end. Prints a JSON line a measurement, the error of copying the last frame beside it;
`chained_l2_…` is the error after so many frames each painted from the one painted before, with the real tokens. In
shares of the latents' variance: `quantization_error`, `turned` (how far they turned in the last 10 steps) and
`turned_together` (how far their mean did). `largest_gradient` is the largest norm since the last line.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from delta_iris.acceleration.compile import accelerated
from delta_iris.data.loader import WindowDataset, window_loader
from delta_iris.data.replay import Replay, ReplayReader
from delta_iris.data.sampler import WindowSampler
from delta_iris.data.segment import Window, to_float
from delta_iris.envs.vector import check_environment, make_vector_env
from delta_iris.nn.statistics import Average
from delta_iris.world_models.tokens.quantizer import code_entropy
from delta_iris.world_models.tokens.tokenizer import Tokenizer

WINDOW, CONTEXT, CHAIN, TURN = 21, 6, (1, 5, 15), 10


def collect(folder: Path, size: int, frames: int, seed: int, num_envs: int) -> Replay:
    """Frames of the lazy player, unless they are there."""
    replay, generator = Replay(folder, (size, size, 3), level=3), np.random.default_rng(seed)
    if replay.num_frames >= frames:
        return replay
    envs = make_vector_env("delta_iris/Crafter-v1", {"size": size}, num_envs)
    observations, _ = envs.reset(seed=seed)
    actions = generator.integers(17, size=num_envs)
    for _ in range(frames // num_envs):
        fresh = generator.random(num_envs) < 0.5
        actions = np.where(fresh, generator.integers(17, size=num_envs), actions)
        following, rewards, terminated, truncated, _ = envs.step(actions)
        for i in range(num_envs):
            step = (int(actions[i]), float(rewards[i]), bool(terminated[i]), bool(truncated[i]))
            replay.append(i, observations[i], *step)
        observations = following
    replay.flush()
    envs.close()
    return replay


def held_out_draws(reader: ReplayReader, window: int, batches: int, batch_size: int) -> list[list[tuple[int, int]]]:
    """Windows that lie within an episode, each as likely."""
    generator = np.random.default_rng(0)
    starts = [(e, s) for e in range(reader.num_episodes) for s in range(reader.length(e) - window + 1)]
    chosen = generator.choice(len(starts), (batches, batch_size), replace=False)
    return [[starts[i] for i in row] for row in chosen]


def load_module(config: Path, name: str, changes: list[str], **sizes: Any) -> Any:
    """A module of a configuration, with some of its arguments changed (key=value in YAML)."""
    content = yaml.safe_load(config.read_text())
    part = content["model"][name]
    changed = {key: yaml.safe_load(value) for key, value in (item.split("=", 1) for item in changes)}
    options = {"frame_size": content["data"]["frame_size"], "num_actions": 17} | part["init_args"] | changed | sizes
    module, class_name = part["class_path"].rsplit(".", 1)
    return getattr(importlib.import_module(module), class_name)(**options)


def to_device(window: Window, device: torch.device) -> Window:
    return Window(*(field.to(device, non_blocking=True) for field in window))


def half_precision(device: torch.device) -> torch.autocast:
    """bf16 where there is a GPU; float32 on a CPU, as in training."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def train(
    module: Any, losses_of: Callable[[Window], dict[str, Tensor]], loader: Iterable[Window], device: torch.device
) -> Iterator[tuple[dict[str, Tensor], float]]:
    """Train a module; gives each step's losses and its seconds."""
    configured = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    for batch in loader:
        started = time.perf_counter()
        with half_precision(device), accelerated(device.type == "cuda"):
            losses = losses_of(to_device(batch, device))
            optimizer.zero_grad()
            losses["loss"].backward()
        if isinstance(module, Tokenizer):
            losses |= module.update_codebook()
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), module.gradient_clip)
        losses["gradient_norm"] = norm
        optimizer.step()
        schedule.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        yield losses, time.perf_counter() - started


class Frames:
    """Collected frames: batches to train on, and held-out windows."""

    def __init__(
        self, folder: Path, size: int, frames: int, held_out_frames: int, num_envs: int, device: torch.device
    ) -> None:
        check_environment("delta_iris/Crafter-v1", {"size": size}, (size, size), 17)
        self.shape = (size, size, 3)
        self.replay = collect(folder / "train", size, frames, 0, num_envs)
        test = collect(folder / "test", size, held_out_frames, 1_000_000, num_envs)
        dataset = WindowDataset(test.folder, self.shape, WINDOW)
        draws = held_out_draws(ReplayReader(test.folder, self.shape), WINDOW, 6, 32)
        self.held_out = [to_device(window, device) for window in map(dataset.__getitems__, draws)]

    def batches(self, steps: int, batch_size: int, num_workers: int) -> Iterable[Window]:
        sampler = WindowSampler(WINDOW, overhang_end=True, seed=0)
        draws = [sampler.draw(self.replay.lengths, batch_size, count=False) for _ in range(steps)]
        dataset = WindowDataset(self.replay.folder, self.shape, WINDOW)
        return window_loader(dataset, draws, num_workers, pin_memory=torch.cuda.is_available())


@torch.no_grad()
def chained(tokenizer: Tokenizer, window: Window, tokens: Tensor) -> dict[str, Average]:
    """Squared errors of frames painted from their own predecessors, from `CONTEXT` real frames on."""
    frames, codes, real = to_float(window.frames), tokenizer.quantizer.lookup(tokens), window.transitions
    cache, known = tokenizer.start_decoding(len(frames)), CONTEXT - 1
    tokenizer.decode(frames[:, :known], window.actions[:, :known], codes[:, :known], real[:, :known], cache)
    frame, errors = frames[:, known], {}
    for step in range(1, max(CHAIN) + 1):
        at = slice(known + step - 1, known + step)
        painted = tokenizer.decode(frame.unsqueeze(1), window.actions[:, at], codes[:, at], real[:, at], cache)
        frame = painted[:, 0].float().clamp(0, 1)
        if step in CHAIN:
            error = (frame - frames[:, known + step]).square().mean((1, 2, 3))
            errors[f"chained_l2_{step}"] = Average.of(error, window.valid[:, known + step])
    return errors


def evaluate(tokenizer: Tokenizer, windows: list[Window], device: torch.device) -> dict[str, float]:
    """Means over the held-out windows, and the entropy of all their codes together."""
    sums: dict[str, Average] = {}
    counts = torch.zeros(tokenizer.codebook_size, device=device)
    with half_precision(device):
        for window in windows:
            values, tokens = tokenizer.evaluate(window)
            values |= chained(tokenizer, window, tokens)
            for name, value in values.items():
                sums[name] = sums[name] + value if name in sums else value
            counts += tokens[window.transitions].flatten().bincount(minlength=len(counts))
    means = {name: float(total / count) for name, (total, count) in sums.items()}
    return means | {"codebook_entropy": float(code_entropy(counts)), "codewords": int((counts > 0).sum())}


@torch.no_grad()
def latents(tokenizer: Tokenizer, window: Window, device: torch.device) -> tuple[Tensor, Tensor]:
    """The unit latents of a window's real transitions and their codewords, (n, K, D) each."""
    with half_precision(device):
        tokens, unit = tokenizer.quantizer(tokenizer.embed(to_float(window.frames), window.actions, window.valid))
    real = window.transitions
    return unit[real], tokenizer.quantizer.lookup(tokens[real])


def motion(before: Tensor, now: Tensor, codes: Tensor) -> dict[str, float]:
    """How far latents are from their codewords and from where they were, in shares of their variance."""
    variance = (now - now.mean((0, 1))).square().sum(-1).mean()
    squares = {
        "quantization_error": now - codes,
        "turned": (now - before) / math.sqrt(2),
        "turned_together": (now - before).mean(0) / math.sqrt(2),
    }
    return {name: round(float(error.square().sum(-1).mean() / variance), 3) for name, error in squares.items()}


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/crafter.yaml"))
    parser.add_argument("--frames", type=int, default=80_000)
    parser.add_argument("--held_out_frames", type=int, default=6_400)
    parser.add_argument("--num_envs", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--num_workers", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="keep the collected frames here, and use those that are here")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], help="init_args of the tokenizer, as key=value in YAML")
    return parser


@contextmanager
def prepared(args: argparse.Namespace) -> Iterator[tuple[Frames, Tokenizer, torch.device]]:
    """Collected frames and an untrained tokenizer."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    with tempfile.TemporaryDirectory() as temporary:
        size = yaml.safe_load(args.config.read_text())["data"]["frame_size"][0]
        folder = args.folder or Path(temporary)
        data = Frames(folder, size, args.frames, args.held_out_frames, args.num_envs, device)
        torch.manual_seed(args.seed)
        yield data, load_module(args.config, "tokenizer", args.set, window=WINDOW).to(device), device


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[250, 500, 1000])
    parser.add_argument("--label", default="")
    args = parser.parse_args()
    with prepared(args) as (data, tokenizer, device):
        loader = data.batches(max(args.steps), args.batch_size, args.num_workers)
        times: list[float] = []
        entropies: list[Tensor] = []
        norms: list[Tensor] = []
        before = latents(tokenizer, data.held_out[0], device)[0]
        for step, (losses, seconds) in enumerate(train(tokenizer, tokenizer.training_step, loader, device), start=1):
            entropies.append(losses["codebook_entropy"])
            norms.append(losses["gradient_norm"])
            times.append(seconds)
            if step + TURN in args.steps:
                before = latents(tokenizer, data.held_out[0], device)[0]
            if step in args.steps:
                measured = {"step_ms": round(1000 * statistics.median(times[-200:]), 1)}
                # Dips between two evaluations: the lowest entropy of any batch since the last.
                measured["lowest_batch_entropy"] = round(float(torch.stack(entropies).min()), 2)
                measured |= motion(before, *latents(tokenizer, data.held_out[0], device))
                measured["largest_gradient"] = round(float(torch.stack(norms).max()), 3)
                entropies.clear()
                norms.clear()
                if device.type == "cuda":
                    measured["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
                values = evaluate(tokenizer, data.held_out, device)
                print(json.dumps({"label": args.label, "step": step} | values | measured), flush=True)


if __name__ == "__main__":
    main()
