"""Which way to cut up a kernel is fastest on this GPU? Variants of every op, each checked and timed.

    python benchmarks/tune_kernels.py [--ops gdfn mdta_gram ...] [--size 720x1280 368x552 ...] [--list] [--compile]
                                      [--only WORDS] [--dtype float16] [--after-write] [--output FILE]

OPS is the registry: an op names its places in the official networks, the forms of its kernel (triton, sm80, sm90) with
the constants to try, and how to make its arguments. Everything is compiled first, in processes and threads, without a
GPU; `--compile` ends there and reports variants that do not compile, that spill registers, or whose shared memory
exceeds an SM's. Then every variant is run twice (same bits?), compared with the op's reference in float32 (relative
L2), and repeated in a CUDA graph.

Records: {op, picture, place, form, variant, us, roofline_us, tflops, gb_per_s, relative_l2, same_bits, grid, ...}; us
is one launch in a graph of 20, for depthwise_gram also with the attention matrix that adds up its partial sums
(us_with_attention_matrix). `--after-write` adds us_after_write: single launches right after their input has been
written, as in a network, where that decides what the L2 holds; about 3 us of each are the events.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from harness import (
    RESULTS,
    Record,
    Records,
    common_arguments,
    compile_ahead,
    cuda_events,
    graph_ms,
    matching,
    median,
    relative_l2,
    rounded,
    run_cases,
    run_twice,
)
from workloads import TENSOR_CORES, bytes_per_s, size, weights_of

Constants = dict[str, Any]
SIZES = ((720, 1280), (368, 552), (256, 256))
ELAN_SIZE = (192, 320)
SM_SHARED_KIB = 228  # of an SM of compute capability 9.0; a block takes 1 KiB more than it asks for
BUSY_CYCLES = 1_500_000  # about 1 ms: longer than it takes to queue one launch and its events


@dataclass
class Problem:
    """One op at one place: its arguments on a device.

    launch    (form, constants) -> the launch; form 'triton' without constants is Triton's kernel as it is.
    outputs   of a launch, in the order of `expected`, as they are compared.
    expected  what the reference gives; None where an op is not checked.
    after     launches that belong to the op and follow this one.
    """

    launch: Callable[[str, Constants], Any]
    outputs: Callable[[Any], list[Any]]
    expected: Callable[[], list[Any]] | None
    after: Callable[[Any], list[Any]] | None = None
    compared: Callable[[list[Any]], list[Any]] = lambda seen: seen


@dataclass(frozen=True)
class Op:
    """An op of the registry.

    places    names of the places in a network.
    problem   (place, height, width of the picture, dtype, device) -> Problem.
    variants  constants to try, by form; {} is the kernel's own choice.
    allowed   whether a place can have a variant.
    """

    places: tuple[str, ...]
    problem: Callable[[str, int, int, Any, Any], Problem]
    variants: dict[str, list[Constants]]
    allowed: Callable[[str, str, Constants], bool] = lambda place, form, constants: True
    elan: bool = False


@dataclass(frozen=True)
class Case:
    op: str
    picture: str
    place: str
    form: str
    constants: Constants = field(hash=False)

    @property
    def variant(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.constants.items()) or "default"

    @property
    def key(self) -> Record:
        return {name: getattr(self, name) for name in ("op", "picture", "place", "form", "variant")}

    def __str__(self) -> str:
        return f"{self.op} {self.picture} {self.place} {self.form}: {self.variant}"


def drawn(device: Any, dtype: Any, *shape: int, scale: float = 1.0) -> Any:
    """Normal numbers of that scale; nothing but a shape on 'meta'."""
    import torch

    return (torch.randn(*shape, device=device) * scale).to(dtype)


# GDFN and MDTA's Gram matrix, each one kernel for half a block

LEVELS = {  # channels, hidden channels, heads, divisor of the picture's size
    "level 1": (48, 128, 1, 1),
    "decoder 1": (96, 256, 1, 1),
    "level 2": (96, 256, 2, 2),
    "level 3": (192, 512, 4, 4),
}


def half_block(place: str, height: int, width: int, dtype: Any, device: Any) -> dict[str, Any]:
    """Arguments of both halves, about unit activations; the official networks have no biases."""
    import torch

    torch.manual_seed(0)
    c, f, _, divisor = LEVELS[place]
    h, w = height // divisor, width // divisor

    def draw(*shape: int, scale: float = 1.0, kind: Any = dtype) -> Any:
        return drawn(device, kind, *shape, scale=scale)

    return {
        "x": draw(1, h, w, c),
        "v": draw(1, h, w, c),
        "attention": draw(1, c, c, scale=c**-0.5),
        "attention_b": None,
        "w": draw(2 * f, c, scale=c**-0.5),
        "affine": draw(2, 2 * f, kind=torch.float32),
        "dw": draw(10, 2 * f, scale=0.33),
        "out_w": draw(f, c, scale=f**-0.5),
        "out_b": None,
        "qkv_w": draw(3 * c, c, scale=c**-0.5),
        "qkv_affine": draw(2, 3 * c, kind=torch.float32),
        "qkv_dw": draw(10, 3 * c, scale=0.33),
    }


def in_float32(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: None if value is None else value.float() for name, value in arguments.items()}


def gdfn(place: str, height: int, width: int, dtype: Any, device: Any) -> Problem:
    import torch

    from restort.kernels.gdfn import reference, sm80, sm90

    given = half_block(place, height, width, dtype, device)
    out = torch.empty_like(given["x"])

    def launch(form: str, constants: Constants) -> Any:
        kernel: Any = sm90 if form == "sm90" else sm80
        weights = kernel.pack(given["w"], given["affine"], given["dw"], given["out_w"])
        names = ("x", "v", "attention", "attention_b", "out_b")
        arrays = {**{n: given[n] for n in names}, "weights": weights, "out": out}
        hidden = {} if form == "sm90" else {"hidden": len(given["out_w"])}
        return kernel.launch(**arrays, **hidden, **constants)

    def expected() -> list[Any]:
        names = ("x", "v", "attention", "attention_b", "w", "affine", "dw", "out_w", "out_b")
        return [reference.gdfn(**{n: v for n, v in in_float32(given).items() if n in names})]

    return Problem(launch, lambda one: [out], expected)


def mdta_gram(place: str, height: int, width: int, dtype: Any, device: Any) -> Problem:
    import torch

    from restort.kernels.gpu_target import gpu_target
    from restort.kernels.mdta_gram import reference, sm80, sm90

    given = half_block(place, height, width, dtype, device)
    n, h, w, c = given["x"].shape
    heads = LEVELS[place][2]
    v = torch.empty_like(given["x"])
    _, sms = gpu_target(torch.device(device))

    def launch(form: str, constants: Constants) -> Any:
        kernel: Any = sm90 if form == "sm90" else sm80
        splits = kernel.splits(n, h, w, c, sms, **constants)
        sums = torch.empty(splits, n, heads, c // heads * (c // heads + 2), device=device)
        parts = given["qkv_w"], given["qkv_affine"], given["qkv_dw"]
        if form == "sm90":
            return sm90.launch(given["x"], sm90.pack(*parts), v, sums, **constants)
        return sm80.launch(given["x"], *parts, v, sums, **constants)

    def expected() -> list[Any]:
        x, *parts = (given[name].float() for name in ("x", "qkv_w", "qkv_affine", "qkv_dw"))
        return list(reference.mdta_gram(x, *parts, heads))

    return Problem(
        launch,
        lambda one: [v, one.tensors["sums"]],
        expected,
        compared=lambda seen: [seen[0], seen[1].sum(0)],
    )


def half_block_allows(place: str, form: str, constants: Constants) -> bool:
    """More channels than 96 leave no registers for other numbers of warps and blocks, more than 48 none for 12 rows."""
    c = LEVELS[place][0]
    if form == "sm90" and "only" in constants:
        return c in constants["only"]
    registers = (c <= 96 or not {"WARPS", "BLOCKS"} & constants.keys()) and (
        c <= 48 or constants.get("TALL") != 12
    )
    return registers and c % constants.get("CHUNK", 16) == 0


# A Restormer's 3x3 convolutions

RING = {"TAPS": 1, "SLOTS": 4, "BLOCKS": 2}
LARGE, SMALL = {**RING, "PARTS": 2}, {**RING, "PARTS": 1}
UPS = [
    {},
    {**SMALL, "COLUMNS": 192, "DEFER": 1},
    {**SMALL, "COLUMNS": 96, "BLOCKS": 3, "SLOTS": 3, "DEFER": 0},
    {**LARGE, "COLUMNS": 96, "DEFER": 1},
    {**LARGE, "COLUMNS": 96, "DEFER": 0},
    {**SMALL, "COLUMNS": 48, "TAPS": 3, "SLOTS": 3, "DEFER": 0},
]
DOWNS = [
    {},
    {**LARGE, "DEFER": 1},
    {**SMALL, "BLOCKS": 3, "DEFER": 0},
    {**LARGE, "TAPS": 3, "SLOTS": 2, "DEFER": 0},
]
CONVOLUTIONS: dict[
    str, tuple[str, int, int, int, list[Constants]]
] = {  # mode, divisor, channels, rows, variants
    "output": ("LAST", 1, 96, 3, [{}, {"TALL": 12, "BLOCKS": 4}]),
    "down1_2": ("DOWN", 1, 48, 24, [{}, {"BLOCKS": 4}, {"TAPS": 3, "SLOTS": 3}]),
    "up2_1": ("UP", 2, 96, 192, UPS),
    "down2_3": ("DOWN", 2, 96, 48, DOWNS),
    "patch_embed": ("FIRST", 1, 3, 48, [{}, {"WARPS": 4, "BLOCKS": 4}]),
    "down3_4": ("DOWN", 4, 192, 96, [*DOWNS[:3], {**SMALL, "COLUMNS": 48, "DEFER": 0}]),
    "up3_2": ("UP", 4, 192, 384, UPS),
    "up4_3": ("UP", 8, 384, 768, UPS),
}


def conv3x3(place: str, height: int, width: int, dtype: Any, device: Any) -> Problem:
    import torch

    from restort.backends.fused.restormer_weights import step
    from restort.kernels.conv3x3 import reference, sm90
    from restort.kernels.conv3x3 import triton as kernel
    from restort.kernels.conv3x3_first import reference as first_reference
    from restort.kernels.conv3x3_first import sm80 as first_sm80
    from restort.kernels.conv3x3_first import triton as first
    from restort.kernels.conv3x3_last import reference as last_reference
    from restort.kernels.conv3x3_last import sm90 as last_sm90
    from restort.kernels.integers import round_up

    kind, divisor, c, rows, _ = CONVOLUTIONS[place]
    h, w = height // divisor, width // divisor
    torch.manual_seed(0)
    if kind == "FIRST":
        image = torch.rand(1, c, h, w, device=device)
        taps = torch.zeros(rows, 32, device=device)
        taps[:, : 9 * c] = drawn(device, torch.float32, rows, 9 * c, scale=(9 * c) ** -0.5)
        y = drawn(device, dtype, 1, h, w, rows)

        def launch_first(form: str, constants: Constants) -> Any:
            if form == "triton":
                return first.launch(image, taps, y)
            return first_sm80.launch(image, first_sm80.pack(taps, c, dtype), y, **constants)

        return Problem(
            launch_first, lambda one: [y], lambda: [first_reference.conv3x3_first(image, taps, torch.float32)]
        )
    mode = getattr(kernel, kind)
    x = drawn(device, dtype, 1, h, w, c)
    weight = drawn(device, dtype, rows, 3, round_up(3 * c, step(c)), scale=(9 * c) ** -0.5)
    bias = torch.zeros(rows, device=device)
    extra = None
    if kind == "LAST":
        extra, y = torch.rand(1, rows, h, w, device=device), drawn(device, torch.float32, 1, rows, h, w)
    elif kind == "DOWN":
        y = drawn(device, dtype, 1, h // 2, w // 2, 4 * rows)
    else:
        extra = drawn(device, dtype, 1, 2 * h, 2 * w, rows // 4) if place == "up2_1" else None
        y = drawn(device, dtype, 1, 2 * h, 2 * w, rows // (4 if extra is None else 2))

    def launch(form: str, constants: Constants) -> Any:
        if form == "triton":
            with tiling_replaced(kernel, constants):
                return kernel.launch(mode, x, weight, bias, y, step=step(c), extra=extra)
        if kind == "LAST":
            return last_sm90.launch(x, last_sm90.pack(weight, c), bias, y, extra=extra, **constants)
        macros = {**sm90.tiling(mode, c, rows, 1, h, w), **constants}
        return sm90.launch(mode, x, sm90.pack(weight, c, macros), bias, y, extra=extra, **constants)

    def expected() -> list[Any]:
        more = None if extra is None else extra.float()
        a, b = x.float(), weight.float()
        if kind == "DOWN":
            return [reference.down(a, b, bias)]
        return [(last_reference.conv3x3_last if kind == "LAST" else reference.up)(a, b, bias, more)]

    return Problem(launch, lambda one: [y], expected)


def conv3x3_allows(place: str, form: str, constants: Constants) -> bool:
    if form == "triton":
        return not constants or CONVOLUTIONS[place][0] in ("UP", "DOWN")
    return constants in CONVOLUTIONS[place][4]


# The latent level: 384 channels, 8 heads, 1024 hidden channels

CHANNELS, HIDDEN, HEADS = 384, 1024, 8


def layernorm_conv1x1(place: str, height: int, width: int, dtype: Any, device: Any) -> Problem:
    import torch

    from restort.kernels.layernorm_conv1x1 import reference, sm90
    from restort.kernels.layernorm_conv1x1 import triton as kernel

    torch.manual_seed(0)
    rows, pixels = 2 * HIDDEN if place == "gdfn" else 3 * CHANNELS, height // 8 * (width // 8)
    x = (drawn(device, torch.float32, pixels, CHANNELS) + 0.5).to(dtype)
    w = drawn(device, dtype, rows, CHANNELS, scale=CHANNELS**-0.5)
    affine = torch.stack([w.float().sum(1), drawn(device, torch.float32, rows)])
    y = torch.empty(pixels, rows, dtype=dtype, device=device)

    def launch(form: str, constants: Constants) -> Any:
        if form == "triton":
            with tiling_replaced(kernel, constants):
                return kernel.launch(x, w, affine, y)
        return sm90.launch(x, sm90.pack(w, constants.get("COLUMNS", 0)), affine, y, **constants)

    return Problem(
        launch, lambda one: [y], lambda: [reference.layernorm_conv1x1(x.float(), w.float(), affine)]
    )


def gelu_gate(place: str, height: int, width: int, dtype: Any, device: Any) -> Problem:
    import torch

    from restort.kernels.depthwise_gram.reference import depthwise3x3
    from restort.kernels.gelu_gate_project import sm80
    from restort.kernels.gelu_gate_project import triton as kernel
    from restort.kernels.gpu_target import gpu_target

    torch.manual_seed(0)
    h, w = height // 8, width // 8
    expanded, dw = drawn(device, dtype, 1, h, w, 2 * HIDDEN), drawn(device, dtype, 10, 2 * HIDDEN) / 3
    y = torch.empty(1, h, w, HIDDEN, dtype=dtype, device=device)
    capability, sms = gpu_target(torch.device(device))

    def launch(form: str, constants: Constants) -> Any:
        if form == "triton":
            return kernel.launch_gate(expanded, dw.float(), y)
        return sm80.launch(expanded, dw, y, capability=capability, num_sms=sms, **constants)

    def expected() -> list[Any]:
        gates, values = depthwise3x3(expanded.float(), dw.float()).chunk(2, -1)
        return [torch.nn.functional.gelu(gates) * values]

    return Problem(launch, lambda one: [y], expected)


def depthwise_gram(place: str, height: int, width: int, dtype: Any, device: Any) -> Problem:
    import torch

    from restort.kernels.attention_matrix import triton as attention
    from restort.kernels.depthwise_gram import reference as references
    from restort.kernels.depthwise_gram import sm80
    from restort.kernels.depthwise_gram import triton as kernel
    from restort.kernels.gpu_target import gpu_target

    torch.manual_seed(0)
    h, w = height // 8, width // 8
    qkv, dw = drawn(device, dtype, 1, h, w, 3 * CHANNELS), drawn(device, dtype, 10, 3 * CHANNELS) / 3
    temperature = torch.ones(HEADS, device=device)
    out_w = drawn(device, dtype, CHANNELS, CHANNELS).float() / CHANNELS**0.5
    v = torch.empty(1, h, w, CHANNELS, dtype=dtype, device=device)
    capability, sms = gpu_target(torch.device(device))

    def launch(form: str, constants: Constants) -> Any:
        how = {"capability": capability, "num_sms": sms, **constants}
        shape = 1, h, w, CHANNELS, HEADS
        splits = kernel.splits(*shape, sms) if form == "triton" else sm80.splits(*shape, **how)
        sums = torch.empty(kernel.sums_shape(1, HEADS, CHANNELS, splits), device=device)
        if form == "triton":
            return kernel.launch(qkv, dw.float(), v, sums)
        return sm80.launch(qkv, dw, v, sums, **how)

    def attention_matrix(one: Any) -> list[Any]:
        sums = one.tensors["sums"]
        total = torch.empty(1, *sums.shape[1:], device=device) if sums.shape[0] > attention.FEW else None
        out = torch.empty(1, CHANNELS, CHANNELS, dtype=dtype, device=device)
        return list(attention.launches(sums, total, temperature, out_w, out, capability=capability))

    return Problem(
        launch,
        lambda one: [v, one.tensors["sums"]],
        lambda: list(references.depthwise_gram(qkv.float(), dw.float(), HEADS)),
        attention_matrix,
        lambda seen: [seen[0], seen[1].sum(0)],
    )


def conv1x1(place: str, height: int, width: int, dtype: Any, device: Any) -> Problem:
    import torch

    from restort.kernels.conv1x1 import reference
    from restort.kernels.conv1x1 import triton as kernel

    torch.manual_seed(0)
    divisor, c, rows = {"reduce_chan_level3": (4, 384, 192), "reduce_chan_level2": (2, 192, 96)}[place]
    h, w = height // divisor, width // divisor
    a, b = (drawn(device, dtype, 1, h, w, c // 2) for _ in range(2))
    weight, y = drawn(device, dtype, rows, c, scale=c**-0.5), drawn(device, dtype, 1, h, w, rows)
    bias = torch.zeros(rows, device=device)

    def launch(form: str, constants: Constants) -> Any:
        with tiling_replaced(kernel, constants):
            return kernel.launch(a, weight, bias, y, b=b)

    return Problem(
        launch, lambda one: [y], lambda: [reference.conv1x1(a.float(), weight.float(), bias, b=b.float())]
    )


@contextmanager
def tiling_replaced(module: Any, constants: Constants) -> Iterator[None]:
    """With `constants` in place of what the module's `tiling` chooses."""
    usual = module.tiling

    def tiling(*args: Any, **options: Any) -> Constants:
        found = {**usual(*args, **options), **constants}
        if "COLUMNS" in found:  # of a program, in whole steps
            found["COLUMNS"] = max(1, found["COLUMNS"] // found["BN"]) * found["BN"]
        return found

    if constants:
        module.tiling = tiling
    try:
        yield
    finally:
        module.tiling = usual


# ELAN


def elan_block(
    place: str, height: int, width: int, dtype: Any, device: Any
) -> tuple[Any, Any, Any, Any, Any]:
    """The first block of a network, features with their border, and what its LFE gives: (packed, block, x, v, q)."""
    import torch

    from restort.backends.fused import elan
    from restort.kernels.lfe import reference

    weights = weights_of(place)
    packed = elan.pack(weights, dtype).to(device)
    torch.manual_seed(0)
    c = weights.spec.channels
    x = torch.zeros(1, height + 4, width + 4, packed.stored, device=device, dtype=dtype)
    x[:, 2:-2, 2:-2, :c] = drawn(device, dtype, 1, height, width, c, scale=8)
    block = packed.groups[0][0]
    _, v, q = reference.lfe(x, block.local, block.values, block.queries, c)
    v, q = (a[..., : packed.part].reshape(1, height, width, -1).contiguous() for a in (v, q))
    return packed, block, x, v, q


def lfe(place: str, height: int, width: int, dtype: Any, device: Any) -> Problem:
    import torch

    from restort.kernels.gpu_target import gpu_target
    from restort.kernels.lfe import reference, sm80, sm90, triton

    network, _, values_only = place.partition(" ")
    packed, block, x, v, q = elan_block(network, height, width, dtype, device)
    has_q = not values_only
    out, mine, ours = torch.zeros_like(x), torch.zeros_like(v), torch.zeros_like(q)
    c = packed.spec.channels
    _, sms = gpu_target(torch.device(device))

    def launch(form: str, constants: Constants) -> Any:
        if form == "triton":
            queries = block.queries if has_q else None
            return triton.launch(x, block.local, block.values, queries, out, mine, ours, c, **constants)
        if form == "sm80":
            return sm80.launch(x, block.sm80[0], has_q, out, mine, ours, c, **constants)
        return sm90.launch(x, block.lfe_sm90, has_q, out, mine, ours, c, **{"num_sms": sms, **constants})

    def expected() -> list[Any]:
        features, _, _ = reference.lfe(x, block.local, block.values, block.queries, c)
        return [features.float() - inside(x).float(), v, *([q] if has_q else [])]

    def compared(seen: list[Any]) -> list[Any]:
        return [inside(seen[0]).float() - inside(x).float(), *seen[1:]]

    return Problem(launch, lambda one: [out, mine, *([ours] if has_q else [])], expected, compared=compared)


def inside(features: Any) -> Any:
    """Features without their border."""
    return features[:, 2:-2, 2:-2]


def window_attention(place: str, height: int, width: int, dtype: Any, device: Any) -> Problem:
    import torch

    from restort.kernels.window_attention import reference, sm80, triton

    network, _, rolled = place.partition(" ")
    packed, block, x, v, q = elan_block(network, height, width, dtype, device)
    nothing = torch.zeros_like(x)  # so that the result is only what attention adds
    out = torch.zeros_like(x)
    c = packed.spec.channels

    def launch(form: str, constants: Constants) -> Any:
        if form == "triton":
            return triton.launch(q, v, nothing, block.out, out, c, bool(rolled), **constants)
        return sm80.launch(q, v, nothing, block.sm80[1], out, c, bool(rolled), **constants)

    return Problem(
        launch,
        lambda one: [out],
        lambda: [reference.window_attention(q, v, nothing, block.out, bool(rolled))],
        compared=lambda seen: [inside(seen[0])],
    )


def named(names: str, *choices: tuple[int, ...]) -> list[Constants]:
    """Constants of those names."""
    return [dict(zip(names.split(), choice, strict=True)) for choice in choices]


def elan_allows(place: str, form: str, constants: Constants) -> bool:
    light = place.startswith("elan-light")
    if light and form == "sm90":  # LFE for Hopper is for 180 channels
        return False
    return "only" not in constants or light == (constants["only"] == "light")


def only(where: Any, variants: list[Constants]) -> list[Constants]:
    """Variants for some places: those of 'light' or 'full' networks, or of so many channels."""
    return [{**variant, "only": where} for variant in variants]


ONE_BLOCK = {"WARPS": 8, "TALL": 16, "BLOCKS": 1}
MATRIX_TILES = [
    dict(zip(("BM", "BN", "warps", "stages"), cut)) for cut in product((64, 128), (64, 128), (4, 8), (3, 4))
]
# Names of constants. Of LFE never one stage of the groups' loop: Triton 3.6 then reads beyond its shared memory on 9.0.
LFE_TRITON, LFE_SM80 = "TH TW warps stages AHEAD", "WARPS STAGES BLOCKS"
ATTENTION_TRITON, ATTENTION_SM80 = "QUADS KEYS warps AHEAD AHEAD_OUT", "WARPS BLOCKS EARLY"
# fmt: off
OPS: dict[str, Op] = {
    "gdfn": Op(tuple(LEVELS), gdfn, {
        "sm80": [{}, {"BLOCKS": 3}, ONE_BLOCK],
        "sm90": [{}, ONE_BLOCK, {"TALL": 12, "BLOCKS": 2}],
    }, half_block_allows),
    "mdta_gram": Op(tuple(LEVELS), mdta_gram, {
        "sm80": [{}, ONE_BLOCK, {"PART_K": 48}, {"CHUNK": 32}],
        "sm90": [
            {}, {"GRAM": 1}, {"GRAM": 4},
            *only((48, 96), [{"AHEAD": 1}]),
            *only((96,), [ONE_BLOCK, {**ONE_BLOCK, "AHEAD": 1}, {**ONE_BLOCK, "WARPS": 12}]),
            *only((192,), [{"WARPS": 8}, {"WARPS": 8, "AHEAD": 1}]),
            *only((48,), [{"BLOCKS": 2}, {"BLOCKS": 4}, {"TALL": 12}, {"TALL": 16, "BLOCKS": 2}]),
        ],
    }, half_block_allows),
    "conv3x3": Op(tuple(CONVOLUTIONS), conv3x3, {
        "triton": [{}, *MATRIX_TILES],
        "sm90": [{}, *{str(v): v for place in CONVOLUTIONS.values() for v in place[4] if v}.values()],
    }, conv3x3_allows),
    "conv1x1": Op(("reduce_chan_level3", "reduce_chan_level2"), conv1x1, {"triton": [{}, *MATRIX_TILES]}),
    "layernorm_conv1x1": Op(("gdfn", "mdta"), layernorm_conv1x1, {
        "triton": [{}, *named(
            "BM BN warps stages", (64, 64, 8, 2), (64, 64, 8, 3), (64, 128, 8, 2), (128, 64, 8, 2), (128, 128, 8, 2),
            (32, 64, 4, 2), (32, 64, 4, 3), (32, 128, 4, 2),
        )],
        "sm90": [{}, {"PARTS": 3}, {"COLUMNS": 128, "PARTS": 4, "DEPTH": 2}],
    }),
    "gelu_gate": Op(("latent",), gelu_gate, {
        "triton": [{}],
        "sm80": [{}, *named("TALL BLOCKS", (8, 4), (6, 5), (4, 6))],
    }),
    "depthwise_gram": Op(("latent",), depthwise_gram, {
        "triton": [{}],
        "sm80": [{}, *named("TALL WARPS BLOCKS", (8, 6, 2), (4, 3, 4), (4, 6, 4))],
    }),
    "lfe": Op(("elan-light-x4", "elan-light-x4 values", "elan-x4", "elan-x4 values"), lfe, {
        "triton": [
            {},
            *only("light", named(LFE_TRITON, (4, 16, 4, 2, 2), (4, 16, 4, 3, 2), (8, 16, 4, 2, 2), (16, 16, 8, 2, 2))),
            *only("full", named(LFE_TRITON, (8, 16, 8, 2, 2), (4, 16, 8, 2, 2), (4, 16, 4, 2, 2))),
        ],
        "sm80": [
            {},
            *only("light", named(LFE_SM80, (8, 0, 2), (4, 0, 3), (4, 0, 2), (4, 2, 4), (8, 0, 1), (2, 2, 8))),
            *only("full", named(LFE_SM80, (8, 3, 1), (8, 2, 1), (4, 3, 1), (4, 2, 1), (4, 2, 2))),
        ],
        "sm90": [
            {},
            {"CLUSTER": 1},
        ],
    }, elan_allows, elan=True),
    "window_attention": Op(
        ("elan-light-x4", "elan-light-x4 rolled", "elan-x4", "elan-x4 rolled"), window_attention, {
            "triton": [{}, *named(
                ATTENTION_TRITON, (1, 64, 4, 1, 1), (1, 64, 4, 2, 1), (1, 64, 4, 2, 2), (1, 32, 4, 1, 1),
                (1, 128, 4, 1, 1), (1, 64, 8, 1, 1), (2, 64, 8, 1, 1), (2, 64, 8, 2, 1), (2, 128, 8, 1, 1),
            )],
            "sm80": [
                {},
                *named(ATTENTION_SM80, (8, 2, 0), (8, 1, 0), (8, 1, 1), (16, 1, 0)),
                *only("light", named(ATTENTION_SM80, (8, 2, 1), (8, 3, 0), (8, 3, 1), (16, 1, 1))),
            ],
        }, elan_allows, elan=True),
}
# fmt: on


def cases(names: list[str], pictures: list[tuple[int, int]] | None) -> Iterator[Case]:
    """All of them, by picture, op, place and form."""
    for name in names:
        op = OPS[name]
        for height, width in pictures or ([ELAN_SIZE] if op.elan else SIZES):
            for place, (form, variants) in product(op.places, op.variants.items()):
                for constants in variants:
                    if op.allowed(place, form, constants):
                        chosen = {k: v for k, v in constants.items() if k != "only"}
                        yield Case(name, f"{height}x{width}", place, form, chosen)


class Tuner:
    """Problems as they are asked for, one at a time, with their references."""

    def __init__(self, dtype: str, device: str, after_write: bool = False) -> None:
        import torch

        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.dtype, self.device, self.after_write = getattr(torch, dtype), device, after_write
        self._at: tuple[str, str, str] | None = None
        self._problem: Problem | None = None
        self._expected: list[Any] | None = None

    def problem(self, case: Case) -> Problem:
        at = case.op, case.picture, case.place
        if self._problem is None or at != self._at:
            self._problem = self._expected = None  # their memory is wanted
            made = OPS[case.op].problem(case.place, *size(case.picture), self.dtype, self.device)
            self._at, self._problem = at, made
        return self._problem

    def launch(self, case: Case) -> Any:
        return self.problem(case).launch(case.form, case.constants)

    def measure(self, case: Case, limit: float) -> Record:
        import torch

        problem = self.problem(case)
        if self._expected is None and problem.expected is not None:
            self._expected = problem.expected()
        one = problem.launch(case.form, case.constants)
        seen, same = run_twice(one, problem.outputs(one))
        us, device = 1e3 * graph_ms(one), torch.cuda.get_device_name()
        found: Record = {
            "us": round(us, 2),
            "roofline_us": round(1e6 * max(one.moved / bytes_per_s(device), one.flops / TENSOR_CORES), 2),
            "tflops": round(one.flops / us / 1e6, 1),
            "gb_per_s": round(one.moved / us / 1e3),
            "same_bits": same,
            "grid": list(one.grid),
            "device": device,
        }
        if self._expected is not None:
            pairs = zip(problem.compared(seen), self._expected, strict=True)
            found["relative_l2"] = rounded(max(relative_l2(a, b) for a, b in pairs), 3)
        if problem.after is not None:
            launches = [one, *problem.after(one)]
            found["us_with_attention_matrix"] = round(
                1e3 * graph_ms(lambda: [each() for each in launches]), 2
            )
        if self.after_write:
            source = next(iter(one.tensors.values()))
            found["us_after_write"] = round(1e3 * after_write_ms(source, one), 2)
        return found


def after_write_ms(source: Any, launch: Callable[[], None], repeats: int = 20) -> float:
    """Milliseconds of single launches, each right after `source` has been written; the GPU is busy while they queue."""
    import torch

    copy, times = source.clone(), []
    for _ in range(repeats + 3):
        torch.cuda._sleep(BUSY_CYCLES)
        source.copy_(copy)
        times.append(cuda_events(launch))
    return median(times[3:])


def compile_all(wanted: list[Case], dtype: str, capability: int, report: bool) -> list[Case]:
    """Compile for every case, without a GPU; return those whose launch can be made."""
    from restort.kernels.gpu_target import planning_for

    launches: dict[Case, Any] = {}
    with planning_for(capability):
        tuner = Tuner(dtype, "meta")
        for case in wanted:
            try:
                launches[case] = tuner.launch(case)
            except Exception as error:
                print(f"{case}: {type(error).__name__}: {error}", file=sys.stderr)
    compile_ahead(list(launches.values()), capability)
    if report:
        for case, one in launches.items():
            trouble = trouble_of(one, capability)
            if trouble:
                print(f"{case}: {trouble}")
    return list(launches)


def trouble_of(one: Any, capability: int) -> str | None:
    """Why a kernel in CUDA C++ cannot run well: it does not compile, spills, or wants too much shared memory."""
    from restort.backends.fused.kernel_sweep import resources
    from restort.errors import RestortError

    if hasattr(one.kernel, "cache_key") or not hasattr(one.kernel, "compile"):
        return None
    try:
        registers, spilled = resources(one.kernel.compile(one.constants, capability))
    except RestortError as error:
        return f"does not compile: {error}"
    kib = (one.constants.get("SHARED", 0) / 1024 + 1) * one.constants.get("BLOCKS", 1)
    if spilled or kib > SM_SHARED_KIB:
        return f"{registers} registers, {spilled} bytes spilled, {kib:.0f} KiB of shared memory an SM"
    return None


def describe(record: Record) -> str:
    same = "" if record["same_bits"] else "  TWO RUNS DIFFER"
    return (
        f"{record['us']:9.2f} us  roofline {record['roofline_us']:8.2f}  {record['tflops']:6.1f} TFLOP/s "
        f"{record['gb_per_s']:5.0f} GB/s  error {record.get('relative_l2', 0):.1e}{same}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common_arguments(parser, RESULTS / "speed" / "kernel_variants.json")
    parser.add_argument("--ops", nargs="+", choices=list(OPS), default=list(OPS))
    parser.add_argument("--size", type=size, nargs="+", metavar="HxW", help="sizes of the picture")
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="float16")
    parser.add_argument("--after-write", action="store_true", help="also time launches right after a write")
    parser.add_argument(
        "--compile", action="store_true", help="only compile, and report what cannot run well"
    )
    parser.add_argument("--capability", type=int, default=90, help="of --compile (default: 90)")
    args = parser.parse_args()
    wanted = matching(cases(args.ops, args.size), args.only)
    if args.list:
        print("\n".join(map(str, wanted)))
        return 0
    capability = args.capability
    if not args.compile:
        import torch

        major, minor = torch.cuda.get_device_capability()
        capability = 10 * major + minor
        wanted = [case for case in wanted if case.form != "sm90" or capability == 90]
    wanted = compile_all(wanted, args.dtype, capability, args.compile)
    if args.compile:
        return 0
    import torch

    tuner, records = Tuner(args.dtype, "cuda", args.after_write), Records(Path(args.output))
    with torch.no_grad():
        again = matching(wanted, args.again) if args.again else ()
        return min(1, run_cases(wanted, records, tuner.measure, describe, seconds=args.seconds, again=again))


if __name__ == "__main__":
    sys.exit(main())
