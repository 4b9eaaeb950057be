"""Exceptions: mistakes that the user can fix, and a wait that the caller ended."""

from __future__ import annotations

__all__ = ["Abandoned", "SharedUserError", "UserError"]


class UserError(Exception):
    """A problem that the user can fix, such as a wrong configuration value or a damaged file.

    The message names the configuration key or the file and says how to fix it. The command line prints only the
    message, without a traceback, and exits with status 2.
    """


class SharedUserError(UserError):
    """A `UserError` that every process of a run raises at the same point, so that only the first one prints it."""


class Abandoned(Exception):
    """The caller asked to stop while environments were awaited; their pool can only be closed now."""
