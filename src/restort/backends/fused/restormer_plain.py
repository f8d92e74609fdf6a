"""A Restormer's blocks where they are not streamed: kernels with the expanded arrays in memory between them.

A block is five launches (restort.kernels): norm_expand (qkv), depthwise_gram (q, k and v of each pixel; of q and k
only their sums are kept), fold (the attention as one matrix), norm_expand with the attention's application before it
(the feed-forward network's expansion), gate_project. Where there are many partial sums, adding them is one more; where
pixels are few or channels many, the attention's application and the projection are launches of their own, which more
programs can share.

These are Triton's. Where CUDA C++ can be had, three of them are replaced: depthwise_gram, and the gate where its
projection is a launch of its own, by kernels that take tiles of pixels to shared memory (tile.cu); norm_expand without
an application, of as many channels as it fits, by wide.cu for compute capability 9.0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from restort.backends.fused.restormer_weights import Block, Expansion, Packed
from restort.kernels.depthwise_gram import kernel as depthwise_gram
from restort.kernels.depthwise_gram import tile as gram_tile
from restort.kernels.fold import kernel as fold
from restort.kernels.gate_project import kernel as gate_project
from restort.kernels.gate_project import tile as gate_tile
from restort.kernels.launch import Launch
from restort.kernels.machine import compiles, machine
from restort.kernels.norm_expand import kernel as norm_expand
from restort.kernels.norm_expand import wide as expand_wide
from restort.kernels.pointwise import kernel as pointwise
from restort.kernels.workspace import Workspace

Tensor = Any
Buffer = int  # a buffer's number in the workspace
Get = Callable[[Buffer], Tensor]

APPLY_ALONE = 192  # channels above which the attention's matrix is too large to apply beside an expansion


class PlainPlanner:
    """Buffers first, then launches: each step is a function that makes its launches once there is memory."""

    def __init__(
        self, packed: Packed, n: int, h: int, w: int, device: torch.device, streamed: bool | None
    ) -> None:
        self.packed = packed
        self.n, self.h, self.w = n, h, w
        self.device = device
        self.streamed = streamed
        self.capability, self.processors = machine(device)
        self.workspace = Workspace()
        self.steps: list[Callable[[Get], list[Launch]]] = []
        self.centred = packed.spec.layer_norm == "WithBias"

    def take(self, level: int, channels: int) -> Buffer:
        """An activation at a level (0 is the picture's size)."""
        return self.workspace.take((self.n, self.h >> level, self.w >> level, channels), self.packed.dtype)

    def by_cuda(self) -> bool:
        """Whether kernels in CUDA C++ may be named: for 16 bits, where they can be compiled or `streamed` says so."""
        if self.streamed is False or self.packed.dtype.itemsize != 2:
            return False
        return self.streamed or compiles(self.device)

    def attend(self, label: str, level: int, block: Block, x: Buffer) -> tuple[Buffer, Buffer, int]:
        """v, the partial sums of q and k, and how many of these there are."""
        channels, heads = block.channels, block.heads
        h, w = self.h >> level, self.w >> level
        name = f"{label}.attn"
        qkv = self.take(level, 3 * channels)
        v = self.take(level, channels)
        tiled = self.by_cuda() and gram_tile.fits(channels, heads)
        if tiled:
            splits = gram_tile.splits(self.n, h, w, channels, heads, self.capability, self.processors)
        else:
            splits = depthwise_gram.splits(self.n, h, w, channels, heads, self.processors)
        shape = depthwise_gram.sums_shape(self.n, heads, channels, splits)
        sums = self.workspace.take(shape, torch.float32)
        weights = block.qkv

        def convolve(get: Get) -> Launch:
            arrays = get(qkv), weights.dw16 if tiled else weights.dw, get(v), get(sums)
            if tiled:
                return gram_tile.launch(*arrays, **self.options(name))
            return depthwise_gram.launch(*arrays, label=name)

        self.steps.append(
            lambda get: [
                self.plain_expand(get(x), weights, get(qkv), name),
                convolve(get),
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
            self.plain_expand(out, weights, expanded, label),
        ]

    def plain_expand(self, x: Tensor, weights: Expansion, y: Tensor, label: str) -> Launch:
        """Normalisation and expansion alone."""
        rows, channels = weights.w.shape
        if self.by_cuda() and expand_wide.fits(channels, rows, self.capability):
            return expand_wide.launch(
                x, weights.w_wide, weights.affine, y, label=label, processors=self.processors
            )
        return norm_expand.launch(x, weights.w, weights.affine, y, **self.options(label))

    def gate(
        self, expanded: Tensor, block: Block, x: Tensor, gated: Tensor | None, label: str
    ) -> list[Launch]:
        """Gate, projection and residual, onto x."""
        dw, w, bias = block.ffn.dw, block.ffn_w, block.ffn_b
        if gated is None:
            return [gate_project.launch(expanded, dw, w, bias, x, x, label=label, processors=self.processors)]
        if self.by_cuda() and gate_tile.fits(block.hidden):
            gating = gate_tile.launch(expanded, block.ffn.dw16, gated, **self.options(label))
        else:
            gating = gate_project.launch_gate(expanded, dw, gated, label=label)
        return [
            gating,
            pointwise.launch(
                gated, w, bias, x, x=x, transposed=True, label=label, processors=self.processors
            ),
        ]

    def options(self, label: str) -> dict[str, Any]:
        return {"label": label, "capability": self.capability, "processors": self.processors}
