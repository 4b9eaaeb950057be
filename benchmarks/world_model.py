"""How well do variants of the token dynamics predict after a number of training steps?

    python benchmarks/world_model.py --variant "as configured:" \\
        --variant "wide: transformer.dim=832 transformer.layers=6 transformer.heads=13"

Trains the configuration's tokenizer once, then each variant of its dynamics on that tokenizer's tokens and on the same
batches. Frames and held-out segments are those of tokenizer.py.

Prints a JSON line for each evaluation of the tokenizer (see tokenizer.py) and for each variant: parameters in millions,
`step_ms` (median duration of a training step) and the held-out metrics of `WorldModelEvaluator`.
"""

from __future__ import annotations

import json
import statistics

import torch
from tokenizer import (
    CONTEXT,
    Frames,
    autocast,
    evaluate,
    find_phase,
    make_parser,
    make_system,
    parse_settings,
    prepare,
    train,
)

from delta_iris.evaluation.world_model import WorldModelEvaluator
from delta_iris.training.systems import DeltaIris
from delta_iris.training.systems.building import count_parameters


def held_out_metrics(system: DeltaIris, data: Frames, device: torch.device) -> dict[str, float]:
    """Evaluate a system's world model on the held-out segments.

    Args:
        system: in evaluation mode, on `device`.
        data: holds the segments.
        device: of both.
    """
    assert system.world_model is not None
    evaluator = WorldModelEvaluator(system.world_model, CONTEXT)
    with autocast(device):
        for segment in data.held_out:
            evaluator.update(segment)
    values = evaluator.compute()
    return {name.removeprefix("held_out/"): round(float(value), 5) for name, value in values.items()}


def main() -> None:
    """Train one tokenizer and all variants of the dynamics."""
    parser = make_parser(__doc__)
    parser.add_argument("--tokenizer_steps", type=int, nargs="+", default=[250, 500], help="evaluate after these steps")
    parser.add_argument("--steps", type=int, default=500, help="steps of each variant of the dynamics")
    parser.add_argument(
        "--variant", action="append", default=[], help="label: key=value … of the dynamics' init_args, in YAML"
    )
    args = parser.parse_args()
    with prepare(args) as (data, system, device):
        loader = data.batches(max(args.tokenizer_steps), args.batch_size, args.num_workers)
        for step, _ in enumerate(train(find_phase(system, "tokenizer"), loader, device), start=1):
            if step in args.tokenizer_steps:
                values = evaluate(system.tokenizer, data.held_out, device)
                print(json.dumps({"tokenizer_step": step} | values), flush=True)
        trained = system.tokenizer.state_dict()
        for variant in args.variant or ["as configured:"]:
            label, _, settings = variant.partition(":")
            dynamics = {"dynamics": {"init_args": parse_settings(settings.split())}}
            candidate = make_system(args, dynamics, device)
            candidate.tokenizer.load_state_dict(trained)
            loader = data.batches(args.steps, args.batch_size, args.num_workers)
            times = [seconds for _, seconds in train(find_phase(candidate, "dynamics"), loader, device)]
            measured = {"step_ms": round(1000 * statistics.median(times), 1)}
            measured |= held_out_metrics(candidate.eval(), data, device)
            millions = round(count_parameters(candidate.dynamics) / 1e6, 2)
            print(json.dumps({"label": label, "steps": args.steps, "parameters_m": millions} | measured), flush=True)


if __name__ == "__main__":
    main()
