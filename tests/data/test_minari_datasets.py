"""Tests of importing and exporting Minari datasets."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from delta_iris.data import minari_datasets
from delta_iris.data.minari_datasets import DatasetSize, export_minari, import_minari
from delta_iris.data.replay import Replay
from delta_iris.data.replay_reader import ReplayReader
from delta_iris.errors import UserError
from tests.data.replay_helpers import SHAPE, random_step

h5py = pytest.importorskip("h5py")
minari = pytest.importorskip("minari")

ACTIONS = 17
RGB = gym.spaces.Box(0, 255, (40, 36, 3), np.uint8)


@pytest.fixture(autouse=True)
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where Minari keeps its datasets, for this test only."""
    folder = tmp_path_factory.mktemp("minari")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        yield folder


ENDS = {"terminated": (True, False), "truncated": (False, True), "both": (True, True)}


def write_replay(folder: Path, episodes: list[tuple[int, str, bool]]) -> Path:
    """A replay of episodes of so many steps, that end so, and whose final frame is known or not."""
    replay, generator = Replay(folder, SHAPE), np.random.default_rng(0)
    for length, end, final_known in episodes:
        for t in range(1, length + 1):
            last = t == length and end in ENDS
            final = random_step(generator)[0] if last and final_known else None
            replay.append(0, *random_step(generator), *(ENDS[end] if last else (False, False)), final)
        if end == "cut":
            replay.truncate(0, random_step(generator)[0] if final_known else None)
    replay.close()
    return folder


def read_replay(folder: Path, shape: tuple[int, int, int] = SHAPE) -> list[tuple[Any, ...]]:
    """All episodes: their steps, and their final frame or None."""
    reader = ReplayReader(folder, shape)
    numbers = range(reader.num_episodes)
    return [(*reader.read(i, 0, reader.length(i)), reader.final_frame(i)) for i in numbers]


def assert_equal(a: Any, b: Any) -> None:
    """Equal arrays of equal type, or both None."""
    if a is None or b is None:
        assert a is b
        return
    assert a.dtype == b.dtype
    assert np.array_equal(a, b)


episodes = st.lists(
    st.tuples(
        st.sampled_from([1, 2, 15, 16, 17, 40]),
        st.sampled_from(["terminated", "truncated", "both", "cut"]),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=12, deadline=None)
@given(episodes, st.booleans())
def test_a_round_trip_is_the_identity(written: list[tuple[int, str, bool]], by_path: bool) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(Path(name) / "minari"))
        # Blocks end within episodes.
        patch.setattr(minari_datasets, "BLOCK_STEPS", 16)
        source, target = write_replay(Path(name) / "source", written), Path(name) / "target"
        size = export_minari([source], "some/where-v0", ACTIONS)
        dataset = minari.load_dataset("some/where-v0")
        before = read_replay(source)
        steps = sum(length for length, _, _ in written)
        assert size == DatasetSize(len(written), steps, SHAPE[:2], ACTIONS)
        assert (dataset.total_episodes, dataset.total_steps) == (len(written), steps)
        assert dataset.observation_space == gym.spaces.Box(0, 255, SHAPE, np.uint8)
        assert dataset.action_space == gym.spaces.Discrete(ACTIONS)
        for episode, (frames, actions, rewards, terminated, truncated, final) in zip(dataset, before, strict=True):
            assert_equal(episode.observations[:-1], frames)
            assert_equal(episode.observations[-1], frames[-1] if final is None else final)
            assert_equal(episode.actions, actions)
            assert_equal(episode.rewards, rewards)
            assert_equal(episode.terminations, terminated)
            assert_equal(episode.truncations, truncated)
        found = Path(name) / "minari" / "some" / "where-v0"
        assert import_minari(str(found) if by_path else "some/where-v0", target) == size
        for after, expected in zip(read_replay(target), before, strict=True):
            for one, other in zip(after, expected, strict=True):
                assert_equal(one, other)


