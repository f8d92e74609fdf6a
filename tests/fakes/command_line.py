"""The command line with a stand-in for the network, in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

FAKE = [sys.executable, str(Path(__file__).parent / "fake_backend.py")]


class Answer:
    """Exit status, stdout and stderr of a command, which never prints a traceback."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err
        assert "Traceback" not in err
        self.lines = err.splitlines()
