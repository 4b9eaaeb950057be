"""Tests of the command line: training, stopping, resuming, testing and error messages, mostly in its own processes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import crafter
import pytest
import torch
import yaml
from PIL import Image, ImageSequence
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from delta_iris.commands.main import main
from delta_iris.data.replay_reader import ReplayReader
from delta_iris.errors import UserError
from delta_iris.pretrained import export_agent, load_exported
from tests.integration.faults.runs import share

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "tiny.yaml"
LOGS = Path("lightning_logs") / "tiny"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "delta_iris", *map(str, arguments)]


def run(*arguments: object, cwd: Path, status: int = 0, timeout: float = 180) -> str:
    """Run the command in `cwd` and assert its exit status; return its standard output and error together."""
    # In a new session, because Lightning kills its process group when one of several training processes fails.
    done = subprocess.run(
        command(*arguments),
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout,
        start_new_session=True,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def fit(*arguments: object, cwd: Path, status: int = 0, timeout: float = 180) -> str:
    return run("fit", "--config", TINY, *arguments, cwd=cwd, status=status, timeout=timeout)


class Terminal:
    """The command in a pseudo-terminal, where it shows a progress bar for each phase.

    Args:
        arguments: of the command.
        cwd: its working directory.

    Attributes:
        output: what it has printed so far.
    """

    def __init__(self, *arguments: object, cwd: Path) -> None:
        self._master, slave = pty.openpty()
        # A terminal without a size shows no bars.
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self.process = subprocess.Popen(
            command(*arguments), cwd=cwd, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)
        self.output = ""

    def read_until(self, text: str, timeout: float = 120) -> None:
        """Read until a text was printed."""
        deadline = time.monotonic() + timeout
        while text not in self.output:
            assert self._read(deadline), f"ended without {text!r}:\n{self.output}"

    def read_to_end(self, timeout: float = 60) -> None:
        """Read until the last process that can write to the terminal has ended."""
        deadline = time.monotonic() + timeout
        while self._read(deadline):
            pass
        self.process.wait(timeout=10)

    def close(self) -> None:
        """Kill all processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=10)
        os.close(self._master)

    def _read(self, deadline: float) -> bool:
        """Read a piece; return whether there was one."""
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"too slow:\n{self.output}"
        try:
            piece = os.read(self._master, 4096)
        except OSError:  # Linux reports the end of a pseudo-terminal as an input/output error.
            return False
        self.output += piece.decode(errors="replace")
        return bool(piece)


