"""How well does a tokenizer see? Held-out reconstruction error after so many steps, on frames of a lazy player.

    python benchmarks/tokenizer.py --config configs/crafter.yaml --steps 250 500 1000

Collects frames of a player that repeats its last action with probability 1/2 and else draws uniformly, trains the
configuration's tokenizer on windows of them, and evaluates it on 6 × 32 windows of further frames, of other seeds,
none across an episode's end. Prints a JSON line a measurement, the error of copying the last frame beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml

from delta_iris.data.loader import WindowDataset, window_loader
from delta_iris.data.replay import Replay, ReplayReader
from delta_iris.data.sampler import WindowSampler
from delta_iris.envs.vector import check_environment, make_vector_env
from delta_iris.tokenizer import TransformerTokenizer
from delta_iris.tokenizer.quantizer import code_entropy

FRAME = (64, 64, 3)


def collect(folder: Path, frames: int, seed: int, num_envs: int) -> Replay:
    """Frames of the lazy player, unless they are there."""
    replay, generator = Replay(folder, FRAME, level=3), np.random.default_rng(seed)
    if replay.num_frames >= frames:
        return replay
    envs = make_vector_env("delta_iris/Crafter-v1", {}, num_envs)
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


def held_out_draws(folder: Path, window: int, batches: int, batch_size: int) -> list[list[tuple[int, int]]]:
    """Windows that lie within an episode, each as likely."""
    reader, generator = ReplayReader(folder, FRAME), np.random.default_rng(0)
    starts = [(e, s) for e in range(reader.num_episodes) for s in range(reader.length(e) - window + 1)]
    chosen = generator.choice(len(starts), (batches, batch_size), replace=False)
    return [[starts[i] for i in row] for row in chosen]


def evaluate(tokenizer: TransformerTokenizer, loader: list, autocast: torch.autocast) -> dict[str, float]:
    """Means over the held-out windows, and the entropy of all their codes together."""
    sums: dict[str, torch.Tensor] = {}
    with autocast:
        for window in loader:
            for name, value in tokenizer.evaluate(window).items():
                sums[name] = sums.get(name, 0) + value
    counts = sums.pop("code_counts")
    values = {name: float(value) / len(loader) for name, value in sums.items()}
    return values | {"codebook_entropy": float(code_entropy(counts)), "codewords": int((counts > 0).sum())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/crafter.yaml"))
    parser.add_argument("--steps", type=int, nargs="+", default=[250, 500, 1000])
    parser.add_argument("--frames", type=int, default=80_000)
    parser.add_argument("--held_out_frames", type=int, default=6_400)
    parser.add_argument("--num_envs", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--num_workers", type=int, default=4)
    parser.add_argument("--set", nargs="*", default=[], help="init_args of the tokenizer, as key=value in YAML")
    parser.add_argument("--label", default="")
    parser.add_argument("--folder", type=Path, help="keep the collected frames here, and use those that are here")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    options = yaml.safe_load(args.config.read_text())["model"]["tokenizer"]["init_args"]
    options |= {key: yaml.safe_load(value) for key, value in (item.split("=", 1) for item in args.set)}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    window = 21
    torch.set_float32_matmul_precision("high")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        check_environment("delta_iris/Crafter-v1", {}, (64, 64), 17)
        train = collect(folder / "train", args.frames, 0, args.num_envs)
        test = collect(folder / "test", args.held_out_frames, 1_000_000, args.num_envs)
        dataset = WindowDataset(test.folder, FRAME, window)
        draws = held_out_draws(test.folder, window, 6, 32)
        held_out = [type(w)(*(f.to(device) for f in w)) for w in map(dataset.__getitems__, draws)]
        torch.manual_seed(args.seed)
        tokenizer = TransformerTokenizer(frame_size=(64, 64), num_actions=17, window=window, **options).to(device)
        optimizers = tokenizer.configure_optimizers()
        optimizer, schedule = optimizers["optimizer"], optimizers["lr_scheduler"]["scheduler"]
        sampler = WindowSampler(window, overhang_end=True, seed=0)
        batches = [sampler.draw(train.lengths, args.batch_size, count=False) for _ in range(max(args.steps))]
        loader = window_loader(
            WindowDataset(train.folder, FRAME, window), batches, args.num_workers, pin_memory=device.type == "cuda"
        )
        autocast = torch.autocast(device.type, torch.bfloat16)
        times: list[float] = []
        entropies: list[torch.Tensor] = []
        for step, batch in enumerate(loader, start=1):
            started = time.perf_counter()
            batch = type(batch)(*(field.to(device, non_blocking=True) for field in batch))
            with autocast:
                losses = tokenizer.training_step(batch)
            optimizer.zero_grad()
            losses["loss"].backward()
            losses |= tokenizer.update_codebook()
            torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), tokenizer.gradient_clip)
            optimizer.step()
            schedule.step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            entropies.append(losses["codebook_entropy"])
            times.append(time.perf_counter() - started)
            if step in args.steps:
                values = evaluate(tokenizer, held_out, autocast)
                measured = {"step_ms": round(1000 * statistics.median(times[-200:]), 1)}
                # Dips between two evaluations: the lowest entropy of any batch since the last.
                measured["lowest_batch_entropy"] = round(float(torch.stack(entropies).min()), 2)
                entropies.clear()
                if device.type == "cuda":
                    measured["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
                print(json.dumps({"label": args.label, "step": step} | values | measured), flush=True)


if __name__ == "__main__":
    main()
