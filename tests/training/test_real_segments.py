"""Tests of the phase that trains the actor-critic of a token system on real segments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from delta_iris.data.segment import SegmentBatch, to_float
from delta_iris.errors import UserError
from delta_iris.nn.optim import OptimizerConfig
from delta_iris.training.callbacks import PhaseCallback
from delta_iris.training.loop import install_loops
from delta_iris.training.schedule import CollectionSchedule, PhaseSchedule
from delta_iris.training.systems.real_segment_phase import RealSegmentPhase
from delta_iris.training.systems.token_system import TokenSchedule, TokenSystem
from delta_iris.world_models.tokens.tokenizer import Tokenizer
from tests import helpers
from tests.helpers import ACTIONS, SIZE, make_actor_critic, make_frame_tokenizer, make_segment, make_tokenizer
from tests.training.catch_helpers import EPISODE_LENGTH, make_catch_data, make_trainer

RECENT = 100
PPO: dict[str, Any] = {"update_epochs": 2, "num_minibatches": 3}
TOKENIZERS = [make_tokenizer, make_frame_tokenizer]


def make_system(
    make: Callable[..., Tokenizer] = make_tokenizer, schedule: PhaseSchedule | None = None, **actor_critic: Any
) -> TokenSystem:
    """A system with the phase on real segments, whose actor-critic has arguments changed."""
    return helpers.make_system(
        make(),
        actor_critic=make_actor_critic(**actor_critic),
        schedule=helpers.make_schedule(CollectionSchedule(RECENT), schedule or PhaseSchedule(steps=1, batch_size=6)),
    )


def phase_of(system: TokenSystem) -> RealSegmentPhase:
    found = [phase for phase in system.phases if isinstance(phase, RealSegmentPhase)]
    assert len(found) == 1
    return found[0]


def draw(phase: RealSegmentPhase, batch: int = 6, seed: int = 0) -> SegmentBatch:
    """Segments as long as the phase's, the first of which begins before its episode."""
    segment = make_segment(batch, phase.sampling.length, seed=seed)
    segment.mask[0, : phase.actor_critic.burn_in - 1] = False
    return segment


def make_optimizer(phase: RealSegmentPhase) -> torch.optim.Optimizer:
    configured: Any = phase.actor_critic.configure_optimizers()
    optimizer: torch.optim.Optimizer = configured["optimizer"]
    return optimizer


def take_step(system: TokenSystem, optimizer: torch.optim.Optimizer, segment: SegmentBatch) -> None:
    """One batch, without a Trainer."""
    phase = phase_of(system)
    # The Trainer's version would only scale the loss.
    system.manual_backward = Tensor.backward  # type: ignore[method-assign]
    for minibatch in phase.minibatches(phase.prepare(segment)):
        system.forward_backward(phase, minibatch)
        optimizer.step()
    phase.after_batch(torch.tensor(False))


def test_it_is_off_by_default() -> None:
    system = helpers.make_system(schedule=TokenSchedule())
    assert [phase.name for phase in system.phases] == ["tokenizer", "dynamics", "actor_critic"]


@pytest.mark.parametrize("schedule", [PhaseSchedule(steps=2), PhaseSchedule(steps=0, first_epoch_steps=2)])
def test_it_runs_before_imagination(schedule: PhaseSchedule) -> None:
    system = make_system(schedule=schedule)
    assert [phase.name for phase in system.phases] == ["tokenizer", "dynamics", "real_segments", "actor_critic"]


def test_its_segments_are_those_of_the_frames_collected_last() -> None:
    phase, actor_critic = phase_of(make_system()), make_actor_critic()
    assert phase.sampling.length == actor_critic.burn_in + actor_critic.horizon + 1
    assert phase.sampling.pad_start == actor_critic.burn_in  # an episode's first steps are acted on as well
    assert phase.sampling.recent_frames == RECENT
    assert phase.sampling.priority_exponent == 0


