"""Free memory of this machine."""

from __future__ import annotations

from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


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
    """Bytes left below the memory limits of the process's cgroup and of those above it; None without a limit."""
    left = [room for folder in _cgroups() if (room := _left_in(folder)) is not None]
    return min(left) if left else None


def _cgroups() -> list[Path]:
    """Folders of the process's cgroup (v2, or the memory controller of v1) and of those above it."""
    try:
        lines = _OWN_CGROUP.read_text().splitlines()
    except OSError:  # no Linux
        lines = []
    found = [_CGROUP, _CGROUP / "memory"]  # all that a container sees of itself
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" or "memory" in controllers.split(","):
            mount = _CGROUP if number == "0" else _CGROUP / "memory"
            names = [name for name in path.split("/") if name not in ("", "..")]
            found += [mount.joinpath(*names[:depth]) for depth in range(1, len(names) + 1)]
    return found


def _left_in(folder: Path) -> int | None:
    """Bytes left in one cgroup, cached files not counted as used: the system drops them where memory is short."""
    for limit_name, usage_name, cached in (
        ("memory.max", "memory.current", ("inactive_file", "active_file")),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
    ):
        try:
            limit = (folder / limit_name).read_text().strip()
            if not limit.isdigit() or int(limit) >= 1 << 60:  # "max", or v1's largest number
                continue
            usage = int((folder / usage_name).read_text())
            return max(int(limit) - max(usage - _cached(folder, cached), 0), 0)
        except (OSError, ValueError):
            continue
    return None


def _cached(folder: Path, names: tuple[str, ...]) -> int:
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
        return sum(int(value) for name, _, value in (line.partition(" ") for line in lines) if name in names)
    except (OSError, ValueError):
        return 0
