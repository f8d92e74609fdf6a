"""Plans on disk (restort.backends.fused.aot_package), so that a Python without PyTorch and Triton has them, too.

They lie under plans/ in the cache folder, by names that hold a digest of everything that makes a plan: the weights,
precision, shape, compute capability, and the sources of the kernels. Those not used for longest go when all together
take more than LIMIT bytes.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import restort
from restort.backends.fused.aot_package import Plan, read_plan
from restort.errors import OutOfMemory, RestortError, UsageError
from restort.utils.cache_dir import cache_root, slug
from restort.utils.files import read_bytes, write_bytes

if TYPE_CHECKING:
    from restort.weights.checkpoint import Weights

LIMIT = 8 << 30
PRECISIONS = ("fp16", "bf16")
MAKERS = ("torch", "triton")
Say = Callable[[str], object]


@dataclass(frozen=True)
class Wanted:
    """A plan: `shape` is (n, h, w) of its input, `capability` 90 for 9.0."""

    weights: Weights
    precision: str
    shape: tuple[int, int, int]
    capability: int

    @property
    def name(self) -> str:
        """The file's name: for people first, then the digest, which alone decides."""
        facts = [self.weights.digest, self.precision, self.shape, self.capability, sources_digest()]
        digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        return (
            f"{slug(model_of(self.weights))}-{self.precision}-{self.size}-sm{self.capability}-{digest}.plan"
        )

    @property
    def size(self) -> str:
        return "x".join(map(str, self.shape))

    @property
    def command(self) -> str:
        """What makes it, where PyTorch and Triton are."""
        return (
            f"restort export --format aot --shape {self.size} --precision {self.precision} --compute-capability "
            f"{self.capability / 10}"
        )

    def differs(self, plan: Plan) -> str | None:
        """In what `plan` is not the one that is wanted, in words; None where it is."""
        n, _, h, w = plan.input
        text = plan.text
        if text.get("weights_sha256") != self.weights.digest:
            return "it was made of other weights"
        if text.get("precision") != self.precision:
            return f"it is in {text.get('precision')}, not {self.precision}"
        if (n, h, w) != self.shape:
            return f"it is for inputs of {n}x{h}x{w} (BxHxW), not {self.size}"
        if plan.capability != self.capability:
            return f"it is for compute capability {plan.capability / 10}, not {self.capability / 10}"
        if text.get("sources") != sources_digest():
            return f"it was made by another version of RestoRT's kernels ({text.get('restort')})"
        return None


@dataclass(frozen=True)
class PlanCache:
    """The plans under `folder`, of which at most `limit` bytes are kept."""

    folder: Path = field(default_factory=lambda: cache_root() / "plans")
    limit: int = LIMIT

    def find(self, wanted: Wanted) -> Path | None:
        """The plan's file, whole and of what is wanted; None without one."""
        path = self.folder / wanted.name
        try:
            plan = read_plan(path.read_bytes())
        except (OSError, RestortError):
            return None
        if wanted.differs(plan):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return path

    def provide(self, wanted: Wanted, say: Say, processes: int | None = None) -> Path:
        """The same, or one that is made now, by so many processes. Raises RestortError where that fails."""
        found = self.find(wanted)
        if found is not None:
            return found
        absent = [name for name in MAKERS if importlib.util.find_spec(name) is None]
        if absent:
            verb = "are" if len(absent) > 1 else "is"
            raise RestortError(
                f"{self.folder} holds no plan of {model_of(wanted.weights)} for this GPU, and {' and '.join(absent)} "
                f"{verb} not here to make one; run `{wanted.command}` with the same model in a Python that has "
                "both, with the same RESTORT_CACHE, or give its file with --aot"
            )
        say(
            f"compiling the plan of {model_of(wanted.weights)}, {wanted.precision}, {wanted.size}: there is none yet"
        )
        path = self.folder / wanted.name
        with _writing(self.folder):  # before minutes are spent
            self.folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        write_bytes(path, made(wanted, processes), overwrite=True)
        self._shrink(path)
        return path

    def _shrink(self, keep: Path) -> None:
        """Removes the plans used longest ago, but not `keep`, until the rest is within the limit."""
        found = []
        for path in self.folder.glob("*.plan"):
            with contextlib.suppress(OSError):
                about = path.stat()
                found.append((path != keep, -about.st_mtime, about.st_size, path))
        total = 0
        for other, _, size, path in sorted(found):
            total += size
            if other and total > self.limit:
                with contextlib.suppress(OSError):
                    path.unlink()
                    total -= size


def made(wanted: Wanted, processes: int | None = None) -> bytes:
    """The bytes of a plan, made now; PyTorch and Triton are imported for it."""
    try:
        from restort.backends.fused.aot_compile import make_plan
    except ImportError as error:
        raise RestortError(
            f"a plan of RestoRT's kernels needs PyTorch and Triton ({error}); get them with: pip install "
            "'restort[fused]'"
        ) from None
    count = processes or max(1, min(16, os.cpu_count() or 1))
    with _writing(cache_root()):  # compiled kernels are kept there
        return make_plan(wanted.weights, wanted.precision, wanted.shape, wanted.capability, processes=count)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOMEM, errno.EAGAIN):  # of processes to compile in
            raise OutOfMemory("no process can be started to compile in; free some memory") from None
        reason = (error.strerror or str(error)).lower()
        raise RestortError(
            f"cannot write the cache {folder} ({reason}); set RESTORT_CACHE to another folder"
        ) from None


def opened(path: Path) -> Plan:
    """The plan of a file. Raises RestortError, which names it, where it is none or damaged."""
    data = read_bytes(path)
    try:
        return read_plan(data)
    except RestortError as error:
        raise RestortError(f"{path}: {error}") from None


def given(path: Path, wanted: Wanted) -> Path:
    """The path of a plan that a user names, made absolute. Raises UsageError where it is of something else."""
    path = path.expanduser().resolve()
    if found := wanted.differs(opened(path)):
        raise UsageError(f"the plan {path} does not fit: {found}; make one with `{wanted.command}`")
    return path


def model_of(weights: Weights) -> str:
    return weights.metadata.get("name") or weights.path.stem


@functools.cache
def sources_digest() -> str:
    """SHA-256 of the sources that a plan is made by: restort.kernels and restort.backends.fused."""
    root = Path(restort.__file__).parent
    found = hashlib.sha256()
    for folder in (root / "kernels", root / "backends" / "fused"):
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".py", ".cu", ".cuh"):
                found.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()
