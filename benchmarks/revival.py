"""What happens to trained dynamics when the tokenizer goes on training and dead codes are reset?

    python benchmarks/revival.py lightning_logs/crafter_small/version_0 --threshold 0 0.001 0.1 --learning_rate 0 2e-4

Starts from a run's last checkpoint for each combination of `--threshold` and `--learning_rate`, and trains the
tokenizer for some steps on the run's replay. Codes that are used less than the threshold's share of the uniform
frequency are reset; at 0 none are. The dynamics are not trained.

Prints a JSON line before any training and one for each combination: the dynamics' token loss on fixed segments of the
replay, the share of these segments' tokens that have not changed, and the number of codes that were reset.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import numpy as np
import torch
from building import build_system, merged_config

from delta_iris.data.replay_reader import ReplayReader
from delta_iris.data.segment import SegmentBatch, SegmentRequest
from delta_iris.data.segment_dataset import SegmentDataset
from delta_iris.training.checkpoint import load_checkpoint
from delta_iris.training.systems import DeltaIris


def main() -> None:
    """Train the tokenizer with each combination of threshold and learning rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--threshold", type=float, nargs="+", default=[0.0, 0.1])
    parser.add_argument("--learning_rate", type=float, nargs="+", default=[0.0])
    parser.add_argument("--steps", type=int, default=50, help="training steps of the tokenizer")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--batches", type=int, default=12, help="batches of fixed segments")
    args = parser.parse_args()
    names = [str(args.run / "config.yaml")]
    checkpoint = load_checkpoint(args.run / "checkpoints" / "last.ckpt")
    system = build_system(names)
    assert isinstance(system, DeltaIris)
    system.load_state_dict(checkpoint["state_dict"])
    tokenizer, dynamics = system.tokenizer, system.dynamics.eval()
    height, width = merged_config(names)["data"]["frame_size"]
    shape, length = (height, width, 3), system.segment_length
    replay = args.run / "replay" / "rank_0"
    reader, dataset = ReplayReader(replay, shape), SegmentDataset(replay, shape)
    generator = np.random.default_rng(0)

    def sample_batch() -> SegmentBatch:
        episodes = generator.integers(reader.num_episodes, size=args.batch_size).tolist()
        starts = [int(generator.integers(max(1, reader.length(episode) - length))) for episode in episodes]
        indices = list(zip(episodes, starts, strict=True))
        return dataset[SegmentRequest.within_episodes(reader.lengths, length, indices)]

    fixed = [sample_batch() for _ in range(args.batches)]

    @torch.no_grad()
    def encode_and_predict() -> tuple[list[torch.Tensor], float]:
        tokens = [tokenizer.encode(segment.frames, segment.actions, segment.mask) for segment in fixed]
        losses = [dynamics.loss(batch).metrics["token_loss"] for batch in zip(fixed, tokens, strict=True)]
        return tokens, float(torch.stack(losses).mean())

    before, loss = encode_and_predict()
    print(json.dumps({"steps": 0, "token_loss": round(loss, 3)}), flush=True)
    state = copy.deepcopy(tokenizer.state_dict())
    for learning_rate in args.learning_rate:
        for threshold in args.threshold:
            tokenizer.load_state_dict(state)
            tokenizer.quantizer.reset_threshold.fill_(threshold)
            optimizer = tokenizer.configure_optimizers()["optimizer"]
            # The tokenizer's phase is the first, and so is its optimizer.
            optimizer.load_state_dict(copy.deepcopy(checkpoint["optimizer_states"][0]))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            codes_reset = 0.0
            for _ in range(args.steps):
                optimizer.zero_grad()
                output = tokenizer.loss(sample_batch())
                output.loss.backward()
                codes_reset += float(tokenizer.update_codebook([output.aux])["codes_reset"])
                torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), tokenizer.optimizer_config.max_grad_norm)
                optimizer.step()
            after, loss = encode_and_predict()
            same = torch.cat([(a == b).flatten() for a, b in zip(after, before, strict=True)]).float().mean()
            measured = {
                "steps": args.steps,
                "learning_rate": learning_rate,
                "threshold": threshold,
                "token_loss": round(loss, 3),
                "tokens_unchanged": round(float(same), 3),
                "codes_reset": codes_reset,
            }
            print(json.dumps(measured), flush=True)


if __name__ == "__main__":
    main()
