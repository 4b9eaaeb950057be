"""How fast are frames collected, and how much of the time is the environments' own?

    python benchmarks/collection.py --num_envs 1 2 4 8 16 --policy

For each number of environments: `environments` are stepped with random actions and nothing is kept; `random` is the
collector with a uniformly random player, into a replay on disk; `policy` the collector with an untrained agent, on the
GPU where there is one. Prints a line of JSON for each and a table of frames a second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv

from delta_iris.actor_critic.module import Agent
from delta_iris.data.collector import Collector, Episode
from delta_iris.data.replay import Replay
from delta_iris.envs.vector import check_environment, make_vector_env

Stepping = Callable[[Callable[[], bool]], None]
"""Steps environments until what it calls after each vector step gives true."""


def environments(envs: AsyncVectorEnv) -> Stepping:
    generator = np.random.default_rng(0)

    def run(stepped: Callable[[], bool]) -> None:
        while True:
            envs.step(generator.integers(17, size=envs.num_envs))
            if stepped():
                return

    return run


def collecting(collector: Collector, policy: Agent | None) -> Stepping:
    def run(stepped: Callable[[], bool]) -> None:
        def progress(frames: int, episodes: list[Episode]) -> bool:
            return stepped()

        collector.collect(policy, epsilon=0.01, progress=progress)

    return run


def measure(run: Stepping, num_envs: int, seconds: float, warm_up: int) -> dict[str, float]:
    """Frames a second over at least `seconds` (what is left to write at the end counts), and vector steps in ms."""
    ticks: list[float] = []

    def until(steps: int, end: float) -> Callable[[], bool]:
        def stepped() -> bool:
            ticks.append(time.perf_counter())
            return len(ticks) > steps and ticks[-1] > end

        return stepped

    run(until(warm_up, 0))
    ticks.clear()
    started = time.perf_counter()
    run(until(10, started + seconds))
    ended = time.perf_counter()
    steps = np.diff([started, *ticks]) * 1000
    return {
        "frames_per_second": round(len(ticks) * num_envs / (ended - started)),
        "median_ms": round(statistics.median(steps), 2),
        "p99_ms": round(float(np.percentile(steps, 99)), 2),
        "worst_ms": round(float(steps.max()), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_envs", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--warm_up", type=int, default=250, help="vector steps: environments start in step, then part")
    parser.add_argument("--policy", action="store_true")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_environment("delta_iris/Crafter-v1", {}, (64, 64), 17)
    rows: dict[int, dict[str, float]] = {}
    for num_envs in args.num_envs:
        envs = make_vector_env("delta_iris/Crafter-v1", {}, num_envs)
        with tempfile.TemporaryDirectory() as folder:
            replay = Replay(Path(folder) / "replay", (64, 64, 3))
            envs.reset(seed=0)
            runs = {"environments": environments(envs)}
            runs["random"] = collecting(Collector(envs, replay, burn_in=5, seed=1), None)
            if args.policy:
                runs["policy"] = collecting(Collector(envs, replay, burn_in=5, seed=2), Agent((64, 64), 17).to(device))
            for name, run in runs.items():
                measured = measure(run, num_envs, args.seconds, args.warm_up)
                rows.setdefault(num_envs, {})[name] = measured["frames_per_second"]
                print(json.dumps({"what": name, "num_envs": num_envs} | measured), flush=True)
            replay.close()
        envs.close()
    print("\n{:>8}".format("num_envs"), *(f"{name:>14}" for name in rows[args.num_envs[0]]))
    for num_envs, row in rows.items():
        print(f"{num_envs:>8}", *(f"{frames:>14,}" for frames in row.values()))


if __name__ == "__main__":
    main()
