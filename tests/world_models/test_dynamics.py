"""The dynamics: causality token by token, padding, caches, losses."""

from __future__ import annotations

import pytest
import torch
from conftest import ACTIONS, CODES, FRAMES, make_window, make_world_model, scramble
from torch.nn import functional as F

from delta_iris.data.segment import to_float
from delta_iris.errors import UserError
from delta_iris.nn.transformer import Transformer


def random_tokens(batch: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, CODES, (batch, FRAMES - 1, 4), generator=torch.Generator().manual_seed(seed))


def test_the_future_never_changes_what_is_earlier(world_model) -> None:
    window, tokens, t = make_window(), random_tokens(), 4
    changed = scramble(window, (torch.arange(FRAMES) > t).expand(3, FRAMES))
    other = tokens.clone()
    other[:, t:] = (other[:, t:] + 1) % CODES
    with torch.no_grad():
        before, after = world_model.predict(window, tokens), world_model.predict(changed, other)
    assert torch.equal(before.rewards[:, : t + 1], after.rewards[:, : t + 1])
    assert torch.equal(before.ends[:, : t + 1], after.ends[:, : t + 1])
    assert torch.equal(before.tokens[:, :t], after.tokens[:, :t])
    assert torch.equal(before.tokens[:, t, 0], after.tokens[:, t, 0])
    assert not torch.equal(before.tokens[:, t, 1], after.tokens[:, t, 1])


@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_a_token_changes_only_later_tokens_of_its_block(world_model, k: int) -> None:
    window, tokens, t = make_window(), random_tokens(), 3
    other = tokens.clone()
    other[:, t, k] = (other[:, t, k] + 1) % CODES
    with torch.no_grad():
        before, after = world_model.predict(window, tokens), world_model.predict(window, other)
    assert torch.equal(before.tokens[:, t, : k + 1], after.tokens[:, t, : k + 1])
    if k < 3:
        assert not torch.equal(before.tokens[:, t, k + 1], after.tokens[:, t, k + 1])
    assert not torch.equal(before.rewards[:, t + 1], after.rewards[:, t + 1])


def test_reward_and_end_see_the_frame_and_the_action(world_model) -> None:
    window, tokens, t = make_window(), random_tokens(), 5
    for field in ("frames", "actions"):
        changed = window._replace(**{field: getattr(window, field).clone()})
        getattr(changed, field)[:, t] = (getattr(window, field)[:, t] + 1) % ACTIONS
        with torch.no_grad():
            before, after = world_model.predict(window, tokens), world_model.predict(changed, tokens)
        assert not torch.equal(before.rewards[:, t], after.rewards[:, t])
        assert not torch.equal(before.ends[:, t], after.ends[:, t])


def test_padding_never_leaks(world_model) -> None:
    window, tokens = make_window(padded=True), random_tokens()
    changed = scramble(window, ~window.valid)
    other = torch.where(window.transitions.unsqueeze(-1), tokens, (tokens + 1) % CODES)
    with torch.no_grad():
        before, after = world_model.predict(window, tokens), world_model.predict(changed, other)
        losses, again = world_model.losses(window, tokens), world_model.losses(changed, other)
    assert torch.equal(before.rewards[window.valid], after.rewards[window.valid])
    assert torch.equal(before.tokens[:, :-1][window.transitions], after.tokens[:, :-1][window.transitions])
    assert not torch.equal(before.rewards[~window.valid], after.rewards[~window.valid])
    assert all(torch.equal(losses[name], again[name]) for name in losses)


