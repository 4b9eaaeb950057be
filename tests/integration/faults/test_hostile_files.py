"""Tests that no configuration, checkpoint or exported agent runs foreign code, leaves its folder or asks for memory.

Whatever a file holds, reading it gives its content or one line with its name.
"""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from delta_iris.commands.config_files import load_config, prepare_arguments
from delta_iris.commands.trust import trusted_packages
from delta_iris.errors import UserError
from delta_iris.pretrained import load_pretrained
from delta_iris.training.checkpoint import check_weights, load_checkpoint
from delta_iris.training.datamodule import ReplayDataModule
from delta_iris.trust import enforce_trust
from tests.commands.config_helpers import TINY, ParsedCommand, parse_fit, stack
from tests.test_pretrained import export_tiny

CONTENT: dict[str, Any] = {
    "state_dict": {"weight": torch.ones(50), "bias": torch.zeros(3)},
    "configuration": {"model": {"dim": 3}},
    "frames_collected": 7,
    "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}}],
}


def refusal(call: Callable[[], object]) -> str:
    """The one line that a call is refused with."""
    with pytest.raises(UserError) as raised:
        call()
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000
    return str(raised.value)


# --- configurations ---


def popen(marker: Path) -> dict[str, Any]:
    return {"class_path": "subprocess.Popen", "init_args": {"args": f"touch {marker}", "shell": True}}


CALLBACKS = "lightning.pytorch.callbacks."


def hostile_values(marker: Path) -> dict[str, dict[str, Any]]:
    """Configurations that would run a command, import a module or write elsewhere."""
    command, average = popen(marker), f"{CALLBACKS}StochasticWeightAveraging"
    swa = {"class_path": average, "init_args": {"swa_lrs": 0.1}}
    trainer = {
        "logger": command,
        "logger by name": "foreign_code.Logger",
        "callbacks": [command],
        "callbacks by name": "os.system",
        "plugins": ["os.system"],
        "strategy": command,
        "profiler": command,
        "accelerator": command,
        "callbacks lambda": {"class_path": f"{CALLBACKS}LambdaCallback", "init_args": {"on_fit_start": "os.system"}},
        "callbacks callable": [{**swa, "init_args": {"swa_lrs": 0.1, "avg_fn": "os.system"}}],
        "callbacks partial": [{**swa, "init_args": {"swa_lrs": 0.1, "avg_fn": "functools.partial"}}],
        "callbacks eval": [{**swa, "init_args": {"swa_lrs": 0.1, "avg_fn": "builtins.eval"}}],
        "callbacks object": [{**swa, "init_args": {"swa_lrs": 0.1, "avg_fn": command}}],
        "callbacks hub": [{**swa, "init_args": {"swa_lrs": 0.1, "avg_fn": "torch.hub.load"}}],
        "callbacks extension": [{**swa, "init_args": {"swa_lrs": 0.1, "avg_fn": "torch.utils.cpp_extension.load"}}],
        "logger through": {"class_path": "lightning.pytorch.loggers.tensorboard.os.system"},
        "logger pickled": {"class_path": "torch.load", "init_args": {"f": "x"}},
        "logger text": json.dumps(command),
        "logger url": {"class_path": "CSVLogger", "init_args": {"save_dir": "memory://x"}},
        "logger version": {"class_path": "CSVLogger", "init_args": {"save_dir": "x", "version": "../../x"}},
        "profiler file": {"class_path": "SimpleProfiler", "init_args": {"filename": "/etc/x"}},
        "logger kwargs": {"class_path": "CSVLogger", "dict_kwargs": {"settings": {"executable": "x"}}},
    }
    configs: dict[str, dict[str, Any]] = {
        f"trainer {key}": {"trainer": {key.partition(" ")[0]: value}} for key, value in trainer.items()
    }
    return configs | {
        "any": {"data": {"environment_options": {"length": command}}},
        "any list": {"data": {"environment_options": {"length": [[command]]}}},
        "environment": {"data": {"environment": "foreign_code:Bad-v0"}},
        "environment option": {"data": {"environment_options": {"env_id": "foreign_code:Bad-v0"}}},
        "model": {"model": command},
        "tokenizer": {"model": {"init_args": {"tokenizer": command}}},
        "tokenizer by name": {"model": {"init_args": {"tokenizer": "foreign_code.Tokenizer"}}},
        "tokenizer through": {"model": {"init_args": {"tokenizer": "delta_iris.pretrained.shutil.rmtree"}}},
        "optimizer": {"optimizer": command},
        "scheduler": {"lr_scheduler": {"class_path": "foreign_code.Schedule"}},
        "name": {"name": "../../x"},
        "filename": {"checkpoint": {"filename": "/etc/x"}},
        "home": {"name": "~root/x"},
        "trust": {"trust": "subprocess"},
        "pipe": {"model": {"init_args": {"tokenizer": {"init_args": {"codebook": "pipe"}}}}},
        "text with aliases": {"trainer": {"callbacks": "[&a [x, x], *a, *a]"}},
        "include": {"model": "../../outside.yaml"},
        "include absolute": {"model": "/etc/outside.yaml"},
        "include link": {"model": "link.yaml"},
    }


