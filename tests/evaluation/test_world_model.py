"""What is said of windows never trained on: means over all that counts, however it is cut into batches."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import FRAMES, make_tokenizer, make_window, make_world_model

from delta_iris.data.segment import Window, to_float
from delta_iris.evaluation.world_model import HeldOut, drift
from delta_iris.world_models.tokens.token_world_model import Imagination

CONTEXT = 3


def held_out(*windows: Window) -> dict[str, torch.Tensor]:
    seen = HeldOut(make_tokenizer(), make_world_model(), CONTEXT)
    for window in windows:
        seen.update(window)
    return seen.compute()


def rare(window: Window) -> Window:
    """One reward that is not zero and one end, both in the first window."""
    rewards, ends = torch.zeros_like(window.rewards), torch.zeros_like(window.ends)
    rewards[0, 4], ends[0, 5] = 2.0, 1
    return window._replace(rewards=rewards, ends=ends)


def test_batches_of_other_sizes_tell_the_same() -> None:
    window = rare(make_window(4, padded=True))
    whole = held_out(window)
    parts = held_out(Window(*(x[:1] for x in window)), Window(*(x[1:] for x in window)))
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        # What is imagined is sampled.
        if not name.startswith("drift/imagined"):
            torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_values_equal_their_definitions() -> None:
    window = rare(make_window(2))
    values, tokenizer, model = held_out(window), make_tokenizer(), make_world_model()
    frames, tokens = to_float(window.frames), tokenizer.encode(*window[:2], window.valid)
    with torch.no_grad():
        painted = tokenizer.reconstruct(window)[0].clamp(0, 1)
        predictions = model.predict(window, tokens)
    l2 = (painted - frames[:, 1:]).square().mean()
    torch.testing.assert_close(values["held_out/tokenizer_l2"], l2)
    assert float(values["held_out/tokenizer_psnr"]) == pytest.approx(10 * math.log10(1 / float(l2)), rel=1e-5)
    torch.testing.assert_close(
        values["held_out/tokenizer_copy_l2"], (frames[:, 1:] - frames[:, :-1]).square().mean(), rtol=1e-5, atol=0
    )
    error = (model.rewards.mean(predictions.rewards) - window.rewards).abs()
    torch.testing.assert_close(values["held_out/world_model_reward_error_nonzero"], error[0, 4])
    zero = window.rewards == 0
    torch.testing.assert_close(values["held_out/world_model_reward_error_zero"], error[zero].mean())
    assert values["held_out/world_model_end_recall"] == float(predictions.ends[0, 5, 1] > predictions.ends[0, 5, 0])
    picked = predictions.tokens[:, :-1].log_softmax(-1).gather(-1, tokens.unsqueeze(-1))
    torch.testing.assert_close(
        values["held_out/world_model_token_perplexity"], (-picked.mean()).exp(), rtol=1e-5, atol=1e-5
    )


def test_what_never_happened_is_left_out() -> None:
    window = make_window(2)
    quiet = window._replace(ends=torch.zeros_like(window.ends), rewards=torch.zeros_like(window.rewards))
    names = held_out(quiet)
    assert "held_out/world_model_reward_error_zero" in names
    assert not {"held_out/world_model_end_recall", "held_out/world_model_reward_error_nonzero"} & set(names)


def test_windows_of_a_single_step_tell_what_they_can() -> None:
    window = make_window(2)
    valid = torch.zeros_like(window.valid)
    valid[:, 0] = True
    values = held_out(window._replace(valid=valid))
    assert "held_out/world_model_reward_loss" in values
    assert not any(name.startswith(("held_out/tokenizer", "drift")) for name in values)
    still = window._replace(frames=torch.zeros_like(window.frames))
    assert all(value.isfinite() for value in held_out(still).values())


def test_drift_is_between_what_is_imagined_and_what_came_under_the_same_actions() -> None:
    tokenizer, model, window = make_tokenizer(), make_world_model(), make_window(2)
    # An action must show in the frame that it leads to.
    torch.nn.init.normal_(tokenizer.decoder.action.weight, std=10)
    torch.nn.init.normal_(tokenizer.decoder.paint.weight, std=1)
    valid = window.valid.clone()
    valid[1, 6:] = False
    window = window._replace(valid=valid)
    torch.manual_seed(5)
    found = drift(tokenizer, model, window, CONTEXT)
    assert len(found) == 2 * (FRAMES - CONTEXT)
    torch.manual_seed(5)
    imagination = Imagination(tokenizer, model, CONTEXT)
    imagination.reset(Window(*(x[:, :CONTEXT] for x in window)))
    real = to_float(window.frames)
    for step in range(1, FRAMES - CONTEXT + 1):
        t = CONTEXT + step - 1
        frame, _, _ = imagination.step(window.actions[:, t - 1])
        errors = (frame - real[:, t]).square().mean((1, 2, 3))[valid[:, t]]
        imagined, copied = found[f"imagined_{step:02}"], found[f"copied_{step:02}"]
        torch.testing.assert_close(imagined.total / imagined.number, errors.mean())
        assert imagined.number == copied.number == valid[:, t].sum()
        last = (real[:, CONTEXT - 1] - real[:, t]).square().mean((1, 2, 3))[valid[:, t]]
        torch.testing.assert_close(copied.total / copied.number, last.mean())
