"""How well does a tokenizer reconstruct Crafter's frames after a number of training steps?

    python benchmarks/tokenizer.py --config crafter.yaml --steps 250 500 1000
    python benchmarks/tokenizer.py --config crafter_cnn.yaml --set num_transforms=4 optimizer.min_lr_factor=0.1

Collects frames with a sticky-action policy, which repeats its last action with probability 1/2 and otherwise draws one
uniformly. Trains the configuration's tokenizer on segments of these frames. Evaluates it on 6 × 32 held-out segments
from environments with other seeds; no segment crosses the end of an episode.

Prints a JSON line for each evaluation:

- `l1`, `l2`: reconstruction errors; `copy_l2`: the error of repeating the last frame.
- `chained_l2_N`: the error after N frames, each decoded from the one decoded before it, with the real tokens.
- `quantization_error`, `latent_drift`, `latent_mean_drift`: squared distance of the latents from their codewords, from
  what they were 10 steps ago, and of their mean from what it was 10 steps ago, as fractions of the latents' variance.
- `codebook_entropy` in bits and `codes_used`, over all held-out segments.
- `lowest_batch_entropy`, `largest_gradient`: lowest codebook entropy of a training batch and largest gradient norm
  since the last line.
- `step_ms`: median duration of a training step; `peak_gib`: peak GPU memory.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from building import build_system, merged_config, nest_keys
from torch import Tensor

from delta_iris.acceleration.compile import compiled_regions
from delta_iris.commands.config_files import merge_configs
from delta_iris.data.loader import SegmentLoader
from delta_iris.data.replay import Replay
from delta_iris.data.replay_reader import ReplayReader
from delta_iris.data.sampler import SegmentSampler
from delta_iris.data.segment import SegmentBatch, SegmentIndex, SegmentRequest, to_float
from delta_iris.data.segment_dataset import SegmentDataset
from delta_iris.envs.vector import check_env, make_vector_env
from delta_iris.nn.statistics import WeightedMean, code_entropy
from delta_iris.training.phase import Phase
from delta_iris.training.systems import DeltaIris
from delta_iris.world_models.tokens.tokenizer import Tokenizer

SEGMENT_LENGTH, CONTEXT = 21, 6
CHAIN_STEPS = (1, 5, 15)
DRIFT_STEPS = 10
"""Training steps between the two sets of latents that `latent_drift` compares."""


def collect(folder: Path, size: int, frames: int, seed: int, num_envs: int) -> Replay:
    """Collect frames with the sticky-action policy, unless the folder already holds them.

    Args:
        folder: of the replay.
        size: height and width of a frame, in pixels.
        frames: number of frames.
        seed: of environments and actions.
        num_envs: number of environments.
    """
    replay, generator = Replay(folder, (size, size, 3), level=3), np.random.default_rng(seed)
    if replay.num_frames >= frames:
        return replay
    envs = make_vector_env("delta_iris/Crafter-v1", {"size": size}, num_envs)
    observations, _ = envs.reset(seed=seed)
    actions = generator.integers(17, size=num_envs)
    for _ in range(frames // num_envs):
        redraw = generator.random(num_envs) < 0.5
        actions = np.where(redraw, generator.integers(17, size=num_envs), actions)
        next_observations, rewards, terminated, truncated, _ = envs.step(actions)
        for i in range(num_envs):
            step = (int(actions[i]), float(rewards[i]), bool(terminated[i]), bool(truncated[i]))
            replay.append(i, observations[i], *step)
        observations = next_observations
    replay.flush()
    envs.close()
    return replay


def sample_held_out(reader: ReplayReader, length: int, batches: int, batch_size: int) -> list[list[SegmentIndex]]:
    """Sample batches of segments that lie within an episode, all with the same probability and none twice.

    Args:
        reader: of the held-out replay.
        length: steps of a segment.
        batches: number of batches.
        batch_size: segments of a batch.
    """
    generator = np.random.default_rng(0)
    starts = [(e, s) for e in range(reader.num_episodes) for s in range(reader.length(e) - length + 1)]
    chosen = generator.choice(len(starts), (batches, batch_size), replace=False)
    return [[starts[i] for i in row] for row in chosen]


def to_device(segment: SegmentBatch, device: torch.device) -> SegmentBatch:
    """Copy a batch of segments to a device."""
    return SegmentBatch(*(field.to(device, non_blocking=True) for field in segment))


def autocast(device: torch.device) -> torch.autocast:
    """Compute in bf16 on a GPU and in float32 on a CPU, as training does."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def find_phase(system: DeltaIris, name: str) -> Phase:
    """Return the phase of this name."""
    return next(phase for phase in system.phases if phase.name == name)