@pytest.mark.parametrize("case", hostile_values(Path("x")))
def test_a_hostile_configuration_is_refused(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "ran"
    folder = tmp_path / "stranger"
    folder.mkdir()
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "foreign_code.py").write_text(f"open({str(marker)!r}, 'w')\n")
    (tmp_path / "elsewhere.yaml").write_text("class_path: x\n")
    (folder / "link.yaml").symlink_to(tmp_path / "elsewhere.yaml")
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.chdir(folder)
    os.mkfifo("pipe")
    Path("hostile.yaml").write_text(yaml.safe_dump(hostile_values(marker)[case]))
    message = refusal(lambda: ParsedCommand(["fit", f"--config={TINY}", "--config", "hostile.yaml"]))
    assert message
    assert not marker.exists()
    assert "foreign_code" not in sys.modules


@pytest.mark.parametrize("form", ["up", "absolute", "link"])
def test_a_file_outside_of_the_folder_is_not_included_even_if_it_would_be_valid(tmp_path: Path, form: str) -> None:
    folder, outside = tmp_path / "stranger", tmp_path / "outside.yaml"
    folder.mkdir()
    outside.write_text("every_n_epochs: 1\n")
    (folder / "link.yaml").symlink_to(outside)
    named = {"up": "../outside.yaml", "absolute": str(outside), "link": "link.yaml"}[form]
    (folder / "main.yaml").write_text(yaml.safe_dump({"checkpoint": named}))
    message = refusal(lambda: load_config(folder / "main.yaml"))
    assert "lies outside of its folder" in message
    assert str(folder / "main.yaml") in message
    (folder / "inside.yaml").write_text("every_n_epochs: 1\n")
    (folder / "main.yaml").write_text("checkpoint: inside.yaml\n")
    assert load_config(folder / "main.yaml") == {"checkpoint": {"every_n_epochs": 1}}


