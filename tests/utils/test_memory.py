"""Free memory as the cgroup sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from restort.utils import memory


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_OWN_CGROUP", tmp_path / "own")
    return tmp_path


def limit(folder: Path, most: str, used: int, stat: str = "", *, old: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if old else ("memory.max", "memory.current")
    for name, value in zip((*names, "memory.stat"), (most, used, stat), strict=True):
        (folder / name).write_text(f"{value}\n")


def test_without_a_limit(cgroups: Path) -> None:
    assert memory._cgroup_left() is None
    limit(cgroups, "max", 5)
    assert memory._cgroup_left() is None


def test_a_container_sees_itself_at_the_top(cgroups: Path) -> None:
    (cgroups / "own").write_text("0::/\n")
    limit(cgroups, "1000", 300)
    assert memory._cgroup_left() == 700


@pytest.mark.parametrize(
    "inner, outer, left", [("1000", "max", 600), ("max", "900", 100), ("1000", "900", 100)]
)
def test_the_process_s_own_group_and_those_above(cgroups: Path, inner: str, outer: str, left: int) -> None:
    (cgroups / "own").write_text("0::/user.slice/job.scope\n")
    limit(cgroups / "user.slice", outer, 800)
    limit(cgroups / "user.slice/job.scope", inner, 400)
    assert memory._cgroup_left() == left


def test_version_1(cgroups: Path) -> None:
    (cgroups / "own").write_text("5:cpu,cpuacct:/x\n4:memory:/docker/abc\n1:name=systemd:/\n")
    limit(cgroups / "memory", str(2**63 - 4096), 7, old=True)
    limit(
        cgroups / "memory/docker/abc",
        "1000",
        250,
        "total_inactive_file 100\ntotal_active_file 50\n",
        old=True,
    )
    assert memory._cgroup_left() == 900


def test_cached_files_are_free(cgroups: Path) -> None:
    """A run that has read many files fills its container with them; they must not make it refuse pictures."""
    limit(cgroups, "1000", 990, "anon 90\ninactive_file 600\nactive_file 300\nshmem 5\n")
    assert memory._cgroup_left() == 910
    assert memory.available_memory() <= 910
