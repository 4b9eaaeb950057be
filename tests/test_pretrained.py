"""Tests of exporting agents, and of loading them as a library does."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from delta_iris.actor_critic.policy import FramePolicy
from delta_iris.data.segment import SegmentBatch, to_float
from delta_iris.envs.catch import CatchEnv
from delta_iris.errors import UserError
from delta_iris.pretrained import Agent, export_agent, is_exported, load_exported, load_pretrained
from delta_iris.training.learner import Learner
from delta_iris.training.systems import DeltaIris
from delta_iris.training.systems.building import build_system
from tests.commands.config_helpers import ROOT, TINY, parse_fit, stack
from tests.systems.recurrent import RecurrentSystem

SHIPPED = ROOT / "pretrained" / "crafter_cnn"
FRAMES = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), np.uint8)


def build(values: dict[str, Any]) -> Learner:
    """A random system of a parsed configuration, whose policy depends on what it sees."""
    torch.manual_seed(0)
    system = build_system(values)
    actor_critic: Any = system.actor_critic
    nn.init.normal_(actor_critic.network.actor.weight, std=2.0)
    return system


def save_run(run: Path, system: Learner, values: dict[str, Any]) -> Path:
    """Write a run folder as training leaves it, and return its checkpoint."""
    checkpoint = run / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    configuration = {key: json.loads(json.dumps(values[key])) for key in ("model", "data")}
    content = {"state_dict": system.state_dict(), "configuration": configuration, "frames_collected": 700}
    torch.save(content, checkpoint)
    (run / "config.yaml").write_text(yaml.safe_dump(configuration))
    return checkpoint


def export_tiny(folder: Path) -> Path:
    """Export a random agent of the tests' configuration to a folder in a given one."""
    values = parse_fit(*stack(TINY))
    export_agent(save_run(folder / "run", build(values), values), folder / "agent")
    return folder / "agent"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[DeltaIris, Path]:
    """A system and its checkpoint."""
    values = parse_fit(*stack(TINY))
    system = build(values)
    assert isinstance(system, DeltaIris)
    return system, save_run(tmp_path_factory.mktemp("run"), system, values)


@pytest.fixture
def exported(original: tuple[DeltaIris, Path], tmp_path: Path) -> Path:
    """A folder with the exported agent, in several parts."""
    folder = tmp_path / "agent"
    export_agent(original[1], folder, part_bytes=100_000)
    return folder