@pytest.mark.parametrize("make", TOKENIZERS)
@pytest.mark.parametrize("options", [{}, PPO])
def test_it_trains_the_actor_critic_and_leaves_the_world_model(
    make: Callable[..., Tokenizer], options: dict[str, Any]
) -> None:
    system = make_system(make, **options)
    phase = phase_of(system)
    before = {name: value.clone() for name, value in system.state_dict().items()}
    optimizer = make_optimizer(phase)
    for seed in range(2):
        take_step(system, optimizer, draw(phase, seed=seed))
    after = system.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(name.startswith("actor_critic.") for name in changed)
    for network in ("network", "target"):
        for name in ("encoder.layers.0.weight", "lstm.weight_hh_l0", "actor.weight", "critic.weight"):
            assert f"actor_critic.{network}.{name}" in changed
    assert all(p.grad is None for module in (system.tokenizer, system.dynamics) for p in module.parameters())


@pytest.mark.parametrize("make", TOKENIZERS)
def test_the_actor_critic_sees_real_frames_as_it_does_when_it_acts(make: Callable[..., Tokenizer]) -> None:
    """Δ-IRIS's sees them as they are, IRIS's as they are reconstructed."""
    system = make_system(make)
    phase = phase_of(system)
    segment, burn_in = draw(phase), system.actor_critic.burn_in
    _, perceived = system.world_model.observe(system.world_model.initial_state(6), segment)  # type: ignore[union-attr]
    batch = phase.prepare(segment)
    assert torch.equal(batch.inputs, perceived[:, burn_in:-1])
    is_real = torch.allclose(batch.inputs, to_float(segment.frames)[:, burn_in:-1])
    assert is_real == (make is make_tokenizer)


