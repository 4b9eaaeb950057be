"""The LightningDataModule: environments, replay, and the segments of each training phase."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from delta_iris.data.collector import Collector, EpisodeStats, Policy
from delta_iris.data.loader import SegmentLoader, check_shared_memory
from delta_iris.data.recorded_episodes import ReplayEpisode, add_recorded_episodes, find_recorded_episodes
from delta_iris.data.replay import Replay
from delta_iris.data.replay_reader import ReplayReader
from delta_iris.data.sampler import SegmentSampler
from delta_iris.data.segment import SegmentBatch, SegmentIndex, SegmentRequest
from delta_iris.data.segment_dataset import SegmentDataset
from delta_iris.data.streams import EpisodeStreams, StreamSampler
from delta_iris.distributed import gather_objects
from delta_iris.envs.pool import EnvPool
from delta_iris.envs.vector import check_env, make_vector_env
from delta_iris.envs.wrapper_list import GAME_WRAPPERS, TRAINING_WRAPPERS, WrapperEntry, check_wrappers
from delta_iris.errors import SharedUserError, UserError
from delta_iris.scratch import process_scratch
from delta_iris.training.held_out import HeldOutBatches
from delta_iris.training.learner import Learner
from delta_iris.training.phase import Phase, Sampling
from delta_iris.training.phase_batches import PhaseBatches
from delta_iris.training.random_state import get_random_states, set_random_states
from delta_iris.training.run_folder import RunFolder
from delta_iris.training.split import check_split, next_multiple

__all__ = ["ReplayDataModule"]

HELD_OUT_SEED = 1 << 20
"""Distance between the seeds of test environments and of training environments, so that they never meet."""


class ReplayDataModule(L.LightningDataModule):
    """Collects experience into a replay on disk, and serves segments of it to the phases of a `Learner`.

    With several processes, each has its part of the environments and of every batch, and its own replay.

    Args:
        environment: a gymnasium id; `module:Id` imports the module that registers it. Where null, a run learns from
            recorded episodes only, and tests nothing.
        environment_options: keyword arguments of `gymnasium.make`.
        wrappers: wrappers of the environment in training and in tests, the innermost first: names, or mappings of a
            name to arguments, such as `ResizeObservation: {shape: [64, 64]}`.
        training_wrappers: wrappers around these that are left out of tests: ClipReward, EpisodicLife or TimeLimit.
        frame_size: height and width of the environment's RGB frames, in pixels.
        num_actions: number of the environment's actions.
        num_envs: environments that collect, in all processes together.
        num_test_envs: environments that run test episodes, in all processes together.
        num_workers: processes that read segments ahead, for each training process.
        recorded_episodes: a folder of episodes that a new run begins with: a replay, such as `delta-iris data import`
            makes, or files in the format of `read_recorded_episode`.
        val_episodes: test episodes of each validation, by whose mean return the best checkpoint is chosen.
        test_episodes: episodes of `test`.
        val_batches: batches of held-out segments that the world model is measured on, in each process.
        val_batch_size: segments of each of these batches.
        skip_damaged_episodes: leave out episodes that are damaged on the disk, instead of ending with their names.
        step_timeout: seconds that an environment may take for a step or a reset before it is replaced.
        max_env_failures: failures of environments in a row after which the run ends.
        max_test_episode_steps: steps after which a test episode is truncated, because some never end.

    Raises:
        UserError: if a wrapper is unknown, or its arguments do not fit.
        ValueError: if a number is below 1.
    """

    def __init__(
        self,
        environment: str | None = "delta_iris/Crafter-v1",
        environment_options: dict[str, Any] | None = None,
        wrappers: list[WrapperEntry] | None = None,
        training_wrappers: list[WrapperEntry] | None = None,
        frame_size: tuple[int, int] = (64, 64),
        num_actions: int = 17,
        num_envs: int = 16,
        num_test_envs: int = 16,
        num_workers: int = 4,
        recorded_episodes: Path | None = None,
        val_episodes: int = 32,
        test_episodes: int = 256,
        val_batches: int = 6,
        val_batch_size: int = 32,
        skip_damaged_episodes: bool = False,
        step_timeout: float = 60.0,
        max_env_failures: int = 10,
        max_test_episode_steps: int = 27_000,
    ) -> None:
        super().__init__()
        at_least_one = {
            "num_envs": num_envs,
            "num_test_envs": num_test_envs,
            "val_episodes": val_episodes,
            "test_episodes": test_episodes,
            "val_batches": val_batches,
            "val_batch_size": val_batch_size,
        }
        for key, value in at_least_one.items():
            if value < 1:
                raise ValueError(f"{key} is {value}: it must be 1 or more")
        check_wrappers("data.wrappers", wrappers, GAME_WRAPPERS)
        check_wrappers("data.training_wrappers", training_wrappers, TRAINING_WRAPPERS)
        self.environment, self.environment_options = environment, environment_options or {}
        self.wrappers, self.training_wrappers = wrappers or [], training_wrappers or []
        self.frame_size, self.num_actions = frame_size, num_actions
        self.num_envs, self.num_test_envs, self.num_workers = num_envs, num_test_envs, num_workers
        self.recorded_episodes = recorded_episodes
        self.val_episodes, self.test_episodes = val_episodes, test_episodes
        self.val_batches, self.val_batch_size = val_batches, val_batch_size
        self.skip_damaged_episodes = skip_damaged_episodes
        self.step_timeout, self.max_env_failures = step_timeout, max_env_failures
        self.max_test_episode_steps = max_test_episode_steps
        self.replay: Replay
        self.collector: Collector
        self.samplers: dict[str, SegmentSampler | StreamSampler] = {}
        self.recorded: list[Path] | list[ReplayEpisode] = []
        # The state before a collection under way, which a checkpoint holds: a resumed run does it again.
        self._before_collection: dict[str, Any] | None = None
        self._phase_start: tuple[str, dict[str, Any]] | None = None
        self._phase_batches: list[list[SegmentIndex]] = []
        self._restored_random: dict[str, Any] | None = None
        self._held_out: Path | None = None
        self._run_seed: int | None = None
        self._checked_stages: set[str] = set()
        self._loader: SegmentLoader | None = None
        self._envs: list[EnvPool] = []
        self._test_envs: EnvPool | None = None

    # --- setting up ---

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(H, W, 3)."""
        return (*self.frame_size, 3)

    @property
    def learner(self) -> Learner:
        """Whose phases the segments are for."""
        module = self.trainer.lightning_module if self.trainer else None
        assert isinstance(module, Learner), "a ReplayDataModule serves the phases of a Learner"
        return module

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def world_size(self) -> int:
        """Number of training processes."""
        return self.trainer.world_size if self.trainer else 1

    def split_across_ranks(self, key: str, number: int) -> int:
        """This process's part of a number that counts over all processes.

        Args:
            key: of the configuration, for the message.
            number: over all processes.

        Raises:
            UserError: if it cannot be split evenly.
        """
        check_split(key, number, self.world_size)
        return number // self.world_size

    def setup(self, stage: str) -> None:
        """Check the environment against the configuration and, to fit, open the replay and the environments."""
        if self.samplers:
            return
        if stage not in self._checked_stages:
            self.check(stage, self.world_size)
        if stage != "fit":
            return
        assert self.trainer is not None
        folder = RunFolder.of(self.trainer).replay / f"rank_{self._rank}"
        if self.recorded_episodes is not None and not folder.exists():  # a resumed run has them already
            self.recorded = find_recorded_episodes(Path(self.recorded_episodes), self.world_size)
        self.replay = Replay(folder, self.frame_shape, skip_damaged=self.skip_damaged_episodes)
        for index, phase in enumerate(self.learner.phases):
            self.samplers[phase.name] = self._make_sampler(phase.sampling, self.seed + 7919 * index)
            # All processes of this machine share its memory.
            bytes_per_batch = SegmentBatch.num_bytes(self._batch_size(phase), phase.sampling.length, self.frame_shape)
            bytes_per_batch *= self.trainer.num_devices
            check_shared_memory(self.num_workers, bytes_per_batch, phase.schedule.most_steps)
        if self.environment is None:
            return
        number = self.split_across_ranks("data.num_envs", self.num_envs)
        envs = self._make_envs(number, self.wrappers + self.training_wrappers)
        self.collector = Collector(envs, self.replay, self.learner.make_policy().burn_in, self.seed)

    def check(self, stage: str, world_size: int) -> None:
        """Check what can be checked before the processes start: numbers that they share, and the environment.

        Args:
            stage: `fit`, `validate` or `test`.
            world_size: number of processes, which the module itself knows only once the Trainer has begun.

        Raises:
            UserError: names the key, and a value that would do.
        """
        if self.environment is None and stage != "fit":
            raise SharedUserError("data.environment is null, so that there is no game to test an agent in: set it")
        if self.environment is not None:
            self._check_numbers(stage, world_size)
            self._check_environment(stage)
        self._checked_stages.add(stage)

    def _check_numbers(self, stage: str, world_size: int) -> None:
        """Check that processes can share the environments, and environments the test episodes."""
        if stage == "fit":
            check_split("data.num_envs", self.num_envs, world_size)
        check_split("data.num_test_envs", self.num_test_envs, world_size)
        for key, episodes in (("val_episodes", self.val_episodes), ("test_episodes", self.test_episodes)):
            if episodes % self.num_test_envs:
                raise SharedUserError(
                    f"data.{key} is {episodes}, but each of the {self.num_test_envs} data.num_test_envs must run the "
                    "same number (taking the first to finish would favour short episodes): make it a multiple, such "
                    f"as {next_multiple(episodes, self.num_test_envs)}"
                )

    def _check_environment(self, stage: str) -> None:
        """Compare the environment with the configuration."""
        training = [self.wrappers + self.training_wrappers] if stage == "fit" and self.training_wrappers else []
        for wrappers in [self.wrappers, *training]:
            assert self.environment is not None
            check_env(
                self.environment,
                self.environment_options,
                self.frame_size,
                self.num_actions,
                self.step_timeout,
                wrappers,
            )

    def _make_sampler(self, sampling: Sampling, seed: int) -> SegmentSampler | StreamSampler:
        if sampling.across_episodes:
            return StreamSampler(sampling.length, seed)
        return SegmentSampler(
            sampling.length,
            sampling.pad_start,
            sampling.pad_end,
            seed,
            sampling.priority_exponent,
            sampling.recent_frames and -(-sampling.recent_frames // self.world_size),
        )

    @property
    def seed(self) -> int:
        """The value of `seed_everything`, offset for each process: environments and draws must differ."""
        if self._run_seed is None:
            self._run_seed = int(torch.initial_seed() % (1 << 31))
        return self._run_seed + 1_000_003 * self._rank

    def _make_envs(self, number: int, wrappers: list[WrapperEntry]) -> EnvPool:
        assert self.environment is not None
        envs = make_vector_env(
            self.environment,
            self.environment_options,
            number,
            wrappers=wrappers,
            step_timeout=self.step_timeout,
            max_env_failures=self.max_env_failures,
        )
        self._envs.append(envs)
        return envs

    def on_exception(self, exception: BaseException) -> None:
        """End the processes that read segments: after an error, a Trainer without the command calls no `teardown`."""
        self._close_loader()

    def _close_loader(self) -> None:
        if self._loader is not None:
            self._loader.close()
            self._loader = None

    def teardown(self, stage: str) -> None:
        """Close replay and environments."""
        self._close_loader()
        for envs in self._envs:
            envs.close()
        self._envs.clear()
        self._test_envs = None
        if stage == "fit" and self.samplers:
            self.replay.close()
            self.samplers.clear()
        if self._held_out is not None:
            shutil.rmtree(self._held_out, ignore_errors=True)
            self._held_out = None

    # --- collecting ---

    def collect(
        self,
        policy: Policy | None,
        frames: int,
        epsilon: float,
        progress: Callable[[int, list[EpisodeStats]], bool],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[EpisodeStats]:
        """Collect at least `frames` frames over all processes, the same number from each environment.

        What is collected becomes part of the run by `commit`. Until then checkpoints hold the state before it.

        Args:
            policy: chooses the actions; uniformly random ones where None.
            frames: over all processes.
            epsilon: probability of a random action instead of the policy's.
            progress: see `Collector.collect`.
            should_stop: see `Collector.collect`.

        Returns:
            the finished episodes of this process.

        Raises:
            UserError: see `Collector.collect`.
        """
        self._before_collection = self._present_state()
        steps = -(-frames // self.num_envs)
        return self.collector.collect(policy, steps, epsilon=epsilon, progress=progress, should_stop=should_stop)

    def commit(self) -> None:
        """Make what was collected part of the run: checkpoints saved from now on include it."""
        self._before_collection = None

    def on_run_start(self) -> None:
        """Get ready to collect and train; called once everything is set up and, on a resume, restored.

        A new run's replay begins with the recorded episodes, of which each process takes its part.

        Raises:
            UserError: if the replay belongs to another run, or a recorded episode is invalid.
        """
        if self._restored_random is not None:
            set_random_states(self._restored_random)
            self._restored_random = None
            return
        if self.replay.num_episodes:
            raise UserError(
                f"{self.replay.folder} already holds the replay of a run: resume it with --ckpt_path, or choose "
                "another run folder (--version)"
            )
        if self.recorded:
            add_recorded_episodes(self.replay, self.recorded[self._rank :: self.world_size], self.num_actions)
        if self.world_size > 1:
            # Until here all processes drew the same numbers, which equal initial weights need; now each draws its own.
            torch.manual_seed(self.seed)

    def run_test_episodes(
        self,
        policy: Policy,
        episodes: int,
        progress: Callable[[int, list[EpisodeStats]], bool],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[EpisodeStats]:
        """Run test episodes, and keep them as held-out data until the next call.

        Args:
            policy: chooses the actions.
            episodes: number of episodes over all processes.
            progress: see `Collector.collect`.
            should_stop: see `Collector.collect`.

        Returns:
            the episodes of this process.
        """
        if self._test_envs is None:
            number = self.split_across_ranks("data.num_test_envs", self.num_test_envs)
            self._test_envs = self._make_envs(number, self.wrappers)
        trainer = self.trainer
        fitting = trainer is not None and trainer.state.fn == "fit"
        scratch = RunFolder.of(trainer).scratch if trainer is not None and fitting else process_scratch()
        self._held_out = scratch / f"held_out_{self._rank}"
        shutil.rmtree(self._held_out, ignore_errors=True)
        replay = Replay(self._held_out, self.frame_shape, level=1)
        # The same episodes' seeds at every call: two evaluations differ in the agent only.
        collector = Collector(self._test_envs, replay, policy.burn_in, self.seed + HELD_OUT_SEED)
        finished = collector.collect(
            policy,
            episodes_per_env=episodes // self.num_test_envs,
            max_episode_steps=self.max_test_episode_steps,
            progress=progress,
            should_stop=should_stop,
        )
        replay.close()
        return finished

    @property
    def _held_out_folder(self) -> Path:
        assert self._held_out is not None, "test episodes are run before they are read"
        return self._held_out

    def held_out(self) -> ReplayReader:
        """The test episodes that this process ran last."""
        return ReplayReader(self._held_out_folder, self.frame_shape)

    # --- serving segments ---

    def phase_batches(self, phase: Phase, steps: int, *, update_counts: bool, skip: int = 0) -> PhaseBatches:
        """The batches of a training phase in one epoch.

        Args:
            phase: what trains on them.
            steps: number of batches.
            update_counts: whether the draws lower the priority of the episodes in later draws.
            skip: batches that were trained on before an interruption.

        Raises:
            UserError: if no episode is long enough for the phase's segments.
        """
        sampler = self.samplers[phase.name]
        self._phase_start = (phase.name, sampler.state_dict())
        batch_size, length = self._batch_size(phase), phase.sampling.length
        # All draws now: they are cheap, and an interrupted phase can then resume at any batch.
        request: Callable[[list[SegmentIndex]], SegmentRequest]
        batches, problem = [], None
        try:
            if isinstance(sampler, StreamSampler):
                streams = self._streams()
                request = partial(streams.request, length)
                batches = [sampler.draw(streams, batch_size) for _ in range(steps)]
            else:
                lengths = self.replay.lengths
                request = partial(SegmentRequest.within_episodes, lengths, length)
                batches = [sampler.draw(lengths, batch_size, update_counts) for _ in range(steps)]
        except ValueError as error:
            problem = str(error)
        self._agree_on_episodes(phase.name, problem)
        self._phase_batches = batches
        if self._loader is None:
            dataset = SegmentDataset(self.replay.folder, self.frame_shape, self.skip_damaged_episodes)
            self._loader = SegmentLoader(dataset, self.num_workers, pin_memory=torch.cuda.is_available())
        return PhaseBatches(self._loader, request, batches, skip, phase.name)

    def _agree_on_episodes(self, phase: str, problem: str | None) -> None:
        """Raise on all processes if one of them has no episode to draw from: the others would wait for it."""
        problems = {rank: each for rank, each in enumerate(gather_objects(problem)) if each is not None}
        if not problems:
            return
        where = ""
        if self.world_size > 1:
            ranks = ", ".join(map(str, problems))
            where = f" in the replay of rank {ranks}, one of {self.world_size} that share the episodes"
        raise SharedUserError(
            f"{phase}: {next(iter(problems.values()))}{where}: use a shorter horizon, burn_in or segment_length, or "
            f"collect more frames{', or set fewer trainer.devices' if where else ''}"
        )

    def episodes_of(self, batch_idx: int) -> list[int]:
        """The episodes of this process's replay, in order, that a batch of the present phase was drawn from."""
        return sorted({episode for episode, _ in self._phase_batches[batch_idx]})

    def _batch_size(self, phase: Phase) -> int:
        return self.split_across_ranks(f"model.init_args.schedule.{phase.name}.batch_size", phase.schedule.batch_size)

    def _streams(self) -> EpisodeStreams:
        """How the replay's episodes follow one another."""
        lengths = self.replay.lengths  # waits until all of them are on the disk; 0 for those that are left out
        streams = ReplayReader(self.replay.folder, self.frame_shape, self.skip_damaged_episodes).streams()
        return replace(streams, lengths=lengths)

    def end_phase(self) -> None:
        """Mark a phase as complete: checkpoints saved from now on hold the sampler's state after it."""
        self._phase_start = None

    def val_dataloader(self) -> DataLoader[SegmentBatch]:
        """Segments of the test episodes, drawn when the loader is iterated."""
        dataset = HeldOutBatches(
            lambda: self._held_out_folder,
            self.frame_shape,
            self.learner.segment_length,
            self.val_batches,
            self.val_batch_size,
        )
        return DataLoader(dataset, batch_size=None, generator=torch.Generator())

    test_dataloader = val_dataloader

    # --- checkpoints ---

    def state_dict(self) -> dict[str, Any]:
        """What every process continues from: its replay's position, environments, samplers and random states."""
        if not self.samplers:
            return {}
        own = self._present_state() if self._before_collection is None else self._before_collection
        return {"ranks": gather_objects(own)}

    def _present_state(self) -> dict[str, Any]:
        samplers = {name: sampler.state_dict() for name, sampler in self.samplers.items()}
        if self._phase_start is not None:
            name, state = self._phase_start
            samplers[name] = state
        return {
            "replay": self.replay.position(),
            "samplers": samplers,
            "collector": {"begun": False} if self.environment is None else self.collector.state_dict(),
            "random": get_random_states(),
        }

    def check_state(self, state: dict[str, Any], world_size: int) -> None:
        """Refuse what `state_dict` returned for another number of processes or environments.

        Args:
            state: what `state_dict` returned.
            world_size: number of processes, which the module itself knows only once the Trainer has begun.

        Raises:
            UserError: names the key and the number.
        """
        ranks = state["ranks"]
        if len(ranks) != world_size:
            raise SharedUserError(
                f"the checkpoint was made by {len(ranks)} process(es), each with its replay: resume with "
                f"--trainer.devices {len(ranks)} (now {world_size})"
            )
        number = sum(len(rank["collector"].get("generations", ())) for rank in ranks)
        if number and number != self.num_envs:
            raise SharedUserError(
                f"data.num_envs is {self.num_envs}, but the checkpoint holds {number} environments in the middle of "
                f"their episodes: resume with --data.num_envs {number}"
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, the replay included. Outside of fitting, nothing is changed.

        Raises:
            UserError: if the checkpoint was made by another number of processes, or the replay or the environments
                cannot be restored.
        """
        if not self.samplers or "ranks" not in state:
            return
        self.check_state(state, self.world_size)
        own = state["ranks"][self._rank]
        self._before_collection = None
        self.replay.rollback(own["replay"])
        if self.environment is not None:
            self.collector.load_state_dict(own["collector"])
        for name, sampler in self.samplers.items():
            sampler.load_state_dict(own["samplers"][name])
        self._restored_random = own["random"]