def test_values_of_keys_without_a_type_make_no_objects_even_of_classes_that_files_may_name() -> None:
    enforce_trust([])
    linear = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 2}}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ReplayDataModule, "data")
    parsed = parser.parse_object({"data": {"environment_options": {"length": linear}}})
    data = parser.instantiate_classes(parsed).data
    assert not isinstance(data.environment_options["length"], torch.nn.Module)
    assert data.environment_options["length"]["class_path"] == "torch.nn.Linear"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: &a [x, x]\n" + "".join(f"k{i}: &k{i} [*{'a' if i == 0 else f'k{i - 1}'}, *a, *a]\n" for i in range(3)),
            "",
        ),
        ("k0: &k0 [x, x]\n" + "".join(f"k{i}: &k{i} [{f'*k{i - 1}, ' * 9}]\n" for i in range(1, 30)), "more than"),
        (
            "k0: &k0 {x: 1}\n" + "".join(f"k{i}: &k{i} {{<<: [{f'*k{i - 1}, ' * 9}]}}\n" for i in range(1, 30)),
            "more than",
        ),
        ("a: &a [*a]", "contains itself"),
        ("a: " + "[" * 100_000, "nested too deeply"),
        ("a: " + "{b: " * 60 + "1" + "}" * 60, "nested too deeply"),
        ("a: !!python/object/apply:os.system ['touch ran']", "not allowed"),
        ("a: !!binary eA==", "not allowed"),
        ("1: 2", "not text"),
        ("name: a\nname: b", "there twice"),
        ("a: " + "9" * 10_000, "YAML"),
        (" " * (2 << 20), "larger than"),
        ("a: \x00", "YAML"),
    ],
    ids=range(13),
)
def test_yaml_out_of_proportion_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "main.yaml"
    path.write_text(text)
    if not message:
        load_config(path)
        return
    refused = refusal(lambda: load_config(path))
    assert message in refused
    assert str(path) in refused


def test_pipes_and_devices_are_no_configurations(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "pipe.yaml", Path("/dev/zero")):
        message = refusal(partial(prepare_arguments, ["fit", "--config", str(path)]))
        assert message == f"{path} is not a regular file"


def test_packages_are_trusted_by_option_and_by_typing_a_class() -> None:
    assert trusted_packages(["fit", "--trust", "a,b", "--trust=c"]) == {"a", "b", "c"}
    assert trusted_packages(["--data.environment", "bad_env.sub:Bad-v0"]) == {"bad_env"}
    assert trusted_packages(["--model", "my.Class", "--trainer.callbacks+=own.Callback"]) == {"my", "own"}
    assert trusted_packages(['--trainer.logger={"class_path": "x.Y"}']) == {"x"}
    # A file of a stranger may have any name.
    assert trusted_packages(["--config", "evil.yaml", "--ckpt_path", "evil.ckpt", "--name=evil.x"]) == set()


def test_a_trusted_package_is_used_and_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_games.py").write_text(
        "import lightning as L\n\n\nclass Counter(L.Callback):\n    def __init__(self, size: int = 1):\n        pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"trainer": {"callbacks": [{"class_path": "my_games.Counter"}]}}))
    assert "add --trust my_games" in refusal(lambda: parse_fit(*stack(TINY, path)))
    values = parse_fit(*stack(TINY, path), "--trust", "my_games")
    assert values["trainer"]["callbacks"][0]["class_path"] == "my_games.Counter"
    assert "trust" not in values
    # The trust of one command line is not that of the next.
    assert "add --trust my_games" in refusal(lambda: parse_fit(*stack(TINY, path)))


def test_the_command_refuses_a_strangers_configuration(tmp_path: Path) -> None:
    path = tmp_path / "hostile.yaml"
    path.write_text(yaml.safe_dump({"data": {"environment_options": {"length": popen(tmp_path / "ran")}}}))
    arguments = [sys.executable, "-m", "delta_iris", "fit", "--config", str(TINY), "--config", str(path)]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "data.environment_options.length.class_path names subprocess.Popen" in done.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["hostile.yaml"]


# --- pickled code ---


class Call:
    """Pickled as a call, or as an object with a state.

    Args:
        reduced: what `__reduce__` returns.
    """

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> Any:
        return self.reduced


def archive(pickled: bytes) -> bytes:
    """An archive as `torch.save` writes it, with this pickle."""
    buffer = io.BytesIO()
    torch.save(CONTENT, buffer)
    changed = io.BytesIO()
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(changed, "w") as new:
        for record in old.infolist():
            new.writestr(record.filename, pickled if record.filename.endswith("data.pkl") else old.read(record))
    return changed.getvalue()


