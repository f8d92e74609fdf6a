"""The cache of AOT packages, from which a Python without PyTorch and Triton takes them.

They lie under aot/ in the cache folder. Their names have a digest of everything that decides their contents: weights,
precision, shape, compute capability and the sources of the kernels. The least recently used are removed when all
together take more than LIMIT bytes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from restort.backends.fused.aot_package import AotPackage, read_aot
from restort.backends.fused.sources import sources_digest
from restort.errors import OutOfMemory, RestortError, UsageError
from restort.utils.cache_dir import cache_root, distrusted, slug
from restort.utils.extras import install_command
from restort.utils.files import make_folder, read_bytes, write_bytes

if TYPE_CHECKING:
    from restort.weights.checkpoint import Weights

LIMIT = 8 << 30
PRECISIONS = ("fp16", "bf16")
MAKERS = ("torch", "triton")
Notify = Callable[[str], object]


@dataclass(frozen=True)
class AotRequest:
    """The AOT package of a pass: `shape` is (n, h, w) of its input, `capability` 90 for 9.0."""

    weights: Weights
    precision: str
    shape: tuple[int, int, int]
    capability: int

    @property
    def name(self) -> str:
        """The file's name: a description for people, and the digest, which alone identifies it."""
        facts = [self.weights.digest, self.precision, self.shape, self.capability, sources_digest()]
        digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        return (
            f"{slug(model_of(self.weights))}-{self.precision}-{self.size}-sm{self.capability}-{digest}.rtaot"
        )

    @property
    def size(self) -> str:
        return "x".join(map(str, self.shape))

    @property
    def command(self) -> str:
        """The command that makes it, in a Python with PyTorch and Triton."""
        return (
            f"restort export --format aot --shape {self.size} --precision {self.precision} --compute-capability "
            f"{self.capability / 10}"
        )

    def differs(self, package: AotPackage) -> str | None:
        """Return in words how `package` differs from this request; None if it does not."""
        n, _, h, w = package.input
        text = package.text
        if text.get("weights_sha256") != self.weights.digest:
            return "it was made of other weights"
        if text.get("precision") != self.precision:
            return f"it is in {text.get('precision')}, not {self.precision}"
        if (n, h, w) != self.shape:
            return f"it is for inputs of {n}x{h}x{w} (BxHxW), not {self.size}"
        if package.capability != self.capability:
            return f"it is for compute capability {package.capability / 10}, not {self.capability / 10}"
        if text.get("sources") != sources_digest():
            return f"it was made by another version of RestoRT's kernels ({text.get('restort')})"
        return None


@dataclass(frozen=True)
class AotCache:
    """The packages under `folder`, of which at most `limit` bytes are kept."""

    folder: Path = field(default_factory=lambda: cache_root() / "aot")
    limit: int = LIMIT

    def find(self, request: AotRequest) -> Path | None:
        """Return the file of the package if it is there, complete and as requested; else None."""
        path = self.folder / request.name
        if distrusted(path) is not None:
            return None
        try:
            package = read_aot(path.read_bytes())
        except (OSError, RestortError):
            return None
        if request.differs(package):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return path

    def provide(self, request: AotRequest, notify: Notify, processes: int | None = None) -> Path:
        """Return the file of the package, compiled now by so many processes if it is missing.

        Raises RestortError if that fails.
        """
        found = self.find(request)
        if found is not None:
            return found
        absent = [name for name in MAKERS if importlib.util.find_spec(name) is None]
        if absent:
            verb = "are" if len(absent) > 1 else "is"
            raise RestortError(
                f"no AOT package of {model_of(request.weights)} for this GPU in {self.folder}, and "
                f"{' and '.join(absent)} {verb} not installed to make one; run "
                f"`{request.command}` with the same model in a Python that has both, with the same RESTORT_CACHE, or "
                "give its file with --aot"
            )
        notify(
            f"compiling the AOT package of {model_of(request.weights)}, {request.precision}, {request.size} "
            "(done once)"
        )
        path = self.folder / request.name
        with _writing(self.folder):  # before minutes are spent
            make_folder(self.folder, private=True)
            if not os.access(self.folder, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        write_bytes(path, compile_request(request, processes), overwrite=True)
        self._shrink(path)
        return path

    def _shrink(self, keep: Path) -> None:
        """Remove the least recently used packages, except `keep`, until the rest is within the limit."""
        found = []
        for path in self.folder.glob("*.rtaot"):
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


def compile_request(request: AotRequest, processes: int | None = None) -> bytes:
    """Compile a package and return its bytes; imports PyTorch and Triton."""
    try:
        from restort.backends.fused.aot_compile import compile_aot
    except ImportError as error:
        raise RestortError(
            f"AOT packages are compiled by PyTorch and Triton ({error}); install them with: "
            f"{install_command('fused')}"
        ) from None
    count = processes or max(1, min(16, os.cpu_count() or 1))
    with _writing(cache_root()):  # compiled kernels are kept there
        return compile_aot(
            request.weights, request.precision, request.shape, request.capability, processes=count
        )


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOMEM, errno.EAGAIN):  # of processes to compile in
            raise OutOfMemory(
                "cannot start a process to compile in (out of memory); free some memory"
            ) from None
        reason = (error.strerror or str(error)).lower()
        raise RestortError(
            f"cannot write the cache {folder} ({reason}); set RESTORT_CACHE to another folder"
        ) from None


def open_aot(path: Path) -> AotPackage:
    """Read the package of a file. Raises RestortError, which names the file, if it is damaged or no package."""
    data = read_bytes(path)
    try:
        return read_aot(data)
    except RestortError as error:
        raise RestortError(f"{path}: {error}") from None


def validate_aot_file(path: Path, request: AotRequest) -> Path:
    """Return the absolute path of a package that a user names. Raises UsageError if it is not the one requested."""
    path = path.expanduser().resolve()
    if found := request.differs(open_aot(path)):
        raise UsageError(f"AOT package {path} does not fit: {found}; make one with `{request.command}`")
    return path


def model_of(weights: Weights) -> str:
    return weights.metadata.get("name") or weights.path.stem
