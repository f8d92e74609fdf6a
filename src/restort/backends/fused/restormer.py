"""Restormer as a sequence of fused kernels. The format of its weights: restort.backends.fused.restormer_weights.

A transformer block is five launches (restort.kernels): norm_expand (qkv), depthwise_gram (q, k and v of each pixel;
of q and k only their sums are kept), fold (the attention as one matrix), norm_expand with the attention's application
before it (the feed-forward network's expansion), gate_project. Where a level has many pixels, memory for the
expanded arrays would cost most, and streaming kernels take two steps in one: `choose`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch

from restort.backends.fused.passes import Pass
from restort.backends.fused.restormer_weights import Block, Packed, pack, step
from restort.kernels.conv3x3 import first
from restort.kernels.conv3x3 import kernel as conv3x3
from restort.kernels.depthwise_gram import kernel as depthwise_gram
from restort.kernels.fold import kernel as fold
from restort.kernels.gate_project import kernel as gate_project
from restort.kernels.launch import Launch
from restort.kernels.machine import machine
from restort.kernels.norm_expand import kernel as norm_expand
from restort.kernels.pointwise import kernel as pointwise
from restort.kernels.stream_ffn import kernel as stream_ffn
from restort.kernels.stream_gram import kernel as stream_gram
from restort.kernels.workspace import Workspace
from restort.models.spec import RestormerSpec

__all__ = ["Packed", "pack", "plan"]

Tensor = Any
Buffer = int  # a buffer's number in the workspace
Get = Callable[[Buffer], Tensor]

FEW_TILES = 1  # of 128 pixels, for each multiprocessor
APPLY_ALONE = 192  # channels above which the attention's matrix is too large to apply beside an expansion


def choose(pixels: int, channels: int, heads: int, capability: int, processors: int) -> tuple[bool, bool]:
    """Whether (q, k, v with their sums; the feed-forward network) of a block at so many pixels are streamed.

    Not where there are too few tiles for all multiprocessors.
    """
    many = pixels >= FEW_TILES * 128 * processors
    return (
        many and stream_gram.worthwhile(pixels, channels, heads),
        many and stream_ffn.worthwhile(pixels, channels, capability),
    )


@functools.cache
def cuda_compiler() -> bool:
    """Whether the streaming kernels, which are in CUDA C++, can be compiled here."""
    try:
        importlib.import_module("cuda.bindings.nvrtc")
    except ImportError:
        return False
    return True


def plan(
    packed: Packed,
    spec: RestormerSpec,
    n: int,
    h: int,
    w: int,
    dtype: torch.dtype,
    device: Any,
    *,
    streamed: bool | None = None,
    keep_blocks: bool = False,
) -> Pass:
    """The launches of a forward pass of `n` pictures of `h` x `w` (multiples of 8) on `device`.

    packed        weights of `spec` in `dtype`, on the device.
    streamed      streaming kernels everywhere (True) or nowhere (False) instead of where `choose` wants them.
    keep_blocks   every block's output stays in a buffer of its own: Pass.blocks.
    """
    planner = _Planner(packed, n, h, w, device, streamed, keep_blocks)
    planner.network(spec)
    return planner.finish()


class _Planner:
    """Buffers first, then launches: each step is a function that makes its launches once there is memory."""

    def __init__(
        self, packed: Packed, n: int, h: int, w: int, device: Any, streamed: bool | None, keep_blocks: bool
    ) -> None:
        self.packed = packed
        self.n, self.h, self.w = n, h, w
        self.device = torch.device(device)
        self.streamed = streamed
        self.keep_blocks = keep_blocks
        self.capability, self.processors = machine(self.device)
        self.workspace = Workspace()
        self.steps: list[Callable[[Get], list[Launch]]] = []
        self.kept: dict[str, Buffer] = {}
        spec = packed.spec
        self.centred = spec.layer_norm == "WithBias"
        self.input = torch.empty(n, spec.in_channels, h, w, dtype=torch.float32, device=self.device)
        self.output = torch.empty(n, spec.out_channels, h, w, dtype=torch.float32, device=self.device)

    def finish(self) -> Pass:
        self.workspace.allocate(self.device)
        launches = [launch for make in self.steps for launch in make(self.workspace.tensor)]
        blocks = {name: self.workspace.tensor(buffer) for name, buffer in self.kept.items()}
        return Pass(launches, self.input, self.output, self.workspace, blocks if self.keep_blocks else None)

    def take(self, level: int, channels: int, dtype: torch.dtype | None = None) -> Buffer:
        """An activation at a level (0 is the picture's size)."""
        shape = (self.n, self.h >> level, self.w >> level, channels)
        return self.workspace.take(shape, self.packed.dtype if dtype is None else dtype)

    def network(self, spec: RestormerSpec) -> None:
        dim = spec.dim
        embedded = self.embed(dim)
        one = self.stage("encoder_level1", spec.num_blocks[0], 0, embedded, spare=spec.dual_pixel)
        two = self.stage("encoder_level2", spec.num_blocks[1], 1, self.down("down1_2", 1, one, 2 * dim))
        three = self.stage("encoder_level3", spec.num_blocks[2], 2, self.down("down2_3", 2, two, 4 * dim))
        x = self.stage("latent", spec.num_blocks[3], 3, self.down("down3_4", 3, three, 8 * dim))
        x = self.up("up4_3", 2, x, 4 * dim)
        x = self.reduce("reduce_chan_level3", 2, x, three, 4 * dim)
        x = self.stage("decoder_level3", spec.num_blocks[2], 2, x)
        x = self.up("up3_2", 1, x, 2 * dim)
        x = self.reduce("reduce_chan_level2", 1, x, two, 2 * dim)
        x = self.stage("decoder_level2", spec.num_blocks[1], 1, x)
        x = self.up("up2_1", 0, x, 2 * dim, beside=one)
        self.drop(one)
        x = self.stage("decoder_level1", spec.num_blocks[0], 0, x)
        x = self.stage("refinement", spec.num_refinement_blocks, 0, x)
        if spec.dual_pixel:
            x = self.skip(x, embedded, 2 * dim)
        self.last(x, not spec.dual_pixel)

    def embed(self, channels: int) -> Buffer:
        out = self.take(0, channels)
        weight, _ = self.packed.layers["patch_embed.proj"]
        self.steps.append(lambda get: [first.launch(self.input, weight, get(out), label="patch_embed")])
        return out

    def stage(self, name: str, count: int, level: int, x: Buffer, spare: bool = False) -> Buffer:
        """Blocks one after another; the first may not overwrite its input where `spare`."""
        for i in range(count):
            label = f"{name}.{i}"
            before = x
            keep = (spare and i == 0) or before in self.kept.values()
            x = self.block(label, level, before, keep)
            if self.keep_blocks:
                self.kept[label] = x
        return x

    def block(self, label: str, level: int, x: Buffer, keep: bool) -> Buffer:
        """One transformer block; `keep`: x stays as it is, otherwise it is overwritten or released."""
        block = self.packed.blocks[label]
        release = self.workspace.release
        gram_streamed, ffn_streamed = self.choose(level, block)
        attend = self.attend_streamed if gram_streamed else self.attend
        feed = self.feed_streamed if ffn_streamed else self.feed
        v, sums, splits = attend(label, level, block, x)
        matrix = self.sum_and_fold(label, block, sums, splits)
        y = feed(label, level, block, x, v, matrix, keep)
        release(v)
        release(matrix)
        return y

    def choose(self, level: int, block: Block) -> tuple[bool, bool]:
        """`choose` as overridden, and as far as the streaming kernels go: CUDA, 16 bits."""
        pixels = self.n * (self.h >> level) * (self.w >> level)
        if self.streamed is False or self.packed.dtype.itemsize != 2:
            return False, False
        if self.streamed:
            pixels = 1 << 40
        elif self.device.type == "cpu" or (self.device.type == "cuda" and not cuda_compiler()):
            return False, False
        return choose(pixels, block.channels, block.heads, self.capability, self.processors)

    def attend_streamed(self, label: str, level: int, block: Block, x: Buffer) -> tuple[Buffer, Buffer, int]:
        """`attend` in one kernel."""
        h, w, channels, heads = self.h >> level, self.w >> level, block.channels, block.heads
        v = self.take(level, channels)
        splits = stream_gram.splits(self.n, h, w, channels, self.processors, self.capability)
        sums = self.workspace.take(depthwise_gram.sums_shape(self.n, heads, channels, splits), torch.float32)
        weights = block.qkv
        self.steps.append(
            lambda get: [
                stream_gram.launch(
                    get(x),
                    weights.w,
                    weights.affine,
                    weights.dw16,
                    get(v),
                    get(sums),
                    centred=self.centred,
                    capability=self.capability,
                    label=f"{label}.attn",
                )
            ]
        )
        return v, sums, splits

    def feed_streamed(
        self, label: str, level: int, block: Block, x: Buffer, v: Buffer, matrix: Buffer, keep: bool
    ) -> Buffer:
        """`feed` in one kernel."""
        out = self.take(level, block.channels)
        weights, bias = block.ffn, self.packed.spec.bias
        self.steps.append(
            lambda get: [
                stream_ffn.launch(
                    get(x),
                    get(v),
                    get(matrix),
                    block.attention_b if bias else None,
                    weights.w,
                    weights.affine,
                    weights.dw16,
                    block.ffn_w,
                    block.ffn_b if bias else None,
                    get(out),
                    centred=self.centred,
                    capability=self.capability,
                    label=f"{label}.ffn",
                )
            ]
        )
        if not keep:
            self.workspace.release(x)
        return out

    def attend(self, label: str, level: int, block: Block, x: Buffer) -> tuple[Buffer, Buffer, int]:
        """v, the partial sums of q and k, and how many of these there are."""
        channels, heads = block.channels, block.heads
        h, w = self.h >> level, self.w >> level
        name = f"{label}.attn"
        qkv = self.take(level, 3 * channels)
        v = self.take(level, channels)
        splits = depthwise_gram.splits(self.n, h, w, channels, heads, self.processors)
        shape = depthwise_gram.sums_shape(self.n, heads, channels, splits)
        sums = self.workspace.take(shape, torch.float32)
        weights, options = block.qkv, self.options(name)
        self.steps.append(
            lambda get: [
                norm_expand.launch(get(x), weights.w, weights.affine, get(qkv), **options),
                depthwise_gram.launch(get(qkv), weights.dw, get(v), get(sums), label=name),
            ]
        )
        self.workspace.release(qkv)
        return v, sums, splits

    def sum_and_fold(self, label: str, block: Block, sums: Buffer, splits: int) -> Buffer:
        """The attention's matrix; releases `sums`."""
        out = self.workspace.take((self.n, block.channels, block.channels), self.packed.dtype)
        total = None
        if splits > fold.FEW:
            shape = depthwise_gram.sums_shape(self.n, block.heads, block.channels, 1)
            total = self.workspace.take(shape, torch.float32)
        self.steps.append(
            lambda get: fold.launches(
                get(sums),
                None if total is None else get(total),
                block.temperature,
                block.attention_w,
                get(out),
                label=f"{label}.attn",
                capability=self.capability,
            )
        )
        self.workspace.release(sums)
        if total is not None:
            self.workspace.release(total)
        return out

    def feed(
        self, label: str, level: int, block: Block, x: Buffer, v: Buffer, matrix: Buffer, keep: bool
    ) -> Buffer:
        """The attention's application and the feed-forward network."""
        channels, rows = block.channels, block.ffn.w.shape[0]
        pixels = (self.h >> level) * (self.w >> level)
        name = f"{label}.ffn"
        alone = channels > APPLY_ALONE
        clash = not alone and norm_expand.shared(
            self.n, pixels, channels, rows, self.capability, self.processors
        )
        out = self.take(level, channels) if keep or clash else x
        expanded = self.take(level, rows)
        self.steps.append(
            lambda get: self.expand(get(x), get(v), get(matrix), block, get(out), get(expanded), name, alone)
        )
        gated = None
        if gate_project.apart(channels, self.n * pixels, self.processors):
            gated = self.take(level, block.hidden)
        self.steps.append(
            lambda get: self.gate(get(expanded), block, get(out), None if gated is None else get(gated), name)
        )
        self.workspace.release(expanded)
        if gated is not None:
            self.workspace.release(gated)
        if clash and not keep:
            self.workspace.release(x)
        return out

    def expand(
        self,
        x: Tensor,
        v: Tensor,
        matrix: Tensor,
        block: Block,
        out: Tensor,
        expanded: Tensor,
        label: str,
        alone: bool,
    ) -> list[Launch]:
        """The attention's application to x, and the expansion of its result."""
        weights, options = block.ffn, self.options(label)
        if not alone:
            return [
                norm_expand.launch_apply(
                    x, v, matrix, block.attention_b, out, weights.w, weights.affine, expanded, **options
                )
            ]
        return [
            pointwise.launch(v, matrix, block.attention_b, out, x=x, label=label, processors=self.processors),
            norm_expand.launch(out, weights.w, weights.affine, expanded, **options),
        ]

    def gate(
        self, expanded: Tensor, block: Block, x: Tensor, gated: Tensor | None, label: str
    ) -> list[Launch]:
        """Gate, projection and residual, onto x."""
        dw, w, bias = block.ffn.dw, block.ffn_w, block.ffn_b
        if gated is None:
            return [gate_project.launch(expanded, dw, w, bias, x, x, label=label, processors=self.processors)]
        return [
            gate_project.launch_gate(expanded, dw, gated, label=label),
            pointwise.launch(
                gated, w, bias, x, x=x, transposed=True, label=label, processors=self.processors
            ),
        ]

    def options(self, label: str) -> dict[str, Any]:
        return {"label": label, "capability": self.capability, "processors": self.processors}

    def conv(
        self,
        mode: int,
        name: str,
        x: Buffer,
        out: Buffer | None,
        extra: Buffer | None = None,
        image: bool = False,
    ) -> None:
        weight, bias = self.packed.layers[name]

        def make(get: Get) -> list[Launch]:
            source = get(x)
            beside = self.input if image else None if extra is None else get(extra)
            to = self.output if out is None else get(out)
            return [
                conv3x3.launch(
                    mode,
                    source,
                    weight,
                    bias,
                    to,
                    step=step(source.shape[-1]),
                    extra=beside,
                    label=name,
                    processors=self.processors,
                )
            ]

        self.steps.append(make)

    def down(self, name: str, level: int, x: Buffer, channels: int) -> Buffer:
        """x stays: it is what a later stage takes in again."""
        out = self.take(level, channels)
        self.conv(conv3x3.DOWN, name, x, out)
        return out

    def up(self, name: str, level: int, x: Buffer, channels: int, beside: Buffer | None = None) -> Buffer:
        out = self.take(level, channels)
        self.conv(conv3x3.UP, name, x, out, beside)
        self.drop(x)
        return out

    def reduce(self, name: str, level: int, x: Buffer, skip: Buffer, channels: int) -> Buffer:
        out = self.take(level, channels)
        weight, bias = self.packed.layers[name]
        self.steps.append(
            lambda get: [
                pointwise.launch(
                    get(x), weight, bias, get(out), b=get(skip), label=name, processors=self.processors
                )
            ]
        )
        self.drop(x)
        self.drop(skip)
        return out

    def skip(self, x: Buffer, embedded: Buffer, channels: int) -> Buffer:
        """x + skip_conv(embedded)."""
        out = self.take(0, channels)
        weight, bias = self.packed.layers["skip_conv"]
        self.steps.append(
            lambda get: [
                pointwise.launch(
                    get(embedded),
                    weight,
                    bias,
                    get(out),
                    x=get(x),
                    label="skip_conv",
                    processors=self.processors,
                )
            ]
        )
        self.drop(x)
        self.drop(embedded)
        return out

    def last(self, x: Buffer, residual: bool) -> None:
        self.conv(conv3x3.LAST, "output", x, None, image=residual)
        self.drop(x)

    def drop(self, buffer: Buffer) -> None:
        """No later launch reads it; what was asked for stays."""
        if buffer not in self.kept.values():
            self.workspace.release(buffer)