def test_frames_that_minari_would_make_jpegs_of_are_exported_as_they_are(tmp_path: Path) -> None:
    replay, generator = Replay(tmp_path / "replay", RGB.shape), np.random.default_rng(0)  # type: ignore[arg-type]
    frames = generator.integers(0, 256, (3, *RGB.shape), dtype=np.uint8)
    replay.append(0, frames[0], 0, 0.0, False, False)
    replay.append(0, frames[1], 1, 1.0, True, False, frames[2])
    replay.close()
    export_minari([tmp_path / "replay"], "noise-v0", 2)
    assert_equal(minari.load_dataset("noise-v0")[0].observations, frames)


def test_an_unfinished_episode_is_exported_as_one_that_was_truncated(tmp_path: Path) -> None:
    write_replay(tmp_path / "replay", [(3, "open", False)])
    export_minari([tmp_path / "replay"], "open-v0", ACTIONS)
    (episode,) = minari.load_dataset("open-v0")
    assert not episode.terminations.any()
    assert episode.truncations.tolist() == [False, False, True]


def test_the_replays_of_several_processes_become_one_dataset(tmp_path: Path) -> None:
    ranks = [write_replay(tmp_path / f"rank_{i}", [(3 + i, "terminated", True)] * 2) for i in range(2)]
    assert export_minari(ranks, "two-v0", ACTIONS).episodes == 4
    assert [len(episode) for episode in minari.load_dataset("two-v0")] == [3, 3, 4, 4]


def make_dataset(
    name: str,
    space: gym.spaces.Space[Any],
    observations: list[Any],
    *,
    actions: Any = None,
    rewards: Any = None,
    **options: Any,
) -> Any:
    """A dataset that Minari itself has made of episodes of two steps."""
    buffers = [
        minari.data_collector.EpisodeBuffer(
            observations=each,
            actions=np.array([0, 2]) if actions is None else actions,
            rewards=np.array([0.5, -1.0]) if rewards is None else rewards,
            terminations=np.array([False, True]),
            truncations=np.array([False, False]),
        )
        for each in observations
    ]
    action_space = options.pop("action_space", gym.spaces.Discrete(3))
    return minari.create_dataset_from_buffers(
        name, buffers, observation_space=space, action_space=action_space, **options
    )


pytestmark = pytest.mark.filterwarnings("ignore:.*is set to None:UserWarning", "ignore:env_spec is None:UserWarning")


def random_frames(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)


def test_what_minari_has_written_is_imported_step_by_step(tmp_path: Path) -> None:
    frames = random_frames(*RGB.shape)
    make_dataset("raw-v0", RGB, [frames, frames], jpeg_encoding=False)
    assert import_minari("raw-v0", tmp_path / "replay") == DatasetSize(2, 4, (40, 36), 3)
    for steps in read_replay(tmp_path / "replay", RGB.shape):  # type: ignore[arg-type]
        for found, expected in zip(
            steps, (frames[:2], [0, 2], [0.5, -1.0], [False, True], [False, False], frames[2]), strict=True
        ):
            assert np.array_equal(found, expected)


@pytest.mark.parametrize("shape", [(40, 36, 3), (40, 36)])
def test_jpegs_are_imported_as_minari_decodes_them(tmp_path: Path, shape: tuple[int, ...]) -> None:
    smooth = np.broadcast_to(np.arange(36, dtype=np.uint8)[None, None, :, None] * 7, (3, 40, 36, 3))
    frames = np.ascontiguousarray(smooth[..., 0] if len(shape) == 2 else smooth)
    make_dataset("jpeg-v0", gym.spaces.Box(0, 255, shape, np.uint8), [frames])
    expected = minari.load_dataset("jpeg-v0")[0].observations
    assert expected.shape == (3, *shape)
    import_minari("jpeg-v0", tmp_path / "replay")
    ((found, *_, final),) = read_replay(tmp_path / "replay", (40, 36, 3))
    rgb = expected if len(shape) == 3 else np.repeat(expected[..., None], 3, -1)
    assert np.array_equal(found, rgb[:2])
    assert np.array_equal(final, rgb[2])


