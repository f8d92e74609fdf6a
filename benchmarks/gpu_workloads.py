"""What benchmarks/h100.py measures: workloads, their networks, their floors, and the cases in order of importance.

Networks have the published sizes and random weights, seeded and scaled so that activations neither grow nor vanish
(random_weights.random_state). Inputs are uniform noise, seeded: no network here takes its time by the picture.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from random_weights import random_state

from restort.models.spec import ElanSpec, RestormerSpec, Spec
from restort.weights.checkpoint import Weights

RESTORMER = RestormerSpec(3, 3, 48, (4, 6, 6, 8), 4, (1, 2, 4, 8), 2.66, False, "WithBias", False)
ELAN = ElanSpec(4, 36, 180, 1, 3, (4, 8, 16), 255.0, 2)
ELAN_LIGHT = ElanSpec(4, 24, 60, 1, 3, (4, 8, 16), 255.0, 2)
NETWORKS: dict[str, Spec] = {"restormer": RESTORMER, "elan-x4": ELAN, "elan-light-x4": ELAN_LIGHT}
TINY: dict[str, Spec] = {  # for --smoke
    "restormer": RestormerSpec(3, 3, 16, (1, 1, 1, 1), 1, (1, 2, 4, 8), 2.66, False, "WithBias", False),
    "elan-x4": ElanSpec(4, 2, 60, 1, 3, (4, 8, 16), 255.0, 2),
    "elan-light-x4": ElanSpec(4, 2, 60, 1, 3, (4, 8, 16), 255.0, 2),
}
TASKS = (  # the workloads of the table, the first five
    ("restormer", 720, 1280),
    ("elan-light-x4", 192, 320),
    ("elan-x4", 192, 320),
    ("restormer", 368, 552),
    ("restormer", 256, 256),
)
BATCHES = (2, 4, 8, 16, 32)
LARGE = (
    ("restormer", 2160, 3840),
    ("restormer", 1080, 1920),
    ("elan-light-x4", 1088, 1920),
    ("elan-light-x4", 2160, 3840),
    ("elan-x4", 1088, 1920),
)
TFLOPS = 700e12  # of a dense product in 16 bits, measured on an H100
BYTES_PER_S = {"H200": 4.2e12, "": 2.95e12}  # of a copy, read and written, measured


@dataclass(frozen=True)
class Case:
    """One measurement. `variant` tells cases of the same backend apart, such as 'first process'."""

    network: str
    backend: str
    precision: str
    height: int
    width: int
    batch: int = 1
    variant: str = ""
    seconds: float = 1.5  # of timed calls
    limit: float = 240.0  # for all of it

    @property
    def workload(self) -> str:
        return f"{self.network}-{self.height}x{self.width}"

    @property
    def key(self) -> tuple[Any, ...]:
        return self.workload, self.backend, self.precision, self.batch, self.variant

    def __str__(self) -> str:
        batch = f" x{self.batch}" if self.batch > 1 else ""
        return f"{self.workload}{batch} {self.backend}:{self.precision}{f' ({self.variant})' * bool(self.variant)}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def cases() -> Iterator[Case]:
    """All of them, the most important first; those of one backend together, because they share a process."""
    for network, h, w in TASKS:
        yield Case(network, "fused", "fp16", h, w)
    yield Case("restormer", "fused", "fp16", 2160, 3840, seconds=1)
    for network, h, w in TASKS:
        if network != "restormer":
            yield Case(network, "torch-compile", "fp16", h, w, limit=300)
    for network, h, w in TASKS:
        if network == "restormer":
            yield Case(network, "torch-compile", "fp16", h, w, limit=300)
    for precision in ("fp16", "fp32"):
        for network, h, w in TASKS:
            yield Case(network, "torch", precision, h, w)
    for network, h, w in TASKS:
        yield Case(network, "fused", "bf16", h, w)
    for batch in BATCHES:
        yield Case("restormer", "fused", "fp16", 256, 256, batch, seconds=1)
    for network, h, w in LARGE[1:]:
        yield Case(network, "fused", "fp16", h, w, seconds=1)
    for network, h, w in (TASKS[1], TASKS[4]):
        yield Case(network, "fused", "fp16", h, w, variant="first process", seconds=0.2)
        yield Case(network, "fused", "fp16", h, w, variant="second process", seconds=0.2)
    for precision in ("fp16", "fp32"):
        for network, h, w in TASKS:
            yield Case(network, "onnxruntime-cuda", precision, h, w)
    yield Case("restormer", "torch", "fp16", 256, 256, 8)


def smoke_cases() -> Iterator[Case]:
    """One of every kind, tiny."""
    for network in ("restormer", "elan-light-x4"):
        side = 16
        yield Case(network, "fused", "fp16", side, side, seconds=0.01)
        yield Case(network, "torch-compile", "fp32", side, side, seconds=0.01)
        yield Case(network, "torch", "fp32", side, side, seconds=0.01)
        yield Case(network, "onnxruntime-cuda", "fp32", side, side, seconds=0.01)
    yield Case("elan-light-x4", "fused", "fp16", 16, 16, variant="first process", seconds=0.01)
    yield Case("elan-light-x4", "fused", "fp16", 16, 32, 2, seconds=0.01)
    yield Case("elan-light-x4", "nonsense", "fp16", 16, 16, seconds=0.01)


@functools.lru_cache(maxsize=2)
def weights_of(network: str, tiny: bool = False) -> Weights:
    """Random weights; the digest is of the numbers, because graphs are cached by it."""
    spec = (TINY if tiny else NETWORKS)[network]
    state = random_state(spec)
    digest = hashlib.sha256(b"".join(value.tobytes() for value in state.values())).hexdigest()
    return Weights(state, spec, {}, digest, Path(f"random-{network}"))


def floor_ms(spec: Spec, n: int, height: int, width: int, device: str = "") -> dict[str, float]:
    """{'compute_ms', 'memory_ms', 'floor_ms'}: what no implementation of the network in 16 bits can be faster than.

    compute   multiply-adds of all convolutions and of attention (scores once per group of ELAN blocks), twice, at
              TFLOPS: 141 GMAC for the official Restormer at 256x256.
    memory    bytes that must move where a block is two passes over the picture, at BYTES_PER_S: Restormer, per block
              and pixel, 10 C (reads x, writes v; reads v and x, writes the result; 2 bytes each); ELAN, per pair of
              LFE and GMSA, 8 C. The picture in and out is float32.
    floor     the larger of both.
    """
    pixels = n * height * width
    macs, moved = (
        _restormer(spec, pixels) if isinstance(spec, RestormerSpec) else _elan(spec, pixels)  # type: ignore[arg-type]
    )
    moved += 4 * pixels * (spec.in_channels + spec.out_channels * spec.scale**2)
    rate = next(value for name, value in BYTES_PER_S.items() if name in device)
    compute, memory = 1e3 * 2 * macs / TFLOPS, 1e3 * moved / rate
    return {"compute_ms": compute, "memory_ms": memory, "floor_ms": max(compute, memory)}


def _restormer(spec: RestormerSpec, pixels: int) -> tuple[float, float]:
    d, b, heads = spec.dim, spec.num_blocks, spec.heads
    levels = [  # (channels, heads, blocks, level)
        *((d << i, heads[i], b[i], i) for i in range(4)),
        (d * 4, heads[2], b[2], 2),
        (d * 2, heads[1], b[1], 1),
        (d * 2, heads[0], b[0] + spec.num_refinement_blocks, 0),
    ]
    macs = moved = 0.0
    for c, h, count, level in levels:
        hidden, here = spec.hidden(c), pixels / 4**level
        attention = (
            3 * c * c + 27 * c + c * c / h + c * c
        )  # qkv, depthwise, scores, scores and projection in one
        macs += count * here * (attention + 3 * hidden * c + 18 * hidden)
        moved += count * here * 10 * c
    for i in range(3):
        down, up = 9 * (d << i) * (d << i) // 2, 9 * (d << (i + 1)) * (d << (i + 1)) * 2
        macs += pixels / 4**i * down + pixels / 4 ** (i + 1) * up
    macs += pixels / 16 * 8 * d * 4 * d + pixels / 4 * 4 * d * 2 * d  # the skip connections' reductions
    macs += pixels * 9 * (spec.in_channels * d + 2 * d * spec.out_channels)
    return macs, moved


def _elan(spec: ElanSpec, pixels: int) -> tuple[float, float]:
    c, share = spec.channels, spec.n_share + 1
    part, window = c / len(spec.window_sizes), sum(size**2 for size in spec.window_sizes)
    group = share * (2 * spec.expand * c * c + c * c + c * c + part * window) + c * c + part * window
    ends = 9 * c * (spec.colors + spec.colors * spec.scale**2)
    return pixels * (spec.groups * group + ends), pixels * spec.blocks * 8.0 * c
