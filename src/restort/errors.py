"""The exceptions of RestoRT: each carries one clear sentence for the user."""

from __future__ import annotations


class RestortError(Exception):
    """Something asked for cannot be done.

    The message is one sentence: what was wrong, with which file or option, and what to do about it.
    The command line prints it as it is and exits with status 1.
    """


class UsageError(RestortError):
    """The request itself is wrong (an option, a name, a combination): exit status 2."""


class TooLarge(RestortError):
    """A picture beyond a limit: pixels that a file claims, or memory that it would take."""


class OutOfMemory(RestortError, MemoryError):
    """A backend has not the memory for an array of this size; a smaller one may fit (restort.tiling.tiles)."""


def not_finite() -> RestortError:
    """The error of a network whose result cannot be a picture."""
    return RestortError("the network returned NaN or infinity; use --precision fp32 or other weights")