@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 7, 1), (5, 7)])
def test_the_frames_of_dict_observations_are_named_by_their_key(tmp_path: Path, shape: tuple[int, ...]) -> None:
    space = gym.spaces.Dict({"image": gym.spaces.Box(0, 255, shape, np.uint8), "direction": gym.spaces.Discrete(4)})
    frames = random_frames(*shape)
    make_dataset("dict-v0", space, [{"image": frames, "direction": np.arange(3)}])
    with pytest.raises(UserError, match=r"dict observations: name the frames with --key, one of .*image"):
        import_minari("dict-v0", tmp_path / "replay")
    import_minari("dict-v0", tmp_path / "replay", "image")
    ((found, *_, final),) = read_replay(tmp_path / "replay", (5, 7, 3))
    rgb = np.broadcast_to(frames if len(shape) == 3 else frames[..., None], (3, 5, 7, 3))
    assert np.array_equal(np.stack([*found, final]), rgb)


def test_an_episode_without_an_end_was_cut_off(tmp_path: Path, root: Path) -> None:
    make_dataset("cut-v0", RGB, [random_frames(*RGB.shape)], jpeg_encoding=False)
    with h5py.File(root / "cut-v0" / "data" / "main_data.hdf5", "a") as file:
        file["episode_0/terminations"][-1] = False
    import_minari("cut-v0", tmp_path / "replay")
    ((*_, terminated, truncated, final),) = read_replay(tmp_path / "replay", RGB.shape)  # type: ignore[arg-type]
    assert (terminated.tolist(), truncated.tolist()) == ([False, False], [False, True])
    assert final is not None


VECTOR = gym.spaces.Box(-1, 1, (3,), np.float32)


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        (RGB, {"action_space": gym.spaces.Box(-1, 1, (1,)), "actions": np.zeros((2, 1), np.float32)}, "only discrete"),
        (RGB, {"action_space": gym.spaces.Discrete(3, start=1)}, "only discrete actions from 0"),
        (VECTOR, {}, "frames .* are needed: choose another dataset"),
        (gym.spaces.Box(0, 255, (3, 40, 36), np.uint8), {}, "frames .* are needed"),
        (RGB, {"actions": np.array([0, 3])}, "episode_0 has actions outside of 0 to 2"),
        (RGB, {"rewards": np.array([0.0, np.nan])}, "episode_0 has rewards that are not finite"),
        (RGB, {"rewards": np.array([0.0, 1e300])}, "episode_0 has rewards that are not finite"),
    ],
)
def test_what_cannot_be_learned_is_refused_in_one_line(
    tmp_path: Path, space: Any, options: dict[str, Any], message: str
) -> None:
    make_dataset("bad-v0", space, [np.zeros((3, *space.shape), space.dtype)], **options)
    with pytest.raises(UserError, match=message) as caught, np.errstate(over="ignore"):
        import_minari("bad-v0", tmp_path / "replay")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no Minari dataset nowhere-v0: .*`minari download nowhere-v0`"):
        import_minari("nowhere-v0", tmp_path / "replay")
    with pytest.raises(UserError, match="there is no Minari dataset"):
        import_minari(str(tmp_path), tmp_path / "replay")
    with pytest.raises(UserError, match="holds no replay"):
        export_minari([tmp_path / "none"], "new-v0", 3)


@pytest.mark.parametrize("dataset_id", ["catch", "catch/x", "../x-v0", "", "a b-v0"])
def test_a_malformed_id_is_refused(tmp_path: Path, root: Path, dataset_id: str) -> None:
    write_replay(tmp_path / "replay", [(2, "terminated", True)])
    with pytest.raises(UserError, match="is no id of a Minari dataset"):
        export_minari([tmp_path / "replay"], dataset_id, ACTIONS)
    assert list(root.iterdir()) == []


