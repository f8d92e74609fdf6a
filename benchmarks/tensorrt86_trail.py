"""What TensorRT 8.6 says while it builds, in short: its errors, its last words, and where its time goes."""

from __future__ import annotations

import contextlib
import re
import time
from collections import deque
from typing import Any

MESSAGES = 40
Record = dict[str, Any]


class Trail:
    """All that the library says: errors and warnings, the last lines of any kind, the parts it gives to Myelin.

    `seldom` is called about once a second from the library's own thread, so that a process that is killed has told.
    """

    def __init__(self, flavour: Any, seldom: Any) -> None:
        self.bad: list[str] = []
        self.last: deque[str] = deque(maxlen=MESSAGES)
        self.foreign: dict[str, float] = {}
        self.runners: dict[str, list[float]] = {}  # by kind of kernel: layers, tactics, seconds
        self.slowest: dict[str, float] = {}  # seconds by layer
        self.timing: tuple[str, str, float] | None = None
        self.start = self.told = time.monotonic()
        before, module, trail = flavour.log.logger, flavour.module, self

        class Logger(module.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                module.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                before.log(severity, message)
                trail.hear(severity.name, message)
                if time.monotonic() - trail.told > 1:
                    trail.told = time.monotonic()
                    with contextlib.suppress(Exception):  # which the library would end the process for
                        seldom()

        flavour.log.logger = Logger()

    def hear(self, severity: str, message: str) -> None:
        text = f"{time.monotonic() - self.start:.1f} {severity}: {message[:600]}"
        self.last.append(text)
        self.follow(message)
        if severity not in ("VERBOSE", "INFO"):
            self.bad.append(text)
        elif "ForeignNode[" in message:
            for name in re.findall(r"ForeignNode\[[^\]]*\]", message):
                self.foreign.setdefault(name[:140], round(time.monotonic() - self.start, 1))

    def follow(self, message: str) -> None:
        """Where the builder's time goes: it names a layer and its kind of kernel, then each tactic that it times."""
        now = time.monotonic() - self.start
        if message.startswith("Tactic: ") and self.timing:
            self.runners[self.timing[1]][1] += 1
        begins = re.match(r"-* Timing Runner: (.*) \((\w+)", message)
        if begins or message.startswith(("*****", "=====", "Fastest Tactic")):
            if self.timing:
                layer, kind, since = self.timing
                self.runners[kind][2] += now - since
                self.slowest[layer] = self.slowest.get(layer, 0.0) + now - since
            self.timing = None
        if begins:
            self.timing = begins[1], begins[2], now
            self.runners.setdefault(begins[2], [0, 0, 0.0])[0] += 1

    def found(self) -> Record:
        worst = [text for text in self.bad if "ERROR:" in text]
        warnings = [text for text in self.bad if "ERROR:" not in text]
        return {
            "messages": [*worst, *warnings][:MESSAGES],
            "last": [text[:300] for text in self.last],
            "foreign": dict(list(self.foreign.items())[:MESSAGES]),
            "runners": {kind: [*map(round, numbers)] for kind, numbers in self.runners.items()},
            "slowest": {
                name[:120]: round(seconds, 1)
                for name, seconds in sorted(self.slowest.items(), key=lambda item: -item[1])[:MESSAGES]
            },
        }
