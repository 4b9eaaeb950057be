"""How much disk does a frame take, and how fast do windows come off it?

    python benchmarks/replay.py --frames 40000

Collects frames of a uniformly random player of Crafter, then draws windows as a training phase does. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from delta_iris.data.collector import Collector
from delta_iris.data.loader import WindowDataset, window_loader
from delta_iris.data.replay import Replay
from delta_iris.data.sampler import WindowSampler
from delta_iris.envs.vector import check_environment, make_vector_env

FRAME = (64, 64, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=40_000)
    parser.add_argument("--num_envs", type=int, default=2)
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--batches", type=int, default=200)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        replay = Replay(Path(folder) / "replay", FRAME)
        check_environment("delta_iris/Crafter-v1", {}, (64, 64), 17)
        envs = make_vector_env("delta_iris/Crafter-v1", {}, args.num_envs)
        started = time.perf_counter()
        Collector(envs, replay, burn_in=5, seed=0).collect(None, args.frames // args.num_envs)
        seconds = time.perf_counter() - started
        envs.close()
        size = sum(file.stat().st_size for file in replay.folder.iterdir())
        sampler = WindowSampler(21, overhang_end=True, seed=0)
        draws = [sampler.draw(replay.lengths, 32, count=True) for _ in range(args.batches + 20)]
        loader = window_loader(WindowDataset(replay.folder, FRAME, 21), draws, args.num_workers)
        for index, _ in enumerate(loader):
            if index == 19:
                started = time.perf_counter()
        latency = (time.perf_counter() - started) / args.batches
        measured = {
            "frames": replay.num_frames,
            "bytes_a_frame": round(size / replay.num_frames, 1),
            "gb_for_10M_frames": round(size / replay.num_frames / 100, 2),
            "collected_frames_per_second": round(replay.num_frames / seconds),
            "batch_32x21_ms": round(1000 * latency, 2),
            "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
        print(json.dumps(measured))


if __name__ == "__main__":
    main()