def test_what_exists_is_not_overwritten(tmp_path: Path) -> None:
    replay = write_replay(tmp_path / "replay", [(2, "terminated", True)])
    export_minari([replay], "new-v0", ACTIONS)
    with pytest.raises(UserError, match="new-v0 exists already: name a new one"):
        export_minari([replay], "new-v0", ACTIONS)
    with pytest.raises(UserError, match="replay exists already: name a new one"):
        import_minari("new-v0", replay)
    assert len(minari.load_dataset("new-v0")) == 1


def test_too_few_actions_leave_no_dataset(tmp_path: Path, root: Path) -> None:
    write_replay(tmp_path / "replay", [(20, "terminated", True)])
    for name in ("new-v0", "some/new-v0"):
        with pytest.raises(UserError, match=r"has the action \d+, but there are 2: give --num_actions"):
            export_minari([tmp_path / "replay"], name, 2)
    assert list(root.iterdir()) == []


def links(file: Any, elsewhere: Path) -> None:
    del file["episode_0/rewards"]
    file["episode_0/rewards"] = h5py.ExternalLink(str(elsewhere), "/rewards")


def external(file: Any, elsewhere: Path) -> None:
    del file["episode_0/rewards"]
    file["episode_0"].create_dataset("rewards", (2,), np.float64, external=[(str(elsewhere), 0, 16)])


def linked_episode(file: Any, elsewhere: Path) -> None:
    del file["episode_0"]
    file["episode_0"] = h5py.ExternalLink(str(elsewhere), "/episode_0")


def virtual(file: Any, elsewhere: Path) -> None:
    layout = h5py.VirtualLayout((2,), np.float64)
    layout[:] = h5py.VirtualSource(str(elsewhere), "rewards", (2,))
    del file["episode_0/rewards"]
    file["episode_0"].create_virtual_dataset("rewards", layout)


def missing(file: Any, elsewhere: Path) -> None:
    del file["episode_0/actions"]


def shorter(file: Any, elsewhere: Path) -> None:
    file["episode_0/observations"].resize(2, axis=0)


def goes_on(file: Any, elsewhere: Path) -> None:
    file["episode_0/terminations"][0] = True


def endless(file: Any, elsewhere: Path) -> None:
    """As many steps as no memory holds, in a file of some kilobytes."""
    for name, extra in (("observations", 1), ("actions", 0), ("rewards", 0), ("terminations", 0), ("truncations", 0)):
        file[f"episode_0/{name}"].resize((1 << 40) + extra, axis=0)


def texts(file: Any, elsewhere: Path) -> None:
    """Texts of two megabytes each, of which the file holds none."""
    del file["episode_0/rewards"]
    file["episode_0"].create_dataset("rewards", (2,), "S2000000")


