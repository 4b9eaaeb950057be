"""Environments that die, hang, raise, never end or return what they should not: replaced, or refused by name."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from delta_iris.data.collector import Collector
from delta_iris.data.replay import Replay
from delta_iris.data.replay_reader import ReplayReader
from delta_iris.envs.pool import EnvPool
from delta_iris.envs.vector import check_env, make_vector_env
from delta_iris.errors import UserError

from .bad_env import ACHIEVEMENTS, FRAMES, REWARDS, SHAPE, TAKEN_REWARDS, BadEnv
from .runs import fit, scalars

BAD = f"{BadEnv.__module__}:Bad-v0"

FAILURES = {
    "exits": "ended its process with exit code 3",
    "leaves": r"raised SystemExit: bye \(bad_env.py, line \d+, in _go_wrong\)",
    "SIGKILL": "was killed by SIGKILL, often for lack of memory",
    "SIGSEGV": "was killed by SIGSEGV",
    "memory": r"raised MemoryError \(bad_env.py, line \d+, in _go_wrong\)",
    "raises": r"raised RuntimeError: server lost \(bad_env.py, line \d+, in _go_wrong\)",
    "hangs": r"did not answer within 0.5 s \(data.step_timeout\)",
    "SIGSTOP": r"did not answer within 0.5 s \(data.step_timeout\)",
}


@pytest.fixture
def pools() -> Iterator[list[EnvPool]]:
    """Pools to close at the end."""
    made: list[EnvPool] = []
    yield made
    for pool in made:
        pool.close()
        assert all(not process.is_alive() for process in pool.processes)


def make_pool(
    pools: list[EnvPool], fault: str, num_envs: int = 2, limits: dict[str, Any] | None = None, **options: Any
) -> EnvPool:
    """A pool of environments with a fault."""
    limits = {"step_timeout": 0.5, "close_timeout": 0.5} | (limits or {})
    pools.append(make_vector_env(BAD, {"fault": fault} | options, num_envs, **limits))
    return pools[-1]


def run(pool: EnvPool, folder: Path, steps: int = 12) -> Collector:
    """Collect from a pool at random."""
    collector = Collector(pool, Replay(folder / "replay", SHAPE), burn_in=2, seed=0)
    collector.collect(None, steps)
    return collector


@pytest.mark.parametrize("fault", FAILURES)
@pytest.mark.parametrize("where", ["", "reset_"])
def test_an_environment_that_fails_is_replaced_and_its_episode_kept_as_truncated(
    pools: list[EnvPool], tmp_path: Path, caplog: pytest.LogCaptureFixture, where: str, fault: str
) -> None:
    # One environment fails once: in its fifth step, or in the reset after its first episode, of 10 steps.
    at = 2 if where else 5
    pool = make_pool(pools, where + fault, at=at, only=str(tmp_path / "once"))
    before = pool.processes
    collector = run(pool, tmp_path)
    assert collector.replaced == 1
    assert sum(a is not b for a, b in zip(before, pool.processes, strict=True)) == 1
    place = "in reset" if where else "at step 5 of its episode"
    (record,) = [each for each in caplog.records if each.levelno >= logging.WARNING]
    pattern = (
        rf"environment '{re.escape(BAD)}' \(number [01]\) {place} {FAILURES[fault]}: replaced by a new one \(1 in all\)"
    )
    assert re.fullmatch(pattern, record.getMessage())
    reader = ReplayReader(tmp_path / "replay", SHAPE)
    episodes = [reader.read(e, 0, reader.length(e)) for e in range(reader.num_episodes)]
    ends = sorted((len(steps.rewards), bool(steps.terminated[-1]), bool(steps.truncated[-1])) for steps in episodes)
    if where:  # the episode before was complete
        assert ends == [(2, False, False)] * 2 + [(10, True, False)] * 2
    else:  # the step in which it failed is not stored
        assert ends == [(2, False, False), (4, False, True), (7, False, False), (10, True, False)]


@pytest.mark.parametrize("fault", ["exits", "raises", "hangs", "reset_raises"])
def test_too_many_failures_in_a_row_end_the_run_with_the_reason(
    pools: list[EnvPool], tmp_path: Path, fault: str
) -> None:
    pool = make_pool(pools, fault, at=1, limits={"max_env_failures": 3})
    reason = FAILURES[fault.removeprefix("reset_")]
    message = rf"\(number [01]\) .*{reason}: the run ends after 4 failures .*data\.max_env_failures is 3"
    with pytest.raises(UserError, match=message):
        run(pool, tmp_path)


def test_an_environment_that_ends_an_episode_ends_the_row_of_failures(pools: list[EnvPool], tmp_path: Path) -> None:
    # Every process fails in its third episode, so that no more than two fail without an episode between.
    pool = make_pool(pools, "raises", at=25, limits={"max_env_failures": 2})
    assert run(pool, tmp_path, steps=200).replaced > 10


@pytest.mark.parametrize(
    ("fault", "message"),
    [(f"reward:{name}", r"at step 5 of its episode returned the reward .*: a reward must be") for name in REWARDS]
    + [(f"frame:{name}", r"at step 5 of its episode returned a(n)? .*its observation space says") for name in FRAMES]
    + [
        ("flag", "at step 5 of its episode returned terminated=None"),
        ("old_step", "at step 5 of its episode returned something else from step"),
        ("old_reset", "in reset returned something else from reset"),
    ],
)
def test_values_that_cannot_be_learned_from_are_refused_by_name(
    pools: list[EnvPool], tmp_path: Path, fault: str, message: str
) -> None:
    pool = make_pool(pools, fault)
    with pytest.raises(UserError, match=rf"^environment '{re.escape(BAD)}' \(number 0\) {message}") as raised:
        run(pool, tmp_path)
    assert "\n" not in str(raised.value)
    with pytest.raises(RuntimeError, match="make a new one"):
        pool.step(np.zeros(2, np.int64))


@pytest.mark.parametrize("name", ACHIEVEMENTS)
def test_achievements_of_another_form_are_refused_by_name(pools: list[EnvPool], tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"step 10 .*returned .*achievement.* names to whole numbers"):
        run(make_pool(pools, f"achievements:{name}"), tmp_path)


@pytest.mark.parametrize("name", TAKEN_REWARDS)
def test_rewards_in_other_forms_are_taken(pools: list[EnvPool], name: str) -> None:
    pool = make_pool(pools, f"taken:{name}")
    pool.reset(seed=0)
    assert pool.step(np.zeros(2, np.int64))[1].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("fault", ["process", "info", "no_info", "print", "close_raises"])
def test_strange_but_harmless_environments_run(pools: list[EnvPool], tmp_path: Path, fault: str) -> None:
    pool = make_pool(pools, fault, limits={"step_timeout": 20})
    assert run(pool, tmp_path, 35).replay.num_frames == 70
    assert pool.replaced == 0


def test_achievements_told_partly_are_completed_with_zeros(pools: list[EnvPool], tmp_path: Path) -> None:
    collector = Collector(make_pool(pools, "partly"), Replay(tmp_path / "replay", SHAPE), 2, seed=0)
    episodes = collector.collect(None, 400)
    names = set().union(*(episode.achievements or {} for episode in episodes))
    assert len(names) == 4
    assert all(set(episode.achievements or {}) == names for episode in episodes)
    assert {value for episode in episodes for value in (episode.achievements or {}).values()} == {0, 1}


def test_episodes_that_never_end_are_cut_and_counted(pools: list[EnvPool], tmp_path: Path) -> None:
    collector = Collector(make_pool(pools, "never"), Replay(tmp_path / "replay", SHAPE), 2, seed=0)
    episodes = collector.collect(None, episodes_per_env=3, max_episode_steps=20)
    assert [episode.length for episode in episodes] == [20] * 6
    reader = ReplayReader(tmp_path / "replay", SHAPE)
    for e in range(reader.num_episodes):
        steps = reader.read(e, 0, reader.length(e))
        assert steps.truncated.tolist() == [False] * 19 + [True]
        assert steps.frames[:, 0, 5, 1].tolist() == [20 * t % 256 for t in range(20)]


@pytest.mark.parametrize("fault", ["close_hangs", "SIGSTOP", "hangs"])
def test_closing_takes_no_longer_than_its_limit(pools: list[EnvPool], fault: str) -> None:
    pool = make_pool(pools, fault, 8, at=2, limits={"step_timeout": 0.3, "max_env_failures": 0})
    pool.reset(seed=0)
    pool.step(np.zeros(8, np.int64))
    if fault != "close_hangs":
        with pytest.raises(UserError, match="did not answer"):
            pool.step(np.zeros(8, np.int64))
    started = time.monotonic()
    pool.close()
    pool.close()
    assert time.monotonic() - started < 0.5 + 2
    assert all(not process.is_alive() for process in pool.processes)


def test_a_wait_is_abandoned_when_the_caller_wants_to_stop(pools: list[EnvPool], tmp_path: Path) -> None:
    collector = Collector(
        make_pool(pools, "hangs", limits={"step_timeout": 600}), Replay(tmp_path / "replay", SHAPE), 2, 0
    )
    assert collector.collect(None, 3) == []
    assert not collector.abandoned
    started = time.monotonic()
    collector.collect(None, 100, should_stop=lambda: True)
    assert collector.abandoned
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("make_raises", "raised RuntimeError: no licence .*when it was made.* check data.environment"),
        ("make_dies", "ended its process with exit code 3 when it was made"),
        ("make_hangs", "did not answer within 1 s .*when it was made"),
        ("reset_hangs", r"in reset did not answer within 1 s \(data\.step_timeout\)"),
        ("reset_SIGSEGV", "in reset was killed by SIGSEGV"),
        ("hangs", "at step 1 of its episode did not answer within 1 s"),
        ("raises", "at step 1 of its episode raised RuntimeError: server lost"),
        ("reward:nan", "a reward must be finite"),
        ("frame:float", "RescaleObservation"),
        ("frame:chw", r"transpose the frames to \(H, W, 3\)"),
        ("frame:grey", "observation space must say"),
        ("frame:grey1", "observation space must say"),
        ("frame:larger", "ResizeObservation"),
        ("frame:dict", "return a NumPy array"),
        ("achievements:half", "names to whole numbers"),
    ],
)
def test_the_check_names_a_fault_in_one_line(fault: str, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match=message) as raised:
        check_env(BAD, {"fault": fault, "at": 1}, SHAPE[:2], 3, step_timeout=1)
    assert time.monotonic() - started < 15
    assert "\n" not in str(raised.value)
    assert "Bad-v0" in str(raised.value)


def test_the_check_accepts_a_good_environment() -> None:
    check_env(BAD, {}, SHAPE[:2], 3)


SCRIPT = """
import sys, time
import numpy as np
from delta_iris.envs.vector import make_vector_env
pool = make_vector_env(sys.argv[1], {"fault": "print"}, 3, step_timeout=30)
pool.reset(seed=0)
print(*(process.pid for process in pool.processes), flush=True)
if sys.argv[2] == "exit":
    sys.exit()
