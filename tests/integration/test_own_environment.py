"""Tests that other games need only configuration: Atari, MiniGrid and wrappers, each in processes of their own."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import yaml

from delta_iris.data.replay_reader import ReplayReader
from delta_iris.pretrained import export_agent, load_pretrained
from tests.integration.faults.runs import ROOT, RUN, TINY, fit
from tests.integration.test_cli import run

TINY_MODEL = {key: value for key, value in yaml.safe_load(TINY.read_text()).items() if key in ("trainer", "model")}
FEW = {"num_test_envs": 1, "val_episodes": 1, "num_workers": 1, "val_batches": 1, "max_test_episode_steps": 30}


TINY_IRIS = {
    "tokenizer": {"tokens_per_frame": 16, "codebook": {"size": 16, "dim": 8}, "autoencoder": {"channels": 4}},
    "dynamics": {"transformer": {"dim": 16, "layers": 1, "heads": 2}},
    "actor_critic": TINY_MODEL["model"]["init_args"]["actor_critic"]["init_args"],
}


def small(folder: Path, name: str) -> Path:
    """A configuration to stack on another one: an epoch of a tiny model."""
    content = deepcopy(TINY_MODEL) | {"data": FEW}
    if name.startswith("iris"):
        content["model"] = {"init_args": {part: {"init_args": values} for part, values in TINY_IRIS.items()}}
    steps = {"start_epoch": 0, "first_epoch_steps": 2, "batch_size": 2}
    content["model"]["init_args"]["schedule"] = {
        "collection": {"first_epoch_frames": 120},
        **dict.fromkeys(("tokenizer", "dynamics", "actor_critic"), steps),
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(("name", "module"), [("atari", "ale_py"), ("iris_atari", "ale_py"), ("minigrid", "minigrid")])
def test_a_shipped_configuration_of_another_game_runs(tmp_path: Path, name: str, module: str) -> None:
    pytest.importorskip(module)
    output = fit(
        "--config",
        small(tmp_path, name),
        "--trainer.max_epochs",
        1,
        cwd=tmp_path,
        config=ROOT / "configs" / f"{name}.yaml",
    )
    assert "Done: 1 epochs, 120 frames" in output
    folder = tmp_path / "lightning_logs" / name / "version_0"
    reader = ReplayReader(folder / "replay" / "rank_0", (64, 64, 3))
    assert reader.read(0, 0, 10).frames.std() > 0
    # Whoever has the exported agent makes the very game from its configuration.
    export_agent(folder / "checkpoints" / "last.ckpt", tmp_path / "agent")
    agent = load_pretrained(tmp_path / "agent")
    data, env = agent.configuration["data"], agent.make_env()
    frame, _ = env.reset(seed=0)
    assert frame.shape == (64, 64, 3)
    env.step(agent.act(frame))
    card = (tmp_path / "agent" / "README.md").read_text()
    assert f"wrappers={data['wrappers']!r}" in card


WRAPPED = """
name: tiny
data:
  environment: delta_iris/Catch-v0
  environment_options: null
  num_actions: 3
  wrappers:
    - GrayscaleObservation
    - ResizeObservation: {shape: [64, 64]}
  training_wrappers:
    - ClipReward: {max_reward: 0.25}
    - TimeLimit: {max_episode_steps: 9}
"""


@pytest.fixture(scope="module")
def wrapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of Catch in grey."""
    folder = tmp_path_factory.mktemp("wrapped")
    (folder / "wrapped.yaml").write_text(WRAPPED)
    fit("--config", "wrapped.yaml", "--trainer.max_epochs", 1, cwd=folder)
    return folder


def test_training_sees_all_wrappers_and_tests_those_of_the_game(wrapped: Path) -> None:
    reader = ReplayReader(wrapped / RUN / "replay" / "rank_0", (64, 64, 3))
    steps = [reader.read(i, 0, reader.length(i)) for i in range(reader.num_episodes)]
    assert max(len(each.rewards) for each in steps) == 9
    assert set(np.concatenate([each.rewards for each in steps]).tolist()) == {0.0, 0.25}
    assert (steps[0].frames[..., :1] == steps[0].frames).all()
    config, last = wrapped / RUN / "config.yaml", wrapped / RUN / "checkpoints" / "last.ckpt"
    run("test", "--config", config, "--ckpt_path", last, "--data.test_episodes", 20, cwd=wrapped)
    result = json.loads((wrapped / RUN / "evaluation" / "last.json").read_text())
    assert set(result["length"]) == {18}
    returns = result["reward"]
    assert all(each == int(each) for each in returns)
    assert max(returns) >= 1


@pytest.mark.parametrize(
    ("key", "value"),
    [("wrappers", "[{ResizeObservation: {shape: [64, 64]}}]"), ("training_wrappers", "null")],
)
def test_a_run_is_not_resumed_with_other_wrappers(wrapped: Path, key: str, value: str) -> None:
    arguments = ("--config", "wrapped.yaml", f"--data.{key}", value, "--ckpt_path", "last", "--trainer.max_epochs", 2)
    output = fit(*arguments, cwd=wrapped, status=2)
    assert f"was trained with data.{key} " in output


def test_a_run_is_resumed_with_the_same_wrappers(wrapped: Path) -> None:
    output = fit("--config", "wrapped.yaml", "--ckpt_path", "last", "--trainer.max_epochs", 2, cwd=wrapped)
    assert "Done: 2 epochs" in output


@pytest.mark.parametrize(
    ("wrappers", "message"),
    [
        ("[ResizeObs]", "data.wrappers[0] names the wrapper 'ResizeObs', which is not known: choose ResizeObservation"),
        ("[{class_path: os.system}]", "names os.system, which a file may not use"),
    ],
)
def test_mistakes_in_wrappers_are_one_line(tmp_path: Path, wrappers: str, message: str) -> None:
    (tmp_path / "wrapped.yaml").write_text(f"data: {{wrappers: {wrappers}}}\n")
    output = fit("--config", "wrapped.yaml", cwd=tmp_path, status=2)
    assert message in output
    assert len([line for line in output.splitlines() if line.startswith("delta-iris: ")]) == 1
    assert not (tmp_path / "lightning_logs").exists()