@pytest.fixture
def fit_in_terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Starts `fit` in a terminal, in the folder `tmp_path`; kills it after the test."""
    terminals: list[Terminal] = []

    def start(*arguments: object) -> Terminal:
        terminals.append(Terminal("fit", "--config", TINY, *arguments, cwd=tmp_path))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.close()


def epoch_line(output: str, epoch: str) -> str:
    """The line of an epoch such as "2/3": what it collected and the loss of each phase."""
    lines = [
        line for line in output.splitlines() if line.startswith(f"epoch {epoch}  ") and "actor-critic loss" in line
    ]
    assert len(lines) == 1, output
    return lines[0]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    board = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    board.Reload()
    return {tag: [(e.step, e.value) for e in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    output = fit(cwd=folder)
    return folder / LOGS / "version_0", output


def test_training_prints_a_summary_a_line_for_each_epoch_and_pointers(trained: tuple[Path, str]) -> None:
    folder, output = trained
    assert "imagined-to-collected ratio" in output
    assert "parameters  tokenizer" in output
    assert f"run folder  {LOGS / 'version_0'}" in output
    number = r"[0-9.]+"
    for epoch, frames in (("1/2", 500), ("2/2", 200)):
        losses = ", ".join(
            rf"{label} loss {number} \([0-9,]+ ms a step\)" for label in ("tokenizer", "dynamics", "actor-critic")
        )
        pattern = rf"epoch {epoch}  {frames} frames, return -?{number}, {losses}, {number} frames/s in all"
        assert re.fullmatch(pattern, epoch_line(output, epoch))
    assert "Done: 2 epochs, 700 frames" in output
    assert "tensorboard --logdir lightning_logs" in output
    assert (folder / "checkpoints" / "last.ckpt").exists()
    assert yaml.safe_load((folder / "config.yaml").read_text())["data"]["num_envs"] == 2
    assert "Traceback" not in output
    assert "Warning" not in output


def test_tensorboard_holds_all_metrics(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    values = scalars(folder)
    phases = ("tokenizer", "dynamics", "actor_critic")
    returns = ("return", "length", "achievements_per_episode", "crafter_score", "frames_per_second")
    held_out = ("reconstruction_l2", "copy_l2", "dynamics_loss", "codebook_entropy")
    expected = {
        *(f"{split}/{name}" for split in ("train", "test") for name in returns),
        *(f"{phase}/{name}" for phase in phases for name in ("loss", "gradient_norm")),
        *(f"tokenizer/{name}" for name in ("l1", "l2", "max_error", "commitment", "codebook_entropy")),
        *(f"tokenizer/{name}" for name in ("codes_used", "codes_reset")),
        *(f"dynamics/{name}" for name in ("token_loss", "reward_loss", "end_loss", "token_accuracy")),
        *(f"actor_critic/{name}" for name in ("actor_loss", "critic_loss", "policy_entropy", "imagined_return")),
        *(f"held_out/{name}" for name in held_out),
        *(f"throughput/{phase}_ms" for phase in phases),
        "throughput/frames_per_second",
    }
    assert expected <= set(values)
    assert len([tag for tag in values if tag.startswith("test_achievements/")]) == 22
    assert {"held_out/reconstruction_psnr", "held_out/dynamics_token_perplexity", "open_loop_l2/15"} <= set(values)
    assert [step for step, _ in values["test/return"]] == [500, 700]  # frames collected
    assert all(value == value for series in values.values() for _, value in series)
    board = EventAccumulator(str(folder))
    board.Reload()
    logged = {tag: board.Images(tag) for tag in board.Tags()["images"]}
    assert {tag.split()[0] for tag in logged} == {"images/reconstruction", "images/imagination"}
    for images in logged.values():
        assert len(images) == 2
        # Two segments, each real above predicted: four rows of 64 pixels.
        assert images[0].height == 4 * 64
        assert images[0].width in (20 * 64, 21 * 64)


def test_a_trained_agent_is_tested_and_validated(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    checkpoint = folder / "checkpoints" / "last.ckpt"
    before = sorted(folder.parent.rglob("*"))
    output = run("test", "--config", folder / "config.yaml", "--ckpt_path", checkpoint, cwd=folder.parents[2])
    assert "untrained" not in output
    assert "Crafter score" in output
    assert "(95%)" in output
    written = json.loads((folder / "evaluation" / "last.json").read_text())
    assert written["episodes"] == len(written["reward"]) == len(written["achievement_wake_up"]) == 4
    assert written["xs"] == [700] * 4
    assert len(written["achievements"]) == 22
    new = [path for path in sorted(folder.parent.rglob("*")) if path not in before]
    evaluation = folder / "evaluation"
    assert new == [evaluation, evaluation / "last.gif", evaluation / "last.json"]
    with Image.open(evaluation / "last.gif") as animation:
        # Each step lasts a tenth of a second; equal frames in succession are one frame of the GIF.
        tenths = sum(picture.info["duration"] for picture in ImageSequence.Iterator(animation)) // 100
        assert tenths in written["length"]
        assert animation.size == (256, 256)
    output = run("validate", "--config", folder / "config.yaml", "--ckpt_path", checkpoint, cwd=folder.parents[2])
    assert "held_out/copy_l2" in output


def test_a_checkpoint_holds_no_code(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(content["optimizer_states"]) == 3


def test_a_run_is_not_resumed_with_another_phase(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    logged = {path: path.read_bytes() for path in folder.glob("events.*")}
    options = ("--ckpt_path", folder / "checkpoints" / "last.ckpt", "--trainer.max_epochs", 3)
    output = fit(*options, "--model.schedule.real_segments.steps", 1, cwd=folder.parents[2], status=2)
    assert "another configuration (model.init_args.schedule.real_segments.steps: 0 there, 1 here)" in output
    assert {path: path.read_bytes() for path in folder.glob("events.*")} == logged


def test_an_agent_without_weights_is_said_to_be_untrained(trained: tuple[Path, str], tmp_path: Path) -> None:
    output = run("test", "--config", trained[0] / "config.yaml", cwd=tmp_path)
    assert "No --ckpt_path is given: an untrained agent is tested." in output


def test_an_exported_agent_is_tested_without_its_run(trained: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = trained
    checkpoint, agent = folder / "checkpoints" / "last.ckpt", tmp_path / "agent"
    export_agent(checkpoint, agent, part_bytes=40_000)
    export = [sys.executable, "-m", "delta_iris", "export", str(checkpoint), str(tmp_path / "again")]
    written = subprocess.run(export, check=True, timeout=120, capture_output=True, text=True).stdout
    assert f"--ckpt_path {tmp_path / 'again'}" in written
    assert len(list((tmp_path / "again").glob("*.safetensors"))) == 1
    assert subprocess.run(export, check=False, timeout=120).returncode == 2
    content, whole = load_exported(agent), torch.load(checkpoint, weights_only=True)
    assert content["frames_collected"] == whole["frames_collected"] > 0
    assert content["state_dict"].keys() == whole["state_dict"].keys()
    for name, value in whole["state_dict"].items():
        source = whole["state_dict"][name.replace("actor_critic.target.", "actor_critic.network.")]
        is_rounded = ".quantizer." not in name and value.is_floating_point()
        expected = source.to(torch.bfloat16).float() if is_rounded else source
        assert torch.equal(content["state_dict"][name], expected), name
    parts = sorted(agent.glob("*.safetensors"))
    assert len(parts) > 2
    largest = 2 * max(value.numel() for value in whole["state_dict"].values())
    assert all(part.stat().st_size < max(largest, 40_000) + 20_000 for part in parts)  # with names and headers

    output = run("test", "--config", agent / "config.yaml", "--ckpt_path", agent, cwd=tmp_path)
    assert "Crafter score" in output
    assert json.loads((tmp_path / "evaluation" / "agent.json").read_text())["xs"] == [content["frames_collected"]] * 4
    assert "an exported agent" in fit("--ckpt_path", agent, cwd=tmp_path, status=2)
    assert "is a folder" in fit("--ckpt_path", folder, cwd=tmp_path, status=2)
    other = ("test", "--config", agent / "config.yaml", "--ckpt_path", agent, "--model.actor_critic.lstm_size", 8)
    message = f"{agent} was made with another configuration (model.init_args.actor_critic.init_args.lstm_size: 16 there"
    assert message in run(*other, cwd=tmp_path, status=2)

    with pytest.raises(UserError, match="not empty"):
        export_agent(checkpoint, agent)
    damaged = bytearray(parts[1].read_bytes())
    damaged[len(damaged) // 2] ^= 1
    parts[1].write_bytes(damaged)
    with pytest.raises(UserError, match="damaged"):
        load_exported(agent)
    parts[0].unlink()
    with pytest.raises(UserError, match=f"{parts[0].name} is missing"):
        load_exported(agent)


def test_the_agent_in_the_repository_plays(tmp_path: Path) -> None:
    """It was exported by version 0.1, so that configuration and weights are translated."""
    agent = ROOT / "pretrained" / "crafter_cnn"
    few = ("--data.num_test_envs", 2, "--data.test_episodes", 4, "--data.environment_options", "{length: 100}")
    options = ("--trainer.accelerator", "cpu", "--trainer.limit_test_batches", 0, *few)
    output = run("test", "--config", agent / "config.yaml", "--ckpt_path", agent, *options, cwd=tmp_path)
    assert "Crafter score" in output
    written = json.loads((tmp_path / "evaluation" / "crafter_cnn.json").read_text())
    # It does both in every episode. A random player does so in fewer than half, although they last longer.
    for name in ("collect_sapling", "place_plant"):
        assert min(written[f"achievement_{name}"]) > 0
    assert (tmp_path / "evaluation" / "crafter_cnn.gif").is_file()


def test_a_finished_run_continues_in_its_folder(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    cwd = folder.parents[2]
    resume = ("--ckpt_path", folder / "checkpoints" / "last.ckpt", "--trainer.max_epochs", 3)
    output = fit(*resume, cwd=cwd)
    assert epoch_line(output, "3/3")
    assert "epoch 2/3" not in output
    assert sorted(path.name for path in folder.parent.iterdir()) == ["version_0"]
    assert [step for step, _ in scalars(folder)["train/episodes"]] == [500, 700, 900]


@pytest.mark.parametrize("moment", ["first collection", "collection", "tokenizer", "actor_critic"])
def test_ctrl_c_saves_a_checkpoint_that_the_run_resumes_from(
    tmp_path: Path, fit_in_terminal: Callable[..., Terminal], moment: str
) -> None:
    awaited, *longer = {
        "first collection": ("epoch 1/2  collect", "--model.schedule.collection.first_epoch_frames", 100_000),
        "collection": ("epoch 2/2  collect", "--model.schedule.collection.frames", 100_000),
        "tokenizer": (
            "epoch 2/2  tokenizer",
            *("--model.schedule.tokenizer.steps", 100, "--model.schedule.tokenizer.first_epoch_steps", 4),
        ),
        "actor_critic": (
            "epoch 2/2  actor-critic",
            *("--model.schedule.actor_critic.steps", 40, "--model.schedule.actor_critic.first_epoch_steps", 2),
        ),
    }[moment]
    terminal = fit_in_terminal(*longer)
    terminal.read_until(str(awaited))
    time.sleep(0.5)  # into the phase
    terminal.process.send_signal(signal.SIGINT)
    terminal.read_to_end()
    output = terminal.output
    assert terminal.process.returncode == 130, output
    assert "Traceback" not in output
    assert "interrupted.ckpt" in output
    assert "defaulting to" not in output  # Lightning's remark on what the checkpoint contains does not help the user.
    folder = tmp_path / LOGS / "version_0"
    in_collection = "collection" in moment
    shorter = () if in_collection else longer
    output = fit("--ckpt_path", folder / "checkpoints" / "interrupted.ckpt", *shorter, cwd=tmp_path)
    line = epoch_line(output, "2/2")
    assert ("200 frames, " in line) == in_collection
    assert ("tokenizer loss" in line) == (moment != "actor_critic")
    assert ("dynamics loss" in line) == (moment != "actor_critic")
    assert [step for step, _ in scalars(folder)["train/episodes"]][-1] == 700
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {"best.ckpt", "epoch-0001.ckpt", "last.ckpt"}
    newest = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert newest["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] == 2
    assert yaml.safe_load((folder / "config.yaml").read_text())["ckpt_path"] is None


def test_a_killed_run_resumes_from_its_last_epoch(tmp_path: Path, fit_in_terminal: Callable[..., Terminal]) -> None:
    terminal = fit_in_terminal()
    terminal.read_until("epoch 2/2  tokenizer")
    os.killpg(terminal.process.pid, signal.SIGKILL)
    terminal.read_to_end()
    folder = tmp_path / LOGS / "version_0"
    output = fit("--ckpt_path", folder / "checkpoints" / "last.ckpt", cwd=tmp_path)
    assert "epoch 1/2" not in output
    assert epoch_line(output, "2/2").startswith("epoch 2/2  200 frames, ")
    assert "Done: 2 epochs, 700 frames" in output


@pytest.mark.parametrize(
    ("number", "status", "arguments", "after"),
    [
        (signal.SIGTERM, 143, ("--model.schedule.tokenizer.steps", 2000), "epoch 1/2  tokenizer"),
        # While they collect, the processes do not communicate for minutes.
        (
            signal.SIGKILL,
            -9,
            ("--model.schedule.collection.first_epoch_frames", 200_000, "--trainer.devices", 2),
            "epoch 1/2  collect",
        ),
    ],
)
def test_a_run_that_is_ended_leaves_no_process_behind(
    fit_in_terminal: Callable[..., Terminal],
    number: signal.Signals,
    status: int,
    arguments: tuple[object, ...],
    after: str,
) -> None:
    terminal = fit_in_terminal(*arguments)
    terminal.read_until(after)
    time.sleep(1)
    terminal.process.send_signal(number)
    terminal.read_to_end()
    assert terminal.process.returncode == status
    if number == signal.SIGTERM:  # A killed process cannot wait for its children.
        with pytest.raises(ProcessLookupError):
            os.killpg(terminal.process.pid, 0)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("compile_steps", [False, True])
def test_two_processes_train_together(tmp_path: Path, compile_steps: bool) -> None:
    """See tests/integration/faults/test_ranks.py for CPUs."""
    pair = ("--trainer.accelerator", "gpu", "--trainer.devices", 2, "--model.compile", compile_steps)
    timeout = 600 if compile_steps else 180  # Both processes compile.
    output = fit(*pair, cwd=tmp_path, timeout=timeout)
    assert "Done: 2 epochs, 700 frames" in output
    assert epoch_line(output, "2/2")
    folder = tmp_path / LOGS / "version_0"
    assert sorted(path.name for path in (folder / "replay").iterdir()) == ["rank_0", "rank_1"]
    assert len(list(folder.glob("events*"))) == 1
    last = folder / "checkpoints" / "last.ckpt"
    output = fit(*pair, "--ckpt_path", last, "--trainer.max_epochs", 3, cwd=tmp_path, timeout=timeout)
    assert epoch_line(output, "3/3")
    output = fit("--ckpt_path", last, "--trainer.max_epochs", 4, cwd=tmp_path, status=2)
    assert "resume with --trainer.devices 2" in output


def test_a_run_starts_with_recorded_episodes_and_trains_on_nothing_else(tmp_path: Path) -> None:
    lengths = []
    for length in (40, 50):
        env = crafter.Recorder(crafter.Env(length=length), tmp_path / "recorded", save_stats=False, save_video=False)
        env.reset()
        lengths.append(1)
        while not env.step(0)[2]:
            lengths[-1] += 1
    only_recorded = (
        *("--data.recorded_episodes", tmp_path / "recorded"),
        *("--model.schedule.collection.last_epoch", 0, "--trainer.devices", 2),
    )
    output = fit(*only_recorded, "--trainer.max_epochs", 1, cwd=tmp_path)
    assert "recordings  2 episodes of " in output
    assert "frames/s in all" not in epoch_line(output, "1/1")
    assert "Done: 1 epochs, 0 frames" in output
    shutil.rmtree(tmp_path / "recorded")  # The run has its own copy.
    folder = tmp_path / LOGS / "version_0"
    last = folder / "checkpoints" / "last.ckpt"
    output = fit(*only_recorded, "--ckpt_path", last, "--trainer.max_epochs", 2, cwd=tmp_path)
    assert epoch_line(output, "2/2")
    assert [step for step, _ in scalars(folder)["test/return"]] == [12, 24]  # optimizer steps
    readers = [ReplayReader(folder / "replay" / f"rank_{rank}", (64, 64, 3)) for rank in (0, 1)]
    assert [reader.num_episodes for reader in readers] == [1, 1]
    assert sorted(reader.length(0) for reader in readers) == sorted(lengths)


def test_another_environment_needs_only_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "blink.yaml").write_text(
        "data: {environment: 'tests.envs.toy_env:Blink-v0', environment_options: null, frame_size: [32, 64], "
        "num_actions: 3}\n"
        "model: {init_args: {tokenizer: {init_args: {patch_size: 8, tokens_per_frame: 8}}}}\n"
    )
    output = fit("--config", tmp_path / "blink.yaml", "--trainer.max_epochs", 1, "--trust", "tests", cwd=tmp_path)
    assert "Done: 1 epochs" in output
    values = scalars(tmp_path / LOGS / "version_0")
    assert "test/return" in values
    assert "test/crafter_score" not in values


@pytest.mark.parametrize("name", ["crafter.yaml", "crafter_cnn.yaml"])
def test_print_config_shows_stacked_files_and_overrides(name: str, tmp_path: Path) -> None:
    stacked = ("--config", name, "--config", "short.yaml")
    output = run("fit", *stacked, "--model.segment_length", 26, "--print_config", cwd=tmp_path)
    printed = yaml.safe_load("\n".join(line for line in output.splitlines() if not line.startswith("configuration ")))
    init_args = printed["model"]["init_args"]
    assert init_args["segment_length"] == 26
    assert printed["trainer"]["max_epochs"] == 48
    assert printed["name"] == name.removesuffix(".yaml")
    assert init_args["schedule"]["tokenizer"]["batch_size"] == 32
    assert init_args["schedule"]["dynamics"]["steps"] == 400


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.tokenizer.dimension", 3], "dimension"),
        (["--model.schedule.actor_critic.steps", "many"], "schedule.actor_critic.steps"),
        (["--model.tokenizer.tokens_per_frame", 5], "tokenizer.init_args.tokens_per_frame 5 cannot be reached"),
        (["--model.segment_length", 12], "model.init_args.segment_length 12 is too short"),
        (["--data.environment_options", "{size: 96}"], "data.frame_size says 64×64 RGB frames"),
        (["--data.num_actions", 4], "data.num_actions is 4"),
        (["--data.num_envs", 0], "data.num_envs is 0"),
        (["--ckpt_path", "nowhere.ckpt"], "there is no checkpoint nowhere.ckpt"),
        (["--ckpt_path", TINY], "is damaged or not a checkpoint"),
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
        (["--trainer.log_every_n_steps", 0], "trainer.log_every_n_steps is 0"),
        (
            ["--model.schedule.collection.frames", 0, "--model.schedule.collection.first_epoch_frames", 0],
            "the first epoch must collect",
        ),
        (["--data.val_episodes", 3], "data.val_episodes is 3"),
        (["--model.priority_exponent", -1], "model.init_args.priority_exponent is -1"),
        (["--model.imagination_recent_frames", 0], "model.init_args.imagination_recent_frames is 0"),
        (["--trainer.max_steps", 10], "trainer.max_steps 10 is not supported here: set trainer.max_epochs"),
        (["--model.tokenizer.loss_weights", "{l3: 1.0}"], "l3"),
        (
            ["--model.schedule.collection.epsilon", 2],
            "model.init_args.schedule.collection.epsilon is 2.0: it must lie between 0 and 1",
        ),
        (["--model.tokenizer.dim", 6], "model.init_args.tokenizer.init_args.dim 6 is not a multiple of twice heads 2"),
        (
            ["--model.tokenizer.optimizer.min_lr_factor", 0.1],
            "model.init_args.tokenizer.init_args.optimizer.min_lr_factor is 0.1 and lr_decay_steps is 0",
        ),
        (
            ["--model.actor_critic.num_minibatches", 3],
            "model.init_args.schedule.actor_critic.batch_size is 2: make it a multiple of 3",
        ),
        (["--model.actor_critic.num_minibatches", 2, "--trainer.devices", 2], "make it a multiple of 4"),
        (
            ["--model.actor_critic.optimizer.lr_decay_steps", 9],
            "model.init_args.actor_critic.init_args.optimizer.min_lr_factor is 1.0 and lr_decay_steps is 9",
        ),
    ],
)
def test_invalid_input_gives_one_message_before_anything_is_made(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[object],
    message: str,
) -> None:
    # In this process, because starting one for each case would take minutes.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["delta-iris", "fit", "--config", str(TINY), *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    printed = "".join(capfd.readouterr())
    assert message in printed
    assert "Traceback" not in printed
    assert not list(tmp_path.rglob("*.bin"))


EIGHT = ["--trainer.devices", 8, *share(8)]
EIGHT_EPISODES = [*EIGHT, "--data.recorded_episodes", "recorded", "--model.schedule.collection.last_epoch", 0]


@pytest.mark.parametrize(
    ("arguments", "key", "found", "would_do"),
    [
        (["--data.num_envs", 12], "data.num_envs", 12, 16),
        (["--data.num_test_envs", 12], "data.num_test_envs", 12, 16),
        (["--data.val_episodes", 12], "data.val_episodes", 12, 16),
        (["--data.test_episodes", 20], "data.test_episodes", 20, 24),
        (["--model.schedule.tokenizer.batch_size", 4], "model.init_args.schedule.tokenizer.batch_size", 4, 8),
        (["--model.schedule.dynamics.batch_size", 9], "model.init_args.schedule.dynamics.batch_size", 9, 16),
        (["--model.actor_critic.num_minibatches", 2], "model.init_args.schedule.actor_critic.batch_size", 8, 16),
    ],
)
def test_numbers_that_eight_processes_cannot_share_are_refused_in_a_line_before_they_start(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[object],
    key: str,
    found: int,
    would_do: int,
) -> None:
    line = refused_line([*EIGHT, *arguments], tmp_path, monkeypatch, capfd)
    assert re.search(rf"{re.escape(key)} is {found}\b.*: make it a multiple.*, such as {would_do}\b", line)
    assert not any(tmp_path.rglob("version_*"))


def test_fewer_recorded_episodes_than_processes_are_refused_in_a_line_before_they_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recorded").mkdir()
    for number in range(7):
        (tmp_path / "recorded" / f"{number}.npz").touch()
    line = refused_line(EIGHT_EPISODES, tmp_path, monkeypatch, capfd)
    assert "data.recorded_episodes recorded holds 7 .npz files" in line
    assert "8 process(es) need at least one each" in line


def refused_line(
    arguments: list[object],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    config: Path | str = TINY,
) -> str:
    """The one line that `fit` prints in this process, which starts no other one, besides its configuration's name."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["delta-iris", "fit", "--config", str(config), *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    printed = "".join(capfd.readouterr())
    (line,) = [line for line in printed.splitlines() if not line.startswith("configuration ")]
    return line


def test_other_runs_are_never_changed(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    cwd = folder.parents[2]

    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}

    before = state()
    output = fit("--trainer.logger.init_args.version", 0, cwd=cwd, status=2)
    assert "already holds a run: resume it with --ckpt_path" in output
    other = ("--model.dynamics.transformer.dim", 64, "--ckpt_path", folder / "checkpoints" / "last.ckpt")
    output = fit(*other, cwd=cwd, status=2)
    assert "model.init_args.dynamics.init_args.transformer.dim: 32 there, 64 here" in output
    assert before == state()
    moved = folder.parents[2] / "alone" / "last.ckpt"
    moved.parent.mkdir()
    moved.write_bytes((folder / "checkpoints" / "last.ckpt").read_bytes())
    away = (folder / "replay").rename(folder / "away")
    assert "holds no replay" in fit("--ckpt_path", moved, cwd=cwd, status=2)
    away.rename(folder / "replay")
