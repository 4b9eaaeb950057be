"""The `delta-iris` program: runs a command, and turns what stops it into one message and an exit status."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from importlib.metadata import version
from typing import NoReturn

from delta_iris.commands.cli import run_trainer
from delta_iris.commands.key_suggestions import did_you_mean
from delta_iris.commands.tools import TOOLS, run_tool
from delta_iris.data.disk import is_disk_full
from delta_iris.distributed import is_lost_connection
from delta_iris.errors import SharedUserError, UserError
from delta_iris.scratch import process_scratch
from delta_iris.training.run_folder import is_first_process

__all__ = ["main"]


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    A `UserError` becomes one message and exit status 2; Ctrl-C gives status 130, SIGTERM 143.

    Args:
        args: of the command line; those of the process where None.
    """
    threading.excepthook = _report_thread
    with _exit_on_sigterm():
        try:
            process_scratch()
            given = sys.argv[1:] if args is None else args
            _check_command(given)
            if given[0] == "--version":
                print(f"delta-iris {version('delta-iris')}")
                status = 0
            elif given[0] in TOOLS:
                run_tool(given[0], given[1:])
                status = 0
            else:
                status = run_trainer(args)
            sys.stdout.flush()
        except SharedUserError as error:
            if is_first_process():
                _fail(str(error))
            # Lightning's first process would take another status for a failure, and be killed before it has printed.
            status = 0
        except UserError as error:
            _fail(str(error))
        except BrokenPipeError:
            # What reads our output, such as `head`, has seen enough. Python would complain once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(141) from None
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        except SystemExit as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # Lightning makes it a failure
                raise SystemExit(130) from None
            raise
        except RuntimeError as error:
            if not is_lost_connection(error):
                raise
            if is_first_process():
                print(
                    "delta-iris: another process of the run has ended, so that this one ends too: what it printed "
                    "before says why; resume with --ckpt_path last if a checkpoint was saved",
                    file=sys.stderr,
                )
            status = 1
        except OSError as error:
            if not is_disk_full(error):
                raise
            where = f" ({error.filename})" if error.filename else ""
            _fail(
                f"the disk is full{where}: free some space, then resume with --ckpt_path last if a checkpoint was "
                "saved, which is whole"
            )
    if status:
        raise SystemExit(status)


def _check_command(given: list[str]) -> None:
    """Refuse what is no command, with all commands; Lightning's message would list those that train only."""
    commands = ("fit", "validate", "test", *TOOLS)
    if not given:
        raise UserError(f"name a command: {', '.join(commands)}; see --help")
    if given[0] not in commands and not given[0].startswith("-"):
        hint = did_you_mean(given[0], commands)
        raise UserError(f"there is no command {given[0]!r}{hint or ': choose one of ' + ', '.join(commands)}")


def _report_thread(arguments: threading.ExceptHookArgs) -> None:
    """Leave out what TensorBoard's writer raises on a full disk: it hands it on to the main thread."""
    if arguments.exc_value is None or not is_disk_full(arguments.exc_value):
        threading.__excepthook__(arguments)


def _fail(message: str) -> NoReturn:
    print(f"delta-iris: {message}", file=sys.stderr)
    raise SystemExit(2) from None


@contextlib.contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """End with status 143 where nothing handles the signal otherwise, and clean up on the way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: object) -> NoReturn:
        raise SystemExit(143)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
