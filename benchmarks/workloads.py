"""The networks, their random weights, the workloads of every speed figure, and their roofline lower bounds.

Networks have the published sizes and seeded random weights whose activations neither grow nor vanish with depth, so
that precisions can be compared. Inputs are seeded uniform noise: no network here takes its time by the picture. This
module needs NumPy alone, because TensorRT 8.6 runs in a Python without PyTorch.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import numpy as np

from restort.models.spec import ElanSpec, RestormerSpec, Spec, parameter_shapes
from restort.weights.checkpoint import Weights

NETWORKS: dict[str, Spec] = {
    "restormer": RestormerSpec(3, 3, 48, (4, 6, 6, 8), 4, (1, 2, 4, 8), 2.66, False, "WithBias", False),
    "restormer-biasfree": RestormerSpec(
        3, 3, 48, (4, 6, 6, 8), 4, (1, 2, 4, 8), 2.66, False, "BiasFree", False
    ),
    "elan-x4": ElanSpec(4, 36, 180, 1, 3, (4, 8, 16), 255.0, 2),
    "elan-light-x4": ElanSpec(4, 24, 60, 1, 3, (4, 8, 16), 255.0, 2),
}
TINY: dict[str, Spec] = {  # for runs on the CPU that try a script and measure nothing
    "restormer": RestormerSpec(3, 3, 16, (1, 1, 1, 1), 1, (1, 2, 4, 8), 2.66, False, "WithBias", False),
    "elan-x4": ElanSpec(4, 2, 60, 1, 3, (4, 8, 16), 255.0, 2),
    "elan-light-x4": ElanSpec(4, 2, 60, 1, 3, (4, 8, 16), 255.0, 2),
}
Workload = tuple[str, int, int]  # network, height, width
WORKLOADS: tuple[Workload, ...] = (  # the five of the README's table
    ("restormer", 720, 1280),
    ("elan-light-x4", 192, 320),
    ("elan-x4", 192, 320),
    ("restormer", 368, 552),
    ("restormer", 256, 256),
)
LARGE: tuple[Workload, ...] = (
    ("restormer", 2160, 3840),
    ("restormer", 1080, 1920),
    ("elan-light-x4", 1088, 1920),
    ("elan-light-x4", 2160, 3840),
    ("elan-x4", 1088, 1920),
)
BATCHES = (2, 4, 8, 16, 32)  # of 256 x 256
TENSOR_CORES = 700e12  # operations a second of a dense product in 16 bits, measured on an H100
BYTES_PER_S = {"H200": 4.2e12, "": 2.95e12}  # of a copy, read and written, measured; "" is any other GPU


def name_of(workload: Workload) -> str:
    """'restormer-720x1280'."""
    network, height, width = workload
    return f"{network}-{height}x{width}"


def workload_of(name: str) -> Workload:
    """The workload of a name such as 'restormer-1080x1920', which need not be one of WORKLOADS."""
    network, _, size = name.rpartition("-")
    height, _, width = size.partition("x")
    if network not in NETWORKS or not (height.isdigit() and width.isdigit()):
        raise ValueError(f"unknown workload {name!r}; use NETWORK-HEIGHTxWIDTH with {', '.join(NETWORKS)}")
    return network, int(height), int(width)


def size(text: str) -> tuple[int, int]:
    """'720x1280' -> (height, width)."""
    height, width = text.split("x")
    return int(height), int(width)


def bytes_per_s(device: str) -> float:
    """The measured memory rate of a GPU of that name."""
    return next(rate for name, rate in BYTES_PER_S.items() if name in device)


# Random weights


@functools.lru_cache(maxsize=2)
def weights_of(network: str, tiny: bool = False) -> Weights:
    """Random weights of one of NETWORKS."""
    return random_weights((TINY if tiny else NETWORKS)[network], f"random-{network}")


def random_weights(spec: Spec, name: str) -> Weights:
    """Weights that come from no file; the digest is of the numbers, because graphs are cached by it."""
    state = random_state(spec)
    digest = hashlib.sha256(b"".join(value.tobytes() for value in state.values())).hexdigest()
    return Weights(state, spec, {}, digest, Path(name))


def random_state(spec: Spec, seed: int = 0) -> dict[str, np.ndarray]:
    """Parameters by their original names.

    Projections are scaled by 1/sqrt(fan-in) and the last one of each branch by another 0.3; ELAN's queries are
    scaled down to give its unscaled softmax on 0..255 a moderate temperature.
    """
    rng = np.random.default_rng(seed)
    return {name: _parameter(rng, spec, name, shape) for name, shape in parameter_shapes(spec).items()}


def _parameter(rng: np.random.Generator, spec: Spec, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name.endswith("num_batches_tracked"):
        return np.array(0, np.int64)
    if name.startswith(("sub_mean", "add_mean")):
        return _mean_shift(spec, name, shape)
    if name.endswith(("temperature", "running_var", "body.weight", "project_inp.1.weight")):
        return rng.uniform(0.7, 1.3, shape).astype(np.float32)
    if len(shape) == 1:
        return (0.05 * rng.standard_normal(shape)).astype(np.float32)
    if name.endswith("shift_conv.weight"):
        return _shift_weights(shape[0])
    gain = 0.3 if name.endswith(("project_out.weight", "conv1.shift_conv.conv1x1.weight")) else 1.0
    if name.endswith("project_inp.0.weight") and spec.architecture == "elan":
        gain = 8.0 / spec.value_range
    return (gain * rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def _shift_weights(channels: int) -> np.ndarray:
    """One tap per channel: right, left, down, up for a fifth of the channels each; the rest stays in place."""
    weight = np.zeros((channels, 1, 3, 3), np.float32)
    fifth = channels // 5
    for i, (row, column) in enumerate([(1, 2), (1, 0), (2, 1), (0, 1)]):
        weight[i * fifth : (i + 1) * fifth, 0, row, column] = 1
    weight[4 * fifth :, 0, 1, 1] = 1
    return weight


def _mean_shift(spec: Spec, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name.endswith("weight"):
        return np.eye(shape[0], dtype=np.float32).reshape(shape)
    mean = np.resize(np.array([0.4488, 0.4371, 0.4040], np.float32), shape) * spec.value_range
    return (-mean if name.startswith("sub") else mean).astype(np.float32)


# The roofline


def roofline(spec: Spec, n: int, height: int, width: int, device: str = "") -> dict[str, float]:
    """Lower bounds in ms of the network in 16 bits: {'compute_ms', 'depthwise_ms', 'memory_ms', 'roofline_ms'}.

    compute     twice the multiply-adds of every convolution and of attention (scores once per group of ELAN blocks)
                at the tensor cores' rate: 141 GMAC for the official Restormer at 256x256. Depthwise convolutions
                count at that rate, too, although no tensor core can compute them: the bound is loose for Restormer.
    depthwise   the part of compute that is depthwise.
    memory      bytes that must move where a block is two passes over the picture, at the measured rate of a copy:
                Restormer, per block and pixel, 10 C (reads x, writes v; reads v and x, writes the result; 2 bytes
                each); ELAN, per pair of LFE and GMSA, 8 C. The picture in and out is float32.
    roofline    the larger of compute and memory.
    """
    pixels = n * height * width
    if isinstance(spec, RestormerSpec):
        macs, depthwise, moved = _restormer(spec, pixels)
    else:
        macs, depthwise, moved = _elan(spec, pixels)
    moved += 4 * pixels * (spec.in_channels + spec.out_channels * spec.scale**2)
    compute, memory = 1e3 * 2 * macs / TENSOR_CORES, 1e3 * moved / bytes_per_s(device)
    return {
        "compute_ms": compute,
        "depthwise_ms": 1e3 * 2 * depthwise / TENSOR_CORES,
        "memory_ms": memory,
        "roofline_ms": max(compute, memory),
    }


def _restormer(spec: RestormerSpec, pixels: int) -> tuple[float, float, float]:
    """(multiply-adds, those of depthwise convolutions, bytes)."""
    d, b, heads = spec.dim, spec.num_blocks, spec.heads
    levels = [  # (channels, heads, blocks, level)
        *((d << i, heads[i], b[i], i) for i in range(4)),
        (d * 4, heads[2], b[2], 2),
        (d * 2, heads[1], b[1], 1),
        (d * 2, heads[0], b[0] + spec.num_refinement_blocks, 0),
    ]
    macs = depthwise = moved = 0.0
    for c, h, count, level in levels:
        hidden, here = spec.hidden(c), pixels / 4**level
        products = (
            3 * c * c + c * c / h + c * c + 3 * hidden * c
        )  # qkv, scores, scores and projection in one, GDFN
        taps = 27 * c + 18 * hidden
        macs += count * here * (products + taps)
        depthwise += count * here * taps
        moved += count * here * 10 * c
    for i in range(3):
        down, up = 9 * (d << i) * (d << i) // 2, 9 * (d << (i + 1)) * (d << (i + 1)) * 2
        macs += pixels / 4**i * down + pixels / 4 ** (i + 1) * up
    macs += pixels / 16 * 8 * d * 4 * d + pixels / 4 * 4 * d * 2 * d  # the skip connections' reductions
    macs += pixels * 9 * (spec.in_channels * d + 2 * d * spec.out_channels)
    return macs, depthwise, moved


def _elan(spec: ElanSpec, pixels: int) -> tuple[float, float, float]:
    """(multiply-adds, those of depthwise convolutions, bytes); shifts cost nothing."""
    c, share = spec.channels, spec.n_share + 1
    part, window = c / len(spec.window_sizes), sum(size**2 for size in spec.window_sizes)
    group = share * (2 * spec.expand * c * c + c * c + c * c + part * window) + c * c + part * window
    ends = 9 * c * (spec.colors + spec.colors * spec.scale**2)
    return pixels * (spec.groups * group + ends), 0.0, pixels * spec.blocks * 8.0 * c
