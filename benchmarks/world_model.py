"""How well does a dynamics model predict? Held-out losses after so many steps, for variants of the same configuration.

    python benchmarks/world_model.py --variant "as configured:" --variant "wide: dim=832 layers=6 heads=13"

Trains the configuration's tokenizer once, then each variant of its world model on that tokenizer's tokens, in the same
batches, and evaluates it on held-out windows; frames and windows are those of tokenizer.py. Prints a JSON line each.
"""

from __future__ import annotations

import json
import statistics
from typing import Any

import torch
from tokenizer import CONTEXT, WINDOW, Frames, arguments, evaluate, half_precision, load_module, prepared, train
from torch import Tensor

from delta_iris.data.segment import Window
from delta_iris.evaluation.world_model import HeldOut
from delta_iris.training.callbacks.summary import count_parameters
from delta_iris.world_models.tokens.dynamics import WorldModel
from delta_iris.world_models.tokens.tokenizer import Tokenizer


def tokens_of(tokenizer: Tokenizer, window: Window) -> tuple[Window, Tensor]:
    return window, tokenizer.encode(window.frames, window.actions, window.valid)


def held_out_losses(
    world_model: WorldModel, tokenizer: Tokenizer, data: Frames, device: torch.device
) -> dict[str, float]:
    held_out = HeldOut(tokenizer, world_model, CONTEXT)
    with half_precision(device):
        for window in data.held_out:
            held_out.update(window)
    return {name.split("/")[1]: round(float(value), 5) for name, value in held_out.compute().items()}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--tokenizer_steps", type=int, nargs="+", default=[250, 500])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--variant", action="append", default=[], help="label: key=value … of the world model")
    args = parser.parse_args()
    with prepared(args) as (data, tokenizer, device):
        loader = data.batches(max(args.tokenizer_steps), args.batch_size, args.num_workers)
        for step, _ in enumerate(train(tokenizer, tokenizer.training_step, loader, device), start=1):
            if step in args.tokenizer_steps:
                print(json.dumps({"tokenizer_step": step} | evaluate(tokenizer, data.held_out, device)), flush=True)
        tokenizer.requires_grad_(False)
        sizes = {"tokens_per_frame": tokenizer.tokens_per_frame, "codebook_size": tokenizer.codebook_size}
        for variant in args.variant or ["as configured:"]:
            label, _, changes = variant.partition(":")
            torch.manual_seed(args.seed)
            world_model = load_module(args.config, "world_model", changes.split(), window=WINDOW, **sizes).to(device)

            def losses_of(window: Window, world_model: Any = world_model) -> dict[str, Tensor]:
                losses: dict[str, Tensor] = world_model.training_step(tokens_of(tokenizer, window))
                return losses

            loader = data.batches(args.steps, args.batch_size, args.num_workers)
            times = [seconds for _, seconds in train(world_model, losses_of, loader, device)]
            measured = {"step_ms": round(1000 * statistics.median(times), 1)}
            measured |= held_out_losses(world_model.eval(), tokenizer, data, device)
            millions = round(count_parameters(world_model) / 1e6, 2)
            print(json.dumps({"label": label, "steps": args.steps, "parameters_m": millions} | measured), flush=True)


if __name__ == "__main__":
    main()
