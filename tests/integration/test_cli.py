"""The command line, end to end, in processes of its own: training, stopping, resuming, testing, complaining."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import crafter
import pytest
import torch
import yaml
from PIL import Image, ImageSequence
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from delta_iris import pretrained as published
from delta_iris.commands.cli import main
from delta_iris.data.replay import ReplayReader
from delta_iris.errors import UserError

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "tiny.yaml"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "delta_iris", *map(str, arguments)]


def run(*arguments: object, cwd: Path, status: int = 0, timeout: float = 120) -> str:
    """Run the command in `cwd`; its output, both streams together."""
    done = subprocess.run(
        command(*arguments), cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def fit(*arguments: object, cwd: Path, status: int = 0, timeout: float = 120) -> str:
    configs = ("--config", ROOT / "configs" / "quickstart.yaml", "--config", TINY)
    return run("fit", *configs, *arguments, cwd=cwd, status=status, timeout=timeout)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    board = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    board.Reload()
    return {tag: [(e.step, e.value) for e in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, str]:
    """A finished tiny run: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    told = fit(cwd=folder)
    return folder / "lightning_logs" / "quickstart" / "version_0", told


def test_training_says_what_it_is_and_what_it_made(trained) -> None:
    folder, told = trained
    assert "imagined-to-collected ratio" in told
    assert "parameters      tokenizer" in told
    for line in ("epoch 1/2  collect", "epoch 2/2  tokenizer", "epoch 2/2  world model", "epoch 2/2  agent"):
        assert line in told
    assert "tensorboard --logdir lightning_logs" in told
    assert (folder / "checkpoints" / "last.ckpt").exists()
    assert yaml.safe_load((folder / "config.yaml").read_text())["data"]["num_envs"] == 2
    assert "Traceback" not in told
    assert "Warning" not in told


def test_tensorboard_holds_what_matters(trained) -> None:
    folder, _ = trained
    values = scalars(folder)
    expected = {
        *(f"{split}/{name}" for split in ("train", "test") for name in ("return", "length", "objectives_unlocked")),
        *(f"{split}/{name}" for split in ("train", "test") for name in ("crafter_score", "frames_per_second")),
        *(f"{module}/{name}" for module in ("tokenizer", "world_model", "agent") for name in ("loss", "gradient_norm")),
        *(f"tokenizer/{name}" for name in ("l1", "l2", "max_pixel", "commitment", "codebook_entropy", "revived")),
        *(f"world_model/{name}" for name in ("token_loss", "reward_loss", "end_loss", "token_accuracy")),
        *(f"agent/{name}" for name in ("actor_loss", "critic_loss", "policy_entropy", "imagined_return")),
        *(f"held_out/{name}" for name in ("tokenizer_l2", "tokenizer_copy_l2", "world_model_loss", "codebook_entropy")),
        "throughput/tokenizer_ms",
        "throughput/frames_per_second",
    }
    assert expected <= set(values)
    assert len([tag for tag in values if tag.startswith("test_achievements/")]) == 22
    assert {"held_out/tokenizer_psnr", "held_out/world_model_token_perplexity", "drift/imagined_15"} <= set(values)
    assert [step for step, _ in values["test/return"]] == [500, 700]  # frames collected
    assert all(value == value for series in values.values() for _, value in series)
    board = EventAccumulator(str(folder))
    board.Reload()
    pictures = {tag: board.Images(tag) for tag in board.Tags()["images"]}
    assert {tag.split()[0] for tag in pictures} == {"pictures/reconstruction", "pictures/imagination"}
    for images in pictures.values():
        assert len(images) == 2
        # Two windows, real over made: four rows of 64 pixels.
        assert images[0].height == 4 * 64
        assert images[0].width in (20 * 64, 21 * 64)


