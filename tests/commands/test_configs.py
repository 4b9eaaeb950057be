"""Tests that the configurations are what they say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from delta_iris.commands.config_files import LINKED
from delta_iris.training.learner import Learner
from delta_iris.training.systems import DeltaIris, Dreamer, Iris, ModelFree
from delta_iris.training.systems.building import count_parameters
from delta_iris.training.systems.token_system import TokenSystem
from delta_iris.world_models.delta_iris import CNNTokenizer, TransformerTokenizer
from tests.commands.config_helpers import CONFIGS, ROOT, build_on_meta, parse_fit, stack

NAMES = sorted(path.name for path in CONFIGS.glob("*.yaml"))
FILES = sorted(CONFIGS.rglob("*.yaml"))


def read(path: Path) -> Any:
    """The content of a YAML file as it is written, without the files that it includes."""
    return yaml.safe_load(path.read_text())


def items(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All dotted keys of nested mappings, with their values."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield f"{prefix}{key}", value
            yield from items(value, f"{prefix}{key}.")


def is_stacked(name: str) -> bool:
    """Whether a configuration has no system of its own and needs another one below it."""
    return "class_path" not in read(CONFIGS / name).get("model", {})


def bases_of(name: str) -> list[str]:
    """The configurations that a stacked one stands on; none for one that is not stacked."""
    if not is_stacked(name):
        return []
    if name.startswith("dreamer_v3_"):
        return ["dreamer_v3.yaml"]
    return {"iris_16.yaml": ["iris.yaml"], "iris_short.yaml": ["iris.yaml", "short.yaml"]}.get(name, ["crafter.yaml"])


def system_of(name: str) -> type[Learner]:
    """The system that a configuration trains."""
    systems = {"dreamer": Dreamer, "iris": Iris, "model_free": ModelFree}
    return next((system for start, system in systems.items() if name.startswith(start)), DeltaIris)


@pytest.fixture(scope="module")
def parsed() -> dict[str, dict[str, Any]]:
    """What each configuration amounts to; one that needs another below it is stacked on it."""
    return {name: parse_fit(*stack(*bases_of(name), name)) for name in NAMES}


def build(values: dict[str, Any]) -> TokenSystem:
    system = build_on_meta(values)
    assert isinstance(system, TokenSystem)
    return system


def test_the_documented_configurations_exist() -> None:
    assert {"crafter.yaml", "crafter_cnn.yaml", "quickstart.yaml", "short.yaml", "model_free.yaml"} <= set(NAMES)
    assert is_stacked("short.yaml")
    assert not is_stacked("crafter.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_each_configuration_builds_a_system(parsed: dict[str, dict[str, Any]], name: str) -> None:
    values = parsed[name]
    system = build_on_meta(values)
    assert count_parameters(system) > 0
    assert all(parameter.is_meta for parameter in system.parameters())
    assert isinstance(system, system_of(name))
    lines = system.describe(values["trainer"]["max_epochs"])
    assert "M" in lines["parameters"]
    if not is_stacked(name):
        assert values["name"] == name.removesuffix(".yaml")


def test_crafter_is_the_agent_of_the_paper(parsed: dict[str, dict[str, Any]]) -> None:
    system = build(parsed["crafter.yaml"])
    assert isinstance(system.tokenizer, TransformerTokenizer)
    assert system.tokenizer.tokens_per_frame == 4
    assert count_parameters(system.tokenizer) + count_parameters(system.dynamics) == pytest.approx(110e6, rel=0.03)
    assert count_parameters(system.actor_critic) == pytest.approx(7.5e6, rel=0.01)
    epochs = parsed["crafter.yaml"]["trainer"]["max_epochs"]
    assert epochs == 1000
    frames = system.schedule.collection.frames_until(epochs)
    assert frames == 10_000_000
    assert system.imagined_until(epochs) / frames == 24


def test_crafter_cnn_is_the_lean_agent(parsed: dict[str, dict[str, Any]]) -> None:
    system = build(parsed["crafter_cnn.yaml"])
    tokenizer = system.tokenizer
    assert isinstance(tokenizer, CNNTokenizer)
    assert count_parameters(tokenizer.encoder) == pytest.approx(1.89e6, rel=0.005)
    assert count_parameters(tokenizer.frame) == pytest.approx(1.76e6, rel=0.005)
    assert count_parameters(tokenizer.decoder) == pytest.approx(1.55e6, rel=0.005)
    assert tokenizer.motion is not None
    motion = count_parameters(tokenizer.motion) + count_parameters(tokenizer.motion_vector)
    assert count_parameters(tokenizer) - motion == pytest.approx(5.4e6, rel=0.01)
    assert count_parameters(system.dynamics) == pytest.approx(11.9e6, rel=0.005)
    assert count_parameters(system) - motion == pytest.approx(24.8e6, rel=0.005)
    epochs = parsed["crafter_cnn.yaml"]["trainer"]["max_epochs"]
    frames = system.schedule.collection.frames_until(epochs)
    assert frames == 10_000_000
    assert system.imagined_until(epochs) / frames == 64.5


@pytest.mark.parametrize(("name", "tokens", "millions"), [("iris.yaml", 64, 44.6), ("iris_16.yaml", 16, 46.3)])
def test_iris_has_the_size_of_the_published_crafter_runs(
    parsed: dict[str, dict[str, Any]], name: str, tokens: int, millions: float
) -> None:
    """48M and 50M parameters, 3M to 4M of which are IRIS's own actor-critic."""
    system = build(parsed[name])
    assert system.tokenizer.tokens_per_frame == tokens
    world_model = count_parameters(system.tokenizer) + count_parameters(system.dynamics)
    assert world_model == pytest.approx(millions * 1e6, rel=0.002)
    assert system.phases[0].sampling.length == 1
    # Only the world model differs from Δ-IRIS.
    other = parsed["crafter.yaml"]["model"]["init_args"]
    init_args = parsed[name]["model"]["init_args"]
    assert init_args["actor_critic"] == other["actor_critic"]
    assert init_args["schedule"]["collection"] == other["schedule"]["collection"]
    frames = system.schedule.collection.frames_until(1000)
    assert system.imagined_until(1000) / frames == 24


