"""Tests of the layers of DreamerV3 against their definitions."""

from __future__ import annotations

import pytest
import torch

from delta_iris.nn.layers import MLP, BlockLinear, ImageNorm, RMSNorm, initialize


def test_rms_norm_divides_by_the_root_mean_square() -> None:
    norm = RMSNorm(4)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 0.5, 1.0]))
    x = 3 * torch.randn(5, 4)
    torch.testing.assert_close(norm(x), torch.nn.functional.rms_norm(x, (4,), norm.weight, 1e-4))


def test_image_norm_normalizes_the_channels_of_each_pixel() -> None:
    x = torch.randn(2, 6, 3, 5)
    out = ImageNorm(6)(x)
    torch.testing.assert_close(out.square().mean(1), torch.ones(2, 3, 5), atol=0.02, rtol=0)
    torch.testing.assert_close(out[1, :, 2, 4], RMSNorm(6)(x[1, :, 2, 4]))


def test_block_linear_is_a_linear_map_with_a_block_diagonal_matrix() -> None:
    layer = BlockLinear(12, 6, 3)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(5, 12)
    dense = torch.block_diag(*layer.weight)
    expected = x @ dense + layer.bias.flatten()
    torch.testing.assert_close(layer(x.unflatten(-1, (3, 4))).flatten(1), expected)


@pytest.mark.parametrize("widths", [(10, 6), (12, 7)])
def test_widths_that_blocks_do_not_divide_are_refused(widths: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="blocks is 3"):
        BlockLinear(*widths, 3)


def test_an_mlp_has_as_many_layers_as_it_says() -> None:
    mlp = MLP(3, 8, 2, 5)
    assert [type(layer).__name__ for layer in mlp] == ["Linear", "RMSNorm", "SiLU"] * 2 + ["Linear"]
    assert [type(layer).__name__ for layer in MLP(3, 8, 1, activation="elu", norm=False)] == ["Linear", "ELU"]
    assert mlp(torch.randn(2, 3)).shape == (2, 5)


def test_initial_weights_have_the_variance_of_their_fan_in() -> None:
    weight = torch.empty(400, 400)
    initialize(weight, 400, 2.0)
    # 160,000 values: their standard deviation is known to about 0.2 %.
    assert weight.std().item() == pytest.approx(2 / 20, rel=0.01)
    assert weight.abs().max() < 2.3 * 2 / 20
    initialize(weight, 400, 0.0)
    assert not weight.any()
