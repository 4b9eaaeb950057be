"""The tokenizer: causality, padding, caches, sizes."""

from __future__ import annotations

import itertools

import lightning as L
import pytest
import torch
from conftest import ACTIONS, FRAMES, make_moving_ramp, make_tokenizer, make_window, scramble
from torch.utils.data import DataLoader

from delta_iris.data.segment import Window, to_float
from delta_iris.errors import UserError
from delta_iris.world_models.delta_iris.patches import pooled_grids

VARIANTS = [
    {},
    {"difference": False, "previous_patches": False, "motions": 0},  # the paper's letter
    {"patch_size": 8, "encoder_layers": (1, 1), "decoder_layers": (1, 1)},
    {"patch_size": 16, "encoder_layers": (1,), "decoder_layers": (1,)},
]


def later_than(t: int) -> torch.Tensor:
    return (torch.arange(FRAMES) > t).expand(3, FRAMES)


def reconstruct(tokenizer, window: Window, tokens: torch.Tensor) -> torch.Tensor:
    codes = tokenizer.quantizer.lookup(tokens)
    frames = to_float(window.frames)[:, :-1]
    return tokenizer.decode(frames, window.actions[:, :-1], codes, window.transitions)


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("t", [1, 4, FRAMES - 2])
def test_the_future_never_changes_what_is_earlier(changes, t: int) -> None:
    tokenizer = make_tokenizer(**changes)
    window = make_window()
    changed = scramble(window, later_than(t))
    # The action at t is about the transition to t + 1, so it may change as well.
    changed.actions[:, t] = (window.actions[:, t] + 1) % ACTIONS
    with torch.no_grad():
        before = tokenizer.embed(to_float(window.frames), window.actions, window.valid)
        after = tokenizer.embed(to_float(changed.frames), changed.actions, changed.valid)
        assert torch.equal(before[:, :t], after[:, :t])
        assert not torch.equal(before[:, t:], after[:, t:])
        tokens = tokenizer.encode(window.frames, window.actions, window.valid)
        other = tokens.clone()
        other[:, t:] = (other[:, t:] + 1) % tokenizer.codebook_size
        painted, repainted = reconstruct(tokenizer, window, tokens), reconstruct(tokenizer, changed, other)
    assert torch.equal(painted[:, :t], repainted[:, :t])
    assert not torch.equal(painted[:, t], repainted[:, t])


@pytest.mark.parametrize("changes", VARIANTS)
def test_a_frame_sees_the_whole_trajectory_before_it(changes) -> None:
    tokenizer = make_tokenizer(**changes)
    window = make_window()
    first = torch.zeros(3, FRAMES, dtype=torch.bool)
    first[:, 0] = True
    changed = scramble(window, first)
    with torch.no_grad():
        before = tokenizer.embed(to_float(window.frames), window.actions, window.valid)
        after = tokenizer.embed(to_float(changed.frames), changed.actions, changed.valid)
        tokens = tokenizer.encode(window.frames, window.actions, window.valid)
        painted, repainted = reconstruct(tokenizer, window, tokens), reconstruct(tokenizer, changed, tokens)
    assert not torch.allclose(before[:, -1], after[:, -1], atol=1e-6)
    assert not torch.equal(painted[:, -1], repainted[:, -1])


@pytest.mark.parametrize("changes", VARIANTS)
def test_padding_never_leaks(changes) -> None:
    tokenizer = make_tokenizer(**changes)
    window = make_window(padded=True)
    changed = scramble(window, ~window.valid)
    real = window.transitions
    with torch.no_grad():
        before = tokenizer.embed(to_float(window.frames), window.actions, window.valid)
        after = tokenizer.embed(to_float(changed.frames), changed.actions, changed.valid)
        assert torch.equal(before[real], after[real])
        assert not torch.equal(before[~real], after[~real])
        tokens = tokenizer.encode(window.frames, window.actions, window.valid)
        assert torch.equal(reconstruct(tokenizer, window, tokens)[real], reconstruct(tokenizer, changed, tokens)[real])
    state = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    torch.manual_seed(3)
    losses = tokenizer.training_step(window) | tokenizer.update_codebook()
    codebook = tokenizer.quantizer.codebook.clone()
    tokenizer.load_state_dict(state)
    torch.manual_seed(3)
    again = tokenizer.training_step(changed) | tokenizer.update_codebook()
    assert all(torch.equal(losses[name], again[name]) for name in losses)
    assert torch.equal(codebook, tokenizer.quantizer.codebook)


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("first", [0, 1, 4])
def test_decoding_with_a_cache_equals_the_whole_window(changes, first: int) -> None:
    tokenizer = make_tokenizer(**changes)
    window = make_window(padded=first > 0)
    window.valid[1, -2:] = True
    frames, real = to_float(window.frames), window.transitions
    with torch.no_grad():
        tokens = tokenizer.encode(window.frames, window.actions, window.valid)
        whole = reconstruct(tokenizer, window, tokens)
        codes, cache = tokenizer.quantizer.lookup(tokens), tokenizer.start_decoding(3)
        edges = [0, *range(first, FRAMES)] if first else list(range(FRAMES))
        parts = [
            tokenizer.decode(frames[:, a:b], window.actions[:, a:b], codes[:, a:b], real[:, a:b], cache)
            for a, b in itertools.pairwise(edges)
        ]
    # float32 sums in another order: a few units of the last place of values around one.
    torch.testing.assert_close(torch.cat(parts, 1)[real], whole[real], atol=2e-6, rtol=1e-5)