def test_losses_count_every_real_target_once(world_model) -> None:
    window, tokens = make_window(padded=True), random_tokens()
    with torch.no_grad():
        predictions, losses = world_model.predict(window, tokens), world_model.losses(window, tokens)
    token_losses, reward_losses, end_losses = [], [], []
    for b in range(3):
        for t in range(FRAMES):
            if not window.valid[b, t]:
                continue
            target = world_model.rewards.two_hot(window.rewards[b, t])
            reward_losses.append(F.cross_entropy(predictions.rewards[b, t], target))
            end_losses.append(F.cross_entropy(predictions.ends[b, t], window.ends[b, t]))
            if t + 1 < FRAMES and window.valid[b, t + 1]:
                token_losses += [F.cross_entropy(predictions.tokens[b, t, k], tokens[b, t, k]) for k in range(4)]
    assert len(token_losses) == 4 * (5 + 6 + 8)
    assert len(reward_losses) == 6 + 7 + 9
    for name, terms in (("token_loss", token_losses), ("reward_loss", reward_losses), ("end_loss", end_losses)):
        torch.testing.assert_close(losses[name], torch.stack(terms).mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("known", [0, 1, 4])
def test_stepping_with_a_cache_equals_the_whole_window(world_model, known: int) -> None:
    window, tokens = make_window(padded=known > 3), random_tokens()
    window.valid[1, -2:] = True
    frames, dynamics = to_float(window.frames), world_model.dynamics
    with torch.no_grad():
        whole = world_model.predict(window, tokens)
        cache = dynamics.start(frames[:, :known], window.actions[:, :known], tokens[:, :known], window.valid[:, :known])
        for t in range(known, FRAMES - 1):
            token_logits, reward, end = dynamics.act(dynamics.look(frames[:, t]), window.actions[:, t], cache)
            logits = [token_logits]
            for k in range(3):
                logits.append(dynamics.next_token(tokens[:, t, k], cache))
            dynamics.finish(tokens[:, t, 3], cache)
            # float32 sums in another order: a few units of the last place of logits around one.
            close = {"atol": 5e-6, "rtol": 1e-5}
            torch.testing.assert_close(torch.stack(logits, 1), whole.tokens[:, t], **close)
            torch.testing.assert_close(reward, whole.rewards[:, t], **close)
            torch.testing.assert_close(end, whole.ends[:, t], **close)


def test_untrained_rewards_are_zero() -> None:
    from conftest import SIZE, SMALL_CNN

    from delta_iris.world_models.tokens.dynamics import WorldModel

    model = WorldModel(SIZE, ACTIONS, FRAMES, 4, CODES, dim=16, layers=1, heads=2, **SMALL_CNN)
    predictions = model.predict(make_window(), random_tokens())
    torch.testing.assert_close(model.rewards.mean(predictions.rewards), torch.zeros(3, FRAMES), atol=1e-5, rtol=0)


def test_dropout_is_for_training_on_windows_alone() -> None:
    plain, model = make_world_model(), make_world_model(dropout=0.5)
    model.load_state_dict(plain.state_dict())
    window, tokens, dynamics = make_window(), random_tokens(), model.dynamics
    frames = to_float(window.frames)
    with torch.no_grad():
        whole = plain.predict(window, tokens)
        one, other = model.predict(window, tokens), model.predict(window, tokens)
        assert not torch.equal(one.tokens, other.tokens)
        assert not torch.equal(model.eval().predict(window, tokens).tokens, one.tokens)
        assert torch.equal(model.predict(window, tokens).tokens, whole.tokens)
        # Imagination steps models that are in training mode: what it draws on is the whole model all the same.
        model.train()
        cache = dynamics.start(frames[:, :4], window.actions[:, :4], tokens[:, :4], window.valid[:, :4])
        logits, reward, _ = dynamics.act(dynamics.look(frames[:, 4]), window.actions[:, 4], cache)
    torch.testing.assert_close(logits, whole.tokens[:, 4, 0], atol=5e-6, rtol=1e-5)
    torch.testing.assert_close(reward, whole.rewards[:, 4], atol=5e-6, rtol=1e-5)


def test_dropout_leaves_a_branch_as_it_is_on_average() -> None:
    """Of one layer, whose MLP is silenced: 4,000 draws of what attention adds, each of 0 or twice itself."""
    torch.manual_seed(0)
    layer = Transformer(8, 1, 2, dropout=0.5).layers[0]
    x, attended = torch.randn(1, 3, 8), torch.randn(1, 3, 2, 4)
    with torch.no_grad():
        layer.mlp[-1].weight.zero_()
        added = layer.after(x, attended) - x
        draws = torch.stack([layer.after(x, attended, drop=True) - x for _ in range(4000)])
    kept = draws / added
    assert set(kept.round(decimals=2).unique().tolist()) == {0.0, 2.0}
    # The mean of 4,000 is off by 1/√4000 = 0.016; of 24 numbers none by five times that.
    torch.testing.assert_close(kept.mean(0), torch.ones_like(added), atol=0.08, rtol=0)


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_dropout_that_is_no_share_is_refused(dropout: float) -> None:
    with pytest.raises(UserError, match=r"model\.world_model\.init_args\.dropout"):
        make_world_model(dropout=dropout)
