"""How many frames a second does an agent imagine for a person who plays, and how long is the longest step?

    python benchmarks/play.py pretrained/crafter_cnn --threads 2

Plays in the world model as the page of `delta-iris play` does: each step imagines a frame, evaluates the policy there
and packs what is sent. The first steps, in which kernels are chosen, are played before.

Prints a JSON line for each world: steps a second, the median and the maximum of a step's duration, and `cpu_ms`, the
median of the processor time of a step, which other programs disturb less. In the worlds with imagination, the model's
window slides every few steps; `slide_ms` and `slide_cpu_ms` are the medians of those steps. All are milliseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import get_args

import torch

from delta_iris import load_pretrained
from delta_iris.play.messages import pack_view
from delta_iris.play.server import warm_up
from delta_iris.play.session import Session, World
from delta_iris.pretrained import Agent


def measure(agent: Agent, world: World, steps: int) -> dict[str, float]:
    """Play in a world and time each step.

    Args:
        agent: plays.
        world: where.
        steps: number of steps; an episode that ends is followed by another one.
    """
    session = Session(agent)
    session.enter(world)
    durations: list[float] = []
    processor: list[float] = []
    slides: list[int] = []
    window, context = agent.system.segment_length, agent.system.context
    while len(durations) < steps:
        if session.ended:
            session.reset(len(durations))
        start, used = time.perf_counter(), time.process_time()
        session.step()
        view = session.view()
        pack_view(view)
        durations.append(1000 * (time.perf_counter() - start))
        processor.append(1000 * (time.process_time() - used))
        # Imagination starts with one frame, is full after `window` frames and goes on with `context` of them.
        if world != "real" and (view.games["imagined"].step - window) % (window - context) == 0:
            slides.append(len(durations) - 1)
    session.close()
    measured = {
        "steps_per_second": 1000 * steps / sum(durations),
        "median_ms": statistics.median(durations),
        "max_ms": max(durations),
        "cpu_ms": statistics.median(processor),
    }
    if slides:
        measured["slide_ms"] = statistics.median(durations[each] for each in slides)
        measured["slide_cpu_ms"] = statistics.median(processor[each] for each in slides)
    return {name: round(value, 1) for name, value in measured.items()}


def main() -> None:
    """Measure all worlds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("agent", type=Path, help="an exported agent, or a checkpoint of a run")
    parser.add_argument("--steps", type=int, default=200, help="steps in each world")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    agent = load_pretrained(args.agent)
    warm_up(agent)
    for world in get_args(World):
        if world != "real" and agent.world_model is None:
            continue
        print(json.dumps({"world": world, "threads": args.threads} | measure(agent, world, args.steps)), flush=True)


if __name__ == "__main__":
    main()
