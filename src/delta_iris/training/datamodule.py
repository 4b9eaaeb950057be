"""The LightningDataModule: environments, replay, and the windows of each training phase."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv
from torch.utils.data import DataLoader

from delta_iris.data.collector import Collector, Episode, Policy
from delta_iris.data.loader import WindowDataset, window_loader
from delta_iris.data.recorded_episodes import add_recordings, find_recordings
from delta_iris.data.replay import Replay, ReplayReader
from delta_iris.data.sampler import WindowSampler
from delta_iris.data.segment import Window
from delta_iris.distributed import gather_objects
from delta_iris.envs.vector import check_environment, make_vector_env
from delta_iris.errors import UserError
from delta_iris.training.schedule import PHASES

__all__ = ["ReplayDataModule"]

HELD_OUT_SEED = 1 << 20
"""Distance of the seeds of test environments from those of training ones: they never meet."""

RESUME_SEED_STEP = 1 << 21
"""Distance of the seeds of environments that start anew after a resume, times the frames collected before it."""


class ReplayDataModule(L.LightningDataModule):
    """Collects experience into a replay on disk and serves windows of it.

    With several processes each has its share of the environments and of every batch, and a replay of its own.

    Args:
        environment: a gymnasium id; `module:Id` imports the module that registers it.
        environment_options: keyword arguments for `gymnasium.make`.
        frame_size: height and width of the environment's RGB frames, in pixels.
        num_actions: number of the environment's actions.
        num_envs: environments that collect, in all processes together.
        num_test_envs: environments that play test episodes, in all processes together.
        window: steps of a training window.
        burn_in: real frames before the one that the agent first acts on.
        num_workers: processes that read ahead, for each training process.
        priority: how strongly episodes that were drawn less are preferred; see `WindowSampler`.
        recordings: a folder of episodes that a new run begins with, in the format that `read_recording` reads.
        agent_frames: the agent imagines on from the latest episodes that hold so many frames together, over all
            processes, rather than from all of the replay.
        val_episodes: test episodes played at each validation.
        test_episodes: episodes that `test` plays.
        val_batches: batches of held-out windows for the losses of tokenizer and world model.
        val_batch_size: windows of each.
    """

    def __init__(
        self,
        environment: str = "delta_iris/Crafter-v1",
        environment_options: dict[str, Any] | None = None,
        frame_size: tuple[int, int] = (64, 64),
        num_actions: int = 17,
        num_envs: int = 16,
        num_test_envs: int = 16,
        window: int = 21,
        burn_in: int = 5,
        num_workers: int = 2,
        priority: float = 5.0,
        recordings: Path | None = None,
        agent_frames: int | None = None,
        val_episodes: int = 16,
        test_episodes: int = 256,
        val_batches: int = 6,
        val_batch_size: int = 32,
    ) -> None:
        super().__init__()
        self.environment, self.environment_options = environment, environment_options or {}
        self.frame_size, self.num_actions = frame_size, num_actions
        self.num_envs, self.num_test_envs = num_envs, num_test_envs
        self.window, self.burn_in, self.num_workers = window, burn_in, num_workers
        self.priority, self.agent_frames, self.recordings = priority, agent_frames, recordings
        self.val_episodes, self.test_episodes = val_episodes, test_episodes
        self.val_batches, self.val_batch_size = val_batches, val_batch_size
        self.replay: Replay
        self.collector: Collector
        self._samplers: dict[str, WindowSampler] = {}
        self.recorded_episodes: list[Path] = []
        self._phase_start: tuple[str, dict[str, Any]] | None = None
        self._safe_position: dict[str, int] = {}
        self._restored_random: dict[str, Any] | None = None
        self._held_out: tempfile.TemporaryDirectory[str] | None = None
        self._run_seed: int | None = None
        self._envs: list[AsyncVectorEnv] = []
        self._test_envs: AsyncVectorEnv | None = None

    # --- setting up ---

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(H, W, 3)."""
        return (*self.frame_size, 3)

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def world_size(self) -> int:
        """Number of training processes."""
        return self.trainer.world_size if self.trainer else 1

    def share(self, key: str, number: int) -> int:
        """This process's share of something counted over all of them.

        Raises:
            UserError: where it cannot be shared evenly.
        """
        if number % self.world_size:
            raise UserError(
                f"{key} is {number}, which {self.world_size} processes cannot share evenly: make it a multiple of "
                f"{self.world_size}, or change trainer.devices"
            )
        return number // self.world_size

    def setup(self, stage: str) -> None:
        """Check the environment against the configuration and, to fit, open the replay and start collecting."""
        if self._samplers:
            return
        check_environment(self.environment, self.environment_options, self.frame_size, self.num_actions)
        test_envs = self.share("data.num_test_envs", self.num_test_envs)
        for key, episodes in (("val_episodes", self.val_episodes), ("test_episodes", self.test_episodes)):
            if episodes % self.num_test_envs:
                raise UserError(
                    f"data.{key} is {episodes}, but every one of data.num_test_envs ({self.num_test_envs}) must play "
                    "as many (the first to finish would favour short ones): make it a multiple"
                )
        assert test_envs > 0
        if stage != "fit":
            return
        assert self.trainer is not None
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir) / "replay" / f"rank_{self._rank}"
        if self.recordings is not None and not folder.exists():  # a run that is resumed has them already
            self.recorded_episodes = find_recordings(Path(self.recordings), self.world_size)
        self.replay = Replay(folder, self.frame_shape)
        seed = self.seed
        for index, phase in enumerate(PHASES):
            if phase == "agent":
                latest = self.agent_frames and -(-self.agent_frames // self.world_size)
                length, overhang_end = self.burn_in + 1, False
            else:
                latest, length, overhang_end = None, self.window, True
            own_seed = seed + 7919 * index
            self._samplers[phase] = WindowSampler(length, overhang_end, own_seed, self.priority, latest)
        num_envs = self.share("data.num_envs", self.num_envs)
        envs = self._make_envs(num_envs)
        self.collector = Collector(envs, self.replay, self.burn_in, seed)
        self._safe_position = self.replay.position()

    @property
    def seed(self) -> int:
        """What seed_everything was given, moved apart for each process: environments and draws differ."""
        if self._run_seed is None:
            self._run_seed = int(torch.initial_seed() % (1 << 31))
        return self._run_seed + 1_000_003 * self._rank

    def _make_envs(self, number: int) -> AsyncVectorEnv:
        envs = make_vector_env(self.environment, self.environment_options, number)
        self._envs.append(envs)
        return envs

    def teardown(self, stage: str) -> None:
        """Close replay and environments."""
        for envs in self._envs:
            # A process that died cannot be told to close.
            envs.close(terminate=any(not process.is_alive() for process in envs.processes))
        self._envs.clear()
        self._test_envs = None
        if stage == "fit" and self._samplers:
            self.replay.close()
            self._samplers.clear()
        if self._held_out is not None:
            self._held_out.cleanup()
            self._held_out = None

    # --- collecting ---

    def collect(
        self,
        policy: Policy | None,
        frames: int,
        epsilon: float,
        progress: Callable[[int, list[Episode]], bool],
    ) -> list[Episode]:
        """Collect at least `frames` frames over all processes, as many from each environment."""
        self._safe_position = self.replay.position()
        steps = -(-frames // self.num_envs)
        return self.collector.collect(policy, steps, epsilon=epsilon, progress=progress)

    def begin(self) -> None:
        """Get ready to collect and train; called once everything is set up and, on a resume, restored.

        A new run's replay begins with the recordings; each process takes its share.

        Raises:
            UserError: where the replay is another run's, or a recording is not what it should be.
        """
        if self._restored_random is not None:
            _set_random_states(self._restored_random)
            self._restored_random = None
            return
        if self.replay.num_episodes:
            raise UserError(
                f"{self.replay.folder} already holds a run's replay: resume it with --ckpt_path, or choose another run "
                "folder (trainer.logger.init_args.version)"
            )
        if self.recorded_episodes:
            add_recordings(self.replay, self.recorded_episodes[self._rank :: self.world_size], self.num_actions)
            self.keep_collected()
        if self.world_size > 1:
            # Until here all processes drew the same numbers, as equal initial weights need; from here each its own.
            torch.manual_seed(self.seed)

    def keep_collected(self) -> None:
        """Mark what was collected as part of the run: checkpoints made from now on include it."""
        self._safe_position = self.replay.position()

    def play_test_episodes(
        self, policy: Policy, episodes: int, progress: Callable[[int, list[Episode]], bool]
    ) -> list[Episode]:
        """Play `episodes` test episodes over all processes and keep them as held-out data until the next call.

        Returns:
            the episodes of this process.
        """
        if self._test_envs is None:
            self._test_envs = self._make_envs(self.share("data.num_test_envs", self.num_test_envs))
        if self._held_out is not None:
            self._held_out.cleanup()
        self._held_out = tempfile.TemporaryDirectory(prefix="delta_iris_held_out_")
        replay = Replay(Path(self._held_out.name) / "replay", self.frame_shape, level=1)
        # The same worlds at every call: what differs between two evaluations is the agent.
        collector = Collector(self._test_envs, replay, policy.burn_in, self.seed + HELD_OUT_SEED)
        played = collector.collect(policy, episodes_per_env=episodes // self.num_test_envs, progress=progress)
        replay.close()
        return played

    def held_out(self) -> ReplayReader:
        """The test episodes that this process played last."""
        assert self._held_out is not None, "test episodes are played before they are read"
        return ReplayReader(Path(self._held_out.name) / "replay", self.frame_shape)

    # --- serving windows ---

    def phase_loader(
        self, phase: str, steps: int, batch_size: int, *, count: bool, skip: int = 0
    ) -> DataLoader[Window]:
        """The windows of one training phase.

        Args:
            phase: `"tokenizer"`, `"world_model"` or `"agent"`.
            steps: batches of the phase.
            batch_size: windows of a batch, over all processes.
            count: whether the draws count against the episodes in later ones.
            skip: batches that were trained on before an interruption.
        """
        sampler = self._samplers[phase]
        self._phase_start = (phase, sampler.state_dict())
        share = self.share(f"loop.{phase}.batch_size", batch_size)
        # All draws now: they are cheap, and an interruption can then resume at any batch.
        batches = [sampler.draw(self.replay.lengths, share, count) for _ in range(steps)]
        dataset = WindowDataset(self.replay.folder, self.frame_shape, sampler.length)
        return window_loader(dataset, batches, self.num_workers, skip, pin_memory=torch.cuda.is_available())

    def end_phase(self) -> None:
        """Mark a phase as done: checkpoints made from now on hold the sampler's state after it."""
        self._phase_start = None

    def train_dataloader(self) -> DataLoader[Window]:
        """A tokenizer phase of 100 batches of 32, to train a tokenizer alone under a plain Trainer."""
        return self.phase_loader("tokenizer", 100, 32, count=True)

    def val_dataloader(self) -> DataLoader[Window]:
        """Windows of the held-out episodes, drawn when the loader is iterated."""
        dataset = _HeldOutBatches(self)
        return DataLoader(dataset, batch_size=None, generator=torch.Generator())

    test_dataloader = val_dataloader

    # --- checkpoints ---

    def state_dict(self) -> dict[str, Any]:
        """Of every process: the replay's position, draws counted so far, and all random states."""
        if not self._samplers:
            return {}
        samplers = {phase: sampler.state_dict() for phase, sampler in self._samplers.items()}
        if self._phase_start is not None:
            phase, state = self._phase_start
            samplers[phase] = state
        own = {
            "replay": self._safe_position,
            "samplers": samplers,
            "collector": self.collector.random.bit_generator.state,
            "random": _random_states(),
        }
        return {"ranks": gather_objects(own)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave, the replay included; outside of fitting, nothing is touched."""
        if not self._samplers or "ranks" not in state:
            return
        if len(state["ranks"]) != self.world_size:
            raise UserError(
                f"the checkpoint was made by {len(state['ranks'])} processes, each with its replay: resume with "
                f"--trainer.devices {len(state['ranks'])} (now {self.world_size})"
            )
        own = state["ranks"][self._rank]
        self.replay.rollback(own["replay"])
        self._safe_position = self.replay.position()
        for phase, sampler in self._samplers.items():
            sampler.load_state_dict(own["samplers"][phase])
        self.collector.random.bit_generator.state = own["collector"]
        # Environments start anew after a resume, so they must not begin with the worlds they began the run with.
        self.collector.seed += RESUME_SEED_STEP * (1 + self.replay.num_frames)
        self._restored_random = own["random"]


def _random_states() -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002  (libraries may use it)
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [version, list(internal), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


class _HeldOutBatches(torch.utils.data.Dataset[Window]):
    """`val_batches` batches of windows that lie within held-out episodes; the draws are the same for the same data."""

    def __init__(self, data: ReplayDataModule) -> None:
        self._data = data

    def __len__(self) -> int:
        return self._data.val_batches

    def __getitem__(self, index: int) -> Window:
        if index >= len(self):
            raise IndexError(index)
        data, reader = self._data, self._data.held_out()
        dataset = WindowDataset(reader.folder, data.frame_shape, data.window)
        return dataset.__getitems__(self._draw(reader, np.random.default_rng(index)))

    def _draw(self, reader: ReplayReader, generator: np.random.Generator) -> list[tuple[int, int]]:
        lengths = [reader.length(episode) for episode in range(reader.num_episodes)]
        windows = np.array([max(1, length - self._data.window + 1) for length in lengths])
        last = np.cumsum(windows)
        draws = generator.integers(last[-1], size=self._data.val_batch_size)
        episodes = np.searchsorted(last, draws, side="right")
        starts = draws - (last - windows)[episodes]
        return list(zip(episodes.tolist(), starts.tolist(), strict=True))
