"""Hold one commit against another, to the bit: does the same seed still give the same run?

    python benchmarks/reference.py run <work tree> <its configurations> before.json
    python benchmarks/reference.py compare before.json after.json

`run` trains small agents for two epochs on one CPU thread from the sources of any work tree: Transformer and CNN
tokenizer, REINFORCE and PPO, each resumed in the middle, and the paper's letter without a stop. It writes every logged
value and a hash of every tensor of the last checkpoint. The configurations of a commit stand in
`benchmarks/reference/<commit>/`, those of this commit in `benchmarks/reference/`: names may change, numbers may not.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli

from delta_iris.legacy import canonical_tag

CASES = {
    "transformer-reinforce": (["transformer"], True),
    "transformer-ppo": (["transformer", "ppo"], True),
    "cnn-reinforce": (["transformer", "cnn"], True),
    "cnn-ppo": (["transformer", "cnn", "ppo"], True),
    "letter": (["transformer", "letter"], False),
}
"""Configurations that each case stacks, and whether it is resumed after its first epoch."""

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")


def run(tree: Path, configs: Path, out: Path) -> None:
    """Train every case from the sources of a work tree.

    Args:
        tree: work tree of the commit.
        configs: folder of the configurations in that commit's names.
        out: JSON file to write.
    """
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(os.cpu_count()) as pool:
        folders = {case: Path(scratch) / case for case in CASES}
        results = pool.map(lambda case: _train(tree.resolve(), configs.resolve(), folders[case], *CASES[case]), CASES)
        content = dict(zip(CASES, results, strict=True))
    out.write_text(json.dumps(content, indent=1) + "\n")
    for case, result in content.items():
        print(f"{case:24}{len(result['scalars'])} series, weights {_summary(result['state_dict'])}")


def compare(before: Path, after: Path) -> None:
    """Compare two files that `run` wrote; ends with status 1 where they differ.

    Args:
        before: of the earlier commit.
        after: of the later commit.
    """
    old, new = json.loads(before.read_text()), json.loads(after.read_text())
    same = True
    for case in CASES:
        differences = list(_differences(old[case], new[case]))
        same &= not differences
        weights, series = _summary(new[case]["state_dict"]), len(new[case]["scalars"])
        outcome = f"equal: {series} series, weights {weights}" if not differences else "DIFFERS"
        print(f"{case:24}{outcome}")
        for line in differences:
            print(f"    {line}")
    if not same:
        raise SystemExit(1)


def _train(tree: Path, configs: Path, folder: Path, names: list[str], resumed: bool) -> dict[str, Any]:
    folder.mkdir()
    command = [sys.executable, "-m", "delta_iris", "fit"]
    command += [option for name in names for option in ("--config", str(configs / f"{name}.yaml"))]
    checkpoint = "runs/reference/run/checkpoints/last.ckpt"
    environment = os.environ | THREADS | {"PYTHONPATH": str(tree / "src"), "CUDA_VISIBLE_DEVICES": ""}
    further = [["--trainer.max_epochs=1"], ["--trainer.max_epochs=2", "--ckpt_path", checkpoint]] if resumed else [[]]
    for options in further:
        done = subprocess.run(command + options, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{folder.name} failed:\n{done.stdout}\n{done.stderr}")
    run_folder = folder / "runs" / "reference" / "run"
    content = torch.load(run_folder / "checkpoints" / "last.ckpt", weights_only=True)
    replay = hashlib.sha256((run_folder / "replay" / "rank_0" / "chunks.bin").read_bytes()).hexdigest()
    return {
        "scalars": _scalars(run_folder),
        "state_dict": _hashes(content["state_dict"]),
        "optimizers": _hashes(content["optimizer_states"]),
        "replay": replay,
    }


def _scalars(run_folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every logged series by tag, but for those of wall-clock time."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_folder), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if "throughput/" not in tag and "per_second" not in tag]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in sorted(tags)}


def _hashes(content: Any) -> list[str]:
    """Hashes of all tensors in nested dicts and lists, sorted: names and order may change."""
    if isinstance(content, torch.Tensor):
        data = content.detach().contiguous()
        described = f"{data.dtype} {tuple(data.shape)} ".encode() + data.numpy().tobytes()
        return [hashlib.sha256(described).hexdigest()[:16]]
    children = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return sorted(digest for child in children for digest in _hashes(child))


def _summary(hashes: list[str]) -> str:
    return hashlib.sha256("".join(hashes).encode()).hexdigest()[:16]


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    found = []
    mine, theirs = ({canonical_tag(tag): series for tag, series in side["scalars"].items()} for side in (old, new))
    for tag in sorted({*mine, *theirs}):
        if tag not in mine or tag not in theirs:
            found.append(f"{tag}: only {'before' if tag in mine else 'after'}")
        elif mine[tag] != theirs[tag]:
            pairs = zip(mine[tag], theirs[tag], strict=False)
            first = next(((a, b) for a, b in pairs if a != b), (len(mine[tag]), len(theirs[tag])))
            found.append(f"{tag}: {first[0]} before, {first[1]} after")
    for key in ("state_dict", "optimizers", "replay"):
        if old[key] != new[key]:
            found.append(f"{key}: not the same")
    return found


if __name__ == "__main__":
    auto_cli([run, compare])
