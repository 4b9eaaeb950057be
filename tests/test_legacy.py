"""Tests that configurations, weights and TensorBoard tags of version 0.1 are read in the present names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader  # type: ignore[import-untyped]

from delta_iris.commands.config_files import load_config
from delta_iris.legacy import canonical_tag, is_legacy_configuration, upgrade_configuration, upgrade_weights
from tests.commands.config_helpers import CONFIGS, ROOT, build_on_meta, parse_fit, stack
from tests.helpers import make_cnn_tokenizer, make_system

PRESENT = ROOT / "benchmarks" / "reference"
OLD = PRESENT / "91e4ab1"
RUNS = sorted((ROOT / "lightning_logs" / "reference").iterdir())
PRETRAINED = ROOT / "pretrained" / "crafter_cnn"

TAGS = {
    "train/return": "train/return",
    "train/objectives_unlocked": "train/achievements_per_episode",
    "test/objectives_unlocked": "test/achievements_per_episode",
    "test_achievements/wake_up": "test_achievements/wake_up",
    "tokenizer/l2": "tokenizer/l2",
    "tokenizer/max_pixel": "tokenizer/max_error",
    "tokenizer/codewords_in_use": "tokenizer/codes_used",
    "tokenizer/revived": "tokenizer/codes_reset",
    "world_model/token_loss": "dynamics/token_loss",
    "agent/actor_loss": "actor_critic/actor_loss",
    "agent/gradient_norm": "actor_critic/gradient_norm",
    "throughput/tokenizer_ms": "throughput/tokenizer_ms",
    "throughput/world_model_ms": "throughput/dynamics_ms",
    "throughput/agent_ms": "throughput/actor_critic_ms",
    "throughput/frames_per_second": "throughput/frames_per_second",
    "held_out/tokenizer_l2": "held_out/reconstruction_l2",
    "held_out/tokenizer_psnr": "held_out/reconstruction_psnr",
    "held_out/tokenizer_copy_l2": "held_out/copy_l2",
    "held_out/world_model_loss": "held_out/dynamics_loss",
    "held_out/world_model_token_perplexity": "held_out/dynamics_token_perplexity",
    "held_out/codebook_entropy": "held_out/codebook_entropy",
    "drift/imagined_15": "open_loop_l2/15",
    "drift/copied_01": "copy_l2/01",
    "pictures/imagination (real above)": "images/imagination (real above)",
}
"""Tags of version 0.1, and those that a run writes now."""

CASES = [["transformer"], ["transformer", "ppo"], ["transformer", "cnn", "ppo"], ["transformer", "letter"]]


def tags_of(run: Path) -> set[str]:
    """The tags in the event files of a run folder."""
    events = (event for path in run.glob("events.*") for event in EventFileLoader(str(path)).Load())
    return {value.tag for event in events for value in event.summary.value}


@pytest.mark.parametrize("names", CASES, ids="+".join)
def test_translated_configurations_amount_to_the_present_ones(names: list[str]) -> None:
    old, present = (parse_fit(*stack(*(folder / f"{name}.yaml" for name in names))) for folder in (OLD, PRESENT))
    if "cnn" in names:
        # Version 0.1 kept the warm-up of the tokenizer below; now another class drops all arguments.
        optimizer = old["model"]["init_args"]["tokenizer"]["init_args"]["optimizer"]
        assert optimizer["warmup_steps"] == 0
        optimizer["warmup_steps"] = 5
    for key in ("model", "data", "name", "seed_everything"):
        assert old[key] == present[key]
    # The run folder is chosen anew.
    for key in ("logger", "default_root_dir"):
        del old["trainer"][key], present["trainer"][key]
    assert old["trainer"] == present["trainer"]


def test_the_configuration_of_the_shipped_agent_amounts_to_two_present_ones() -> None:
    translated, present = (
        parse_fit(*stack(PRETRAINED / "config.yaml")),
        parse_fit(*stack("crafter_cnn.yaml", "short.yaml"), "--model.tokenizer.num_transforms=0"),
    )
    assert translated["model"] == present["model"]
    assert translated["data"] == present["data"]
    assert translated["name"] == "crafter_cnn"


def test_every_saved_configuration_of_version_0_1_is_recognized_and_translated() -> None:
    saved = [
        *OLD.glob("*.yaml"),
        *(path for run in RUNS for path in run.glob("config.yaml")),
        PRETRAINED / "config.yaml",
    ]
    assert len(saved) >= 6
    for path in saved:
        content = yaml.safe_load(path.read_text())
        assert is_legacy_configuration(content)
        assert not is_legacy_configuration(upgrade_configuration(content))


def test_present_configurations_are_not_taken_for_old_ones() -> None:
    for path in (*CONFIGS.glob("*.yaml"), *PRESENT.glob("*.yaml")):
        assert not is_legacy_configuration(load_config(path))
    others: list[Any] = [
        None,
        [],
        "text",
        {},
        {"model": None},
        {"model": {"class_path": "a.B", "init_args": {"agent": 1}}},
        {"model": {"tokenizer": {"num_transforms": 2}}},
        {"name": "mine", "model": {"tokenizer": {"init_args": {"optimizer": {"learning_rate": 1e-4}}}}},
    ]
    for other in others:
        assert not is_legacy_configuration(other)


def test_a_tokenizer_alone_is_old_by_its_flat_names() -> None:
    assert is_legacy_configuration({"model": {"tokenizer": {"init_args": {"final_fraction": 0.1}}}})
    assert is_legacy_configuration({"model": {"tokenizer": {"init_args": {"motions": 4}}}})


def test_tags_of_version_0_1_become_present_ones() -> None:
    assert {tag: canonical_tag(tag) for tag in TAGS} == TAGS


def test_present_tags_stay_as_they_are() -> None:
    for tag in TAGS.values():
        assert canonical_tag(tag) == tag


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_no_tag_of_a_recorded_run_keeps_an_old_name(run: Path) -> None:
    tags = tags_of(run)
    assert len(tags) > 50
    present = {canonical_tag(tag) for tag in tags}
    assert len(present) == len(tags)
    assert {canonical_tag(tag) for tag in present} == present
    groups = {tag.partition("/")[0] for tag in present}
    assert groups <= {
        *("actor_critic", "copy_l2", "dynamics", "epoch", "held_out", "images", "open_loop_l2", "test", "throughput"),
        *("test_achievements", "tokenizer", "train", "train_achievements"),
    }
    old_words = ("agent", "codewords", "drift", "max_pixel", "objectives", "pictures", "revived", "world_model")
    assert [tag for tag in present if any(word in tag for word in old_words)] == []


@pytest.mark.parametrize("make_tokenizer", [None, make_cnn_tokenizer], ids=["transformer", "cnn"])
def test_present_weights_stay_as_they_are(make_tokenizer: Any) -> None:
    weights = make_system(make_tokenizer and make_tokenizer()).state_dict()
    upgraded = upgrade_weights(weights)
    assert list(upgraded) == list(weights)
    assert all(upgraded[name] is value for name, value in weights.items())


def test_the_shipped_weights_get_the_names_of_the_present_system() -> None:
    parts = [torch.load(path, weights_only=True) for path in sorted(PRETRAINED.glob("*.pt"))]
    old = {name: value for part in parts for name, value in part.items()}
    configuration = upgrade_configuration(json.loads((PRETRAINED / "about.json").read_text())["configuration"])
    system = build_on_meta(configuration)
    own = {name: value.shape for name, value in system.state_dict().items() if ".target." not in name}
    assert {name: value.shape for name, value in upgrade_weights(old).items()} == own