def train(
    phase: Phase, loader: Iterable[SegmentBatch], device: torch.device
) -> Iterator[tuple[dict[str, Tensor], float]]:
    """Train the module of a phase.

    Args:
        phase: of a system on `device`.
        loader: batches of segments.
        device: where to train.

    Yields:
        the metrics of each step and its duration in seconds.
    """
    module: Any = phase.module
    configured = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    for segment in loader:
        started = time.perf_counter()
        with autocast(device), compiled_regions(device.type == "cuda"):
            output = phase.loss(phase.prepare(to_device(segment, device)), None)
            optimizer.zero_grad()
            output.loss.backward()
        metrics = output.metrics | phase.after_backward([output.aux])
        parameters, max_norm = module.parameters(), module.optimizer_config.max_grad_norm
        metrics["gradient_norm"] = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        optimizer.step()
        schedule.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        yield metrics, time.perf_counter() - started


class Frames:
    """Collected frames: batches to train on, and held-out segments.

    Args:
        folder: of both replays.
        size: height and width of a frame, in pixels.
        frames: number of frames to train on.
        held_out_frames: number of frames that the held-out segments are sampled from.
        num_envs: environments to collect with.
        device: where the held-out segments are kept.

    Attributes:
        held_out: batches of held-out segments.
    """

    def __init__(
        self, folder: Path, size: int, frames: int, held_out_frames: int, num_envs: int, device: torch.device
    ) -> None:
        check_env("delta_iris/Crafter-v1", {"size": size}, (size, size), 17)
        self.shape = (size, size, 3)
        self.replay = collect(folder / "train", size, frames, 0, num_envs)
        test = collect(folder / "test", size, held_out_frames, 1_000_000, num_envs)
        dataset = SegmentDataset(test.folder, self.shape)
        indices = sample_held_out(ReplayReader(test.folder, self.shape), SEGMENT_LENGTH, 6, 32)
        request = partial(SegmentRequest.within_episodes, test.lengths, SEGMENT_LENGTH)
        self.held_out = [to_device(dataset[request(batch)], device) for batch in indices]

    def batches(
        self, steps: int, batch_size: int, num_workers: int, length: int = SEGMENT_LENGTH, seed: int = 0
    ) -> Iterable[SegmentBatch]:
        """Load batches of random segments, the same ones in every call with the same seed.

        Args:
            steps: number of batches.
            batch_size: segments of a batch.
            num_workers: processes that load them.
            length: steps of a segment.
            seed: of the choice of segments.
        """
        sampler = SegmentSampler(length, length - 1, length - 1, seed)
        indices = [sampler.draw(self.replay.lengths, batch_size, update_counts=False) for _ in range(steps)]
        dataset = SegmentDataset(self.replay.folder, self.shape)
        loader = SegmentLoader(dataset, num_workers, pin_memory=torch.cuda.is_available())
        return loader.batches(map(partial(SegmentRequest.within_episodes, self.replay.lengths, length), indices))


@torch.no_grad()
def chained_errors(tokenizer: Tokenizer, segment: SegmentBatch, tokens: Tensor) -> dict[str, WeightedMean]:
    """Squared errors of frames that are decoded from decoded frames, starting after `CONTEXT` real frames.

    Args:
        tokenizer: decodes.
        segment: B held-out segments of T steps.
        tokens: (B, T − 1, K) of their transitions.
    """
    frames, codes, mask = to_float(segment.frames), tokenizer.quantizer.lookup(tokens), segment.transition_mask
    cache, last = tokenizer.make_decoder_cache(len(frames)), CONTEXT - 1
    tokenizer.decode(frames[:, :last], segment.actions[:, :last], codes[:, :last], mask[:, :last], cache)
    frame, errors = frames[:, last], {}
    for step in range(1, max(CHAIN_STEPS) + 1):
        t = slice(last + step - 1, last + step)
        decoded = tokenizer.decode(frame.unsqueeze(1), segment.actions[:, t], codes[:, t], mask[:, t], cache)
        frame = decoded[:, 0].float().clamp(0, 1)
        if step in CHAIN_STEPS:
            error = (frame - frames[:, last + step]).square().mean((1, 2, 3))
            errors[f"chained_l2_{step}"] = WeightedMean.of(error, segment.mask[:, last + step])
    return errors


def evaluate(tokenizer: Tokenizer, held_out: list[SegmentBatch], device: torch.device) -> dict[str, float]:
    """Average the errors over all held-out segments, and count the codes of all of them together.

    Args:
        tokenizer: to evaluate.
        held_out: batches of held-out segments.
        device: of both.
    """
    sums: dict[str, WeightedMean] = {}
    counts = torch.zeros(tokenizer.codebook_size, device=device)
    with autocast(device):
        for segment in held_out:
            values, tokens = tokenizer.evaluate(segment)
            values |= chained_errors(tokenizer, segment, tokens)
            for name, value in values.items():
                sums[name] = sums[name] + value if name in sums else value
            counts += tokens[segment.transition_mask].flatten().bincount(minlength=len(counts))
    means = {name: float(mean.total / mean.weight) for name, mean in sums.items()}
    return means | {"codebook_entropy": float(code_entropy(counts)), "codes_used": int((counts > 0).sum())}


