"""How fast are frames collected, and how much of the time do the environments take?

    python benchmarks/collection.py --num_envs 1 2 4 8 16 --policy

Measures three things for each number of environments:

- `environments`: the environments are stepped with random actions; nothing is stored.
- `random`: the collector with random actions, which writes a replay on disk.
- `policy` (with `--policy`): the collector with an untrained agent, on a GPU if there is one, as in training.

Prints a JSON line for each (frames per second; median, 99th percentile and maximum of a vector step in milliseconds),
then a table of frames per second.
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
from building import build_system

from delta_iris.data.collector import Collector, EpisodeStats, Policy
from delta_iris.data.replay import Replay
from delta_iris.envs.make import make_env
from delta_iris.envs.pool import EnvPool
from delta_iris.envs.vector import check_env, make_vector_env

Runner = Callable[[Callable[[], bool]], None]
"""Steps environments and calls its argument after each vector step, until that returns true."""


def run_environments(envs: EnvPool) -> Runner:
    """Make a runner that steps environments with random actions and stores nothing."""
    generator = np.random.default_rng(0)
    num_actions = int(envs.single_action_space.n)

    def run(on_step: Callable[[], bool]) -> None:
        while True:
            envs.step(generator.integers(num_actions, size=envs.num_envs))
            if on_step():
                return

    return run


def run_collector(collector: Collector, policy: Policy | None) -> Runner:
    """Make a runner that collects with a policy, or with random actions if it is None."""

    def run(on_step: Callable[[], bool]) -> None:
        def progress(frames: int, episodes: list[EpisodeStats]) -> bool:
            return on_step()

        collector.collect(policy, epsilon=0.01, progress=progress)

    return run


def measure(run: Runner, num_envs: int, seconds: float, warm_up: int) -> dict[str, float]:
    """Measure frames per second, including the final flush of the replay, and durations of vector steps.

    Args:
        run: what is measured.
        num_envs: environments of a vector step.
        seconds: shortest duration of the measurement.
        warm_up: vector steps before it.
    """
    ticks: list[float] = []

    def until(steps: int, end: float) -> Callable[[], bool]:
        def on_step() -> bool:
            ticks.append(time.perf_counter())
            return len(ticks) > steps and ticks[-1] > end

        return on_step

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
        "max_ms": round(float(steps.max()), 2),
    }


def main() -> None:
    """Measure all numbers of environments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_envs", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--environment", default="delta_iris/Crafter-v1")
    parser.add_argument("--seconds", type=float, default=5, help="duration of each measurement")
    parser.add_argument(
        "--warm_up", type=int, default=250, help="vector steps, after which the episodes no longer start together"
    )
    parser.add_argument("--policy", action="store_true", help="also measure with an untrained agent")
    parser.add_argument("--config", nargs="+", default=["crafter_cnn.yaml"], help="configuration of that agent")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    env = make_env(args.environment)
    frame_shape, num_actions = env.observation_space.shape, int(env.action_space.n)
    check_env(args.environment, {}, frame_shape[:2], num_actions)
    system = build_system(args.config).to(device) if args.policy else None
    rows: dict[int, dict[str, float]] = {}
    for num_envs in args.num_envs:
        envs = make_vector_env(args.environment, {}, num_envs)
        with tempfile.TemporaryDirectory() as folder:
            replay = Replay(Path(folder) / "replay", frame_shape)
            envs.reset(seed=0)
            runners = {"environments": run_environments(envs)}
            runners["random"] = run_collector(Collector(envs, replay, burn_in=5, seed=1), None)
            if system is not None:
                policy = system.policy()
                runners["policy"] = run_collector(Collector(envs, replay, policy.burn_in, seed=2), policy)
            for name, run in runners.items():
                measured = measure(run, num_envs, args.seconds, args.warm_up)
                rows.setdefault(num_envs, {})[name] = measured["frames_per_second"]
                print(json.dumps({"measured": name, "num_envs": num_envs} | measured), flush=True)
            replay.close()
        envs.close()
    print("\n{:>8}".format("num_envs"), *(f"{name:>14}" for name in rows[args.num_envs[0]]))
    for num_envs, row in rows.items():
        print(f"{num_envs:>8}", *(f"{frames:>14,}" for frames in row.values()))


if __name__ == "__main__":
    main()
