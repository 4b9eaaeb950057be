"""Numbers that processes or environments share evenly."""

from __future__ import annotations

from delta_iris.errors import SharedUserError

__all__ = ["check_split", "next_multiple"]


def next_multiple(number: int, of: int) -> int:
    """Return the smallest multiple of `of` that is at least `number`."""
    return -(-number // of) * of


def check_split(key: str, number: int, world_size: int) -> None:
    """Refuse a number that the processes cannot share evenly.

    Args:
        key: of the configuration, for the message.
        number: over all processes.
        world_size: number of processes.

    Raises:
        SharedUserError: names the key, and a number that would do.
    """
    if number % world_size:
        raise SharedUserError(
            f"{key} is {number}, which cannot be split evenly across {world_size} processes: make it a multiple of "
            f"{world_size}, such as {next_multiple(number, world_size)}, or change trainer.devices"
        )