while True:
    pool.step(np.zeros(3, np.int64))
"""


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("ending", ["exit", "kill", "terminate_group"])
def test_environments_do_not_outlive_the_main_process_and_leave_signals_to_it(ending: str) -> None:
    # The standard output holds only what the main process prints, although the environments print much.
    root = str(Path(__file__).parents[3])
    env = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, BAD, ending],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=env,
        start_new_session=True,
    ) as main:
        assert main.stdout is not None
        pids = [int(pid) for pid in main.stdout.readline().split()]
        assert len(pids) == 3
        if ending == "kill":
            main.kill()
        if ending == "terminate_group":
            for pid in pids:  # a job's scheduler reaches them, too
                os.kill(pid, signal.SIGTERM)
                os.kill(pid, signal.SIGINT)
            assert main.poll() is None
            assert all(alive(pid) for pid in pids)
            os.killpg(main.pid, signal.SIGTERM)
        assert main.stdout.read() == b""
    end = time.monotonic() + 10
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_what_an_environment_started_ends_with_it(pools: list[EnvPool], tmp_path: Path) -> None:
    pool = make_pool(pools, "server", 1, only=str(tmp_path / "pid"), limits={"close_timeout": 5})
    pool.reset(seed=0)
    pid = int((tmp_path / "pid").read_text())
    assert alive(pid)
    pool.close()
    end = time.monotonic() + 10
    while alive(pid):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_seeds_stay_within_32_bits(pools: list[EnvPool], tmp_path: Path) -> None:
    """The environment asserts it; each process is replaced several times."""
    pool = make_pool(pools, "raises", at=15, limits={"max_env_failures": 1000})
    for seed in (0, (1 << 32) - 1, 1 << 40, 3_000_000_000_000):
        pool.reset(seed=seed)
        for _ in range(40):
            pool.step(np.ones(2, np.int64))
    assert pool.replaced > 10
    assert pool._failures_in_a_row < 1000


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("state_raises", "raised RuntimeError: not now"),
        ("state_large", "its state has 65 MiB, more than 64"),
        ("state_dies", "ended its process with exit code 4 when asked for its state"),
        ("state_hangs", r"did not answer within 0.5 s \(data.step_timeout\) when asked for its state"),
        ("restore_raises", "raised RuntimeError: cannot go back .* when its state was restored"),
        ("restore_wrong", "returned another frame from set_state than the present one .* when its state was restored"),
        ("restore_dies", "ended its process with exit code 5: replaced by a new one"),
    ],
)
def test_an_environment_whose_state_fails_starts_a_new_episode_and_the_open_one_is_truncated(
    pools: list[EnvPool], tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str, reason: str
) -> None:
    collector = run(make_pool(pools, fault), tmp_path, 4)
    state = collector.state_dict()
    collector.replay.append(0, np.zeros(SHAPE, np.uint8), 0, 0.0, False, False)
    collector.load_state_dict(state)
    assert any(re.search(reason, record.getMessage()) for record in caplog.records)
    assert "2 of 2 environments" in caplog.records[-1].getMessage()
    collector.collect(None, 3)
    reader = ReplayReader(tmp_path / "replay", SHAPE)
    # The thinnest part of the contract: the next step begins another episode.
    assert sorted(reader.length(e) for e in range(reader.num_episodes))[-2:] == [4, 5]
    assert collector.envs.generations >= [1, 1]


def test_an_environment_with_plain_state_methods_is_restored(pools: list[EnvPool], tmp_path: Path) -> None:
    collector = run(make_pool(pools, ""), tmp_path, 4)
    state, frames = collector.state_dict(), collector.envs.frames
    collector.collect(None, 9)
    expected = collector.envs.frames
    assert not np.array_equal(expected, frames)
    collector.load_state_dict(state)
    assert np.array_equal(collector.envs.frames, frames)
    collector.collect(None, 9)
    assert np.array_equal(collector.envs.frames, expected)
    assert collector.envs.generations == [0, 0]


def bad_game(options: str) -> list[str]:
    return ["--data.environment", "tests.integration.faults.bad_env:Bad-v0", "--data.environment_options", options]


STEPS = (("steps", 1), ("first_epoch_steps", 1), ("batch_size", 8))
TRAINING = [
    f"--model.schedule.{phase}.{key}={n}" for phase in ("tokenizer", "dynamics", "actor_critic") for key, n in STEPS
]


@pytest.mark.parametrize(
    "fault", ["hangs", *(pytest.param(fault, marks=pytest.mark.slow) for fault in ("SIGKILL", "raises", "exits"))]
)
def test_a_run_goes_on_with_another_environment(tmp_path: Path, fault: str) -> None:
    options = json.dumps({"fault": fault, "at": 60, "only": str(tmp_path / "marker")})
    frames = ["--model.schedule.collection.frames", 200, "--model.schedule.collection.first_epoch_frames", 400]
    length = ["--trainer.max_epochs", 2, "--trainer.callbacks", "null", "--data.step_timeout", 2]
    output = fit(*bad_game(options), *frames, *length, *TRAINING, cwd=tmp_path, config="quickstart.yaml")
    assert "replaced by a new one (1 in all)" in output
    assert "Done: 2 epochs, 599 frames" in output
    (event,) = scalars(tmp_path / "lightning_logs" / "quickstart" / "version_0")["train/replaced_environments"][:1]
    assert event == (399, 1.0)


def test_failures_in_a_row_end_a_run_with_the_reason(tmp_path: Path) -> None:
    options = json.dumps({"fault": "raises", "at": 40, "length": 1000})
    output = fit(*bad_game(options), "--data.max_env_failures", 4, cwd=tmp_path, config="quickstart.yaml", status=2)
    assert re.search(r"raised RuntimeError: server lost.* 5 failures of environments in a row", output.splitlines()[-1])


def test_test_episodes_that_never_end_are_cut(tmp_path: Path) -> None:
    frames = ["--model.schedule.collection.first_epoch_frames", 400, "--data.max_test_episode_steps", 30]
    length = ["--trainer.max_epochs", 1, "--trainer.check_val_every_n_epoch", 1, "--data.val_episodes", 4]
    output = fit(*bad_game("{fault: never}"), *frames, *length, *TRAINING, cwd=tmp_path, config="quickstart.yaml")
    assert "4 of 4 test episodes were cut after 30 steps (data.max_test_episode_steps)" in output
