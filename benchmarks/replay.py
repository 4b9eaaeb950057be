"""How many bytes does a frame take on disk, and how fast are segments read?

    python benchmarks/replay.py --frames 40000

Collects frames of Crafter with random actions, then loads batches of 32 segments of 21 steps as a training phase does.

Prints a JSON line: bytes per frame, frames collected per second, milliseconds per batch and peak memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from delta_iris.data.collector import Collector
from delta_iris.data.loader import SegmentLoader
from delta_iris.data.replay import Replay
from delta_iris.data.sampler import SegmentSampler
from delta_iris.data.segment import SegmentRequest
from delta_iris.data.segment_dataset import SegmentDataset
from delta_iris.envs.vector import check_env, make_vector_env

FRAME_SHAPE = (64, 64, 3)
SEGMENT_LENGTH, BATCH_SIZE = 21, 32
WARM_UP = 20
"""Batches that are loaded before the measurement."""


def main() -> None:
    """Collect, then load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=40_000)
    parser.add_argument("--num_envs", type=int, default=2)
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--batches", type=int, default=200)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        replay = Replay(Path(folder) / "replay", FRAME_SHAPE)
        check_env("delta_iris/Crafter-v1", {}, FRAME_SHAPE[:2], 17)
        envs = make_vector_env("delta_iris/Crafter-v1", {}, args.num_envs)
        started = time.perf_counter()
        Collector(envs, replay, burn_in=5, seed=0).collect(None, args.frames // args.num_envs)
        seconds = time.perf_counter() - started
        envs.close()
        size = sum(file.stat().st_size for file in replay.folder.iterdir())
        sampler = SegmentSampler(SEGMENT_LENGTH, SEGMENT_LENGTH - 1, SEGMENT_LENGTH - 1, seed=0)
        lengths = replay.lengths
        indices = [sampler.draw(lengths, BATCH_SIZE, update_counts=True) for _ in range(args.batches + WARM_UP)]
        requests = (SegmentRequest.within_episodes(lengths, SEGMENT_LENGTH, batch) for batch in indices)
        loader = SegmentLoader(SegmentDataset(replay.folder, FRAME_SHAPE), args.num_workers)
        for number, _ in enumerate(loader.batches(requests), start=1):
            if number == WARM_UP:
                started = time.perf_counter()
        latency = (time.perf_counter() - started) / args.batches
        measured = {
            "frames": replay.num_frames,
            "bytes_per_frame": round(size / replay.num_frames, 1),
            "gb_for_10M_frames": round(size / replay.num_frames / 100, 2),
            "collected_frames_per_second": round(replay.num_frames / seconds),
            f"batch_{BATCH_SIZE}x{SEGMENT_LENGTH}_ms": round(1000 * latency, 2),
            "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
        print(json.dumps(measured))
        loader.close()
        replay.close()


if __name__ == "__main__":
    main()
