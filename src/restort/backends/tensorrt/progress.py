"""How far a build is, from what the library tells of its phases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

Progress: TypeAlias = Callable[[str, float | None], object]
"""Called with a phase's name and how much of the whole is done, 0 to 1, None where that is not known."""


STEP = 0.005  # steps come by the thousand


class Phases:
    """Nested phases of so many steps each, as one number. A phase is one step of the one it lies in."""

    def __init__(self, tell: Progress) -> None:
        self.tell = tell
        self.stopped: BaseException | None = None
        self._stack: list[list[Any]] = []  # name, steps, steps done
        self._told = "", 0.0

    def start(self, name: str, steps: int) -> None:
        self._stack.append([name, max(steps, 1), 0])
        self._say()

    def step(self, name: str, step: int) -> bool:
        """Whether to go on."""
        for phase in self._stack:
            if phase[0] == name:
                phase[2] = min(step + 1, phase[1])
        self._say()
        return self.stopped is None

    def finish(self, name: str) -> None:
        for i in range(len(self._stack) - 1, -1, -1):
            if self._stack[i][0] == name:
                del self._stack[i:]
                break
        self._say()

    def stop(self, reason: BaseException) -> None:
        """Ends the build at its next step."""
        self.stopped = self.stopped or reason

    def _say(self) -> None:
        if not self._stack or self.stopped is not None:
            return
        done, share = 0.0, 1.0
        for _, steps, finished in self._stack:
            done += share * finished / steps
            share /= steps
        name, share = self._stack[-1][0], min(done, 1.0)
        if name == self._told[0] and share < self._told[1] + STEP:
            return
        self._told = name, max(self._told[1], share)  # some phases come more than once
        try:
            self.tell(*self._told)
        except BaseException as error:  # Ctrl-C, which must not go through the library
            self.stop(error)


def monitor(module: Any, phases: Phases) -> Any:
    """An IProgressMonitor that fills `phases`."""

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return phases.step(phase_name, step)

    return Monitor()
