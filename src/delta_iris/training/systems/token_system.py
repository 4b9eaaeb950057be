"""What the systems with a token world model have in common: tokenizer, token dynamics and actor-critic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from delta_iris.actor_critic.policy import FramePolicy
from delta_iris.data.collector import Policy
from delta_iris.errors import UserError
from delta_iris.training.learner import Learner
from delta_iris.training.phase import Phase, Sampling
from delta_iris.training.schedule import PhaseSchedule, Schedule
from delta_iris.training.systems.actor_critic_phase import ActorCriticFactory
from delta_iris.training.systems.building import argument_of, count_parameters, format_millions
from delta_iris.training.systems.imagination_phase import ImaginationPhase
from delta_iris.training.systems.real_segment_phase import RealSegmentPhase
from delta_iris.training.systems.token_phases import DynamicsPhase, TokenizerPhase
from delta_iris.world_models.tokens.base_dynamics import BaseDynamics
from delta_iris.world_models.tokens.captured_world_model import CapturedTokenWorldModel
from delta_iris.world_models.tokens.token_world_model import TokenWorldModel
from delta_iris.world_models.tokens.tokenizer import Tokenizer

W = TypeVar("W", bound=TokenWorldModel)

__all__ = ["DynamicsFactory", "TokenSchedule", "TokenSystem", "TokenizerFactory"]

TokenizerFactory = Callable[[tuple[int, int], int, int], Tokenizer]
"""Makes a tokenizer from frame size, number of actions and longest segment."""

DynamicsFactory = Callable[[tuple[int, int], int, int, int, int], BaseDynamics]
"""Makes dynamics from frame size, number of actions, longest segment, tokens per frame and codebook size."""


@dataclass(frozen=True)
class TokenSchedule(Schedule):
    """An epoch: collect, then train tokenizer, dynamics and actor-critic, in that order (paper §2).

    Args:
        tokenizer: how much the tokenizer trains.
        dynamics: how much the dynamics train.
        actor_critic: how much the actor-critic trains in imagination.
        real_segments: how much the actor-critic trains on real segments, each time before it trains in imagination: on
            the latest episodes that together hold `collection.frames` frames. With 0 steps, the default and the paper's
            method, it trains in imagination only.
    """

    tokenizer: PhaseSchedule = field(default_factory=PhaseSchedule)
    dynamics: PhaseSchedule = field(default_factory=PhaseSchedule)
    actor_critic: PhaseSchedule = field(default_factory=PhaseSchedule)
    real_segments: PhaseSchedule = field(default_factory=lambda: PhaseSchedule(steps=0))


class TokenSystem(Learner):
    """An agent that imagines tokens; subclasses say of what.

    Args:
        frame_size: height and width of a frame, in pixels; taken from `data.frame_size`.
        num_actions: number of actions A; taken from `data.num_actions`.
        tokenizer: the tokenizer.
        dynamics: the token dynamics.
        actor_critic: the actor-critic.
        segment_length: steps of the segments that tokenizer and dynamics train on.
        priority_exponent: how strongly episodes that were drawn less often are preferred: 0 for all alike, 5 for the
            authors'.
        imagination_recent_frames: start imagination from the latest episodes that together hold this many frames; from
            the whole replay where null.
        schedule: how much is collected and trained in an epoch.
        compile: whether to compile training steps and launch them as CUDA graphs on a GPU; false to debug.
        max_skipped_steps: number of optimizer steps in a row that may be skipped because a loss or gradient is NaN or
            infinite; more of them end the run.

    Raises:
        UserError: if arguments do not fit together; it names the configuration key.
    """

    context_frames: ClassVar[int]
    """First frames of a segment that have no tokens: 1 for tokens of transitions, 0 for tokens of frames."""
    captures_steps: ClassVar[bool] = False
    """Whether each imagined step is a CUDA graph, instead of each rollout: for many tokens a frame."""

    def __init__(
        self,
        frame_size: tuple[int, int],
        num_actions: int,
        tokenizer: TokenizerFactory,
        dynamics: DynamicsFactory,
        actor_critic: ActorCriticFactory,
        segment_length: int = 21,
        priority_exponent: float = 5.0,
        imagination_recent_frames: int | None = None,
        schedule: TokenSchedule = TokenSchedule(),
        compile: bool = True,
        max_skipped_steps: int = 20,
    ) -> None:
        super().__init__(schedule, compile, max_skipped_steps)
        if priority_exponent < 0:
            raise UserError(f"model.init_args.priority_exponent is {priority_exponent}: it must be 0 or more")
        if imagination_recent_frames is not None and imagination_recent_frames < 1:
            raise UserError(
                f"model.init_args.imagination_recent_frames is {imagination_recent_frames}: it must be at least 1, or "
                "null for the whole replay"
            )
        with argument_of("model.init_args.tokenizer.init_args"):
            self.tokenizer = tokenizer(frame_size, num_actions, segment_length)
        tokens, codes = self.tokenizer.tokens_per_frame, self.tokenizer.codebook_size
        with argument_of("model.init_args.dynamics.init_args"):
            self.dynamics = dynamics(frame_size, num_actions, segment_length, tokens, codes)
        for name, module in (("tokenizer", self.tokenizer), ("dynamics", self.dynamics)):
            if module.context_frames != self.context_frames:
                kinds = ("frames", "transitions")
                raise UserError(
                    f"model.init_args.{name} is {type(module).__name__}, for tokens of {kinds[module.context_frames]}: "
                    f"{type(self).__name__} needs one for tokens of {kinds[self.context_frames]}"
                )
        with argument_of("model.init_args.actor_critic.init_args"):
            self.actor_critic = actor_critic((3, *frame_size), num_actions)
        burn_in, horizon = self.actor_critic.burn_in, self.actor_critic.horizon
        if segment_length < burn_in + 1 + horizon:
            raise UserError(
                f"model.init_args.segment_length {segment_length} is too short for burn_in {burn_in} + 1 + horizon "
                f"{horizon} of model.init_args.actor_critic: set it to {burn_in + 1 + horizon}, or a shorter horizon"
            )
        self.frame_size, self.segment_length, self.context = frame_size, segment_length, burn_in + 1

        self.world_model = self._make_world_model(TokenWorldModel)(self.tokenizer, self.dynamics)
        padding = segment_length - 1
        segments = Sampling(segment_length, padding, padding, priority_exponent)
        starts = Sampling(self.context, burn_in, 0, priority_exponent, imagination_recent_frames)
        self.phases = [
            TokenizerPhase(self.tokenizer, self.tokenizer_sampling(segments), schedule.tokenizer),
            DynamicsPhase(self.dynamics, self.tokenizer, segments, schedule.dynamics),
            *self._real_segment_phases(schedule),
            ImaginationPhase(
                self.actor_critic,
                [self.tokenizer, self.dynamics],
                self._make_world_model(TokenWorldModel),
                starts,
                schedule.actor_critic,
                self._make_world_model(CapturedTokenWorldModel) if self.captures_steps else None,
            ),
        ]

    def tokenizer_sampling(self, segments: Sampling) -> Sampling:
        """Which segments the tokenizer trains on.

        Args:
            segments: those that the dynamics train on.
        """
        return segments

    def perceive(self, frames: Tensor) -> Tensor:
        """What the actor-critic sees of real frames: by default the frames themselves.

        Args:
            frames: (B, T, 3, H, W) floats in [0, 1].

        Returns:
            (B, T, 3, H, W) floats in [0, 1].
        """
        return frames

    def _real_segment_phases(self, schedule: TokenSchedule) -> list[Phase]:
        """The phase on real segments; none where it is off, because each phase has an optimizer in the checkpoints."""
        if not schedule.real_segments.most_steps:
            return []
        frames = schedule.collection.frames
        if frames < 1:
            raise UserError(
                "model.init_args.schedule.real_segments trains on the frames that an epoch collects, but "
                "model.init_args.schedule.collection.frames is 0: set it, or real_segments.steps to 0"
            )
        return [
            RealSegmentPhase(
                self.actor_critic,
                frames,
                schedule.collection.epsilon,
                schedule.real_segments,
                self.perceive,
                "real_segments",
                "real segments",
            )
        ]

    def _make_world_model(self, kind: type[W]) -> Callable[..., W]:
        frame_size, context = self.frame_size, self.context

        def make(tokenizer: Tokenizer, dynamics: BaseDynamics) -> W:
            return kind(tokenizer, dynamics, frame_size, context)

        return make

    def make_policy(self, graph_pool: Any = None) -> Policy:
        """See `Learner.make_policy`."""
        return FramePolicy(self.actor_critic, graph_pool, self.perceive)

    def imagined_until(self, epochs: int) -> int:
        """Frames imagined in a number of epochs."""
        schedule = self.schedule
        assert isinstance(schedule, TokenSchedule)
        return schedule.actor_critic.segments_until(epochs) * self.actor_critic.horizon

    def describe(self, epochs: int) -> dict[str, str]:
        """See `Learner.describe`: parameter counts, and the ratio of imagined to collected frames."""
        total = count_parameters(self.tokenizer) + count_parameters(self.dynamics)
        lines = {
            "parameters": f"tokenizer {format_millions(self.tokenizer)} + dynamics {format_millions(self.dynamics)} = "
            f"world model {total / 1e6:.2f}M; actor-critic {format_millions(self.actor_critic)} (with target network)"
        }
        if epochs > 0:
            frames, imagined = self.schedule.collection.frames_until(epochs), self.imagined_until(epochs)
            ratio = f": imagined-to-collected ratio {imagined / frames:.1f}" if frames else ""
            lines[f"{epochs} epochs"] = f"{frames:,} frames collected, {imagined:,} imagined{ratio}"
        return lines
