"""What one visitor plays: the state machine behind the page, without anything of the web."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from delta_iris.errors import UserError
from delta_iris.play.comparison import Comparison, Parting
from delta_iris.play.controls import controls_of, idle_action
from delta_iris.play.games import ImaginedGame, RealGame
from delta_iris.play.recording import Recording
from delta_iris.pretrained import Agent

__all__ = ["MAX_SPEED", "GameView", "Player", "Session", "View", "World"]

World = Literal["real", "imagined", "both"]
Player = Literal["agent", "human"]

MAX_SPEED = 50
"""Steps a second; GIFs hold no more frames a second."""


@dataclass(frozen=True)
class GameView:
    """One of the games that are shown.

    Attributes:
        frame: (H, W, 3) uint8.
        step: steps of the episode, or imagined steps.
        reward: of the last step.
        total: sum of the rewards: the return so far.
        end_probability: predicted for the last step; None in the real game, which predicts nothing.
        ended: `terminated` or `truncated`; None while the game goes on.
        value: the actor-critic's, at this frame.
        tokens: of the last transition, if there are any.
    """

    frame: NDArray[np.uint8]
    step: int
    reward: float
    total: float
    end_probability: float | None
    ended: str | None
    value: float
    tokens: list[int] | None


@dataclass(frozen=True)
class View:
    """Everything that is shown of a session at one moment.

    Attributes:
        world: where the game takes place.
        player: who plays.
        running: whether time passes by itself.
        speed: steps a second.
        seed: of the episode.
        action: taken last; None at an episode's start.
        probabilities: of the actions, by the policy of the player's game.
        games: `real`, `imagined` or both.
        ended: whether an episode is over, so that nothing can be done but to reset.
        inventory: of the real game, where it says so.
        achievements: of the real game, where it says so.
        error: pixel error of the imagined frame; None without a comparison.
        parting: where the imagined game parts from the real one; None as long as they agree.
        recorded: frames of the recording under way; None without one.
    """

    world: World
    player: Player
    running: bool
    speed: int
    seed: int
    action: int | None
    probabilities: list[float]
    games: dict[str, GameView]
    ended: bool
    inventory: dict[str, int]
    achievements: dict[str, int]
    error: float | None
    parting: Parting | None
    recorded: int | None


class Session:
    """A game of the agent or of a person, in the real environment, in the world model, or in both side by side.

    There is always a real game. Imagination starts from its present frame, and then goes on without it; the real game
    waits, and continues when imagination is left. In both worlds, each action is taken in both.

    The games have random numbers of their own: the same seed and the same actions by the same player give the same
    games, whatever else the process computes. Sessions of several threads must be used one at a time.

    Args:
        agent: plays, and imagines if it has a world model.
        seed: of the first episode.

    Attributes:
        controls: names and keys of the actions.
        recording: the finished or running recording; None before the first.

    Raises:
        UserError: if the environment cannot be made, or the agent is of another one.
    """

    def __init__(self, agent: Agent, seed: int = 0) -> None:
        self._agent = agent
        self._real = RealGame(agent)
        self._imagined: ImaginedGame | None = None
        self._comparison: Comparison | None = None
        self.controls = controls_of(self._real.env, agent.configuration["data"]["num_actions"])
        self._idle = idle_action(self.controls)
        self._world: World = "real"
        self._player: Player = "agent"
        self._running, self._speed = True, 10
        self._pressed: int | None = None
        self._held: int | None = None
        self.recording: Recording | None = None
        self._is_recording = False
        try:
            self.reset(seed)
        except BaseException:
            self.close()
            raise

    # --- what the player chooses ---

    def reset(self, seed: int) -> None:
        """Start a new episode, which imagination starts from if it takes place there.

        Args:
            seed: of the environment, and of all that is sampled.
        """
        self._seed = seed
        self._action: int | None = None
        self._random = torch.Generator().manual_seed(seed).get_state()
        with self._own_random_numbers():
            self._real.reset(seed)
            self._imagine()
        self._record()

    def enter(self, world: World) -> None:
        """Change to another world. Where a game is over there, a new episode starts.

        Args:
            world: imagination starts from the present frame of the real game.

        Raises:
            UserError: if the agent has no world model to imagine with.
        """
        if world != "real" and self._agent.world_model is None:
            raise UserError("this agent has no world model: it cannot imagine")
        if world == self._world:
            return
        self.stop_recording()
        self._world = world
        if self._real.ended:
            self.reset(self._seed)
        else:
            with self._own_random_numbers():
                self._imagine()

    def hand_to(self, player: Player) -> None:
        """Let another player go on. A person begins with time standing still.

        Args:
            player: the agent or a person.
        """
        if player != self._player:
            self._player, self._running = player, player == "agent"
            self._pressed = self._held = None

    def run(self, running: bool) -> None:
        """Let time pass by itself, or let it stand still.

        Args:
            running: whether it passes.
        """
        self._running = running

    def set_speed(self, speed: int) -> None:
        """Change how fast time passes.

        Args:
            speed: steps a second, from 1 to `MAX_SPEED`.
        """
        self._speed = min(max(speed, 1), MAX_SPEED)

    def press(self, action: int) -> None:
        """A person's key goes down: the action is taken once, and again as long as the key is held.

        Args:
            action: its number.

        Raises:
            UserError: if there is no such action.
        """
        if not 0 <= action < len(self.controls):
            raise UserError(f"there is no action {action}: there are {len(self.controls)}")
        self._pressed = self._held = action

    def release(self) -> None:
        """The key goes up."""
        self._held = None

    # --- time ---

    @property
    def speed(self) -> int:
        """Steps a second."""
        return self._speed

    @property
    def ended(self) -> bool:
        """Whether a game that is shown is over."""
        return any(game.ended is not None for game in self._games().values())

    def tick(self) -> bool:
        """Take the step that is due, if any; call it `speed` times a second and after each key.

        The agent acts while time passes. A person acts with a key; without one, time passes by the idle action, if the
        environment has one.

        Returns:
            whether a step was taken.
        """
        pressed, self._pressed = self._pressed, None
        if self._player == "agent":
            return self._running and self.step()
        action = self._held if pressed is None else pressed
        if action is None and self._running:
            action = self._idle
        return action is not None and self.step(action)

    def step(self, action: int | None = None) -> bool:
        """Take one step.

        Args:
            action: its number; None to let the agent choose.

        Returns:
            whether a step was taken: there is none after an episode's end.
        """
        if self.ended:
            return False
        with self._own_random_numbers():
            if action is None:
                action = self._deciding().output.sample()
            if self._world != "imagined":
                self._real.step(action)
            if self._imagined is not None:
                self._imagined.step(action)
        if self._comparison is not None and self._imagined is not None:
            self._comparison.add(self._real, self._imagined)
        self._action = action
        self._record()
        return True

    # --- what is seen ---

    def view(self) -> View:
        """Everything that is shown now."""
        info = self._real.info if self._world != "imagined" else {}
        comparison = self._comparison
        return View(
            self._world,
            self._player,
            self._running,
            self._speed,
            self._seed,
            self._action,
            self._deciding().output.probabilities,
            {name: _view(game) for name, game in self._games().items()},
            self.ended,
            _counts(info.get("inventory")),
            _counts(info.get("achievements")),
            comparison.errors[-1] if comparison is not None and comparison.errors else None,
            comparison.parting if comparison is not None else None,
            len(self.recording) if self._is_recording and self.recording is not None else None,
        )

    def record(self) -> None:
        """Start a recording with the present frame, instead of an earlier one."""
        self.recording, self._is_recording = Recording(list(self._games()), self._speed), True
        self._record()

    def stop_recording(self) -> None:
        """End the recording, which is kept."""
        self._is_recording = False

    def close(self) -> None:
        """Close the environment."""
        self._real.close()

    def _deciding(self) -> RealGame | ImaginedGame:
        """The game in which the agent decides: where both go on, the real one."""
        return self._imagined if self._world == "imagined" and self._imagined is not None else self._real

    def _games(self) -> dict[str, RealGame | ImaginedGame]:
        games: dict[str, RealGame | ImaginedGame] = {}
        if self._world != "imagined":
            games["real"] = self._real
        if self._imagined is not None:
            games["imagined"] = self._imagined
        return games

    def _imagine(self) -> None:
        """Start imagination anew in the worlds that have it."""
        self._imagined = ImaginedGame(self._agent, self._real) if self._world != "real" else None
        self._comparison = Comparison() if self._world == "both" else None

    def _record(self) -> None:
        if self._is_recording and self.recording is not None:
            self.recording.add([game.frame for game in self._games().values()])
            self._is_recording = not self.recording.is_full

    @contextlib.contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._random)
            yield
            self._random = torch.get_rng_state()


def _view(game: RealGame | ImaginedGame) -> GameView:
    end_probability = game.end_probability if isinstance(game, ImaginedGame) else None
    value = game.output.value
    return GameView(
        game.frame, game.step_count, game.reward, game.total, end_probability, game.ended, value, game.tokens()
    )


def _counts(values: Any) -> dict[str, int]:
    """The numbers of what may be anything: environments of others have an `info` of their own."""
    if not isinstance(values, dict):
        return {}
    return {str(name): int(value) for name, value in values.items() if isinstance(value, int | np.integer)}