def test_the_trained_agent_can_be_tested(trained) -> None:
    folder, _ = trained
    checkpoint = folder / "checkpoints" / "last.ckpt"
    before = sorted(folder.parent.rglob("*"))
    told = run("test", "--config", folder / "config.yaml", "--ckpt_path", checkpoint, cwd=folder.parents[2])
    assert "Crafter score" in told
    assert "(95%)" in told
    written = json.loads((folder / "evaluation" / "last.json").read_text())
    assert written["episodes"] == len(written["reward"]) == len(written["achievement_wake_up"]) == 4
    assert written["xs"] == [700] * 4
    assert len(written["achievements"]) == 22
    new = [path for path in sorted(folder.parent.rglob("*")) if path not in before]
    evaluation = folder / "evaluation"
    assert new == [evaluation, evaluation / "last.gif", evaluation / "last.json"]
    with Image.open(evaluation / "last.gif") as animation:
        # A tenth of a second a step, of which those that look the same are one picture.
        tenths = sum(picture.info["duration"] for picture in ImageSequence.Iterator(animation)) // 100
        assert tenths in written["length"]
        assert animation.size == (256, 256)
    told = run("validate", "--config", folder / "config.yaml", "--ckpt_path", checkpoint, cwd=folder.parents[2])
    assert "held_out/tokenizer_copy_l2" in told


def test_a_checkpoint_holds_no_code(trained) -> None:
    folder, _ = trained
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(content["optimizer_states"]) == 3