@pytest.mark.parametrize(
    "case", ["system", "exec", "import", "state", "dict", "nested", "optimizer", "persistent", "tensor", "memory"]
)
def test_pickled_code_is_not_run(case: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "last.ckpt"
    system = Call(os.system, (f"touch {marker}",))
    contents: dict[str, Any] = {
        "system": system,
        "exec": CONTENT | {"x": Call(exec, (f"open({str(marker)!r}, 'w')",))},
        "import": CONTENT | {"x": Call(__import__, ("antigravity",))},
        "state": CONTENT | {"x": Call(collections.OrderedDict, (), {"x": system})},
        "dict": CONTENT | {"configuration": {"x": system}},
        "nested": CONTENT | {"state_dict": {"weight": Call(torch._utils._rebuild_tensor_v2, (system,))}},
        "optimizer": CONTENT | {"optimizer_states": [{"state": {0: system}}]},
        "tensor": CONTENT | {"x": Call(torch.FloatTensor, (1 << 36,))},
        "memory": CONTENT | {"x": Call(bytearray, (1 << 36,))},
    }
    if case == "persistent":
        buffer = io.BytesIO()
        pickler = pickle.Pickler(buffer, protocol=2)
        pickler.persistent_id = lambda item: ("storage", system, "0", "cpu", 1) if item == 5 else None  # type: ignore[method-assign]
        pickler.dump({"x": 5})
        path.write_bytes(archive(buffer.getvalue()))
    elif case in ("system", "exec", "import"):
        path.write_bytes(archive(pickle.dumps(contents[case] if case == "system" else {"x": contents[case]["x"]}, 2)))
    else:
        torch.save(contents[case], path)
    message = refusal(lambda: load_checkpoint(path))
    assert str(path) in message
    # PyTorch itself would call these two, with any size.
    assert ("it holds code" in message) or case not in ("tensor", "memory")
    assert not marker.exists()


def test_archives_that_are_not_what_torch_writes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    buffer = io.BytesIO()
    torch.save(CONTENT, buffer)
    with zipfile.ZipFile(buffer) as old:
        records = {record.filename: old.read(record) for record in old.infolist()}
    for extra, compression in [("../outside", zipfile.ZIP_STORED), ("archive/data/9", zipfile.ZIP_DEFLATED)]:
        with zipfile.ZipFile(path, "w", compression) as new:
            for name, content in (records | {extra: bytes(1 << 20)}).items():
                new.writestr(name, content)
        assert str(path) in refusal(lambda: load_checkpoint(path))
    path.unlink()
    os.mkfifo(path)
    assert "is not a regular file" in refusal(lambda: load_checkpoint(path))


@pytest.mark.parametrize(
    "weight",
    [
        torch.full((50,), torch.nan),
        torch.full((50,), torch.inf),
        torch.ones(50, dtype=torch.int64),
        torch.ones(50, dtype=torch.complex64),
        torch.ones(50, dtype=torch.bfloat16),
        torch.ones(50).to_sparse(),
        torch.ones(1).expand(50),
        [1.0] * 50,
        None,
    ],
    ids=str,
)
def test_odd_weights_are_refused(tmp_path: Path, weight: Any) -> None:
    path = tmp_path / "last.ckpt"
    torch.save(CONTENT | {"state_dict": CONTENT["state_dict"] | {"weight": weight}}, path)

    def load() -> None:
        check_weights(load_checkpoint(path), CONTENT["state_dict"], CONTENT["configuration"], path)

    message = refusal(load)
    assert str(path) in message


# --- random damage ---


def damage(content: bytes, generator: random.Random) -> bytes:
    """Change bytes, cut, repeat or insert a part of a file."""
    changed = bytearray(content)
    kind = generator.randrange(5)
    place = generator.randrange(len(changed))
    if kind == 0:
        del changed[place:]
    elif kind == 1:
        changed[place:place] = changed[generator.randrange(len(changed)) :][: generator.randrange(64)]
    elif kind == 2:
        changed[place] ^= 1 << generator.randrange(8)
    else:
        for _ in range(generator.choice([1, 4, 160])):
            changed[generator.randrange(len(changed))] = generator.randrange(256)
    return bytes(changed)


def _is_one_line(error: UserError, name: str) -> bool:
    return name in str(error) and "\n" not in str(error)


def fuzz(path: Path, read: Callable[[], Any], same: Callable[[Any], bool], rounds: int) -> collections.Counter[str]:
    """Damage a file again and again; the outcome is its content or one line with the file's name."""
    whole, outcomes = path.read_bytes(), collections.Counter[str]()
    for seed in range(rounds):
        path.write_bytes(damage(whole, random.Random(seed)))
        try:
            assert same(read()), seed
            outcomes["equal"] += 1
        except UserError as error:
            outcomes["refused" if _is_one_line(error, str(path.parent)) else f"bad {seed}: {error}"] += 1
    path.write_bytes(whole)
    print(path.name, dict(outcomes))
    assert outcomes.keys() <= {"equal", "refused"}
    return outcomes


SHORT_AND_LONG = pytest.mark.parametrize("rounds", [150, pytest.param(20_000, marks=pytest.mark.slow)])


@SHORT_AND_LONG
def test_a_damaged_checkpoint_is_refused_or_equal(tmp_path: Path, rounds: int) -> None:
    path = tmp_path / "last.ckpt"
    torch.save(CONTENT, path)

    def same(content: Any) -> bool:
        weights = content["state_dict"]
        return all(torch.equal(weights[name], value) for name, value in CONTENT["state_dict"].items()) and (
            {key: content[key] for key in ("configuration", "frames_collected", "optimizer_states")}
            == {key: CONTENT[key] for key in ("configuration", "frames_collected", "optimizer_states")}
        )

    outcomes = fuzz(path, lambda: load_checkpoint(path), same, rounds)
    assert outcomes["refused"] > rounds / 2


@SHORT_AND_LONG
def test_a_damaged_configuration_is_refused_or_read(tmp_path: Path, rounds: int) -> None:
    path = tmp_path / "main.yaml"
    path.write_bytes(TINY.read_bytes())
    fuzz(path, lambda: prepare_arguments(["fit", "--config", str(path)]), lambda _: True, rounds // 2)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small exported agent."""
    return export_tiny(tmp_path_factory.mktemp("exported"))


@SHORT_AND_LONG
@pytest.mark.parametrize("part", ["about.json", "model.safetensors"])
def test_a_damaged_agent_is_refused_or_loads(exported: Path, part: str, rounds: int) -> None:
    """What about.json says of the training may change unnoticed; a weight may not."""
    load_pretrained(exported)
    fuzz(exported / part, lambda: load_pretrained(exported), lambda _: True, rounds // 5)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 1 << 70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


GROUPS = ["trainer", "data", "model", "checkpoint", "best_checkpoint", "name", "version", "seed_everything", "images"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(GROUPS), VALUES)
@example("seed_everything", 1 << 32)
@example("name", None)
def test_any_structure_is_parsed_or_refused(tmp_path: Path, group: str, value: Any) -> None:
    path = tmp_path / "random.yaml"
    path.write_text(yaml.safe_dump({group: value}))
    refused: UserError | None = None
    try:
        parse_fit(*stack(TINY, path))
    except UserError as error:
        refused = error
    assert refused is None or _is_one_line(refused, "")


def test_the_configuration_that_a_run_saves_is_taken_as_a_file(tmp_path: Path) -> None:
    """A resume reads the run's `config.yaml` by the same checks."""
    command = ParsedCommand(["fit", *stack(TINY)])
    path = tmp_path / "config.yaml"
    path.write_text(command.parsers[1].dump(command.config["fit"], skip_validation=True))
    assert parse_fit(*stack(path))["data"] == parse_fit(*stack(TINY))["data"]
