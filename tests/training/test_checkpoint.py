"""Tests of loading checkpoints and of the messages for those that do not fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from delta_iris.errors import UserError
from delta_iris.training.checkpoint import check_optimizers, check_weights, load_checkpoint, run_folder

CONTENT: dict[str, Any] = {"state_dict": {"weight": torch.ones(2)}, "configuration": {}, "frames_collected": 7}


class Code:
    """An object that can only be loaded by running code."""


def test_a_checkpoint_is_loaded(tmp_path: Path) -> None:
    torch.save(CONTENT, tmp_path / "last.ckpt")
    loaded = load_checkpoint(tmp_path / "last.ckpt")
    assert torch.equal(loaded["state_dict"]["weight"], torch.ones(2))
    assert loaded["frames_collected"] == 7


def test_a_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder: give a checkpoint in it"):
        load_checkpoint(tmp_path)


def test_a_missing_checkpoint_raises_and_the_others_are_listed(tmp_path: Path) -> None:
    missing = tmp_path / "missing.ckpt"
    with pytest.raises(UserError, match=rf"there is no checkpoint {re.escape(str(missing))}$"):
        load_checkpoint(missing)
    with pytest.raises(UserError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "no folder" / "missing.ckpt")
    torch.save(CONTENT, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=rf"that folder has: {re.escape(str(tmp_path / 'last.ckpt'))}"):
        load_checkpoint(missing)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_a_damaged_checkpoint_raises(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "last.ckpt").write_bytes(content)
    with pytest.raises(UserError, match=r"last\.ckpt is damaged or not a checkpoint of this program"):
        load_checkpoint(tmp_path / "last.ckpt")


def test_a_truncated_checkpoint_raises(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save(CONTENT, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="is damaged"):
        load_checkpoint(path)


def test_a_checkpoint_that_holds_code_raises(tmp_path: Path) -> None:
    torch.save(CONTENT | {"code": Code()}, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="is damaged or not a checkpoint of this program"):
        load_checkpoint(tmp_path / "last.ckpt")


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}}, {"state_dict": {}, "configuration": {}}])
def test_a_checkpoint_of_something_else_raises(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="must contain state_dict, configuration, frames_collected"):
        load_checkpoint(tmp_path / "last.ckpt")


def test_the_run_folder_of_a_checkpoint_is_found_through_links(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    assert run_folder(checkpoint) == tmp_path / "run"
    (tmp_path / "link").symlink_to(checkpoint.parent)
    assert run_folder(tmp_path / "link" / "last.ckpt") == tmp_path / "run"


def test_weights_that_fit_pass_whatever_the_configuration() -> None:
    check_weights(CONTENT, {"weight": torch.zeros(2)}, {"model": {"learning_rate": 1}}, Path("last.ckpt"))


@pytest.mark.parametrize("own", [{"weight": torch.zeros(3)}, {}, {"weight": torch.zeros(2), "bias": torch.zeros(1)}])
def test_weights_that_do_not_fit_raise_with_the_keys_that_differ(own: dict[str, torch.Tensor]) -> None:
    theirs = CONTENT | {"configuration": {"model": {"dim": 2, "heads": 1}, "data": {"num_envs": 2}}}
    ours = {"model": {"dim": 3, "heads": 1}, "data": {"num_envs": 2}}
    message = (
        "last.ckpt was made with another configuration (model.dim: 2 there, 3 here): use the config.yaml next to it or "
        "in its run folder, or start a new run without it"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        check_weights(theirs, own, ours, Path("last.ckpt"))


def test_at_most_five_keys_are_listed() -> None:
    theirs = CONTENT | {"configuration": {f"key{index}": 1 for index in range(7)}}
    with pytest.raises(UserError, match=r"key0: 1 there, None here; .*key4: 1 there, None here; and 2 more\)"):
        check_weights(theirs, {}, {}, Path("last.ckpt"))


def test_another_number_of_phases_raises_with_the_keys_that_differ() -> None:
    theirs = CONTENT | {"configuration": {"schedule": {"steps": 2}}, "optimizer_states": [{}, {}]}
    check_optimizers(theirs, ["one", "two"], {}, Path("last.ckpt"))
    with pytest.raises(UserError, match=r"another configuration \(schedule\.steps: 2 there, 0 here\): use the config"):
        check_optimizers(theirs, ["one"], {"schedule": {"steps": 0}}, Path("last.ckpt"))
    with pytest.raises(UserError, match=r"it holds 2 optimizers; the phases are one, two, three"):
        check_optimizers(theirs, ["one", "two", "three"], theirs["configuration"], Path("last.ckpt"))


def test_the_first_weight_is_named_where_configurations_are_equal() -> None:
    with pytest.raises(UserError, match="first difference: weight"):
        check_weights(CONTENT, {}, {}, Path("last.ckpt"))
