"""The CPU of this machine: name, usable cores, native bfloat16."""

from __future__ import annotations

import math
import os
import platform
from functools import cache
from pathlib import Path

_TOPOLOGY = Path("/sys/devices/system/cpu")
_CPUINFO = Path("/proc/cpuinfo")


def default_threads() -> int:
    """Count the physical cores this process may use: CPU affinity and the quota of the cgroup limit them."""
    allowed = _allowed()
    if allowed is None:
        import psutil

        return psutil.cpu_count(logical=False) or os.cpu_count() or 1
    cores = {_siblings(cpu) for cpu in allowed}
    quota = _quota()
    return max(1, min(len(cores), math.ceil(quota)) if quota else len(cores))


def _allowed() -> set[int] | None:
    """Logical CPUs in the affinity mask; None on systems without one."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


def _siblings(cpu: int) -> str:
    """Identify the core of a logical CPU by the list of the logical CPUs (hyper-threads) that share it."""
    for name in ("core_cpus_list", "thread_siblings_list"):
        try:
            return (_TOPOLOGY / f"cpu{cpu}" / "topology" / name).read_text().strip()
        except OSError:
            continue
    return str(cpu)


def _quota() -> float | None:
    """CPU time per second that the cgroup (v2, then v1) grants, in CPUs; None without a limit."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        folder = Path("/sys/fs/cgroup/cpu")
        limit_us = int((folder / "cpu.cfs_quota_us").read_text())
        return limit_us / int((folder / "cpu.cfs_period_us").read_text()) if limit_us > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


@cache
def _cpuinfo() -> tuple[str, frozenset[str]]:
    """The name and the feature flags in /proc/cpuinfo."""
    fields: dict[str, str] = {}
    try:
        for line in _CPUINFO.read_text("utf-8", "replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip().lower(), value.strip())
    except OSError:
        pass
    name = fields.get("model name") or platform.processor() or platform.machine()
    # A virtual machine may hide the model name: family, model and stepping still tell CPUs apart.
    numbers = [fields[key] for key in ("cpu family", "model", "stepping") if key in fields]
    flags = fields.get("flags") or fields.get("features") or ""
    return " ".join([name, *(["/".join(numbers)] if numbers else [])]), frozenset(flags.split())


def processor_name() -> str:
    """The name of the CPU with family/model/stepping, such as `Intel(R) Xeon(R) 6/143/8`."""
    return _cpuinfo()[0]


def native_bfloat16() -> bool:
    """Return whether the CPU has bfloat16 arithmetic; without it bfloat16 is emulated and slower than float32."""
    return bool(_cpuinfo()[1] & {"avx512_bf16", "amx_bf16", "bf16"})
