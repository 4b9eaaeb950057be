"""Tests of the CNN encoder and decoder and of the MLP encoder."""

from __future__ import annotations

import pytest
import torch

from delta_iris.nn.cnn import CNNConfig, CNNDecoder, CNNEncoder, FrameEncoder, MLPEncoder, ResidualBlock


def test_decoder_mirrors_the_encoder() -> None:
    config = CNNConfig(base_channels=8, channel_mults=(1, 2, 4), downsample_after=(1, 3), latent_channels=6)
    encoder = CNNEncoder((16, 24), 5, config)
    decoder = CNNDecoder(6, 5, config)
    latents = encoder(torch.rand(2, 5, 16, 24))
    assert latents.shape == (2, *encoder.latent_shape) == (2, 6, 4, 6)
    assert decoder(latents).shape == (2, 5, 16, 24)


def test_frame_encoder_returns_flat_features() -> None:
    encoder = FrameEncoder((64, 64), CNNConfig())
    assert encoder.latent_shape == (8, 8, 8)
    assert encoder(torch.rand(2, 3, 64, 64)).shape == (2, encoder.num_features) == (2, 512)


def test_mlp_encoder_returns_features() -> None:
    encoder = MLPEncoder(5, hidden=16, layers=3)
    assert [type(layer).__name__ for layer in encoder.layers] == ["Linear", "LayerNorm", "SiLU"] * 3
    assert encoder(torch.randn(2, 5)).shape == (2, encoder.num_features) == (2, 16)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CNNConfig(downsample_after=(1, 6)), r"downsample_after is \[1, 6\]: .* from 0 to 5"),
        (CNNConfig(downsample_after=(1, 1)), r"downsample_after is \[1, 1\]: .*distinct"),
        (CNNConfig(downsample_after=(0, 1, 2, 3)), r"frame_size 24×40 cannot be halved 4 times: .* multiples of 16"),
    ],
)
def test_invalid_arguments_raise(config: CNNConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CNNEncoder((24, 40), 3, config)


def test_mlp_encoder_without_layers_raises() -> None:
    with pytest.raises(ValueError, match="layers is 0"):
        MLPEncoder(5, layers=0)


@pytest.mark.parametrize("channels", [8, 64])
def test_group_norm_for_compilation_equals_pytorchs(channels: int) -> None:
    """With 64 channels a group has two of them."""
    torch.manual_seed(0)
    block = ResidualBlock(channels, channels)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, 0.5, 0.2)
    images = (torch.randn(3, channels, 6, 8) + 1).to(memory_format=torch.channels_last)
    results = []
    for function in (block, torch.compile(block, fullgraph=True, backend="eager")):
        x = images.clone().requires_grad_()
        y = function(x)
        results.append([y.detach(), *torch.autograd.grad(y.square().mean(), [x, *block.parameters()])])
    for plain, compiled in zip(*results, strict=True):
        # The next norm removes the first convolution's bias, so its gradient is zero apart from rounding.
        assert (plain - compiled).norm() < 1e-5 * plain.norm() + 3e-5
