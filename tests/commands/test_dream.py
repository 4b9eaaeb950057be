"""Tests of `delta-iris dream`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import imageio
import numpy as np
import pytest
import torch
from PIL import Image

from delta_iris.commands.dream import dream, read_episode
from delta_iris.commands.main import main
from delta_iris.data.replay import Replay
from delta_iris.data.segment import SegmentBatch, to_images
from delta_iris.errors import UserError
from delta_iris.evaluation.dream import dream_of
from delta_iris.pretrained import load_pretrained
from tests.commands.config_helpers import ROOT
from tests.test_pretrained import edit_about, export_tiny

STEPS = 34  # longer than the model's segments of 21 steps


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dream")
    return export_tiny(folder)


def segment(steps: int) -> SegmentBatch:
    random = np.random.default_rng(1)
    return SegmentBatch.from_numpy(random.integers(0, 256, (steps, 64, 64, 3), np.uint8), random.integers(0, 17, steps))


def test_a_dream_shows_the_same_steps_three_times(agent: Path) -> None:
    loaded = load_pretrained(agent)
    model, context = loaded.world_model, loaded.system.context
    assert model is not None
    longest = loaded.system.segment_length
    whole = segment(STEPS)
    torch.manual_seed(0)
    result = dream_of(model, whole, context, longest)
    real = whole.frames[0].permute(0, 2, 3, 1).numpy()
    assert all(part.shape == real.shape for part in result)
    assert np.array_equal(result.real, real)
    assert np.array_equal(result.imagined[:context], real[:context])
    assert not np.array_equal(result.imagined[context:], real[context:])
    assert np.array_equal(result.reconstructed[0], real[0])
    # Pieces overlap by the context, and the first is what the model makes of its steps alone.
    assert np.array_equal(
        result.reconstructed[1:longest], to_images(model.reconstruct(whole.slice_time(0, longest))[0])
    )
    first = longest - context
    second = to_images(model.reconstruct(whole.slice_time(first, None))[0])
    assert np.array_equal(result.reconstructed[longest:], second[context - 1 :])


def test_imagination_does_not_depend_on_later_frames(agent: Path) -> None:
    loaded = load_pretrained(agent)
    model, context, longest = loaded.world_model, loaded.system.context, loaded.system.segment_length
    assert model is not None
    whole = segment(STEPS)
    later = whole._replace(frames=whole.frames.clone())
    later.frames[:, context:] = 0
    torch.manual_seed(0)
    first = dream_of(model, whole, context, longest)
    torch.manual_seed(0)
    second = dream_of(model, later, context, longest)
    assert np.array_equal(first.imagined, second.imagined)


def test_the_command_writes_an_animation_a_video_and_a_strip(agent: Path, tmp_path: Path) -> None:
    main(["dream", str(agent), "--out", str(tmp_path), "--steps", "25", "--start", "2", "--fps", "5"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dream.gif", "dream.mp4", "dream.png"]
    with Image.open(tmp_path / "dream.gif") as animation:
        size = animation.size
        assert animation.info["duration"] == 200
    video: Any = imageio.get_reader(tmp_path / "dream.mp4")
    with video:
        assert video.get_meta_data()["fps"] == 5
        assert video.get_meta_data()["size"] == size
        assert video.count_frames() == 25
    with Image.open(tmp_path / "dream.png") as strip:
        assert strip.size == (110 + 12 * 66, 28 + 3 * 66)


def test_the_same_seed_gives_the_same_dream(agent: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        dream(agent, tmp_path / name, seed=seed, steps=12)
    content = [(tmp_path / name / "dream.png").read_bytes() for name in "abc"]
    assert content[0] == content[1] != content[2]


@pytest.mark.parametrize("inside", ["", "replay", "replay/rank_0"])
def test_an_episode_of_a_run_is_shown_as_recorded(agent: Path, tmp_path: Path, inside: str) -> None:
    random = np.random.default_rng(2)
    frames = random.integers(0, 256, (14, 64, 64, 3), np.uint8)
    replay = Replay(tmp_path / "run" / "replay" / "rank_0", (64, 64, 3))
    for number in range(2):
        for t, frame in enumerate(frames):
            replay.append(0, frame * np.uint8(number), 3, 0.0, t == 13, False)
    replay.close()
    loaded = load_pretrained(agent)
    shown, actions = read_episode(loaded, tmp_path / "run" / inside, 1, 12)
    assert np.array_equal(shown, frames[:12])
    assert set(actions.tolist()) == {3}
    dream(agent, tmp_path / "out", replay=tmp_path / "run" / inside, episode=1, steps=12)
    with pytest.raises(UserError, match="has no episode 2: it holds 2"):
        dream(agent, tmp_path / "out", replay=tmp_path / "run" / inside, episode=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no exported agent nowhere"),
        (["AGENT", "--steps", "0"], "steps is 0: it must be between 1 and 1000"),
        (["AGENT", "--steps", "6"], "the episode has 6 steps from step 0 on, and imagination starts after 6"),
        (["AGENT", "--fps", "51"], "fps is 51"),
        (["AGENT", "--replay", "nowhere"], "nowhere"),
        (["AGENT", "--steps", "many"], "steps"),
        ([], "agent"),
    ],
)
def test_bad_input_gives_one_line(
    agent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    given = [str(agent) if each == "AGENT" else each for each in arguments]
    with pytest.raises(SystemExit) as raised:
        main(["dream", *given, "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert raised.value.code == 2
    assert message in error
    assert error.startswith("delta-iris: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("trusted", [False, True])
def test_an_agent_cannot_have_a_module_imported(
    agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    folder = tmp_path / "agent"
    shutil.copytree(agent, folder)
    edit_about(folder, lambda about: about["configuration"]["data"].update(environment="strangers_game:Game-v0"))
    (tmp_path / "strangers_game.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit if trusted else UserError) as raised:
        dream(folder, tmp_path / "out", trust="strangers_game" if trusted else None)
    assert ("imported" if trusted else "add --trust strangers_game") in str(raised.value)


def test_the_shipped_agent_dreams_of_its_own_game(tmp_path: Path) -> None:
    dream(ROOT / "pretrained" / "crafter_cnn", tmp_path, steps=8)
    assert (tmp_path / "dream.gif").stat().st_size > 1000