@pytest.mark.parametrize(
    "strange",
    [links, external, linked_episode, virtual, missing, shorter, goes_on, endless, texts],
    ids=lambda f: f.__name__,
)
def test_a_strange_file_is_refused_before_it_leads_elsewhere(tmp_path: Path, root: Path, strange: Any) -> None:
    make_dataset("strange-v0", RGB, [random_frames(*RGB.shape)], jpeg_encoding=False)
    elsewhere = tmp_path / "elsewhere"
    with h5py.File(elsewhere, "w") as other:
        other["rewards"] = np.zeros(2)
        other["episode_0/rewards"] = np.zeros(2)
    with h5py.File(root / "strange-v0" / "data" / "main_data.hdf5", "a") as file:
        strange(file, elsewhere)
    with pytest.raises(UserError, match="strange-v0 is damaged or no Minari dataset") as caught:
        import_minari("strange-v0", tmp_path / "replay")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [elsewhere]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_damage_is_one_line_or_harmless(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", name)
        export_minari([write_replay(Path(name) / "replay", [(3, "terminated", True)])], "some-v0", ACTIONS)
        path = Path(name) / "some-v0" / "data" / data.draw(st.sampled_from(["main_data.hdf5", "metadata.json"]))
        content = bytearray(path.read_bytes())
        if data.draw(st.booleans()):
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        else:
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        target = Path(name) / "target"
        message = ""
        try:
            import_minari("some-v0", target)
        except UserError as error:
            message = str(error)
        assert "\n" not in message
        assert target.exists() == (message == "")


def test_metadata_without_spaces_do_not_make_an_environment(tmp_path: Path, root: Path) -> None:
    """Minari would import the module that they name."""
    make_dataset("code-v0", RGB, [random_frames(*RGB.shape)])
    path = root / "code-v0" / "data" / "metadata.json"
    metadata = json.loads(path.read_text())
    del metadata["observation_space"]
    metadata["env_spec"] = gym.spec("CartPole-v1").to_json().replace("gymnasium.envs", "antigravity")
    path.write_text(json.dumps(metadata))
    with pytest.raises(UserError, match="metadata have no spaces"):
        import_minari("code-v0", tmp_path / "replay")
    assert "antigravity" not in sys.modules


def test_another_storage_than_hdf5_is_named(tmp_path: Path, root: Path) -> None:
    make_dataset("arrow-v0", RGB, [random_frames(*RGB.shape)])
    path = root / "arrow-v0" / "data" / "metadata.json"
    path.write_text(path.read_text().replace('"hdf5"', '"arrow"'))
    with pytest.raises(UserError, match="is stored as arrow, but only hdf5 is supported"):
        import_minari("arrow-v0", tmp_path / "replay")


FULL = """
import resource, signal, sys
from pathlib import Path
from delta_iris.data import minari_datasets
from delta_iris.data.minari_datasets import export_minari, import_minari
from delta_iris.errors import UserError
minari_datasets.BATCH_BYTES = 1
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
try:
    if sys.argv[2] == "export":
        export_minari([Path(sys.argv[3])], "new-v0", 17)
    else:
        import_minari(sys.argv[3], Path(sys.argv[4]))
except UserError as error:
    print(error)
"""


def test_a_full_disk_leaves_nothing(tmp_path: Path, root: Path) -> None:
    """EFBIG, for real."""
    replay = write_replay(tmp_path / "replay", [(400, "terminated", True)] * 10)
    export_minari([replay], "old-v0", ACTIONS)
    for arguments in (
        [300_000, "export", replay],  # room for some of the episodes
        [20_000, "import", "old-v0", tmp_path / "target"],
    ):
        command = [sys.executable, "-c", FULL, *map(str, arguments)]
        done = subprocess.run(command, text=True, capture_output=True, check=False, timeout=120)
        assert "cannot be written: the disk is full; nothing of it is left" in done.stdout, done.stderr
        assert done.stderr == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["replay"]
    assert sorted(path.name for path in root.iterdir()) == ["old-v0"]


def test_memory_holds_a_part_of_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (32, 32, 3)
    replay, generator = Replay(tmp_path / "replay", shape), np.random.default_rng(0)
    noise = generator.integers(0, 256, (64, *shape), dtype=np.uint8)
    for _ in range(20):
        for t in range(400):
            replay.append(0, noise[t % 64], 0, 0.0, t == 399, False, noise[0] if t == 399 else None)
    replay.close()
    whole = 20 * 400 * 32 * 32 * 3  # 25 MB
    monkeypatch.setattr(minari_datasets, "BATCH_BYTES", 1 << 20)
    tracemalloc.start()
    try:
        export_minari([tmp_path / "replay"], "large-v0", 3)
        exported = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        import_minari("large-v0", tmp_path / "target")
        imported = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert exported < whole / 3  # a few episodes of 1.2 MB
    assert imported < whole / 3  # a few blocks of 0.8 MB, and at most 64 chunks that wait for compression
    shutil.rmtree(tmp_path / "target")
