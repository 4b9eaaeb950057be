"""Tests of the perceptual distance, with random weights: those that were trained are not shipped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from delta_iris.errors import UserError
from delta_iris.nn.perceptual import CHANNELS, STAGES, PerceptualDistance


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    generator, channels, made = torch.Generator().manual_seed(0), 3, {}
    for stage, (convolutions, width) in enumerate(zip(STAGES, CHANNELS, strict=True)):
        for number in convolutions:
            scale = (2 / (9 * channels)) ** 0.5
            made[f"features.{number}.weight"] = torch.randn(width, channels, 3, 3, generator=generator) * scale
            made[f"features.{number}.bias"] = torch.zeros(width)
            channels = width
        made[f"lin{stage}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=generator)
    return made


@pytest.fixture(scope="module")
def path(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    saved = tmp_path_factory.mktemp("weights") / "lpips.pt"
    torch.save(weights, saved)
    return saved


def test_the_distance_is_zero_for_equal_images_and_grows_with_noise(path: Path) -> None:
    distance = PerceptualDistance(path)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    found = [distance(images, images + scale * noise) for scale in (0.0, 0.01, 0.1)]
    assert found[0].tolist() == [0, 0]
    assert (found[0] < found[1]).all()
    assert (found[1] < found[2]).all()
    torch.testing.assert_close(distance(images + 0.1 * noise, images), found[2])


def test_gradients_reach_the_images_and_nothing_is_trained_or_saved(path: Path) -> None:
    distance, image = PerceptualDistance(path), torch.rand(1, 3, 16, 16, requires_grad=True)
    distance(image, torch.rand(1, 3, 16, 16)).sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    assert not list(distance.parameters())
    assert not distance.state_dict()


def test_a_missing_or_damaged_file_is_named(path: Path, weights: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.pt.*does not exist"):
        PerceptualDistance(tmp_path / "none.pt")
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"damaged\.pt is damaged"):
        PerceptualDistance(damaged)
    for change, message in (({"lin4.model.1.weight": torch.ones(3)}, "of another shape"), ({}, "missing")):
        incomplete = {name: value for name, value in weights.items() if name != "lin4.model.1.weight"} | change
        torch.save(incomplete, tmp_path / "incomplete.pt")
        with pytest.raises(UserError, match=rf"lin4\.model\.1\.weight is {message}"):
            PerceptualDistance(tmp_path / "incomplete.pt")


def test_code_in_the_file_does_not_run(tmp_path: Path) -> None:
    torch.save({"features.0.weight": Path.home}, tmp_path / "code.pt")
    with pytest.raises(UserError, match="no file of tensors"):
        PerceptualDistance(tmp_path / "code.pt")
