"""The backend `tensorrt`: a network as an engine of TensorRT or TensorRT-RTX, without PyTorch.

The engine is found in the cache or built when the first array comes, because its size is unknown before.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from restort.backends.fused.aot_cache import PRECISIONS as FUSED_PRECISIONS
from restort.backends.precision_fallback import PRECISION_FALLBACK, FallbackWarning, run_with_fallback
from restort.backends.tensorrt import cuda, plugin
from restort.backends.tensorrt.availability import KERNELS, default_kernels
from restort.backends.tensorrt.cache import Stored
from restort.backends.tensorrt.engine import Engine, EngineRefused
from restort.backends.tensorrt.engine_key import is_version_compatible, profile_of
from restort.backends.tensorrt.library import find
from restort.backends.tensorrt.mixed_precision import kept_sections
from restort.backends.tensorrt.options import BuildOptions, Profile, Size
from restort.backends.tensorrt.provider import LARGEST, EngineProvider, check_build, require_gpu
from restort.errors import RestortError, UsageError
from restort.models.memory_estimate import bytes_per_pixel
from restort.runner import Array, Runner, checked, closed
from restort.utils.files import write_bytes
from restort.utils.gpu import Gpu
from restort.weights.checkpoint import Weights

PRECISIONS = ("fp16", "bf16", "fp32", "tf32", "mixed")
FLAVOUR = "RESTORT_TENSORRT"
"""The environment variable that names the library where both are installed: tensorrt or rtx."""
KEPT = 4  # engines of one size each that stay open, each with its own weights and scratch memory

_log = logging.getLogger("restort")


class TensorrtRunner(Runner):
    """A network on the first GPU.

    flavour     the library; default: the environment variable RESTORT_TENSORRT, or the installed one
    profile     the sizes of the engine to run or build; default: any engine in the cache that takes an array, or the
                one of restort.backends.tensorrt.provider.profile_for
    options     further fields of restort.backends.tensorrt.options.BuildOptions. With {'kernels': 'fused'}, and for
                networks that the library builds well for one size only, every size has its own engine; the last KEPT
                stay open

    Several threads may call one runner. `notify` receives what takes long, `warn` a line if results were computed in
    another precision. Raises RestortError where the library, the GPU or the engine fails, OutOfMemory where the GPU has
    too little memory.
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
        self.notify: Callable[[str], object] = _log.info
        self.warn: Callable[[str], object] = _log.warning
        self._weights: Weights | None = weights
        self._profile, self._options = profile, dict(options or {})
        by_environment = "kernels" not in self._options
        self._options.setdefault("kernels", default_kernels())
        self.flavour = find(flavour or os.environ.get(FLAVOUR) or "auto")
        self._check(by_environment)
        cuda.runtime()
        self._lock = threading.RLock()
        self._providers: dict[str, EngineProvider] = {}
        self._engines: list[tuple[str, Profile, Engine]] = []
        self._jit: dict[Path, tuple[Engine, int]] = {}
        self._warn_fallback = FallbackWarning()
        self.gpu: Gpu = self._provider(precision).gpu or require_gpu()

    @property
    def is_fused(self) -> bool:
        """Whether the kernels are RestoRT's own."""
        return bool(self._options["kernels"] == "fused")

    def _check(self, by_environment: bool) -> None:
        """Raise UsageError for options with which no engine can be built, before the first array."""
        step = self.spec.size_multiple
        profile = self._profile or Profile.fixed(1, step, step)
        if self._options["kernels"] == "tensorrt":
            return
        try:
            check_build(self.flavour, BuildOptions(profile, self.precision, **self._options))
        except UsageError as error:
            if not by_environment:
                raise
            setting = f"{KERNELS}={self._options['kernels']}"
            raise UsageError(f"{error} ({setting} chose these kernels; unset it for TensorRT's)") from None

    def __call__(self, x: Array) -> Array:
        x = checked(x, self.spec)
        return self._finite(x, self._run(x, self.precision))

    def stream(self, arrays: Iterable[Array]) -> Iterator[Array]:
        """Yield the results of `arrays` in order; the next array is read and copied while one is computed."""
        for shape, group in groupby((checked(x, self.spec) for x in arrays), key=lambda x: x.shape):
            engine = self._engine(shape, self.precision)
            if engine is None:
                yield from map(self, group)
                continue
            sent: deque[Array] = deque()
            for y in engine.stream(_kept(group, sent)):
                yield self._finite(sent.popleft(), y)

    def _run(self, x: Array, precision: str) -> Array:
        engine = self._engine(x.shape, precision)
        if engine is not None:
            return engine(x)
        engine = self._engine((1, *x.shape[1:]), precision)
        assert engine is not None
        return np.concatenate(list(engine.stream(x[i : i + 1] for i in range(len(x)))))

    def _finite(self, x: Array, y: Array) -> Array:
        """Return the result `y` of x, or, where it is not finite though x is, that of a precision with more range."""

        def run(precision: str) -> tuple[Array, bool]:
            result = y if precision == self.precision else self._run(x, precision)
            return result, is_finite(result)

        here = {*self.flavour.precisions, *(FUSED_PRECISIONS if self.is_fused else ())}
        return run_with_fallback(
            [precision for precision in PRECISION_FALLBACK[self.precision] if precision in here],
            run,
            lambda: is_finite(x),
            partial(self._warn_fallback, self.warn),
        )

    def _engine(self, shape: tuple[int, ...], precision: str) -> Engine | None:
        """Return the opened engine for x of `shape`; None where none takes the whole batch."""
        size: Size = (shape[0], shape[2], shape[3])
        with self._lock:
            opened = [
                (not profile.is_fixed, profile.max, engine)
                for kept, profile, engine in self._engines
                if kept == precision and profile.covers(size)
            ]
            if opened:
                return min(opened, key=lambda item: item[:2])[2]
            provider = self._provider(precision)
            if self._profile is not None:
                return self._from(provider, lambda: provider.obtain(self._fitting(size)))
            if size[0] > 1 and provider.find(size) is None:
                return None
            return self._from(provider, lambda: provider.provide(size))

    def _fitting(self, size: Size) -> Profile:
        assert self._profile is not None
        if not self._profile.covers(size):
            raise RestortError(
                f"the engine takes inputs of {self._profile} (batch x height x width), not {'x'.join(map(str, size))}"
            )
        return self._profile

    def _from(self, provider: EngineProvider, get: Callable[[], Stored]) -> Engine:
        """Open the engine that `get` finds or builds; rebuild it if it cannot be opened."""
        stored = get()
        try:
            return self._open_engine(provider, stored)
        except EngineRefused as error:
            if stored.built:
                raise
            provider.cache.discard(stored, provider.notify, str(error))
        return self._open_engine(provider, get())

    def _open_engine(self, provider: EngineProvider, stored: Stored) -> Engine:
        path = provider.jit_path(stored)
        jit = None
        if path is not None:
            with contextlib.suppress(OSError):
                jit = path.read_bytes()
        plugin.load_for(self.flavour, stored.about)
        host_code = is_version_compatible(stored.about)
        engine = Engine(self.flavour, stored.path.read_bytes(), jit=jit, host_code=host_code)
        if path is not None:
            self._jit[path] = (engine, len(jit or b""))
        self._engines.append((provider.precision, profile_of(stored.key), engine))
        if provider.is_by_size:  # a dropped engine is closed when no call holds it any more
            del self._engines[:-KEPT]
        return engine

    def _provider(self, precision: str) -> EngineProvider:
        with self._lock:
            if self._weights is None:
                raise closed(self.name)
            if precision not in self._providers:
                keep = kept_sections(self._weights) if precision == "mixed" else ()
                options = dict(self._options)
                if precision not in FUSED_PRECISIONS:  # the fallback of a result that was not finite
                    options.pop("kernels")
                self._providers[precision] = EngineProvider(
                    self._weights,
                    precision,
                    self.flavour,
                    keep_fp32=keep,
                    options=options,
                    notify=lambda line: self.notify(line),
                )
            return self._providers[precision]

    @property
    def device(self) -> str:
        """The GPU's name."""
        return self.gpu.name

    def device_peak_bytes(self) -> int:
        """The GPU memory taken since the engines were opened, by other programs, too."""
        with self._lock:
            return max((engine.peak_bytes() for *_, engine in self._engines), default=0)

    def tile_memory(self) -> tuple[int, int]:
        """Estimate (bytes of the GPU that a picture may take now, bytes per pixel of the input).

        No more than the largest size of the engine takes, so that all tiles fit one engine.
        """
        each = bytes_per_pixel(self.spec) // (1 if self.precision in ("fp32", "tf32") else 2)
        most = self._profile.max[1:] if self._profile is not None else LARGEST
        return min(int(0.9 * cuda.free_memory()), most[0] * most[1] * each), each

    def timer(self, x: Array) -> Callable[[], float]:
        """Return a function that computes x, already on the GPU, and returns the milliseconds of CUDA's events."""
        x = checked(x, self.spec)
        engine = self._engine(x.shape, self.precision)
        if engine is not None:
            return engine.timer(x)
        single = self._engine((1, *x.shape[1:]), self.precision)
        assert single is not None
        once = single.timer(x[:1])
        return lambda: sum(once() for _ in range(len(x)))

    def engine_for(self, x: Array) -> Engine:
        """Return the opened engine that runs x, for profilers. Raises RestortError for a batch that none takes."""
        engine = self._engine(checked(x, self.spec).shape, self.precision)
        if engine is None:
            raise RestortError(f"no engine takes a batch of {len(x)}; use a batch of 1")
        return engine

    def close(self) -> None:
        with self._lock:
            self._weights = None
            for path, (engine, before) in self._jit.items():
                _keep_jit(path, engine, before)
            self._jit.clear()
            opened, self._engines = self._engines, []
        for *_, engine in opened:
            engine.close()


def is_finite(y: Array) -> bool:
    """Return whether no element is NaN or infinite: one sum, and a test of every element only where it overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.add.reduce(y, axis=None))) or bool(np.isfinite(y).all())


def _kept(arrays: Iterable[Array], sent: deque[Array]) -> Iterator[Array]:
    for x in arrays:
        sent.append(x)
        yield x


def _keep_jit(path: Path, engine: Engine, before: int) -> None:
    """Write the kernels that an RTX engine compiled, if there are new ones; ignore a cache that cannot be written."""
    data = engine.jit_cache()
    if not data or len(data) <= before:
        return
    with contextlib.suppress(RestortError):
        write_bytes(path, data, overwrite=True)
