"""Run many tries in child processes with limits of memory and time, and learn which try a child died of.

A try is a number from which a child makes its input. The child writes the number before the try and what went wrong
after it; where it dies, the next child goes on behind that try.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MEMORY_BYTES = 4 << 30  # of address space, of which the libraries map more than a gigabyte
SECONDS = 20.0  # for one try; most take milliseconds


def run(module: str, seed: int, tries: int, folder: Path) -> list[str]:
    """Let `python -m MODULE SEED BEGIN END FOLDER` make the tries; return a sentence for each that went wrong."""
    failures: list[str] = []
    begin = 0
    while begin < tries and len(failures) < 20:
        begin = _run_once(module, seed, begin, tries, folder, failures)
    return failures


def _run_once(module: str, seed: int, begin: int, end: int, folder: Path, failures: list[str]) -> int:
    """Run one child until its end or death; return the try to go on with."""
    command = [sys.executable, "-m", module, str(seed), str(begin), str(end), str(folder)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as output:
        child = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=errors)
        seen, since = -1, time.monotonic()
        while child.poll() is None:
            time.sleep(0.05)
            now = _current(folder)
            if now != seen:
                seen, since = now, time.monotonic()
            if time.monotonic() - since > SECONDS + (20 if seen < 0 else 0):  # imports come first
                child.kill()
                child.wait()
                failures.append(f"try {seen} of seed {seed} took more than {SECONDS:g} s")
                return seen + 1
        output.seek(0)
        for line in output.read().splitlines():
            failures.append(str(json.loads(line)))
        errors.seek(0)
        printed = errors.read()
        if child.returncode == 0 and printed:
            failures.append(f"seed {seed}: something was printed: {printed[:500]!r}")
        if child.returncode != 0:
            seen = _current(folder)
            failures.append(
                f"try {seen} of seed {seed} ended the process: {child.returncode} {printed[-800:]!r}"
            )
            return seen + 1
    return end


def _current(folder: Path) -> int:
    try:
        return int((folder / "current").read_text() or -1)
    except (OSError, ValueError):
        return -1


def main(attempt: Callable[[int, int, Path], str | None]) -> None:
    """The child: call `attempt(seed, number, folder)`, which says what went wrong, for each try."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    seed, begin, end = map(int, sys.argv[1:4])
    folder = Path(sys.argv[4])
    with (folder / "current").open("w") as current:
        for number in range(begin, end):
            current.seek(0)
            current.write(f"{number:9d}")
            current.flush()
            wrong = attempt(seed, number, folder)
            if wrong is not None:
                print(json.dumps(f"try {number} of seed {seed}: {wrong}"), flush=True)
