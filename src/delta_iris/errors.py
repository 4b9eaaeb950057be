"""The one error class meant for a person to read."""

from __future__ import annotations

__all__ = ["UserError"]


class UserError(Exception):
    """Something the user can mend: names the key or the file, and the way out.

    The command line prints its message alone, without a stack of frames, and ends with status 2.
    """
