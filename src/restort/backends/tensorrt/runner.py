"""The backend `tensorrt`: a network as an engine of TensorRT or TensorRT-RTX, without PyTorch.

The engine is found in the cache or built when the first array comes, because only then its size is known.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from restort.backends.fused.aot_cache import PRECISIONS as FUSED_PRECISIONS
from restort.backends.tensorrt import cuda
from restort.backends.tensorrt.build import BuildOptions, check_options
from restort.backends.tensorrt.build_plan import ready
from restort.backends.tensorrt.cache import Stored
from restort.backends.tensorrt.check import KERNELS, asked_kernels
from restort.backends.tensorrt.flavour import find
from restort.backends.tensorrt.gpu import Gpu
from restort.backends.tensorrt.keys import Profile, Size, profile_of
from restort.backends.tensorrt.mixed import kept_sections
from restort.backends.tensorrt.runtime import Engine, EngineRefused
from restort.backends.tensorrt.supply import LARGEST, Supply, present
from restort.errors import OutOfMemory, RestortError, UsageError
from restort.models.memory_estimate import bytes_per_pixel
from restort.runner import Array, checked, closed
from restort.utils.files import write_bytes
from restort.weights.checkpoint import Weights

PRECISIONS = ("fp16", "bf16", "fp32", "tf32", "mixed")
LADDER = {
    "fp16": ("fp16", "bf16", "fp32"),
    "mixed": ("mixed", "bf16", "fp32"),
    "bf16": ("bf16", "fp32"),
    "tf32": ("tf32", "fp32"),
    "fp32": ("fp32",),
}
"""What a result that is not finite is computed in instead; bf16 where the library has it."""

FLAVOUR = "RESTORT_TENSORRT"
"""Names the library where both are installed: tensorrt or rtx."""
KEPT = 4  # engines of one size each that stay open, with weights and scratch of their own

_log = logging.getLogger("restort")


class TensorrtRunner:
    """A network on the first GPU.

    profile     the sizes of the engine to run or build; default: whatever engine in the cache takes an array, and
                if none does, the one of restort.backends.tensorrt.supply.profile_for.
    options     further fields of restort.backends.tensorrt.build.BuildOptions. With {'kernels': 'fused'}, and of
                networks of which the library makes good engines for one size only, every size has an engine of its
                own, of which the last KEPT stay open.

    Several threads may call one runner. `say` is told what takes long, `warn` once if results had to be computed in
    another precision. Raises RestortError, one sentence, where the library, the GPU or the engine fails, and
    OutOfMemory where the GPU's memory is not enough.
    """

    name = "tensorrt"

    def __init__(
        self,
        weights: Weights,
        precision: str = "fp16",
        threads: int | None = None,
        *,
        flavour: str | None = None,
        profile: Profile | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.precision = precision
        self.spec = weights.spec
        self.say: Callable[[str], object] = _log.info
        self.warn: Callable[[str], object] = _log.warning
        self._weights: Weights | None = weights
        self._profile, self._options = profile, dict(options or {})
        by_environment = "kernels" not in self._options
        self._options.setdefault("kernels", asked_kernels())
        self.flavour = find(flavour or os.environ.get(FLAVOUR) or "auto")
        self._check(by_environment)
        cuda.runtime()
        self._lock = threading.RLock()
        self._supplies: dict[str, Supply] = {}
        self._opened: list[tuple[str, Profile, Engine]] = []
        self._jit: dict[Path, tuple[Engine, int]] = {}
        self._told = False
        self.gpu: Gpu = self._supply(precision).gpu or present()

    @property
    def is_fused(self) -> bool:
        """Whether the kernels are RestoRT's own."""
        return bool(self._options["kernels"] == "fused")

    def _check(self, by_environment: bool) -> None:
        """UsageError for options with which no engine could be built, before an array comes."""
        step = self.spec.size_multiple
        profile = self._profile or Profile.fixed(1, step, step)
        if self._options["kernels"] == "tensorrt":
            return
        try:
            check_options(self.flavour, BuildOptions(profile, self.precision, **self._options))
        except UsageError as error:
            if not by_environment:
                raise
            setting = f"{KERNELS}={self._options['kernels']}"
            raise UsageError(f"{error} ({setting} chose these kernels; unset it for the library's)") from None

    def __call__(self, x: Array) -> Array:
        x = checked(x, self.spec)
        return self._safe(x, self._run(x, self.precision))

    def stream(self, arrays: Iterable[Array]) -> Iterator[Array]:
        """The results of `arrays` in their order; while one is computed the next one is read and copied."""
        for shape, group in groupby((checked(x, self.spec) for x in arrays), key=lambda x: x.shape):
            engine = self._engine(shape, self.precision)
            if engine is None:
                yield from map(self, group)
                continue
            sent: deque[Array] = deque()
            for y in engine.stream(_kept(group, sent)):
                yield self._safe(sent.popleft(), y)

    def _run(self, x: Array, precision: str) -> Array:
        engine = self._engine(x.shape, precision)
        if engine is not None:
            return engine(x)
        engine = self._engine((1, *x.shape[1:]), precision)
        assert engine is not None
        return np.concatenate(list(engine.stream(x[i : i + 1] for i in range(len(x)))))

    def _safe(self, x: Array, y: Array) -> Array:
        """`y`, or, where it is not finite though x is, the result in a precision with more range."""
        below, *ladder = self._ladder()
        for precision in ladder:
            if is_finite(y) or not is_finite(x):
                return y
            with self._lock:
                first, self._told = not self._told, True
            if first:
                self.warn(
                    f"a result in {below} was not finite, these weights pass its range; such parts are computed in "
                    f"{precision} instead, which takes longer (avoid it with --precision {precision})"
                )
            below = precision
            try:
                y = self._run(x, precision)
            except OutOfMemory:
                raise
            except RestortError:  # not every GPU has an engine for it
                if precision == ladder[-1]:
                    raise
        return y

    def _ladder(self) -> tuple[str, ...]:
        here = {*self.flavour.precisions, *(FUSED_PRECISIONS if self.is_fused else ())}
        return tuple(p for p in LADDER[self.precision] if p in here)

    def _engine(self, shape: tuple[int, ...], precision: str) -> Engine | None:
        """The engine for x of `shape`, opened; None where there is none that takes the batch as a whole."""
        size: Size = (shape[0], shape[2], shape[3])
        with self._lock:
            opened = [
                (not profile.is_fixed, profile.max, engine)
                for kept, profile, engine in self._opened
                if kept == precision and profile.covers(size)
            ]
            if opened:
                return min(opened, key=lambda item: item[:2])[2]
            supply = self._supply(precision)
            if self._profile is not None:
                return self._from(supply, lambda: supply.obtain(self._fitting(size)))
            if size[0] > 1 and supply.find(size) is None:
                return None
            return self._from(supply, lambda: supply.provide(size))

    def _fitting(self, size: Size) -> Profile:
        assert self._profile is not None
        if not self._profile.covers(size):
            raise RestortError(
                f"the engine is for inputs of {self._profile} (batch x height x width), not {'x'.join(map(str, size))}"
            )
        return self._profile

    def _from(self, supply: Supply, get: Callable[[], Stored]) -> Engine:
        """The engine that `get` finds or builds, opened; built again if it cannot be."""
        stored = get()
        try:
            return self._opened_from(supply, stored)
        except EngineRefused as error:
            if stored.built:
                raise
            supply.cache.discard(stored, supply.say, str(error))
        return self._opened_from(supply, get())

    def _opened_from(self, supply: Supply, stored: Stored) -> Engine:
        path = supply.jit_path(stored)
        jit = None
        if path is not None:
            with contextlib.suppress(OSError):
                jit = path.read_bytes()
        ready(self.flavour, stored.about)
        engine = Engine(self.flavour, stored.path.read_bytes(), jit=jit)
        if path is not None:
            self._jit[path] = (engine, len(jit or b""))
        self._opened.append((supply.precision, profile_of(stored.key), engine))
        if supply.is_by_size:  # one let go is closed when no call holds it any more
            del self._opened[:-KEPT]
        return engine

    def _supply(self, precision: str) -> Supply:
        with self._lock:
            if self._weights is None:
                raise closed(self.name)
            if precision not in self._supplies:
                keep = kept_sections(self._weights) if precision == "mixed" else ()
                options = dict(self._options)
                if precision not in FUSED_PRECISIONS:  # in place of a result that was not finite
                    options.pop("kernels")
                self._supplies[precision] = Supply(
                    self._weights,
                    precision,
                    self.flavour,
                    keep_fp32=keep,
                    options=options,
                    say=lambda line: self.say(line),
                )
            return self._supplies[precision]

    @property
    def device(self) -> str:
        """The GPU's name."""
        return self.gpu.name

    def device_peak_bytes(self) -> int:
        """The GPU memory taken since the engines were opened; that of other programs is counted in."""
        with self._lock:
            return max((engine.peak_bytes() for *_, engine in self._opened), default=0)

    def tile_memory(self) -> tuple[int, int]:
        """(bytes of the GPU that a picture may take now, bytes per pixel of the input), an estimate.

        No more than the engine's largest size takes, so that tiles fit the engine and none is built for each size.
        """
        each = bytes_per_pixel(self.spec) // (1 if self.precision in ("fp32", "tf32") else 2)
        most = self._profile.max[1:] if self._profile is not None else LARGEST
        return min(int(0.9 * cuda.free_memory()), most[0] * most[1] * each), each

    def timer(self, x: Array) -> Callable[[], float]:
        """A function that runs x, on the GPU already, and returns the milliseconds of CUDA's events."""
        x = checked(x, self.spec)
        engine = self._engine(x.shape, self.precision)
        if engine is not None:
            return engine.timer(x)
        single = self._engine((1, *x.shape[1:]), self.precision)
        assert single is not None
        once = single.timer(x[:1])
        return lambda: sum(once() for _ in range(len(x)))

    def engine_for(self, x: Array) -> Engine:
        """The opened engine that runs x, for profilers; x's batch must be one that it takes."""
        engine = self._engine(checked(x, self.spec).shape, self.precision)
        if engine is None:
            raise RestortError(f"no engine takes a batch of {len(x)}")
        return engine

    def close(self) -> None:
        with self._lock:
            self._weights = None
            for path, (engine, before) in self._jit.items():
                _keep_jit(path, engine, before)
            self._jit.clear()
            opened, self._opened = self._opened, []
        for *_, engine in opened:
            engine.close()


def is_finite(y: Array) -> bool:
    """Whether no element is NaN or infinite: one sum, and a closer look only where that overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.add.reduce(y, axis=None))) or bool(np.isfinite(y).all())


def _kept(arrays: Iterable[Array], sent: deque[Array]) -> Iterator[Array]:
    for x in arrays:
        sent.append(x)
        yield x


def _keep_jit(path: Path, engine: Engine, before: int) -> None:
    """Writes what an RTX engine compiled, if that is more than it had; a cache that cannot be written is no error."""
    data = engine.jit_cache()
    if not data or len(data) <= before:
        return
    with contextlib.suppress(RestortError):
        write_bytes(path, data, overwrite=True)
