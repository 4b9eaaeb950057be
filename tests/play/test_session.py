"""Tests of what one visitor plays."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from delta_iris.data.segment import SegmentBatch, to_images
from delta_iris.envs.make import make_env
from delta_iris.errors import UserError
from delta_iris.imagination.rollout import ImaginedEnv
from delta_iris.play.session import Session, World
from delta_iris.pretrained import Agent
from tests.play.agents import export_catch, export_model_free, export_recurrent, load
from tests.test_pretrained import edit_about

WORLDS: tuple[World, ...] = get_args(World)


@pytest.fixture(scope="module")
def agents(catch: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Agent]:
    folder = tmp_path_factory.mktemp("agents")
    others = {"features": export_recurrent, "model-free": export_model_free}
    return {"tokens": load(catch)} | {name: load(export(folder / name)) for name, export in others.items()}


@pytest.fixture
def agent(agents: dict[str, Agent]) -> Agent:
    return agents["tokens"]


def frames(session: Session) -> dict[str, NDArray[np.uint8]]:
    return {name: game.frame for name, game in session.view().games.items()}


def after(session: Session, action: int, game: str) -> NDArray[np.uint8]:
    """The frame of a game after an action."""
    assert session.step(action)
    return frames(session)[game]


def play(session: Session, actions: list[int] | None = None, steps: int = 5) -> list[Any]:
    """What is shown after each step."""
    shown: list[Any] = []
    choices: list[int | None] = [*actions] if actions else [None] * steps
    for action in choices:
        session.step(action)
        view = session.view()
        games = [(game.frame.tobytes(), game.reward, game.ended) for game in view.games.values()]
        shown.append((view.action, view.probabilities, games))
    return shown


# --- the four games ---


@pytest.mark.parametrize("kind", ["tokens", "features", "model-free"])
def test_the_agent_plays_as_it_does_elsewhere(agents: dict[str, Agent], kind: str) -> None:
    agent = agents[kind]
    session = Session(agent, seed=3)
    data = agent.configuration["data"]
    env = make_env(data["environment"], **(data["environment_options"] or {}))
    frame, _ = env.reset(seed=3)
    torch.manual_seed(3)
    agent.reset()
    for _ in range(8):
        assert np.array_equal(frames(session)["real"], frame)
        # The session has random numbers of its own, so that both can draw from the same ones in turn.
        action = agent.act(frame)
        frame = env.step(action)[0]
        session.step()
        assert session.view().action == action
    assert list(frames(session)) == ["real"]


def imagine(agent: Agent, start: list[NDArray[np.uint8]], actions: list[int], seed: int) -> list[NDArray[np.uint8]]:
    """What the world model imagines after some frames; the last of the actions are taken in imagination."""
    assert agent.world_model is not None
    env = ImaginedEnv(agent.world_model)
    torch.manual_seed(seed)
    before = len(start) - 1
    segment = SegmentBatch.from_numpy(np.stack(start), [*actions[:before], 0])
    segment.is_first[:, 0] = len(start) == 1
    env.reset(segment)
    imagined = []
    for action in actions[before:]:
        env.step(torch.tensor([action]))
        imagined.append(to_images(env.render())[0])
    return imagined


def test_a_person_plays_in_imagination_from_the_first_frame(agent: Agent) -> None:
    session = Session(agent)
    session.enter("imagined")
    session.hand_to("human")
    session.reset(4)
    start = frames(session)["imagined"]
    other = Session(agent, seed=4)
    assert np.array_equal(start, frames(other)["real"])
    actions = [0, 1, 2, 2, 1, 0]
    shown = [after(session, action, "imagined") for action in actions]
    assert np.array_equal(shown, imagine(agent, [start], actions, seed=4))
    assert list(frames(session)) == ["imagined"]


def test_imagination_starts_from_the_last_real_frames_that_training_starts_from(agent: Agent) -> None:
    context = agent.system.context
    session = Session(agent, seed=1)
    actions = [t % 3 for t in range(2 * context)]
    real = [frames(session)["real"], *(after(session, action, "real") for action in actions)]
    session.enter("imagined")
    assert np.array_equal(frames(session)["imagined"], real[-1])
    following = [2, 0, 1]
    # Nothing was sampled until now: the person chose, and the environment has its own random numbers.
    shown = [after(session, action, "imagined") for action in following]
    expected = imagine(agent, real[-context:], [*actions[1 - context :], *following], seed=1)
    assert np.array_equal(shown, expected)
    assert not np.array_equal(shown[0], real[-1])


def test_the_real_game_waits_while_the_agent_dreams(agent: Agent) -> None:
    session = Session(agent)
    play(session, [0, 0, 2])
    before = frames(session)["real"]
    session.enter("imagined")
    play(session, steps=4)
    assert session.view().games["imagined"].step == 4
    session.enter("real")
    assert np.array_equal(frames(session)["real"], before)
    play(session, [2])
    other = Session(agent)
    play(other, [0, 0, 2, 2])
    assert np.array_equal(frames(session)["real"], frames(other)["real"])


@pytest.mark.parametrize("kind", ["tokens", "features"])
def test_both_games_start_alike_and_take_the_same_actions(agents: dict[str, Agent], kind: str) -> None:
    agent, actions = agents[kind], [2, 2, 0, 1]
    session, alone = Session(agent), Session(agent)
    play(session, [1])
    session.enter("both")
    start = frames(session)
    assert np.array_equal(start["real"], start["imagined"])
    play(session, actions)
    play(alone, [1, *actions])
    shown = session.view()
    assert np.array_equal(shown.games["real"].frame, frames(alone)["real"])
    assert not np.array_equal(shown.games["real"].frame, shown.games["imagined"].frame)
    assert (shown.games["real"].step, shown.games["imagined"].step) == (5, 4)
    difference = shown.games["real"].frame.astype(float) - shown.games["imagined"].frame
    assert shown.error == pytest.approx(np.abs(difference).mean() / 255, rel=1e-5)


def test_a_dream_goes_on_beyond_the_models_window(agent: Agent) -> None:
    session = Session(agent)
    session.enter("imagined")
    for step in range(3 * agent.system.segment_length):
        assert session.step()
        game = session.view().games["imagined"]
        assert game.step == step + 1
        assert np.isfinite([game.reward, game.value, game.end_probability or 0]).all()


# --- what does not depend on anything else ---


@pytest.mark.parametrize("kind", ["tokens", "features"])
@pytest.mark.parametrize("world", WORLDS)
def test_the_same_seed_gives_the_same_game(agents: dict[str, Agent], kind: str, world: World) -> None:
    agent = agents[kind]
    first, second = Session(agent, seed=5), Session(agent, seed=6)
    first.enter(world)
    second.enter(world)
    expected = play(first)
    second.step()
    first.reset(5)
    second.reset(5)
    for step in expected:  # in turn, with random numbers drawn in between
        torch.rand(3)
        assert play(second, steps=1) == [step]
        assert play(first, steps=1) == [step]
    torch.manual_seed(0)
    outside = torch.rand(1)
    torch.manual_seed(0)
    first.step()
    assert torch.equal(torch.rand(1), outside)
    first.reset(6)
    assert play(first) != expected


def test_tokens_are_those_of_the_transition_that_is_shown(agent: Agent) -> None:
    system: Any = agent.system
    session = Session(agent)
    assert session.view().games["real"].tokens is None
    before = frames(session)["real"]
    session.step(2)
    view = session.view().games["real"]
    pair = SegmentBatch.from_numpy(np.stack([before, view.frame]), [2, 0])
    with torch.no_grad():
        assert view.tokens == system.tokenizer.encode(pair.frames, pair.actions, pair.mask)[0, 0].tolist()
    session.enter("imagined")
    session.step()
    tokens = session.view().games["imagined"].tokens
    assert tokens is not None
    assert len(tokens) == 4


# --- time and keys ---


def test_time_passes_for_the_agent_until_it_is_stopped(agent: Agent) -> None:
    session = Session(agent)
    assert session.tick()
    session.run(False)
    assert not session.tick()
    assert session.step()
    session.run(True)
    assert session.tick()
    assert session.view().games["real"].step == 3


def test_time_stands_still_for_a_person_until_a_key_is_pressed(agent: Agent) -> None:
    session = Session(agent)
    session.hand_to("human")
    assert not session.tick()
    session.press(2)
    session.release()
    # A key that was released before its turn is taken all the same, once.
    assert session.tick()
    assert session.view().action == 2
    assert not session.tick()
    session.press(0)
    assert [session.tick() for _ in range(3)] == [True] * 3
    assert session.view().action == 0
    session.release()
    assert not session.tick()
    session.press(0)
    session.press(2)
    assert session.tick()
    assert session.view().action == 2
    with pytest.raises(UserError, match="there is no action 3: there are 3"):
        session.press(3)


def test_time_that_runs_for_a_person_passes_with_the_idle_action(agent: Agent) -> None:
    session = Session(agent)
    session.hand_to("human")
    session.run(True)
    assert session.tick()
    assert session.view().action == 1
    session.hand_to("agent")
    assert session.view().running
    session.hand_to("human")
    assert not session.view().running


def test_nothing_happens_after_an_episode_until_a_new_one_starts(tmp_path: Path) -> None:
    agent = load(export_catch(tmp_path, "--data.environment_options={cells: 8, pixels: 8, blocks: 1}"))
    session = Session(agent)
    while session.step():
        pass
    view = session.view()
    assert view.ended
    assert (view.games["real"].step, view.games["real"].ended) == (7, "terminated")
    assert not session.tick()
    session.enter("both")
    view = session.view()
    assert not view.ended
    assert [game.step for game in view.games.values()] == [0, 0]
    while session.step():
        pass
    # The model, whose dreams do not end, was wrong before.
    assert session.view().games["imagined"].ended is None
    session.reset(1)
    assert session.step()


# --- recordings ---


def test_a_recording_holds_what_was_shown(agent: Agent) -> None:
    session = Session(agent)
    assert session.recording is None
    session.step()
    session.record()
    play(session, steps=4)
    assert session.view().recorded == 5
    session.stop_recording()
    session.step()
    assert session.recording is not None
    assert (len(session.recording), session.recording.labels, session.view().recorded) == (5, ["real"], None)
    session.record()
    session.enter("both")  # which has other frames
    session.step()
    assert (len(session.recording), session.recording.labels) == (1, ["real"])
    session.record()
    session.reset(2)
    assert (len(session.recording), session.recording.labels) == (2, ["real", "imagined"])


# --- what is refused ---


def test_an_agent_without_a_world_model_only_plays(agents: dict[str, Agent]) -> None:
    session = Session(agents["model-free"])
    play(session)
    assert session.view().games["real"].tokens is None
    for world in ("imagined", "both"):
        with pytest.raises(UserError, match="no world model"):
            session.enter(world)
    assert session.step()
    session.close()


def test_an_agent_of_another_environment_is_refused(tmp_path: Path) -> None:
    folder = export_catch(tmp_path)
    edit_about(folder, lambda about: about["configuration"]["data"].update(environment_options={"cells": 4}))
    with pytest.raises(UserError, match=r"the agent knows frames of 64×64 and 3 actions, but .* shape \(16, 16, 3\)"):
        Session(load(folder))


def test_crafter_shows_inventory_and_achievements_of_the_real_game(tmp_path: Path) -> None:
    session = Session(load(export_catch(tmp_path, "--data.environment=delta_iris/Crafter-v1", "--data.num_actions=17")))
    view = session.view()
    assert view.inventory["health"] == 9
    assert len(view.achievements) == 22
    assert not any(view.achievements.values())
    session.enter("imagined")
    assert (session.view().inventory, session.view().achievements) == ({}, {})
