"""Engines for one network: which one a size wants, found in the cache, or built, or built again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restort.backends.fused.aot_cache import PlanCache, Wanted, given, model_of, sources_digest
from restort.backends.tensorrt import plugin_library
from restort.backends.tensorrt.build import (
    NOT_IN_KEYS,
    BuildOptions,
    Built,
    build,
    check_options,
    graph_precision,
    wants_one_size,
)
from restort.backends.tensorrt.build_plan import build_plan, wanted_plan
from restort.backends.tensorrt.cache import EngineCache, Say, Stored
from restort.backends.tensorrt.gpu import Gpu, gpu
from restort.backends.tensorrt.inspect import doubt
from restort.backends.tensorrt.keys import Key, Profile, Size, graph_of, plan_of
from restort.backends.tensorrt.progress import Progress
from restort.backends.tensorrt.sidecar import sha256
from restort.backends.tensorrt.timings import Timings
from restort.errors import RestortError
from restort.export.form import TYPED, WEAKLY_TYPED
from restort.export.typed import typed_graph
from restort.models.spec import Spec
from restort.tiling.padding import round_up
from restort.utils.cache_dir import cache_root, slug
from restort.utils.gpu import Trouble, look

if TYPE_CHECKING:
    from restort.backends.tensorrt.flavour import Flavour
    from restort.weights.checkpoint import Weights

LARGEST = (1280, 1280)  # height and width up to which one engine serves all pictures and tiles
USUAL = (384, 640)  # what it is built to be fastest at
TOLD_EVERY_S = 15.0
GROWN = 512  # sides beyond LARGEST are rounded up to this, so that few engines serve many sizes


def profile_for(spec: Spec, size: Size) -> Profile:
    """The profile of the engine to be built for an input of `size`, if none in the cache takes it.

    The batch is always 1: pictures of a batch follow one another, which costs little at these sizes, and an engine
    whose batch varies too takes builders more memory than some have. From the size multiple of the network up to
    LARGEST one engine serves all sizes; beyond, its sides grow in steps.
    """
    step = spec.size_multiple
    grown = [
        round_up(large, step) if n <= large else round_up(n, max(GROWN, step))
        for n, large in zip(size[1:], LARGEST)
    ]
    usual = [round_up(n, step) for n in USUAL]
    return Profile((1, step, step), (1, usual[0], usual[1]), (1, grown[0], grown[1]))


def present() -> Gpu:
    """The GPU that engines run on. Raises RestortError where there is none."""
    found = gpu()
    if found is None:
        why = look()
        text = f": {why.reason}; {why.remedy}" if isinstance(why, Trouble) else ""
        raise RestortError(f"an engine for this machine needs its NVIDIA GPU, and none can be used{text}")
    return found


@dataclass
class Supply:
    """The engines of `weights` in one precision, for the GPU that is here or for machines to come.

    targets     compute capabilities of machines to come (RTX alone builds without their GPU); empty: this GPU.
    keep_fp32   the sections of a mixed engine that stay in float32.
    options     further fields of BuildOptions; with {'kernels': 'fused'} each size has an engine of its own.
    plan        with those kernels, the file of a plan that a user names; else it is found in the cache or made.
    say         told, in a line each, what takes long and why.
    progress    told of a build's phases; default: `say`, seldom.
    """

    weights: Weights
    precision: str
    flavour: Flavour
    targets: tuple[str, ...] = ()
    keep_fp32: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    plan: Path | None = None
    cache: EngineCache = field(default_factory=EngineCache)
    say: Say = lambda line: None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        if self.options.get("kernels") == "tensorrt":  # the usual, which is no part of keys
            self.options = {name: value for name, value in self.options.items() if name != "kernels"}
        self.gpu = None if self.targets else present()

    @property
    def model(self) -> str:
        return model_of(self.weights)

    @property
    def is_fused(self) -> bool:
        """Whether the kernels are RestoRT's own."""
        return self.options.get("kernels") == "fused"

    def key(self, profile: Profile) -> Key:
        """The identity of the engine of that profile."""
        here, is_rtx = self.gpu, self.flavour.name == "rtx"
        capability = () if here is None else (here.compute_capability,)
        return Key(
            model=self.model,
            flavour=self.flavour.name,
            version=self.flavour.version,
            targets=self.targets or capability,
            gpu=None if here is None or is_rtx else here.name,
            driver=None if here is None or is_rtx else here.driver,
            graph=self._graph(),
            profile=profile,
            precision=self.precision,
            keep_fp32=tuple(sorted(self.keep_fp32)),
            flags={name: value for name, value in self.options.items() if name not in NOT_IN_KEYS},
        )

    def _graph(self) -> str:
        digest = self.weights.digest
        if self.is_fused:
            return plan_of(digest, sources_digest(), plugin_library.digest())
        newer = self.flavour.capabilities.newer_operators
        return graph_of(digest, self.precision, sorted(self.keep_fp32), newer)

    @property
    def is_by_size(self) -> bool:
        """Whether every size has an engine of its own."""
        return self.is_fused or wants_one_size(self.flavour, self.weights.spec.architecture)

    def profile_for(self, size: Size) -> Profile:
        """The profile of the engine to be built for an input of `size`, if none in the cache takes it."""
        return Profile.fixed(*size) if self.is_by_size else profile_for(self.weights.spec, size)

    def find(self, size: Size) -> Stored | None:
        """An engine in the cache that takes `size`, the most special one."""
        found = self.cache.covering(self.key(Profile.fixed(*size)), size)
        if found:
            self.cache.touch(found[0])
        return found[0] if found else None

    def provide(self, size: Size) -> Stored:
        """The same, or one that is built now; in a process only one at a time."""
        with self._lock:
            return self.find(size) or self.obtain(self.profile_for(size))

    def obtain(self, profile: Profile) -> Stored:
        """The engine of exactly that profile, built if need be. Raises UsageError where `plan` is of something else."""
        key = self.key(profile)
        plan = None if self.plan is None else given(self.plan, self._wanted(profile))
        stored = self.cache.obtain(key, lambda: self._build(profile, plan), self.say)
        if plan is not None and stored.about["plan"]["sha256"] != sha256(plan):
            self.cache.discard(stored, self.say, "it holds another plan, by other compilers")
            stored = self.cache.obtain(key, lambda: self._build(profile, plan), self.say)
        if stored.built:
            about = stored.about
            self.say(f"built in {about['seconds']:.0f} s: {stored.path} ({stored.bytes / 1e6:.0f} MB)")
            if found := doubt(about):
                self.say(found)
        return stored

    def _wanted(self, profile: Profile) -> Wanted:
        assert self.gpu is not None  # fused engines have no `targets`
        return wanted_plan(self.weights, self.precision, profile, self.gpu.compute_capability)

    def _build_fused(self, options: BuildOptions, plan: Path | None) -> Built:
        check_options(self.flavour, options)
        wanted = self._wanted(options.profile)
        plugin_library.load(self.flavour, self.say)  # what is quick to fail goes first
        if plan is None:
            plan = PlanCache().provide(wanted, self.say)
        return build_plan(self.flavour, self.weights, plan, options)

    def _build(self, profile: Profile, plan: Path | None) -> Built:
        told = self.progress or told_seldom(self.say)
        if self.is_fused:
            options = BuildOptions(profile, self.precision, self.targets, progress=told, **self.options)
            return self._build_fused(options, plan)
        timings = self.timings()
        seen = None if timings is None else timings.read()
        can = self.flavour.capabilities
        graph = typed_graph(
            self.weights,
            graph_precision(
                self.flavour, self.precision, self.options.get("constraints"), self.weights.spec.architecture
            ),
            keep_fp32=self.keep_fp32 if self.precision == "mixed" else None,
            newer_operators=can.newer_operators,
            form=TYPED if can.strongly_typed else WEAKLY_TYPED,
        )
        options = BuildOptions(
            profile=profile,
            precision=self.precision,
            compute_capabilities=self.targets,
            timing_cache=seen,
            progress=told,
            **self.options,
        )
        built = build(self.flavour, graph, options)
        if timings is not None and built.timing_cache:
            timings.merge(built.timing_cache, combiner(self.flavour), seen)
        return built

    def timings(self) -> Timings | None:
        """The timing cache for builds here; None where the library keeps none."""
        if self.gpu is None or not self.flavour.capabilities.timing_cache:
            return None
        version = f"{self.flavour.name}-{self.flavour.version}"
        return Timings(version, self.gpu.name, self.gpu.compute_capability, self.gpu.driver)

    def jit_path(self, stored: Stored) -> Path | None:
        """Where the kernels lie that an RTX engine compiled for this GPU and driver; None for other libraries."""
        if self.gpu is None or self.flavour.name != "rtx":
            return None
        here = f"{slug(self.gpu.name)}-cuda{self.gpu.driver}"
        return cache_root() / "rtx-kernels" / f"{stored.path.stem}-{here}.bin"


def told_seldom(say: Say, clock: Callable[[], float] = time.monotonic) -> Progress:
    """What tells `say` of a build's phases: a line every TOLD_EVERY_S seconds."""
    last = clock()

    def tell(phase: str, share: float | None) -> None:
        nonlocal last
        if clock() - last >= TOLD_EVERY_S:
            last = clock()
            say(f"still building: {phase}" + ("" if share is None else f", {share:.0%}"))

    return tell


def combiner(flavour: Flavour) -> Callable[[bytes, bytes], bytes]:
    """A function that joins two timing caches, through the library itself."""

    def combine(a: bytes, b: bytes) -> bytes:
        with flavour.log.listening():
            config = flavour.module.Builder(flavour.log.logger).create_builder_config()
            joined = config.create_timing_cache(a)
            joined.combine(config.create_timing_cache(b), False)
            return bytes(joined.serialize())

    return combine
