"""How long does it take to compile and capture the steps of each phase?

    TORCHINDUCTOR_CACHE_DIR=/tmp/empty python benchmarks/compile_time.py --config crafter_cnn.yaml --config short.yaml

Runs one batch of random segments through each phase on one GPU, then times more: `step` is one optimizer step, without
the optimizer. Prints a JSON line for each phase, with the seconds that PyTorch counts for the parts of compilation.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time

import torch
from building import build_system
from torch._dynamo.utils import compilation_time_metrics

from delta_iris.acceleration.compile import compiled_regions
from delta_iris.data.segment import SegmentBatch

REPEATS = 20


def random_segment(batch: int, length: int) -> SegmentBatch:
    """Segments without padding, rewards or ends."""
    frames = torch.randint(256, (batch, length, 3, 64, 64), dtype=torch.uint8, device="cuda")
    zeros = torch.zeros(batch, length, dtype=torch.int64, device="cuda")
    return SegmentBatch(frames, torch.randint_like(zeros, 17), zeros.float(), zeros, ~zeros.bool(), zeros.bool())


def clock() -> float:
    """Seconds, once the device has finished."""
    torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action="append", required=True)
    parser.add_argument("--num_transforms", type=int, default=4)
    args = parser.parse_args()
    tokenizer = {"init_args": {"num_transforms": args.num_transforms}}
    system = build_system(args.config, {"model": {"init_args": {"tokenizer": tokenizer}}}).to("cuda")
    system.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign]
    before: dict[str, float] = {}
    for phase in system.phases:
        segment = random_segment(phase.schedule.batch_size, phase.sampling.length)
        with torch.autocast("cuda", torch.bfloat16), compiled_regions():
            times = [clock()]
            prepare, step = system.step_functions(phase)
            minibatch = next(iter(phase.minibatches(prepare(segment))))
            times.append(clock())
            step(minibatch)
            times.append(clock())
            for function, batch in ((prepare, segment), (step, minibatch)):
                for _ in range(REPEATS):
                    function(batch)
                times.append(clock())
        seconds = {name: sum(spans) for name, spans in compilation_time_metrics.items()}
        spent = {name: round(value - before.get(name, 0), 1) for name, value in seconds.items()}
        spans = [end - start for start, end in itertools.pairwise(times)]
        result = {
            "phase": phase.name,
            "compile_prepare_s": round(spans[0], 1),
            "compile_step_s": round(spans[1], 1),
            "prepare_ms": round(1000 * spans[2] / REPEATS, 2),
            "step_ms": round(1000 * spans[3] / REPEATS, 2),
            "seconds": {name: value for name, value in sorted(spent.items(), key=lambda item: -item[1]) if value > 0.3},
        }
        print(json.dumps(result), flush=True)
        before = seconds


if __name__ == "__main__":
    main()
