"""Ctrl-C and signals that ask the program to end.

A signal raises KeyboardInterrupt at once, and is remembered: where a library swallows the exception, as cffi does in a
callback, the next `check` between two tiles or files raises it again.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any, NoReturn

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_received: list[int] = []


def check() -> None:
    """Raise KeyboardInterrupt if a signal to end has come."""
    if _received:
        raise KeyboardInterrupt


def received() -> int | None:
    """The number of the first signal to end that has come, None without one."""
    return _received[0] if _received else None


@contextlib.contextmanager
def handle_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt for Ctrl-C, SIGTERM and SIGHUP; an ignored signal, as under nohup, stays ignored."""
    _received.clear()
    before: dict[int, Any] = {}
    with contextlib.suppress(ValueError):  # not in the main thread
        for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, frame: Any) -> NoReturn:
    _received.append(number)
    raise KeyboardInterrupt