def edit_about(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the content of `about.json` in place."""
    about = json.loads((folder / "about.json").read_text())
    edit(about)
    (folder / "about.json").write_text(json.dumps(about))


def act(agent: Agent, seed: int = 0) -> list[int]:
    torch.manual_seed(seed)
    return [agent.act(frame) for frame in FRAMES]


# --- exporting ---


def test_weights_survive_up_to_bf16_and_the_codebook_exactly(original: tuple[DeltaIris, Path], exported: Path) -> None:
    system, agent = original[0], load_pretrained(exported)
    assert isinstance(agent.system, DeltaIris)
    weights, loaded = system.state_dict(), agent.system.state_dict()
    assert weights.keys() == loaded.keys()
    for name, value in weights.items():
        # The target network is a copy of the network.
        expected = weights[name.replace("actor_critic.target.", "actor_critic.network.")]
        assert loaded[name].dtype == value.dtype
        if ".quantizer." in name or not value.is_floating_point():
            assert torch.equal(loaded[name], expected), name
        else:
            assert torch.equal(loaded[name], expected.to(torch.bfloat16).to(value.dtype)), name
    assert any(".quantizer." in name for name in weights)
    assert agent.frames_trained_on == 700
    assert agent.world_model is agent.system.world_model
    assert not agent.system.training


def test_parts_stay_below_their_size_and_hold_no_optimizer_or_target(exported: Path) -> None:
    about = json.loads((exported / "about.json").read_text())
    assert len(about["parts"]) > 1
    parts = [load_file(exported / name) for name in about["parts"]]
    for part in parts:
        assert len(part) == 1 or sum(value.nbytes for value in part.values()) <= 100_000
    assert not any(".target." in name for part in parts for name in part)
    # What other programs read: each tensor's file.
    index = json.loads((exported / "model.safetensors.index.json").read_text())["weight_map"]
    assert index == {name: file for file, part in zip(about["parts"], parts, strict=True) for name in part}
    assert about["frames_collected"] == 700
    assert is_exported(exported)
    assert not is_exported(exported.parent)
    # Whoever may read the list may read the parts.
    assert len({path.stat().st_mode for path in exported.iterdir()}) == 1
    assert yaml.safe_load((exported / "config.yaml").read_text()) == about["configuration"]


def test_a_file_that_is_no_safetensors_gives_one_message(exported: Path) -> None:
    for content in (b"", b"\xff" * 100, b"\x08\0\0\0\0\0\0\0" + b"{" * 8, (1 << 62).to_bytes(8, "little") + b"{}"):
        path = next(exported.glob("*.safetensors"))
        path.write_bytes(content)
        parts = {path.name: hashlib.sha256(content).hexdigest()}
        edit_about(exported, lambda about: about["parts"].update(parts))  # noqa: B023  (called at once)
        with pytest.raises(UserError, match="is damaged or not a safetensors file") as raised:
            load_pretrained(exported)
        assert str(path) in str(raised.value)


def test_weights_of_version_0_2_load(exported: Path) -> None:
    expected = load_exported(exported)["state_dict"]
    parts = {}
    for number, path in enumerate(sorted(exported.glob("*.safetensors")), start=1):
        old = exported / f"weights-{number}-of-9.pt"
        torch.save(load_file(path), old)
        parts[old.name] = hashlib.sha256(old.read_bytes()).hexdigest()
        path.unlink()
    edit_about(exported, lambda about: about.update(parts=parts))
    weights = load_exported(exported)["state_dict"]
    assert weights.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())


@pytest.mark.parametrize("frames", [700, 699])
def test_the_model_card_says_what_this_checkpoint_scored(
    original: tuple[DeltaIris, Path], tmp_path: Path, frames: int
) -> None:
    run = tmp_path / "run"
    shutil.copytree(original[1].parents[1], run)
    (run / "evaluation").mkdir()
    results = {"reward": [1.0, 2.0, 6.0], "xs": [frames] * 3}
    (run / "evaluation" / "last.json").write_text(json.dumps(results))
    export_agent(run / "checkpoints" / "last.ckpt", tmp_path / "agent")
    card = (tmp_path / "agent" / "README.md").read_text()
    assert "`delta_iris/Crafter-v1`, trained on 700 frames" in card
    # 1.96 · √(7 / 3): the variance of the three is 7.
    score = "3.00 ± 2.99 (95 %, 3 test episodes)" if frames == 700 else "not measured"
    assert f"| return | {score}" in card


def test_a_damaged_result_is_named_and_nothing_is_exported(original: tuple[DeltaIris, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(original[1].parents[1], run)
    (run / "evaluation").mkdir()
    for content in ("{", "[]", '{"reward": [], "xs": []}'):
        (run / "evaluation" / "last.json").write_text(content)
        with pytest.raises(UserError, match=r"last\.json is damaged"):
            export_agent(run / "checkpoints" / "last.ckpt", tmp_path / "agent")
        assert not (tmp_path / "agent").exists()


def test_a_checkpoint_with_another_configuration_is_named_and_not_exported(tmp_path: Path) -> None:
    values = parse_fit(*stack(TINY))
    system = build(values)
    for number, configuration in enumerate(({}, {"data": [], "model": {}}, {"data": {"environment": "x"}})):
        checkpoint = save_run(tmp_path / str(number), system, values)
        content = torch.load(checkpoint, weights_only=True) | {"configuration": configuration}
        torch.save(content, checkpoint)
        with pytest.raises(UserError, match=r"last\.ckpt has an invalid configuration"):
            export_agent(checkpoint, tmp_path / "agent")
        assert not (tmp_path / "agent").exists()


def test_exporting_twice_gives_the_same_weights(exported: Path, tmp_path: Path) -> None:
    run = tmp_path / "again"
    (run / "checkpoints").mkdir(parents=True)
    torch.save(load_exported(exported), run / "checkpoints" / "last.ckpt")
    (run / "config.yaml").write_bytes((exported / "config.yaml").read_bytes())
    export_agent(run / "checkpoints" / "last.ckpt", tmp_path / "second")
    first, second = (load_exported(folder)["state_dict"] for folder in (exported, tmp_path / "second"))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_exporting_overwrites_nothing_and_needs_the_configuration(
    original: tuple[DeltaIris, Path], exported: Path, tmp_path: Path
) -> None:
    for taken in (exported, exported / "about.json"):
        with pytest.raises(UserError, match="name a new folder"):
            export_agent(original[1], taken)
    lonely = tmp_path / "lonely" / "checkpoints" / "last.ckpt"
    lonely.parent.mkdir(parents=True)
    lonely.write_bytes(original[1].read_bytes())
    with pytest.raises(UserError, match=r"config\.yaml is missing"):
        export_agent(lonely, tmp_path / "new")
    with pytest.raises(UserError, match="there is no checkpoint"):
        export_agent(tmp_path / "nowhere.ckpt", tmp_path / "new")
    assert not (tmp_path / "new").exists()


# --- acting ---


def test_an_agent_acts_as_its_policy_does(exported: Path) -> None:
    agent = load_pretrained(exported)
    assert isinstance(agent.system, DeltaIris)
    policy = FramePolicy(agent.system.actor_critic)
    expected = []
    torch.manual_seed(0)
    with torch.no_grad():
        memory = policy.initial_memory(1)
        for frame in FRAMES:
            action, memory = policy.act(to_float(torch.from_numpy(frame).permute(2, 0, 1).unsqueeze(0)), memory)
            expected.append(int(action))
    actions = act(agent)
    assert actions == expected
    assert len(set(actions)) > 1
    assert all(type(action) is int and 0 <= action < 17 for action in actions)


def test_a_reset_forgets_the_episode(exported: Path) -> None:
    agent = load_pretrained(exported)
    assert isinstance(agent.system, DeltaIris)
    with torch.no_grad():
        for parameter in agent.system.actor_critic.network.lstm.parameters():
            parameter.normal_(std=2.0)
    first = act(agent)
    continued = act(agent)
    agent.reset()
    assert act(agent) == first
    assert continued != first


def test_an_agent_of_a_model_with_a_filter_acts_too(tmp_path: Path) -> None:
    values = parse_fit(*stack(ROOT / "tests" / "systems" / "recurrent.yaml"), "--trust=tests")
    folder = tmp_path / "agent"
    export_agent(save_run(tmp_path / "run", build(values), values), folder)
    agent = load_pretrained(folder, trust=["tests"])
    assert isinstance(agent.system, RecurrentSystem)
    torch.manual_seed(0)
    frame = FRAMES[0, :16, :16]
    first = [agent.act(frame) for _ in range(5)]
    agent.reset()
    torch.manual_seed(0)
    assert [agent.act(frame) for _ in range(5)] == first


CATCH = ROOT / "pretrained" / "catch"


def test_an_episode_is_played_from_its_start_to_its_end_or_the_last_step() -> None:
    agent, env = load_pretrained(CATCH), CatchEnv()
    torch.manual_seed(0)
    frames, actions = agent.play_episode(env, seed=3)
    assert frames.shape == (18, 16, 16, 3)
    # The same actions in the same game give the same frames.
    frame, _ = env.reset(seed=3)
    caught = 0.0
    for recorded, action in zip(frames, actions, strict=True):
        assert np.array_equal(recorded, frame)
        frame, reward, terminated, *_ = env.step(action)
        caught += reward
    assert terminated
    assert caught >= 5
    torch.manual_seed(0)
    some, some_actions = agent.play_episode(env, max_steps=7, seed=3)
    assert np.array_equal(some, frames[:7])
    assert np.array_equal(some_actions, actions[:7])


def test_an_agent_is_an_environment_of_its_world_model() -> None:
    agent = load_pretrained(CATCH)
    starts = SegmentBatch.from_numpy(*agent.play_episode(CatchEnv(), seed=0)).windows(agent.system.context)
    envs = agent.imagine(starts, num_envs=3, max_steps=5)
    assert envs.single_action_space == CatchEnv().action_space
    assert envs.single_observation_space == CatchEnv().observation_space
    frames, _ = envs.reset(seed=0)
    last = starts.frames[:, -1].permute(0, 2, 3, 1).numpy()
    assert all(any(np.array_equal(frame, start) for start in last) for frame in frames)
    assert [envs.step(np.ones(3, np.int64))[3].all() for _ in range(5)] == [False] * 4 + [True]


def test_a_model_free_agent_cannot_imagine(exported: Path) -> None:
    agent = load_pretrained(exported)
    agent.world_model = None
    with pytest.raises(ValueError, match="no world model"):
        agent.imagine(SegmentBatch.from_numpy(FRAMES, [0] * len(FRAMES)), 1)


def test_the_shipped_agent_loads() -> None:
    agent = load_pretrained(SHIPPED)
    assert agent.frames_trained_on == 445_184
    assert isinstance(agent.system, DeltaIris)
    assert agent.system.tokenizer.codebook_size == 1024
    actions = act(agent)
    agent.reset()
    assert act(agent) == actions
    assert all(0 <= action < 17 for action in actions)


# --- what is refused ---


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that can be imported and must not be."""
    (tmp_path / "foreign_code.py").write_text("def Tokenizer(*args):\n    raise SystemExit('ran')\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "foreign_code"


def test_an_agent_does_not_import_the_module_that_its_environment_names(exported: Path, foreign: str) -> None:
    edit_about(exported, lambda about: about["configuration"]["data"].update(environment=f"{foreign}:Game-v0"))
    with pytest.raises(UserError, match=rf'imports {foreign}: .*load_pretrained\(folder, trust=\["{foreign}"\]\)'):
        load_pretrained(exported).make_env()
    assert foreign not in sys.modules
    with pytest.raises(UserError, match="cannot create environment"):
        load_pretrained(exported, trust=[foreign]).make_env()
    assert sys.modules.pop(foreign)


@pytest.mark.parametrize("path", [["model"], ["model", "init_args", "tokenizer"]], ids=".".join)
def test_classes_of_other_packages_are_refused_and_not_imported(exported: Path, foreign: str, path: list[str]) -> None:
    def edit(about: dict[str, Any]) -> None:
        group = about["configuration"]
        for key in path:
            group = group[key]
        group["class_path"] = f"{foreign}.Tokenizer"

    edit_about(exported, edit)
    with pytest.raises(
        UserError, match=rf'names {foreign}\.Tokenizer, which a file .* trust=\["{foreign}"\]'
    ) as raised:
        load_pretrained(exported)
    assert "\n" not in str(raised.value)
    assert foreign not in sys.modules


def test_a_callable_that_is_named_without_class_path_is_not_imported(exported: Path, foreign: str) -> None:
    """The parser takes the name of a function in place of a group with `class_path`."""
    edit_about(
        exported, lambda about: about["configuration"]["model"]["init_args"].update(tokenizer=f"{foreign}.Tokenizer")
    )
    with pytest.raises(UserError):
        load_pretrained(exported)
    assert foreign not in sys.modules


def flip_a_byte(folder: Path) -> None:
    path = next(folder.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def replace_by_pipe(folder: Path) -> None:
    path = next(folder.glob("*.safetensors"))
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_byte, "is damaged (its SHA-256 is not that of about.json)"),
        (lambda folder: next(folder.glob("*.safetensors")).unlink(), "is not an exported agent: model-0000"),
        (lambda folder: (folder / "about.json").unlink(), "is not an exported agent: about.json is missing"),
        (lambda folder: (folder / "about.json").write_text("{"), "is damaged or not an exported agent"),
        (lambda folder: (folder / "about.json").write_text("[]"), "is damaged or not an exported agent"),
        (lambda folder: (folder / "about.json").write_bytes(b"\xff"), "about.json cannot be read as text"),
        (lambda folder: edit_about(folder, lambda about: about.pop("parts")), "is damaged or not an exported agent"),
        (lambda folder: edit_about(folder, lambda about: about.update(parts=3)), "is damaged or not an exported agent"),
        (lambda folder: edit_about(folder, lambda about: about.update(parts={"../x.pt": "0" * 64})), "not a part"),
        (lambda folder: edit_about(folder, lambda about: about.update(parts={"/dev/zero": "0" * 64})), "not a part"),
        (lambda folder: edit_about(folder, lambda about: about.update(frames_collected="7")), "not a number of frames"),
        (lambda folder: (folder / "about.json").write_text("[" * 100_000), "is damaged or not an exported agent"),
        (lambda folder: (folder / "about.json").write_text(" " * (1 << 21)), "is larger than"),
        (replace_by_pipe, "is not a regular file"),
    ],
)
def test_a_damaged_agent_gives_one_message(exported: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(exported)
    with pytest.raises(UserError) as raised:
        load_pretrained(exported)
    assert message in str(raised.value)
    assert str(exported) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_weights_of_another_configuration_are_named_by_the_key(exported: Path) -> None:
    def edit(about: dict[str, Any]) -> None:
        about["configuration"]["model"]["init_args"]["actor_critic"]["init_args"]["lstm_size"] = 8

    edit_about(exported, edit)
    with pytest.raises(UserError, match="was made with another configuration"):
        load_pretrained(exported)


def test_a_folder_that_does_not_exist_gives_one_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no exported agent"):
        load_pretrained(tmp_path / "nowhere")


def test_a_small_file_cannot_ask_for_a_large_network(exported: Path) -> None:
    """Neither memory nor time is spent on what the file has no weights for."""
    for key, value in [("lstm_size", 1 << 22), ("cnn", {"channel_mults": [1] * 100_000})]:

        def edit(about: dict[str, Any], key: str = key, value: object = value) -> None:
            about["configuration"]["model"]["init_args"]["actor_critic"]["init_args"][key] = value

        before = (exported / "about.json").read_text()
        edit_about(exported, edit)
        with pytest.raises(UserError, match=re.escape(str(exported))):
            load_pretrained(exported)
        (exported / "about.json").write_text(before)


def test_what_a_trusted_name_reaches_through_is_refused(exported: Path) -> None:
    """`delta_iris.pretrained.shutil` is the standard library's, whatever its name begins with."""
    for name in ("delta_iris.pretrained.shutil.rmtree", "delta_iris.envs.pool.pickle.loads", "subprocess.Popen"):

        def edit(about: dict[str, Any], name: str = name) -> None:
            about["configuration"]["model"]["init_args"]["tokenizer"]["class_path"] = name

        edit_about(exported, edit)
        with pytest.raises(UserError, match="which a file may not use"):
            load_pretrained(exported)


def test_a_run_folder_is_told_from_an_agent(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"is a run folder, .*delta-iris export .*last\.ckpt"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("frame", "found"),
    [
        (np.zeros((64, 64, 3), np.uint8), r"uint8 \(64, 64, 3\)"),
        (np.zeros((16, 16, 3), np.float32), r"float32 \(16, 16, 3\)"),
        ((np.zeros((16, 16, 3), np.uint8), {}), "a tuple"),
    ],
)
def test_a_frame_of_another_form_is_refused(frame: Any, found: str) -> None:
    agent = load_pretrained(ROOT / "pretrained" / "catch")
    with pytest.raises(ValueError, match=rf"expected a frame of uint8 \(16, 16, 3\), got {found}"):
        agent.act(frame)
