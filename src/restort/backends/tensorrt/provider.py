"""Engines for one network: found in the cache by the size of an input, or built."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restort.backends.fused.aot_cache import AotCache, AotRequest, model_of, open_aot, validate_aot_file
from restort.backends.fused.sources import sources_digest
from restort.backends.tensorrt import plugin
from restort.backends.tensorrt.aot_builder import aot_requests, build_aot_engine, check_aot_options, joined
from restort.backends.tensorrt.builder import build, check_options, graph_precision, wants_fixed_size
from restort.backends.tensorrt.cache import EngineCache, Stored, TimingCache
from restort.backends.tensorrt.engine_key import EngineKey, aot_digest, graph_digest
from restort.backends.tensorrt.inspector import unverified_note
from restort.backends.tensorrt.options import KERNELS, BuildOptions, Built, Notify, Profile, Progress, Size
from restort.errors import RestortError, UsageError
from restort.export.form import TYPED, WEAKLY_TYPED
from restort.export.typed import typed_graph
from restort.models.spec import Spec
from restort.utils.cache_dir import cache_root, slug
from restort.utils.gpu import Gpu, Unavailable, query_gpu
from restort.utils.integers import round_up

if TYPE_CHECKING:
    from restort.backends.tensorrt.library import Flavour
    from restort.weights.checkpoint import Weights

LARGEST = (1280, 1280)  # height and width up to which one engine serves all pictures and tiles
USUAL = (384, 640)  # the size it is optimised for
STEP_BEYOND = 512  # sides beyond LARGEST are rounded up to multiples, so that few engines serve many sizes
PROGRESS_EVERY_S = 15.0


def check_build(flavour: Flavour, options: BuildOptions) -> None:
    """Raise UsageError where the library or this machine does not support `options`."""
    require_builder(flavour)
    if options.kernels not in KERNELS:
        raise UsageError(f"unknown kernels for an engine: {options.kernels!r}; choose {', '.join(KERNELS)}")
    (check_aot_options if options.kernels == "fused" else check_options)(flavour, options)


def require_builder(flavour: Flavour) -> None:
    """Raise UsageError where the library cannot build engines."""
    if not flavour.capabilities.builds:
        raise UsageError(
            f"{flavour.title} runs engines and builds none; build one for this model and size with `restort build "
            "--version-compatible` where TensorRT is installed, with the same RESTORT_CACHE"
        )


def profile_for(spec: Spec, size: Size) -> Profile:
    """The profile of the engine to build for an input of `size`, where no engine in the cache takes it.

    The batch is always 1: pictures of a batch run one after the other, which costs little at these sizes, and building
    for a varying batch takes much memory. One engine serves all sizes from the network's size multiple to LARGEST;
    beyond, its sides grow in steps.
    """
    step = spec.size_multiple
    largest = [
        round_up(limit, step) if n <= limit else round_up(n, max(STEP_BEYOND, step))
        for n, limit in zip(size[1:], LARGEST)
    ]
    usual = [round_up(n, step) for n in USUAL]
    return Profile((1, step, step), (1, usual[0], usual[1]), (1, largest[0], largest[1]))


def require_gpu() -> Gpu:
    """The GPU that engines run on. Raises RestortError where there is none."""
    found = query_gpu()
    if isinstance(found, Unavailable):
        raise RestortError(
            f"no usable NVIDIA GPU, on which an engine is built and run: {found.reason}; {found.remedy}"
        )
    return found


@dataclass
class EngineProvider:
    """The engines of `weights` in one precision, for the GPU of this machine or for other machines.

    targets     compute capabilities of other machines (only RTX builds without their GPU); empty for this GPU
    keep_fp32   the sections of a mixed engine in float32
    options     further fields of BuildOptions; with {'kernels': 'fused'} each size has its own engine
    packages    with fused kernels, files of AOT packages that the user named, one a size; default: from the cache, or
                compiled
    notify      receives a line on what takes long, and why
    progress    receives a build's phases; default: `notify`, every PROGRESS_EVERY_S seconds
    """

    weights: Weights
    precision: str
    flavour: Flavour
    targets: tuple[str, ...] = ()
    keep_fp32: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    packages: tuple[Path, ...] = ()
    cache: EngineCache = field(default_factory=EngineCache)
    notify: Notify = lambda line: None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        if self.options.get("kernels") == "tensorrt":  # the default, which is not part of keys
            self.options = {name: value for name, value in self.options.items() if name != "kernels"}
        self.gpu = None if self.targets else require_gpu()

    @property
    def model(self) -> str:
        return model_of(self.weights)

    @property
    def is_fused(self) -> bool:
        """Whether the kernels are RestoRT's own."""
        return self.options.get("kernels") == "fused"

    def key(self, profile: Profile) -> EngineKey:
        """The identity of the engine of that profile."""
        gpu, is_rtx = self.gpu, self.flavour.name == "rtx"
        capability = () if gpu is None else (gpu.compute_capability,)
        return EngineKey(
            model=self.model,
            flavour=self.flavour.name,
            version=self.flavour.version,
            targets=self.targets or capability,
            gpu=None if gpu is None or is_rtx else gpu.name,
            driver=None if gpu is None or is_rtx else gpu.driver,
            graph=self._graph_digest(self.flavour.capabilities.newer_operators),
            profile=profile,
            precision=self.precision,
            keep_fp32=tuple(sorted(self.keep_fp32)),
            flags=dict(self.options),
        )

    def _graph_digest(self, newer: bool) -> str:
        digest = self.weights.digest
        if self.is_fused:
            return aot_digest(digest, sources_digest(), plugin.digest())
        return graph_digest(digest, self.precision, sorted(self.keep_fp32), newer)

    @property
    def is_by_size(self) -> bool:
        """Whether every size has its own engine."""
        return self.is_fused or wants_fixed_size(self.flavour, self.weights.spec.architecture)

    def profile_for(self, size: Size) -> Profile:
        """The profile of the engine to build for an input of `size`, where no engine in the cache takes it."""
        return Profile.fixed(*size) if self.is_by_size else profile_for(self.weights.spec, size)

    def find(self, size: Size) -> Stored | None:
        """Return the most specific engine in the cache that takes `size`, or None."""
        key = self.key(Profile.fixed(*size))
        found = self.cache.covering(key, size)
        if not found and not self.flavour.capabilities.builds:  # which operators its builder knew is unknown
            found = self.cache.covering(replace(key, graph=self._graph_digest(newer=True)), size)
        if found:
            self.cache.touch(found[0])
        return found[0] if found else None

    def provide(self, size: Size) -> Stored:
        """Return an engine that takes `size`, from the cache or built now; one build at a time in a process."""
        with self._lock:
            return self.find(size) or self.obtain(self.profile_for(size))

    def obtain(self, profile: Profile) -> Stored:
        """Return the engine of exactly that profile, built if needed.

        Raises UsageError where `packages` do not fit it.
        """
        key, packages = self.key(profile), self._named_packages(profile)
        stored = self.cache.obtain(key, lambda: self._build(profile, packages), self.notify)
        if packages and stored.about["aot"]["sha256"] != hashlib.sha256(joined(packages)).hexdigest():
            self.cache.discard(stored, self.notify, "it holds another AOT package, by other compilers")
            stored = self.cache.obtain(key, lambda: self._build(profile, packages), self.notify)
        if stored.built:
            about = stored.about
            self.notify(f"built in {about['seconds']:.0f} s: {stored.path} ({stored.bytes / 1e6:.0f} MB)")
            if note := unverified_note(about):
                self.notify(note)
        return stored

    def _named_packages(self, profile: Profile) -> list[Path]:
        """The files of `packages` in the order of the profile's sizes; [] without any."""
        if not self.packages:
            return []
        requests = self._aot_requests(profile)
        if len(self.packages) != len(requests):
            raise UsageError(
                f"{len(self.packages)} AOT packages for {len(requests)} sizes ({profile}); give one --aot for each"
            )
        sizes = {open_aot(path.expanduser()).input: path for path in self.packages}
        by_size = {(n, h, w): path for (n, _, h, w), path in sizes.items()}
        return [
            validate_aot_file(by_size.get(one.shape, self.packages[i]), one) for i, one in enumerate(requests)
        ]

    def _aot_requests(self, profile: Profile) -> list[AotRequest]:
        assert self.gpu is not None  # fused engines have no `targets`
        return aot_requests(self.weights, self.precision, profile, self.gpu.compute_capability)

    def _build(self, profile: Profile, packages: list[Path]) -> Built:
        progress = self.progress or report_seldom(self.notify)
        timing_cache = None if self.is_fused else self.timing_cache()
        seen = None if timing_cache is None else timing_cache.read()
        options = BuildOptions(
            profile=profile,
            precision=self.precision,
            compute_capabilities=self.targets,
            timing_cache=seen,
            progress=progress,
            **self.options,
        )
        require_builder(self.flavour)
        if self.is_fused:
            return self._build_fused(options, packages)
        can = self.flavour.capabilities
        graph = typed_graph(
            self.weights,
            graph_precision(self.flavour, self.precision, self.weights.spec.architecture),
            keep_fp32=self.keep_fp32 if self.precision == "mixed" else None,
            newer_operators=can.newer_operators,
            form=TYPED if can.strongly_typed else WEAKLY_TYPED,
        )
        built = build(self.flavour, graph, options)
        if timing_cache is not None and built.timing_cache:
            timing_cache.merge(built.timing_cache, timing_cache_combiner(self.flavour), seen)
        return built

    def _build_fused(self, options: BuildOptions, packages: list[Path]) -> Built:
        check_aot_options(self.flavour, options)
        requests = self._aot_requests(options.profile)
        plugin.load(self.flavour, self.notify)  # before minutes of compiling: this fails quickly
        packages = packages or [AotCache().provide(one, self.notify) for one in requests]
        return build_aot_engine(self.flavour, self.weights, packages, options)

    def timing_cache(self) -> TimingCache | None:
        """The timing cache for builds on this machine; None where the library has none."""
        if self.gpu is None or not self.flavour.capabilities.timing_cache:
            return None
        version = f"{self.flavour.name}-{self.flavour.version}"
        return TimingCache(version, self.gpu.name, self.gpu.compute_capability, self.gpu.driver)

    def jit_path(self, stored: Stored) -> Path | None:
        """The file of the kernels that an RTX engine compiled for this GPU and driver; None for other libraries."""
        if self.gpu is None or self.flavour.name != "rtx":
            return None
        machine = f"{slug(self.gpu.name)}-cuda{self.gpu.driver}"
        return cache_root() / "rtx-kernels" / f"{stored.path.stem}-{machine}.bin"


def report_seldom(notify: Notify, clock: Callable[[], float] = time.monotonic) -> Progress:
    """Return a Progress that passes a build's phases to `notify`, at most every PROGRESS_EVERY_S seconds."""
    last = clock()

    def progress(phase: str, share: float | None) -> None:
        nonlocal last
        if clock() - last >= PROGRESS_EVERY_S:
            last = clock()
            notify(f"still building: {phase}" + ("" if share is None else f", {share:.0%}"))

    return progress


def timing_cache_combiner(flavour: Flavour) -> Callable[[bytes, bytes], bytes]:
    """Return a function that joins two timing caches, through the library."""

    def combine(a: bytes, b: bytes) -> bytes:
        with flavour.logger.capture():
            config = flavour.module.Builder(flavour.logger.ilogger).create_builder_config()
            joined = config.create_timing_cache(a)
            joined.combine(config.create_timing_cache(b), False)
            return bytes(joined.serialize())

    return combine