@torch.no_grad()
def latents_and_codes(tokenizer: Tokenizer, segment: SegmentBatch, device: torch.device) -> tuple[Tensor, Tensor]:
    """The unit latents of a segment's n real transitions and their codewords, (n, K, D) each."""
    with autocast(device):
        latents = tokenizer.encode_latents(to_float(segment.frames), segment.actions, segment.mask)
        tokens, unit = tokenizer.quantizer(latents)
    mask = segment.transition_mask
    return unit[mask], tokenizer.quantizer.lookup(tokens[mask])


def latent_statistics(previous: Tensor, latents: Tensor, codes: Tensor) -> dict[str, float]:
    """Distances of latents from their codewords and from their previous values, as fractions of their variance.

    Args:
        previous: (n, K, D) latents of the same transitions some training steps ago.
        latents: (n, K, D) present latents.
        codes: (n, K, D) codewords of the present latents.
    """
    variance = (latents - latents.mean((0, 1))).square().sum(-1).mean()
    differences = {
        "quantization_error": latents - codes,
        # Two independent latents differ by twice the variance.
        "latent_drift": (latents - previous) / math.sqrt(2),
        "latent_mean_drift": (latents - previous).mean(0) / math.sqrt(2),
    }
    return {name: round(float(x.square().sum(-1).mean() / variance), 3) for name, x in differences.items()}


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """Parse `key=value` with a dotted key and a value in YAML, such as `optimizer.learning_rate=1.0e-3`."""
    return nest_keys({key: yaml.safe_load(value) for key, value in (item.split("=", 1) for item in settings)})


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """The options that this script shares with world_model.py."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", default=["crafter.yaml"], help="names or paths, merged in this order")
    parser.add_argument("--frames", type=int, default=80_000)
    parser.add_argument("--held_out_frames", type=int, default=6_400)
    parser.add_argument("--num_envs", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--num_workers", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="keep the collected frames here, and reuse those that are here")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], help="key=value of the tokenizer's init_args, in YAML")
    return parser


class Setup(NamedTuple):
    """What a run of tokenizer.py or world_model.py works with.

    Attributes:
        data: the collected frames.
        system: untrained, on `device`.
        device: a GPU if there is one.
    """

    data: Frames
    system: DeltaIris
    device: torch.device


def make_system(args: argparse.Namespace, overrides: dict[str, Any], device: torch.device) -> DeltaIris:
    """Build the system of the options `--config`, `--set` and `--seed`.

    Args:
        args: the options.
        overrides: further `init_args` of the system.
        device: where to put it.
    """
    torch.manual_seed(args.seed)
    tokenizer = {"tokenizer": {"init_args": parse_settings(args.set)}}
    init_args = merge_configs({"segment_length": SEGMENT_LENGTH} | tokenizer, overrides)
    system = build_system(args.config, {"model": {"init_args": init_args}})
    assert isinstance(system, DeltaIris)
    return system.to(device)


@contextmanager
def prepare(args: argparse.Namespace) -> Iterator[Setup]:
    """Collect the frames and build the system of the options; without `--folder`, the frames are deleted at the end."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    with tempfile.TemporaryDirectory() as temporary:
        size = merged_config(args.config)["data"]["frame_size"][0]
        folder = args.folder or Path(temporary)
        data = Frames(folder, size, args.frames, args.held_out_frames, args.num_envs, device)
        yield Setup(data, make_system(args, {}, device), device)


def main() -> None:
    """Train and evaluate one tokenizer."""
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[250, 500, 1000], help="evaluate after these steps")
    parser.add_argument("--label", default="", help="copied to the output")
    args = parser.parse_args()
    with prepare(args) as (data, system, device):
        tokenizer = system.tokenizer
        loader = data.batches(max(args.steps), args.batch_size, args.num_workers)
        times: list[float] = []
        entropies: list[Tensor] = []
        norms: list[Tensor] = []
        previous = latents_and_codes(tokenizer, data.held_out[0], device)[0]
        for step, (metrics, seconds) in enumerate(train(find_phase(system, "tokenizer"), loader, device), start=1):
            entropies.append(metrics["codebook_entropy"])
            norms.append(metrics["gradient_norm"])
            times.append(seconds)
            if step + DRIFT_STEPS in args.steps:
                previous = latents_and_codes(tokenizer, data.held_out[0], device)[0]
            if step in args.steps:
                measured = {"step_ms": round(1000 * statistics.median(times[-200:]), 1)}
                measured["lowest_batch_entropy"] = round(float(torch.stack(entropies).min()), 2)
                measured |= latent_statistics(previous, *latents_and_codes(tokenizer, data.held_out[0], device))
                measured["largest_gradient"] = round(float(torch.stack(norms).max()), 3)
                entropies.clear()
                norms.clear()
                if device.type == "cuda":
                    measured["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
                values = evaluate(tokenizer, data.held_out, device)
                print(json.dumps({"label": args.label, "step": step} | values | measured), flush=True)


if __name__ == "__main__":
    main()