def policy_of(phase: RealSegmentPhase, segment: SegmentBatch) -> Tensor:
    """Log-probabilities of all actions (B, H, A), step by step as the agent acts."""
    actor_critic, burn_in = phase.actor_critic, phase.actor_critic.burn_in
    frames = to_float(segment.frames)
    memory = actor_critic.warm_up(frames[:, :burn_in], segment.mask[:, :burn_in])
    logits = []
    for t in range(burn_in, burn_in + actor_critic.horizon):
        each, _, memory = actor_critic.evaluate(frames[:, t], memory)
        logits.append(each)
    return F.log_softmax(torch.stack(logits, dim=1), dim=-1)


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_ppo_compares_with_the_policy_that_acted(epsilon: float) -> None:
    """It took a random action with probability ε."""
    collection = CollectionSchedule(RECENT, epsilon=epsilon)
    schedule = helpers.make_schedule(collection, PhaseSchedule(steps=1, batch_size=6))
    system = helpers.make_system(actor_critic=make_actor_critic(**PPO), schedule=schedule)
    torch.nn.init.normal_(system.actor_critic.network.actor.weight)
    phase = phase_of(system)
    segment = draw(phase)
    batch = phase.prepare(segment)
    taken = policy_of(phase, segment).exp().gather(-1, batch.actions.unsqueeze(-1)).squeeze(-1)
    expected = ((1 - epsilon) * taken + epsilon / ACTIONS).log()
    # Step by step and as a sequence, the LSTM's sums are rounded differently.
    torch.testing.assert_close(batch.log_probs, expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 0.1


@pytest.mark.parametrize(("epsilon", "moves"), [(0.0, True), (0.1, False)])
def test_actions_that_only_exploration_takes_are_not_made_rarer(epsilon: float, moves: bool) -> None:
    """Taken for the policy's own, each batch would make them rarer, without end."""
    collection = CollectionSchedule(RECENT, epsilon=epsilon)
    schedule = helpers.make_schedule(collection, PhaseSchedule(steps=1, batch_size=6))
    system = helpers.make_system(actor_critic=make_actor_critic(**PPO, entropy_coef=0.0), schedule=schedule)
    actor, phase = system.actor_critic.network.actor, phase_of(system)
    with torch.no_grad():
        actor.bias[0] = 10.0  # the policy takes this action, nearly always
    segment = draw(phase)
    segment = segment._replace(terminated=torch.zeros_like(segment.terminated))
    segment.actions.zero_()
    segment.actions[:3] = 1
    batch = phase.prepare(segment)
    advantages = torch.where(batch.actions == 1, -1.0, 1.0)
    phase.loss(batch._replace(advantages=advantages), None).loss.backward()
    assert actor.bias.grad is not None
    assert bool(actor.bias.grad[1].abs() > 1e-2) == moves


def test_a_batch_in_parts_equals_the_whole() -> None:
    sizes: list[int] = []

    def perceive(frames: Tensor) -> Tensor:
        sizes.append(len(frames))
        return frames

    batches = []
    for size in (None, 4):
        schedule = PhaseSchedule(steps=1, batch_size=6, micro_batch_size=size)
        phase = RealSegmentPhase(make_actor_critic(**PPO), RECENT, 0.0, schedule, perceive)
        batches.append(phase.prepare(draw(phase)))
    assert sizes == [6, 4, 2]
    for expected, value in zip(*batches, strict=True):
        # Other batch sizes sum in another order.
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_it_learns_which_action_is_rewarded() -> None:
    """The recorded actions are uniformly random, and one of them is rewarded."""
    system = make_system(gamma=0.5, optimizer=OptimizerConfig(learning_rate=1e-2, weight_decay=0.0))
    phase = phase_of(system)
    optimizer = make_optimizer(phase)

    def probability() -> float:
        batch = phase.prepare(draw(phase, seed=99))
        memory = batch.hidden.unsqueeze(0), batch.cell.unsqueeze(0)
        logits, _, _ = system.actor_critic.network(batch.inputs, memory)
        return float(F.softmax(logits, -1)[..., 1].mean().detach())

    initial = probability()
    for seed in range(20):
        segment = draw(phase, batch=16, seed=seed)
        rewards = (segment.actions == 1).float()
        take_step(system, optimizer, segment._replace(rewards=rewards, terminated=torch.zeros_like(segment.terminated)))
    assert initial < 2 / ACTIONS
    assert probability() > 0.5


class EpisodeRecorder(PhaseCallback):
    """Records the epoch, and the episodes that each batch of real segments was drawn from."""

    def __init__(self) -> None:
        self.episodes: list[tuple[int, int, list[int]]] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if module.phase.name == "real_segments":
            data = trainer.datamodule  # type: ignore[attr-defined]
            stored = len(data.replay.lengths)
            self.episodes.append((trainer.current_epoch, stored, data.episodes_of(batch_idx)))


def test_a_run_trains_on_the_latest_episodes_only(tmp_path: Path) -> None:
    """The first epoch collects more than the others: most of its episodes must not be drawn."""
    recorder = EpisodeRecorder()
    collection = CollectionSchedule(2 * EPISODE_LENGTH, first_epoch_frames=10 * EPISODE_LENGTH)
    schedule = helpers.make_schedule(collection, PhaseSchedule(steps=4, batch_size=32), steps=1, batch_size=2)
    system = helpers.make_system(make_tokenizer(3), actor_critic=make_actor_critic(3), num_actions=3, schedule=schedule)
    trainer = make_trainer(tmp_path, max_epochs=2, callbacks=[recorder])
    install_loops(trainer)
    trainer.fit(system, make_catch_data(frame_size=SIZE, environment_options={"pixels": 8}))
    for epoch, stored, drawn in recorder.episodes:
        assert stored == 10 + 2 * epoch
        assert drawn == [stored - 2, stored - 1]
    assert [epoch for epoch, _, _ in recorder.episodes] == [0] * 4 + [1] * 4


def test_messages_name_the_keys() -> None:
    key = "model.init_args.actor_critic.init_args.optimizer.learning_rate"
    assert phase_of(make_system()).learning_rate_key == key
    schedule = helpers.make_schedule(CollectionSchedule(0, first_epoch_frames=100), PhaseSchedule(steps=1))
    with pytest.raises(UserError, match=r"schedule\.real_segments trains on .* set it, or real_segments\.steps to 0"):
        helpers.make_system(schedule=schedule)
    with pytest.raises(
        UserError, match=r"schedule\.real_segments\.steps is 2.*set steps to 1, and a larger batch_size"
    ):
        make_system(schedule=PhaseSchedule(steps=2, batch_size=6), **PPO)
