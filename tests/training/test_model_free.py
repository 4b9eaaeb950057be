"""Tests of the model-free system: it trains on Catch, resumes, and never trains on padding."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from delta_iris.data.replay import Replay
from delta_iris.data.sampler import SegmentSampler
from delta_iris.data.segment import SegmentBatch, SegmentRequest
from delta_iris.data.segment_dataset import SegmentDataset
from delta_iris.errors import UserError
from delta_iris.training.callbacks import CollectionResult, PhaseCallback, PhaseResult
from delta_iris.training.config_checks import check_configuration
from delta_iris.training.loop import install_loops
from delta_iris.training.phase import TEST_EPISODES, Activity
from delta_iris.training.schedule import CollectionSchedule, PhaseSchedule
from delta_iris.training.systems import ModelFree
from delta_iris.training.systems.model_free import ModelFreeSchedule
from tests.training.catch_helpers import (
    ACTIONS,
    BURN_IN,
    EPISODE_LENGTH,
    FRAME_SIZE,
    HORIZON,
    make_catch_data,
    make_model_free,
    make_trainer,
)

# Only the first epoch collects, because episodes in progress are lost at a resume.
SCHEDULE = ModelFreeSchedule(CollectionSchedule(144, last_epoch=1), PhaseSchedule(steps=4, batch_size=6))
MULTI_EPOCH: dict[str, Any] = {"update_epochs": 2, "num_minibatches": 3}
ONE_BATCH = ModelFreeSchedule(CollectionSchedule(144, last_epoch=1), PhaseSchedule(steps=1, batch_size=24))


class Recorder(PhaseCallback):
    """Records the loss of every batch and the results of test episodes, and stops after a number of batches."""

    def __init__(self, stop_after: int | None) -> None:
        self.losses: list[float] = []
        self.tests: list[CollectionResult] = []
        self.losses_after: list[int] = []
        self.counted_draws = 0
        self.stop_after = stop_after

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(module.phase_metrics["loss"])
        if len(self.losses) == self.stop_after:
            trainer.fit_loop.request_stop(None)  # type: ignore[attr-defined]

    def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        self.losses_after.append(len(self.losses))
        sampler = trainer.datamodule.samplers["actor_critic"]  # type: ignore[attr-defined]
        self.counted_draws = int(sampler.state_dict()["counts"].sum())

    def on_phase_end(
        self, trainer: L.Trainer, module: Any, activity: Activity, result: CollectionResult | PhaseResult
    ) -> None:
        if activity is TEST_EPISODES:
            assert isinstance(result, CollectionResult)
            self.tests.append(result)


def train(
    folder: Path,
    epochs: int = 2,
    checkpoint: Path | None = None,
    stop_after: int | None = None,
    schedule: ModelFreeSchedule = SCHEDULE,
    actor_critic: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[ModelFree, Recorder]:
    L.seed_everything(3, verbose=False)
    recorder, system = Recorder(stop_after), make_model_free(schedule, **actor_critic or {})
    trainer = make_trainer(
        folder,
        max_epochs=epochs,
        log_every_n_steps=1,
        check_val_every_n_epoch=1,
        callbacks=[recorder, ModelCheckpoint(folder / "checkpoints", save_last=True, save_on_train_epoch_end=True)],
        **options,
    )
    install_loops(trainer)
    data = make_catch_data()
    check_configuration(system, data, trainer.world_size)
    torch.manual_seed(8)
    trainer.fit(system, data, ckpt_path=checkpoint, weights_only=True)
    return system, recorder


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelFree, Recorder]:
    return train(tmp_path_factory.mktemp("uninterrupted"))


def test_it_trains_and_runs_test_episodes(uninterrupted: tuple[ModelFree, Recorder]) -> None:
    system, recorder = uninterrupted
    assert len(recorder.losses) == 2 * 4
    schedule: Any = system.lr_schedulers()
    assert schedule.last_epoch == 2 * 4
    initial = make_model_free(SCHEDULE).state_dict()
    # The network and its target.
    for name in ("encoder.layers.0.weight", "lstm.weight_hh_l0", "actor.weight", "critic.weight"):
        for network in ("network", "target"):
            key = f"actor_critic.{network}.{name}"
            assert not torch.equal(system.state_dict()[key], initial[key]), key
    # After each epoch, although there is no world model to evaluate.
    assert [[episode.length for episode in result.episodes] for result in recorder.tests] == [[EPISODE_LENGTH] * 2] * 2


@pytest.mark.parametrize("stop_after", [2, 6])
def test_resume_within_a_phase_equals_never_stopping(
    tmp_path: Path, uninterrupted: tuple[ModelFree, Recorder], stop_after: int
) -> None:
    _, first = train(tmp_path, stop_after=stop_after)
    assert len(first.losses) == stop_after
    system, second = train(tmp_path, checkpoint=tmp_path / "checkpoints" / "interrupted.ckpt")
    expected_system, expected = uninterrupted
    assert first.losses + second.losses == expected.losses
    for name, value in expected_system.state_dict().items():
        assert torch.equal(system.state_dict()[name], value), name


@pytest.mark.parametrize(("schedule", "actor_critic"), [(SCHEDULE, {}), (ONE_BATCH, MULTI_EPOCH)])
def test_resume_at_the_end_of_an_epoch_equals_never_stopping(
    tmp_path: Path, schedule: ModelFreeSchedule, actor_critic: dict[str, Any]
) -> None:
    options: dict[str, Any] = {"schedule": schedule, "actor_critic": actor_critic}
    _, expected = train(tmp_path / "expected", **options)
    _, first = train(tmp_path, epochs=1, **options)
    _, second = train(tmp_path, checkpoint=tmp_path / "checkpoints" / "last.ckpt", **options)
    assert first.losses + second.losses == expected.losses


def test_ppo_uses_the_batch_of_an_epoch_for_several_steps(tmp_path: Path) -> None:
    system, recorder = train(tmp_path, schedule=ONE_BATCH, actor_critic=MULTI_EPOCH)
    assert len(recorder.losses) == 2
    schedule: Any = system.lr_schedulers()
    assert schedule.last_epoch == 2 * 2 * 3


@pytest.mark.parametrize("key", ["steps", "first_epoch_steps"])
def test_ppo_on_more_than_one_batch_is_refused(key: str) -> None:
    """After the first one, the policy is no longer the one that took the actions."""
    steps: dict[str, Any] = {"steps": 1} | {key: 4}
    schedule = ModelFreeSchedule(CollectionSchedule(72), PhaseSchedule(batch_size=6, **steps))
    with pytest.raises(
        UserError, match=rf"schedule\.actor_critic\.{key} is 4.*set {key} to 1, and a larger batch_size"
    ):
        make_model_free(schedule, **MULTI_EPOCH)
    make_model_free(schedule)


def test_a_phase_that_starts_later_first_trains_then(tmp_path: Path) -> None:
    phase = PhaseSchedule(steps=2, batch_size=6, first_epoch_steps=3, start_epoch=1)
    _, recorder = train(tmp_path, epochs=3, schedule=ModelFreeSchedule(SCHEDULE.collection, phase))
    assert recorder.losses_after == [0, 3, 5]
    # The draws of its first epoch lower no priority.
    assert recorder.counted_draws == 2 * 6


def test_a_fast_run_for_development_trains_also_what_starts_later(tmp_path: Path) -> None:
    phase = PhaseSchedule(steps=2, batch_size=6, first_epoch_steps=0, start_epoch=7)
    _, recorder = train(tmp_path, schedule=ModelFreeSchedule(SCHEDULE.collection, phase), fast_dev_run=True)
    assert len(recorder.losses) == 1


def test_it_is_tested_without_a_world_model(tmp_path: Path) -> None:
    recorder = Recorder(None)
    trainer = make_trainer(tmp_path, callbacks=[recorder])
    install_loops(trainer)
    trainer.test(make_model_free(), make_catch_data(), verbose=False)
    assert [len(result.episodes) for result in recorder.tests] == [4]


@pytest.fixture(scope="module")
def segment(tmp_path_factory: pytest.TempPathFactory) -> SegmentBatch:
    """Segments as the phase draws them, from episodes of 1 to 12 steps that were terminated, truncated or neither."""
    folder, generator = tmp_path_factory.mktemp("replay") / "replay", np.random.default_rng(0)
    replay = Replay(folder, (*FRAME_SIZE, 3))
    for index, length in enumerate([*range(1, 13), *range(4, 13), 9]):
        for t in range(1, length + 1):
            frame = generator.integers(0, 256, (*FRAME_SIZE, 3), dtype=np.uint8)
            action, reward = int(generator.integers(ACTIONS)), float(generator.normal())
            terminated = t == length and index % 2 == 0
            truncated = t == length and index % 2 == 1
            replay.append(0, frame, action, reward, terminated, truncated)
    # This one is still in progress.
    for _ in range(8):
        replay.append(1, generator.integers(0, 256, (*FRAME_SIZE, 3), dtype=np.uint8), 0, 0.0, False, False)
    replay.flush()
    sampling = make_model_free().phases[0].sampling
    sampler = SegmentSampler(sampling.length, sampling.pad_start, sampling.pad_end, seed=0, priority_exponent=0.0)
    indices = sampler.draw(replay.lengths, 200, update_counts=False)
    request = SegmentRequest.within_episodes(replay.lengths, sampling.length, indices)
    drawn = SegmentDataset(folder, (*FRAME_SIZE, 3))[request]
    replay.close()
    return drawn


def test_segments_contain_every_case(segment: SegmentBatch) -> None:
    assert segment.mask.shape[1] == BURN_IN + HORIZON + 1
    burn_in_mask, last_mask = segment.mask[:, :BURN_IN], segment.mask[:, -1]
    assert {int(number) for number in burn_in_mask.sum(1)} == set(range(BURN_IN + 1))
    ends = segment.terminated[:, -2] == 1
    assert (last_mask & ~ends).any()
    assert (~last_mask & ends).any()
    assert (~last_mask & ~ends).any()


def test_acted_steps_are_never_padding(segment: SegmentBatch) -> None:
    assert segment.mask[:, BURN_IN : BURN_IN + HORIZON].all()


def test_segments_without_a_frame_to_bootstrap_from_are_left_out(segment: SegmentBatch) -> None:
    batch = make_model_free().phases[0].prepare(segment)
    complete = segment.mask[:, -1] | (segment.terminated[:, -2] == 1)
    assert torch.equal(batch.alive, complete.unsqueeze(1).expand(-1, HORIZON))
    assert torch.equal(batch.actions, segment.actions[:, BURN_IN:-1])
    assert torch.equal(batch.rewards, segment.rewards[:, BURN_IN:-1])


def test_ppo_compares_with_a_policy_that_explored(segment: SegmentBatch) -> None:
    """Here it took random actions only."""
    schedule = ModelFreeSchedule(CollectionSchedule(144, epsilon=1.0), ONE_BATCH.actor_critic)
    system = make_model_free(schedule, **MULTI_EPOCH)
    torch.nn.init.normal_(system.actor_critic.network.actor.weight)
    log_probs = system.phases[0].prepare(segment).log_probs
    torch.testing.assert_close(log_probs, torch.full_like(log_probs, 1 / ACTIONS).log())


@pytest.mark.parametrize("options", [{}, MULTI_EPOCH])
def test_padding_changes_neither_loss_nor_gradient(segment: SegmentBatch, options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randint(0, 256, segment.frames.shape, generator=generator, dtype=torch.uint8)
    scrambled = SegmentBatch(
        torch.where(segment.mask[:, :, None, None, None], segment.frames, noise),
        torch.where(segment.mask, segment.actions, 1),
        torch.where(segment.mask, segment.rewards, 5.0),
        torch.where(segment.mask, segment.terminated, 1),
        segment.mask,
        segment.is_first,
    )
    results: list[list[Tensor]] = []
    for each in (segment, scrambled):
        system = make_model_free(ONE_BATCH, **options)
        for network in (system.actor_critic.network, system.actor_critic.target):
            torch.manual_seed(2)
            for head in (network.actor, network.critic):
                torch.nn.init.normal_(head.weight, std=0.3)
        phase = system.phases[0]
        torch.manual_seed(0)
        loss = phase.loss(phase.prepare(each), None).loss
        loss.backward()
        gradients = [p.grad for p in system.actor_critic.parameters() if p.grad is not None]
        results.append([loss.detach(), *gradients])
    assert any(gradient.abs().max() > 1e-4 for gradient in results[0][1:])
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def test_summary_names_frames_and_parameters() -> None:
    system = make_model_free()
    assert system.describe(-1).keys() == {"parameters"}
    assert system.describe(2)["2 epochs"] == "144 frames collected"


def test_invalid_arguments_raise() -> None:
    key = re.escape("model.init_args.actor_critic.init_args.horizon is 0")
    with pytest.raises(UserError, match=key):
        make_model_free(horizon=0)
    schedule = ModelFreeSchedule(CollectionSchedule(72), PhaseSchedule(steps=1, batch_size=8))
    with pytest.raises(UserError, match=r"schedule\.actor_critic\.batch_size is 8: make it a multiple of 3"):
        check_configuration(make_model_free(schedule, **MULTI_EPOCH), make_catch_data(), 1)
    check_configuration(make_model_free(schedule, **MULTI_EPOCH), make_catch_data(), 1, "test")  # trains on no batch


def test_a_horizon_that_no_episode_is_long_enough_for_gives_one_line(tmp_path: Path) -> None:
    system, data = make_model_free(SCHEDULE, horizon=EPISODE_LENGTH + 1), make_catch_data()
    trainer = make_trainer(tmp_path, max_epochs=1)
    install_loops(trainer)
    try:
        with pytest.raises(UserError, match=r"actor_critic: no episode is long enough .*: use a shorter horizon"):
            trainer.fit(system, data)
    finally:
        data.teardown("fit")
