"""What does going on with the tokenizer do to a world model that has learned its tokens?

    python benchmarks/revival.py lightning_logs/crafter_small/version_0 --threshold 0 0.001 0.1 --learning_rate 0 2e-4

From a run's last checkpoint, each time anew: so many steps of the tokenizer on its replay, with codewords revived that
are used less than this share of uniform (none at 0). Prints, as JSON lines, the world model's token loss on fixed
windows of the replay, how many of their tokens are what they were, and how many codewords were revived.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import numpy as np
import torch
import yaml
from tokenizer import load_module

from delta_iris.data.loader import WindowDataset
from delta_iris.data.replay import ReplayReader
from delta_iris.data.segment import Window

Draws = list[tuple[int, int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--threshold", type=float, nargs="+", default=[0.0, 0.1])
    parser.add_argument("--learning_rate", type=float, nargs="+", default=[0.0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--batches", type=int, default=12, help="of fixed windows")
    args = parser.parse_args()
    config = args.run / "config.yaml"
    checkpoint = torch.load(args.run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
    content = yaml.safe_load(config.read_text())
    length, shape = content["data"]["window"], (*content["data"]["frame_size"], 3)
    tokenizer = load_module(config, "tokenizer", [], window=length)
    sizes = {"tokens_per_frame": tokenizer.tokens_per_frame, "codebook_size": tokenizer.codebook_size}
    world_model = load_module(config, "world_model", [], window=length, **sizes)
    weights = checkpoint["state_dict"]
    for name, module in (("tokenizer.", tokenizer), ("world_model.", world_model)):
        own = {key.removeprefix(name): value for key, value in weights.items() if key.startswith(name)}
        module.load_state_dict(own)
    replay = args.run / "replay" / "rank_0"
    reader, dataset = ReplayReader(replay, shape), WindowDataset(replay, shape, length)
    generator = np.random.default_rng(0)

    def batch() -> Window:
        episodes = generator.integers(reader.num_episodes, size=args.batch_size)
        draws: Draws = [(int(e), int(generator.integers(max(1, reader.length(int(e)) - length)))) for e in episodes]
        return dataset.__getitems__(draws)

    fixed = [batch() for _ in range(args.batches)]

    @torch.no_grad()
    def look() -> tuple[list[torch.Tensor], float]:
        tokens = [tokenizer.encode(window.frames, window.actions, window.valid) for window in fixed]
        losses = [world_model.losses(*pair)["token_loss"] for pair in zip(fixed, tokens, strict=True)]
        return tokens, float(torch.stack(losses).mean())

    before, loss = look()
    print(json.dumps({"steps": 0, "token_loss": round(loss, 3)}), flush=True)
    state = copy.deepcopy(tokenizer.state_dict())
    for learning_rate in args.learning_rate:
        for threshold in args.threshold:
            tokenizer.load_state_dict(state)
            tokenizer.quantizer.threshold.fill_(threshold)
            optimizer = tokenizer.configure_optimizers()["optimizer"]
            optimizer.load_state_dict(copy.deepcopy(checkpoint["optimizer_states"][0]))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            revived = 0.0
            for _ in range(args.steps):
                optimizer.zero_grad()
                tokenizer.training_step(batch())["loss"].backward()
                revived += float(tokenizer.update_codebook()["revived"])
                torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), tokenizer.gradient_clip)
                optimizer.step()
            after, loss = look()
            same = float(torch.cat([(a == b).flatten() for a, b in zip(after, before, strict=True)]).float().mean())
            told = {"steps": args.steps, "learning_rate": learning_rate, "threshold": threshold}
            told |= {"token_loss": round(loss, 3), "tokens_unchanged": round(same, 3), "revived": revived}
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