def test_a_published_agent_plays_without_its_run(trained, tmp_path: Path, monkeypatch) -> None:
    folder, _ = trained
    checkpoint, agent = folder / "checkpoints" / "last.ckpt", tmp_path / "agent"
    monkeypatch.setattr(published, "PART_BYTES", 40_000)
    published.publish(checkpoint, agent)
    command_line = [sys.executable, "-m", "delta_iris.pretrained", checkpoint, tmp_path / "again"]
    subprocess.run(command_line, check=True, timeout=120)
    assert len(list((tmp_path / "again").glob("weights-*.pt"))) == 1
    assert subprocess.run(command_line, check=False, timeout=120).returncode == 2
    content, whole = published.load_published(agent), torch.load(checkpoint, weights_only=True)
    assert content["frames_collected"] == whole["frames_collected"] > 0
    assert content["state_dict"].keys() == whole["state_dict"].keys()
    for name, value in whole["state_dict"].items():
        source = whole["state_dict"][name.replace("agent.target.", "agent.network.")]
        rounded = (
            source.to(torch.bfloat16).float() if ".quantizer." not in name and value.is_floating_point() else source
        )
        assert torch.equal(content["state_dict"][name], rounded), name
    parts = sorted(agent.glob("weights-*.pt"))
    assert len(parts) > 2
    biggest = 2 * max(value.numel() for value in whole["state_dict"].values())
    assert all(part.stat().st_size < max(biggest, 40_000) + 20_000 for part in parts)  # names and headers

    told = run("test", "--config", agent / "config.yaml", "--ckpt_path", agent, cwd=tmp_path)
    assert "Crafter score" in told
    assert json.loads((tmp_path / "evaluation" / "agent.json").read_text())["xs"] == [content["frames_collected"]] * 4
    assert "a published agent" in fit("--ckpt_path", agent, cwd=tmp_path, status=2)
    assert "is a folder" in fit("--ckpt_path", folder, cwd=tmp_path, status=2)
    other = ("test", "--config", agent / "config.yaml", "--ckpt_path", agent, "--model.agent.init_args.hidden", 8)
    assert f"{agent} was made with another configuration (model.agent" in run(*other, cwd=tmp_path, status=2)

    with pytest.raises(UserError, match="not empty"):
        published.publish(checkpoint, agent)
    damaged = bytearray(parts[1].read_bytes())
    damaged[len(damaged) // 2] ^= 1
    parts[1].write_bytes(damaged)
    with pytest.raises(UserError, match="damaged"):
        published.load_published(agent)
    parts[0].unlink()
    with pytest.raises(UserError, match=f"{parts[0].name} is missing"):
        published.load_published(agent)


def test_the_agent_in_the_repository_plays(tmp_path: Path) -> None:
    agent = ROOT / "pretrained" / "crafter_cnn"
    few = ("--data.num_test_envs", 2, "--data.test_episodes", 4, "--data.environment_options", "{length: 100}")
    told = run(
        *("test", "--config", agent / "config.yaml", "--ckpt_path", agent, "--trainer.limit_test_batches", 0, *few),
        cwd=tmp_path,
    )
    assert "Crafter score" in told
    written = json.loads((tmp_path / "evaluation" / "crafter_cnn.json").read_text())
    # It does both in every episode; a random player in fewer than half, though they last longer.
    for name in ("collect_sapling", "place_plant"):
        assert min(written[f"achievement_{name}"]) > 0
    assert (tmp_path / "evaluation" / "crafter_cnn.gif").is_file()


def test_a_finished_run_can_be_continued_in_its_folder(trained) -> None:
    folder, _ = trained
    cwd = folder.parents[2]
    resume = ("--ckpt_path", folder / "checkpoints" / "last.ckpt", "--trainer.max_epochs", 3)
    told = fit(*resume, cwd=cwd)
    assert "epoch 3/3  agent" in told
    assert "epoch 2/3" not in told
    assert sorted(path.name for path in folder.parent.iterdir()) == ["version_0"]
    assert [step for step, _ in scalars(folder)["train/episodes"]] == [500, 700, 900]


@pytest.mark.parametrize("moment", ["first collect", "collect", "tokenizer", "agent"])
def test_ctrl_c_leaves_a_checkpoint_from_which_the_run_finishes(tmp_path: Path, moment: str) -> None:
    longer = {
        "first collect": ("--loop.collection.first_epoch_frames", 100_000),
        "collect": ("--loop.collection.frames", 100_000),
        "tokenizer": ("--loop.tokenizer.steps", 100, "--loop.tokenizer.first_epoch_steps", 4),
        "agent": ("--loop.agent.steps", 40, "--loop.agent.first_epoch_steps", 2),
    }[moment]
    configs = ("--config", ROOT / "configs" / "quickstart.yaml", "--config", TINY)
    process = subprocess.Popen(
        command("fit", *configs, *longer), cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    awaited = {
        "first collect": "run folder",
        "collect": "held out",
        "tokenizer": "epoch 2/2  collect",
        "agent": "epoch 2/2  world model",
    }[moment]
    told = ""
    for line in process.stdout:
        told += line
        if awaited in line:
            break
    time.sleep(0.5)  # into the phase
    process.send_signal(signal.SIGINT)
    try:
        told += process.communicate(timeout=60)[0]
    finally:
        process.kill()
    assert process.returncode == 130, told
    assert "Traceback" not in told
    assert "interrupted.ckpt" in told
    assert "defaulting to" not in told  # what the checkpoint holds is no question to the user
    folder = tmp_path / "lightning_logs" / "quickstart" / "version_0"
    shorter = () if "collect" in moment else longer
    told = fit("--ckpt_path", folder / "checkpoints" / "interrupted.ckpt", *shorter, cwd=tmp_path)
    assert "epoch 2/2  agent" in told
    assert ("epoch 2/2  collect" in told) == ("collect" in moment)
    assert ("epoch 2/2  world model" in told) == (moment != "agent")
    assert [step for step, _ in scalars(folder)["train/episodes"]][-1] == 700
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {"interrupted.ckpt", "epoch-0001.ckpt", "last.ckpt"} or names == {
        "interrupted.ckpt", "epoch-0000.ckpt", "epoch-0001.ckpt", "last.ckpt"
    }  # fmt: skip
    newest = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert newest["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] == 2
    assert yaml.safe_load((folder / "config.yaml").read_text())["ckpt_path"] is None


def test_a_killed_run_resumes_from_its_last_epoch(tmp_path: Path) -> None:
    configs = ("--config", ROOT / "configs" / "quickstart.yaml", "--config", TINY)
    process = subprocess.Popen(
        command("fit", *configs), cwd=tmp_path, text=True, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "epoch 2/2  tokenizer" in line:
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    folder = tmp_path / "lightning_logs" / "quickstart" / "version_0"
    told = fit("--ckpt_path", folder / "checkpoints" / "last.ckpt", cwd=tmp_path)
    assert "epoch 1/2" not in told
    assert "epoch 2/2  collect" in told
    assert "Done: 2 epochs, 700 frames" in told


@pytest.mark.parametrize(
    ("by", "status", "arguments", "after"),
    [
        (signal.SIGTERM, 143, ("--loop.tokenizer.steps", 2000), "epoch 1/2  collect"),
        # While collecting, the other process hears nothing of the first for minutes.
        (signal.SIGKILL, -9, ("--loop.collection.first_epoch_frames", 200_000, "--trainer.devices", 2), "run folder"),
    ],
)
def test_a_run_that_is_ended_leaves_no_process_behind(
    tmp_path: Path, by: signal.Signals, status: int, arguments: tuple[object, ...], after: str
) -> None:
    configs = ("--config", ROOT / "configs" / "quickstart.yaml", "--config", TINY)
    process = subprocess.Popen(
        command("fit", *configs, *arguments), cwd=tmp_path, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if after in line:
            break
    time.sleep(1)
    process.send_signal(by)
    try:
        process.communicate(timeout=60)  # until the last process that holds the pipe is gone
        assert process.returncode == status
        if by == signal.SIGTERM:  # one that is killed cannot bury the others
            with pytest.raises(ProcessLookupError):
                os.killpg(process.pid, 0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@pytest.mark.parametrize(
    ("accelerator", "accelerate"),
    [
        ("cpu", False),
        pytest.param("gpu", False, marks=(pytest.mark.gpu, two_gpus)),
        pytest.param("gpu", True, marks=(pytest.mark.gpu, two_gpus)),
    ],
)
def test_two_processes_train_together(tmp_path: Path, accelerator: str, accelerate: bool) -> None:
    pair = ("--trainer.accelerator", accelerator, "--trainer.devices", 2, "--model.accelerate", accelerate)
    timeout = 600 if accelerate else 120  # both compile
    told = fit(*pair, cwd=tmp_path, timeout=timeout)
    assert "Done: 2 epochs, 700 frames" in told
    folder = tmp_path / "lightning_logs" / "quickstart" / "version_0"
    assert sorted(path.name for path in (folder / "replay").iterdir()) == ["rank_0", "rank_1"]
    assert len(list(folder.glob("events*"))) == 1
    last = folder / "checkpoints" / "last.ckpt"
    told = fit(*pair, "--ckpt_path", last, "--trainer.max_epochs", 3, cwd=tmp_path, timeout=timeout)
    assert "epoch 3/3  agent" in told
    told = fit("--ckpt_path", last, "--trainer.max_epochs", 4, cwd=tmp_path, status=2)
    assert "resume with --trainer.devices 2" in told


def test_a_run_can_begin_with_recordings_and_train_on_nothing_else(tmp_path: Path) -> None:
    lengths = []
    for length in (40, 50):
        env = crafter.Recorder(crafter.Env(length=length), tmp_path / "mine", save_stats=False, save_video=False)
        env.reset()
        lengths.append(1)
        while not env.step(0)[2]:
            lengths[-1] += 1
    own = ("--data.recordings", tmp_path / "mine", "--loop.collection.last_epoch", 0, "--trainer.devices", 2)
    told = fit(*own, "--trainer.max_epochs", 1, cwd=tmp_path)
    assert "recordings      2 episodes of " in told
    assert "epoch 1/1  agent" in told
    assert "Done: 1 epochs, 0 frames" in told
    shutil.rmtree(tmp_path / "mine")  # the run has its own copy
    folder = tmp_path / "lightning_logs" / "quickstart" / "version_0"
    told = fit(*own, "--ckpt_path", folder / "checkpoints" / "last.ckpt", "--trainer.max_epochs", 2, cwd=tmp_path)
    assert "epoch 2/2  agent" in told
    assert [step for step, _ in scalars(folder)["test/return"]] == [12, 24]  # optimizer steps
    readers = [ReplayReader(folder / "replay" / f"rank_{rank}", (64, 64, 3)) for rank in (0, 1)]
    assert [reader.num_episodes for reader in readers] == [1, 1]
    assert sorted(reader.length(0) for reader in readers) == sorted(lengths)


def test_another_environment_is_a_matter_of_configuration(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    (tmp_path / "blink.yaml").write_text(
        "data: {environment: 'toy_env:Blink-v0', environment_options: null, frame_size: [32, 64], num_actions: 3}\n"
        "model:\n  tokenizer:\n    class_path: delta_iris.world_models.delta_iris.TransformerTokenizer\n"
        "    init_args: {patch_size: 8, tokens_per_frame: 8}\n"
    )
    told = fit("--config", tmp_path / "blink.yaml", "--trainer.max_epochs", 1, cwd=tmp_path)
    assert "Done: 1 epochs" in told
    values = scalars(tmp_path / "lightning_logs" / "quickstart" / "version_0")
    assert "test/return" in values
    assert "test/crafter_score" not in values


@pytest.mark.parametrize("name", ["crafter", "crafter_cnn"])
def test_print_config_and_overrides(name: str) -> None:
    stacked = ("--config", ROOT / "configs" / f"{name}.yaml", "--config", ROOT / "configs" / "short.yaml")
    told = yaml.safe_load(run("fit", *stacked, "--data.window", 26, "--print_config", cwd=ROOT))
    assert told["data"]["window"] == 26
    assert told["trainer"]["max_epochs"] == 48
    assert told["loop"]["tokenizer"]["batch_size"] == 32


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--model.tokenizer.init_args.dimension", 3], "dimension"),
        (["--loop.agent.steps", "many"], "loop.agent.steps"),
        (["--model.tokenizer.init_args.tokens_per_frame", 5], "tokens_per_frame 5 cannot be reached"),
        (["--data.window", 12], "data.window 12 is too short"),
        (["--data.environment_options", "{size: 96}"], "data.frame_size says 64×64 RGB frames"),
        (["--data.num_actions", 4], "data.num_actions is 4"),
        (["--ckpt_path", "nowhere.ckpt"], "there is no checkpoint nowhere.ckpt"),
        (["--ckpt_path", TINY], "is damaged or no checkpoint"),
        (["--trainer.strategy", "ddp"], "use auto or delta_ddp"),
        (
            [
                "--trainer.strategy",
                "delta_iris.training.strategy.DeltaDDPStrategy",
                "--trainer.strategy.bucket_cap_mb",
                9,
            ],
            "bucket_cap_mb",
        ),
        (["--trainer.precision", "16-mixed"], "use bf16-mixed"),
        (["--loop.collection.frames", 0, "--loop.collection.first_epoch_frames", 0], "the first epoch must collect"),
        (["--data.val_episodes", 3], "data.val_episodes is 3"),
        (["--data.priority", -1], "data.priority is -1"),
        (["--data.agent_frames", 0], "data.agent_frames is 0"),
        (["--trainer.max_steps", 10], "trainer.max_steps 10 has no meaning here"),
        (["--model.tokenizer.init_args.loss_weights", "{l3: 1.0}"], "loss_weights has no l3"),
        (["--loop.collection.epsilon", 2], "epsilon 2.0 must lie between 0 and 1"),
        (["--model.tokenizer.init_args.dim", 6], "dim 6 is not a multiple of twice heads 2"),
        (["--model.tokenizer.init_args.final_fraction", 0.1], "final_fraction is 0.1 and decay_steps 0"),
        (["--model.agent.init_args.parts", 3], "a multiple of model.agent.init_args.parts, 3"),
        (["--model.agent.init_args.parts", 2, "--trainer.devices", 2], "parts, 2, times the 2 process(es)"),
        (["--model.agent.init_args.decay_steps", 9], "model.agent.init_args.final_fraction is 1.0 and decay_steps 9"),
    ],
)
def test_bad_input_is_told_in_a_line_before_anything_is_made(
    tmp_path: Path, monkeypatch, capfd, arguments, told: str
) -> None:
    # The command's own function in this process: starting one for each would take minutes.
    configs = ("--config", ROOT / "configs" / "quickstart.yaml", "--config", TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["delta-iris", "fit", *map(str, (*configs, *arguments))])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    printed = "".join(capfd.readouterr())
    assert told in printed
    assert "Traceback" not in printed
    assert not list(tmp_path.rglob("*.bin"))


def test_other_runs_are_never_touched(trained) -> None:
    folder, _ = trained
    cwd = folder.parents[2]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    printed = fit("--trainer.logger.init_args.version", 0, cwd=cwd, status=2)
    assert "already holds a run: resume it with --ckpt_path" in printed
    other = ("--model.world_model.init_args.dim", 64, "--ckpt_path", folder / "checkpoints" / "last.ckpt")
    printed = fit(*other, cwd=cwd, status=2)
    assert "model.world_model.init_args.dim: 32 there, 64 here" in printed
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    moved = folder.parents[2] / "alone" / "last.ckpt"
    moved.parent.mkdir()
    moved.write_bytes((folder / "checkpoints" / "last.ckpt").read_bytes())
    assert "holds no replay" in fit("--ckpt_path", moved, cwd=cwd, status=2)