def test_the_first_frame_of_a_window_has_no_action_before_it(tokenizer) -> None:
    window = make_window(padded=True)
    changed = window._replace(actions=window.actions.clone())
    changed.actions[0, 2] = (window.actions[0, 2] + 1) % ACTIONS  # the slot before the first real one
    with torch.no_grad():
        before = tokenizer.embed(to_float(window.frames), window.actions, window.valid)
        after = tokenizer.embed(to_float(changed.frames), changed.actions, changed.valid)
    assert torch.equal(before[0, 3:], after[0, 3:])


def test_it_learns_to_reconstruct() -> None:
    tokenizer = make_tokenizer(dim=32, learning_rate=3e-3, warmup_steps=0)
    window = make_moving_ramp()
    optimizer = tokenizer.configure_optimizers()["optimizer"]
    errors = []
    for _ in range(60):
        losses = tokenizer.training_step(window)
        optimizer.zero_grad()
        losses["loss"].backward()
        tokenizer.update_codebook()
        optimizer.step()
        errors.append(float(losses["l2"]))
    copied = tokenizer.evaluate(window)[0]["copy_l2"]
    assert errors[-1] < 0.25 * float(copied.total / copied.number)
    encoder_gradient = tokenizer.encoder.patch.weight.grad
    assert encoder_gradient is not None
    assert encoder_gradient.abs().sum() > 0


def test_grids_halve_down_to_the_tokens() -> None:
    assert pooled_grids((64, 64), 8, 4, 3) == [(8, 8), (4, 4), (2, 2)]
    assert pooled_grids((32, 64), 8, 8, 2) == [(4, 8), (2, 4)]
    assert pooled_grids((64, 64), 8, 64, 1) == [(8, 8)]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (((64, 64), 8, 5, 3), r"tokens_per_frame 5 cannot be reached.*one of \[64, 16, 4, 1\]"),
        (((64, 64), 7, 4, 3), "patch_size 7 does not divide data.frame_size 64×64"),
        (((64, 64), 8, 4, 2), "need 3 entries each"),
        (((48, 48), 8, 4, 2), r"one of \[36, 9\]"),
    ],
)
def test_sizes_that_do_not_fit_are_told(arguments, told: str) -> None:
    with pytest.raises(UserError, match=told):
        pooled_grids(*arguments)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_codebook_that_cannot_move_is_told(decay: float) -> None:
    with pytest.raises(UserError, match=r"codebook_decay is .*from 0 to below 1"):
        make_tokenizer(codebook_decay=decay)


def test_a_tokenizer_trains_alone_under_a_plain_trainer(tmp_path) -> None:
    tokenizer, before = make_tokenizer(), make_tokenizer()
    trainer = L.Trainer(
        max_steps=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    windows = DataLoader([make_window(seed=seed) for seed in range(3)], batch_size=None)
    trainer.fit(tokenizer, windows)
    assert not torch.equal(tokenizer.quantizer.codebook, before.quantizer.codebook)
    assert not torch.equal(tokenizer.encoder.patch.weight, before.encoder.patch.weight)
    assert tokenizer._quantized == []


def test_what_is_encoded_does_not_depend_on_where_in_the_window_it_stands(tokenizer) -> None:
    """Time is relative: the same frames after padding, and without it."""
    window = make_window()
    window.valid[:, :3] = False
    frames = to_float(window.frames)
    with torch.no_grad():
        padded = tokenizer.embed(frames, window.actions, window.valid)[:, 3:]
        alone = tokenizer.embed(frames[:, 3:], window.actions[:, 3:], window.valid[:, 3:])
    # float32 sums in another order; latents of a norm around three.
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-4)
    assert alone.std() > 0.1


def test_the_encoder_knows_the_order_of_earlier_frames() -> None:
    """By rotary time alone: one layer with nothing of time sees earlier frames as a set."""
    tokenizer, window = make_tokenizer(encoder_layers=(1, 0, 0)), make_window()
    frames, swapped = to_float(window.frames), to_float(window.frames)
    swapped[:, [1, 2]] = swapped[:, [2, 1]]
    actions = torch.zeros_like(window.actions)
    with torch.no_grad():
        # Attention that chooses: at first it takes nearly the same of all.
        tokenizer.encoder.groups[0].layers[0].qkv.weight.mul_(20)
        latents, others = (tokenizer.embed(each, actions, window.valid)[:, 3:] for each in (frames, swapped))
    assert (latents - others).abs().max() > 1e-4
