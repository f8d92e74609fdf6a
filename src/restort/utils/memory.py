"""Free memory of this machine."""

from __future__ import annotations

from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes that can be allocated now without swapping, within the limits of the cgroup (container) and the process."""
    import psutil  # type: ignore[import-untyped, unused-ignore]

    free = int(psutil.virtual_memory().available)
    return min([free, *(left for left in (_cgroup_left(), _process_left()) if left is not None)])


def _process_left() -> int | None:
    """Bytes left below the limit of this process's address space (`ulimit -v`); None without a limit."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    import psutil

    return max(limit - int(psutil.Process().memory_info().vms), 0)


def _cgroup_left() -> int | None:
    """Bytes left below the memory limit of the cgroup (v2, then v1); None without a limit."""
    for limit_name, usage_name in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            limit = (_CGROUP / limit_name).read_text().strip()
            usage = (_CGROUP / usage_name).read_text().strip()
            if limit.isdigit() and int(limit) < 1 << 60:
                return max(int(limit) - int(usage), 0)
        except (OSError, ValueError):
            continue
    return None
