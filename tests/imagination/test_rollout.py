"""Tests of rollouts, in imagined environments and in others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from delta_iris.actor_critic.module import ActorCritic
from delta_iris.data.segment import SegmentBatch
from delta_iris.imagination.rollout import ImaginedEnv, TensorEnv, rollout
from delta_iris.world_models.tokens.token_world_model import TokenWorldModel
from tests.helpers import ACTIONS, CONTEXT, WORLD_MODELS, make_segment, make_world_model


@pytest.fixture(params=WORLD_MODELS.values(), ids=list(WORLD_MODELS))
def model(request: pytest.FixtureRequest) -> TokenWorldModel:
    made: TokenWorldModel = request.param()
    return made


@pytest.fixture
def start() -> SegmentBatch:
    """Segments to start from, of which the first begins with padding."""
    return make_segment(padded=True).slice_time(0, CONTEXT)


def test_a_rollout_is_what_the_actor_critic_trains_on(
    model: TokenWorldModel, actor_critic: ActorCritic, start: SegmentBatch
) -> None:
    assert start.mask.shape[1] == actor_critic.burn_in + 1
    torch.manual_seed(0)
    imagined = rollout(ImaginedEnv(model), actor_critic, start)
    assert imagined.inputs.shape == (3, CONTEXT + actor_critic.horizon, *start.frames.shape[2:])
    _, inputs = model.observe(model.initial_state(3), start)
    assert torch.equal(imagined.inputs[:, :CONTEXT], inputs)
    assert torch.equal(imagined.burn_in_mask, start.mask[:, :-1])
    assert not imagined.inputs.requires_grad
    assert 0 <= float(imagined.inputs.min()) <= float(imagined.inputs.max()) <= 1
    for field in (imagined.actions, imagined.rewards, imagined.terminated):
        assert field.shape == (3, actor_critic.horizon)
    assert set(imagined.terminated.unique().tolist()) <= {0, 1}
    actor_critic.loss(actor_critic.compute_targets(imagined)).loss.backward()
    assert all(p.grad is None for p in (*model.tokenizer.parameters(), *model.dynamics.parameters()))


def test_contents_of_padding_change_nothing(
    model: TokenWorldModel, actor_critic: ActorCritic, start: SegmentBatch
) -> None:
    changed = start._replace(frames=start.frames.clone(), actions=start.actions.clone())
    changed.frames[~start.mask] = 7
    changed.actions[~start.mask] = 1
    rollouts = []
    for variant in (start, changed):
        torch.manual_seed(0)
        rollouts.append(rollout(ImaginedEnv(model), actor_critic, variant))
    for one, other in zip(rollouts[0][1:], rollouts[1][1:], strict=True):
        assert torch.equal(one, other)
    burn_in = actor_critic.burn_in
    assert torch.equal(rollouts[0].inputs[:, burn_in:], rollouts[1].inputs[:, burn_in:])


def test_an_imagined_environment_steps_its_world_model(model: TokenWorldModel, start: SegmentBatch) -> None:
    env, actions = ImaginedEnv(model), torch.arange(3) % ACTIONS
    inputs = env.reset(start)
    state, expected_inputs = model.observe(model.initial_state(3), start)
    assert torch.equal(inputs, expected_inputs)
    torch.manual_seed(0)
    current, reward, end = env.step(actions)
    torch.manual_seed(0)
    state, prediction = model.step(state, actions)
    assert torch.equal(current, model.actor_input(state))
    assert torch.equal(env.render(), model.decode(state))
    assert torch.equal(reward, prediction.reward)
    assert (end.dtype, end.shape) == (torch.int64, (3,))


def test_ends_are_sampled_from_their_logits(start: SegmentBatch) -> None:
    model = make_world_model()
    last = model.dynamics.network.end_head[-1]
    assert isinstance(last, torch.nn.Linear)
    for logits, expected in ((torch.tensor([99.0, -99.0]), 0), (torch.tensor([-99.0, 99.0]), 1)):
        with torch.no_grad():
            last.bias.copy_(logits)
        env = ImaginedEnv(model)
        env.reset(start)
        assert env.step(torch.zeros(3, dtype=torch.int64))[2].tolist() == [expected] * 3


def test_a_reset_forgets_what_was_prefetched(model: TokenWorldModel, start: SegmentBatch) -> None:
    frames = []
    for prefetched in (False, True):
        env = ImaginedEnv(model)
        if prefetched:
            env.reset(make_segment(seed=1).slice_time(0, CONTEXT))
            env.prefetch()
        env.reset(start)
        torch.manual_seed(0)
        frames.append(env.step(torch.zeros(3, dtype=torch.int64))[0])
    assert torch.equal(*frames)


class ScriptedEnv:
    """Random vectors as observations; an action's reward is its number; the fourth step is an end."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.num_steps = 0
        self.inputs = torch.randn(3, CONTEXT + 5, 7, generator=torch.Generator().manual_seed(0))

    def reset(self, segment: SegmentBatch) -> Tensor:
        """See `TensorEnv.reset`."""
        self.calls.append("reset")
        return self.inputs[:, : segment.mask.shape[1]]

    def prefetch(self) -> None:
        """See `TensorEnv.prefetch`."""
        self.calls.append("prefetch")

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `TensorEnv.step`."""
        self.calls.append("step")
        self.num_steps += 1
        end = torch.full_like(action, int(self.num_steps == 4))
        return self.inputs[:, CONTEXT - 1 + self.num_steps], action.float(), end


def test_a_rollout_records_any_environment_step_by_step(start: SegmentBatch) -> None:
    torch.manual_seed(0)
    actor_critic = ActorCritic((7,), ACTIONS, lstm_size=16, burn_in=CONTEXT - 1, horizon=5)
    scripted = ScriptedEnv()
    env: TensorEnv = scripted
    found = rollout(env, actor_critic, start)
    assert scripted.calls == ["reset", *["prefetch", "step"] * 5]
    assert torch.equal(found.inputs, scripted.inputs)
    assert torch.equal(found.burn_in_mask, start.mask[:, :-1])
    assert torch.equal(found.rewards, found.actions.float())
    assert found.terminated.tolist() == [[0, 0, 0, 1, 0]] * 3
    assert len(found.actions.unique()) > 1


def test_a_rollout_acts_with_a_memory_that_was_burned_in(start: SegmentBatch) -> None:
    torch.manual_seed(0)
    actor_critic = ActorCritic((7,), ACTIONS, lstm_size=16, burn_in=CONTEXT - 1, horizon=5)
    network = actor_critic.network
    # An LSTM that depends on its memory, and logits so large that the most likely action is sampled.
    for parameter in network.lstm.parameters():
        torch.nn.init.normal_(parameter)
    torch.nn.init.normal_(network.actor.weight, std=1e4)
    found = rollout(ScriptedEnv(), actor_critic, start)
    assert len(found.actions.unique()) > 1
    burn_in, acted_on = found.inputs[:, : CONTEXT - 1], found.inputs[:, CONTEXT - 1 : -1]
    logits, _, _ = network(acted_on, network.burn_in(burn_in, found.burn_in_mask))
    assert torch.equal(found.actions, logits.argmax(-1))
    assert not torch.equal(found.actions, network(acted_on, network.initial_memory(3))[0].argmax(-1))
