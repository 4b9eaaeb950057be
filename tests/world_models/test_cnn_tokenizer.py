"""The CNN tokenizer: what a transition sees, sizes, learning."""

from __future__ import annotations

import pytest
import torch
from conftest import ACTIONS, CODES, FRAMES, make_cnn_tokenizer, make_moving_ramp, make_window, scramble

from delta_iris.data.segment import Window, to_float
from delta_iris.errors import UserError
from delta_iris.nn.cnn import ConvDecoder, ConvEncoder
from delta_iris.world_models.delta_iris.cnn_tokenizer import CNNTokenizer, cells


@pytest.fixture(params=[0, 2], ids=["painted", "moved"])
def cnn(request) -> CNNTokenizer:
    return make_cnn_tokenizer(motions=request.param)


def outputs(cnn: CNNTokenizer, window: Window, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    frames = to_float(window.frames)
    with torch.no_grad():
        latents = cnn.embed(frames, window.actions, window.valid)
        codes = cnn.quantizer.lookup(tokens)
        return latents, cnn.decode(frames[:, :-1], window.actions[:, :-1], codes, window.transitions)


@pytest.mark.parametrize("t", [0, 4, FRAMES - 2])
def test_a_transition_sees_its_two_frames_and_its_action_alone(cnn: CNNTokenizer, t: int) -> None:
    window = make_window()
    tokens = torch.randint(0, CODES, (3, FRAMES - 1, 4), generator=torch.Generator().manual_seed(0))
    latents, painted = outputs(cnn, window, tokens)
    others = torch.arange(FRAMES)
    changed = scramble(window, ((others != t) & (others != t + 1)).expand(3, FRAMES))
    # The action at the later frame belongs to the next transition.
    changed.actions[:, t + 1] = (window.actions[:, t + 1] + 1) % ACTIONS
    again_latents, again_painted = outputs(cnn, changed, tokens)
    # A convolution over other pictures beside these may round differently, if at all.
    torch.testing.assert_close(latents[:, t], again_latents[:, t], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(painted[:, t], again_painted[:, t], atol=1e-6, rtol=1e-6)
    for field, frame in (("frames", t), ("frames", t + 1), ("actions", t)):
        changed = window._replace(**{field: getattr(window, field).clone()})
        getattr(changed, field)[:, frame] = (getattr(window, field)[:, frame] + 1) % ACTIONS
        assert not torch.allclose(latents[:, t], outputs(cnn, changed, tokens)[0][:, t], atol=1e-6)


def test_decoding_sees_the_frame_before_the_action_and_each_token(cnn: CNNTokenizer) -> None:
    window = make_window()
    tokens = torch.randint(0, CODES, (3, FRAMES - 1, 4), generator=torch.Generator().manual_seed(0))
    _, painted = outputs(cnn, window, tokens)
    for k in range(4):
        other = tokens.clone()
        other[:, 2, k] = (tokens[:, 2, k] + 1) % CODES
        repainted = outputs(cnn, window, other)[1]
        assert not torch.allclose(painted[:, 2], repainted[:, 2], atol=1e-6)
        torch.testing.assert_close(painted[:, 3:], repainted[:, 3:], atol=1e-6, rtol=1e-6)
    for field in ("frames", "actions"):
        changed = window._replace(**{field: getattr(window, field).clone()})
        getattr(changed, field)[:, 2] = (getattr(window, field)[:, 2] + 1) % ACTIONS
        assert not torch.allclose(painted[:, 2], outputs(cnn, changed, tokens)[1][:, 2], atol=1e-6)


def test_stepping_equals_the_whole_window(cnn: CNNTokenizer) -> None:
    window = make_window()
    tokens = torch.randint(0, CODES, (3, FRAMES - 1, 4))
    _, painted = outputs(cnn, window, tokens)
    frames, codes, cache = to_float(window.frames), cnn.quantizer.lookup(tokens), cnn.start_decoding(3)
    with torch.no_grad():
        for t in range(FRAMES - 1):
            at = slice(t, t + 1)
            known = (frames[:, at], window.actions[:, at], codes[:, at], window.transitions[:, at], cache)
            for step in (cnn.decode(*known), cnn.decode(*known, cnn.look(frames[:, at]))):
                torch.testing.assert_close(step[:, 0], painted[:, t], atol=1e-6, rtol=1e-5)


def test_it_learns_to_reconstruct(cnn: CNNTokenizer) -> None:
    window = make_moving_ramp()
    optimizer = torch.optim.AdamW(cnn.parameters(), lr=3e-3)
    for _ in range(80):
        losses = cnn.training_step(window)
        optimizer.zero_grad()
        losses["loss"].backward()
        cnn.update_codebook()
        optimizer.step()
    errors, _ = cnn.evaluate(window)
    assert errors["l2"].total < 0.5 * errors["copy_l2"].total


def test_the_decoder_mirrors_the_encoder() -> None:
    sizes = (8, (1, 2, 4), (1, 3))
    encoder = ConvEncoder((16, 24), 5, *sizes, 6)
    decoder = ConvDecoder(6, 5, *sizes)
    latents = encoder(torch.rand(2, 5, 16, 24))
    assert latents.shape == (2, *encoder.latent_shape) == (2, 6, 4, 6)
    assert decoder(latents).shape == (2, 5, 16, 24)


def test_latent_maps_are_cut_into_cells() -> None:
    assert cells(4, 8, 8) == (2, 2)
    assert cells(8, 8, 16) == (2, 4)
    assert cells(1, 8, 8) == (1, 1)
    with pytest.raises(UserError, match="tokens_per_frame 5 cannot cut the CNN's 8×8 latent map"):
        cells(5, 8, 8)
