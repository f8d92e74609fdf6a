"""Read a picture in a process of its own, where a decoder that crashes or never ends does no harm.

`python -m restort.imaging.trial FILE` is what `survives` starts: status 0 where the file can be read, 1 where reading
it fails with an error, as it would anywhere.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

SECONDS = 300.0
"""More than any sound picture takes to be read."""


def survives(path: Path) -> str | None:
    """Read `path` in a child process with limits of memory and time; say how it died, None where it came back."""
    command = [sys.executable, "-m", "restort.imaging.trial", str(path)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"it took more than {SECONDS:.0f} s to read"
    except OSError:  # no process can be started: there is nothing to go by
        return None
    if done.returncode in (0, 1):
        return None
    return f"reading it ended the process (status {done.returncode})"


def _main(path: Path) -> int:
    from restort.errors import RestortError
    from restort.imaging.decode import read
    from restort.utils.memory import available_memory

    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no such limits
        import resource

        room = available_memory() + (1 << 30)  # and what the libraries map without using it
        resource.setrlimit(resource.RLIMIT_AS, (room, resource.getrlimit(resource.RLIMIT_AS)[1]))
    try:
        read(path, all_frames=True)
    except RestortError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1])))