def test_dreamer_v3_is_the_published_one_of_size_25m(parsed: dict[str, dict[str, Any]]) -> None:
    system = build_on_meta(parsed["dreamer_v3.yaml"])
    assert isinstance(system, Dreamer)
    rssm = system.world_model.rssm
    assert (rssm.deter, rssm.latents, rssm.classes) == (3072, 32, 24)
    schedule = system.phases[0].schedule
    assert (schedule.batch_size, system.segment_length, system.actor_critic.horizon) == (16, 64, 15)
    epochs = parsed["dreamer_v3.yaml"]["trainer"]["max_epochs"]
    frames = system.schedule.collection.frames_until(epochs)
    assert frames == 1_000_000
    assert schedule.segments_until(epochs) * 64 / frames == 512


@pytest.mark.parametrize(("size", "units"), [("12m", 256), ("50m", 512), ("100m", 768), ("200m", 1024)])
def test_sizes_of_dreamer_v3_change_the_width_alone(parsed: dict[str, dict[str, Any]], size: str, units: int) -> None:
    system = build_on_meta(parsed[f"dreamer_v3_{size}.yaml"])
    assert isinstance(system, Dreamer)
    assert system.world_model.rssm.deter == 8 * units
    assert system.world_model.rssm.classes == units // 16
    assert system.actor_critic.actor[0].out_features == units
    values, base = (dict(items(parsed[name])) for name in (f"dreamer_v3_{size}.yaml", "dreamer_v3.yaml"))
    changed = {key for key, value in values.items() if value != base[key] and not isinstance(value, Mapping)}
    assert changed - {"config"} == {
        f"model.init_args.{part}.init_args.units" for part in ("world_model", "actor_critic")
    }


def test_dreamer_v2_updates_every_16_frames(parsed: dict[str, dict[str, Any]]) -> None:
    system = build_on_meta(parsed["dreamer_v2.yaml"])
    assert isinstance(system, Dreamer)
    schedule = system.phases[0].schedule
    assert schedule.steps_in(1) == pytest.approx(system.schedule.collection.frames_in(1) / 16, abs=0.5)
    assert (schedule.batch_size, system.segment_length) == (50, 50)


@pytest.mark.parametrize("base", ["crafter.yaml", "crafter_cnn.yaml"])
def test_a_stacked_configuration_changes_only_the_keys_that_it_names(base: str) -> None:
    below, stacked = (dict(items(parse_fit(*stack(*names)))) for names in ([base], [base, "short.yaml"]))
    named = {key for key, value in items(read(CONFIGS / "short.yaml")) if not isinstance(value, Mapping)}
    assert below.keys() == stacked.keys()
    changed = {key for key, value in stacked.items() if value != below[key] and not isinstance(value, Mapping)}
    assert changed
    assert changed - {"config"} <= named


@pytest.mark.parametrize("phase", ["tokenizer", "dynamics", "actor_critic"])
def test_a_file_that_names_one_key_of_one_phase_leaves_the_others_unchanged(tmp_path: Path, phase: str) -> None:
    above = tmp_path / "above.yaml"
    above.write_text(yaml.safe_dump({"model": {"init_args": {"schedule": {phase: {"batch_size": 6}}}}}))
    below, stacked = (parse_fit(*stack(*names)) for names in (["crafter.yaml"], ["crafter.yaml", above]))
    expected = below["model"]["init_args"]["schedule"]
    expected[phase]["batch_size"] = 6
    assert stacked["model"] == below["model"]
    assert stacked["data"] == below["data"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_sizes_are_written_once(path: Path) -> None:
    # The data module's sizes are the only ones: those of systems and modules follow from them.
    sizes = {*(key.rpartition(".")[2] for key in LINKED), "input_shape", "codebook_size"}
    content = read(path)
    keys = [key for key, _ in items(content, "data." if "environment" in content else "")]  # a part may be all of data
    repeated = [key for key in keys if key.rpartition(".")[2] in sizes and not key.startswith("data.")]
    assert repeated == []
    assert "tokens_per_frame" not in str(read(path).get("model", {}).get("init_args", {}).get("dynamics", {}))
    assert "segment_length" not in [key for key, _ in items(read(path)) if key != "model.init_args.segment_length"]


def test_every_part_is_used_by_a_configuration() -> None:
    included = {
        (path.parent / value).resolve()
        for path in FILES
        for _, value in items(read(path))
        if isinstance(value, str) and value.endswith(".yaml")
    }
    assert included == set((CONFIGS / "parts").glob("*.yaml"))


def test_configurations_beside_the_shipped_ones_parse() -> None:
    assert parse_fit(*stack(ROOT / "tests" / "tiny.yaml"))["name"] == "tiny"
    assert parse_fit(*stack(ROOT / "tests" / "systems" / "recurrent.yaml"), "--trust=tests")["name"] == "recurrent"
