"""The conditions of a measurement: processor, memory, load and clocks, libraries, the command, the date."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from restort.evaluation.report import versions
from restort.utils.cpu import default_threads, processor_name

_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def provenance() -> dict[str, Any]:
    """Return what every record holds: device, machine, versions, command, date."""
    return {
        "device": processor_name(),
        "machine": machine(),
        "versions": versions(),
        "command": command(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def machine() -> dict[str, Any]:
    """Return the cores this process may use, memory in GiB, load average of a minute, clocks, operating system."""
    import psutil

    return {
        "cores": default_threads(),
        "logical_processors": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "clocks": clocks(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def clocks() -> dict[str, Any]:
    """Return the processor's frequency now (MHz) and its governor; None where the system gives none."""
    import psutil

    try:
        frequency = psutil.cpu_freq()
    except (OSError, NotImplementedError, AttributeError, RuntimeError):
        frequency = None
    try:
        governor: str | None = _GOVERNOR.read_text().strip()
    except OSError:
        governor = None
    return {"frequency_mhz": round(frequency.current) if frequency else None, "governor": governor}


def command() -> str:
    """Return the command line, with the program by its name alone."""
    program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    return shlex.join([program, *sys.argv[1:]])


def peak_rss() -> int | None:
    """Return the largest resident memory of this process so far, in bytes; None where it cannot be read.

    On Linux this is VmHWM: getrusage's ru_maxrss survives exec and counts the parent's memory, too.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    if sys.platform == "darwin":
        import resource

        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    import psutil

    return getattr(psutil.Process().memory_info(), "peak_wset", None)
