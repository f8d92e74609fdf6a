"""A Restormer's blocks that are not fused: kernels with the expanded arrays in global memory between them.

A block is five launches (restort.kernels): layernorm_conv1x1 (qkv), depthwise_gram (q, k and v of each pixel; of q and
k only their sums are kept), attention_matrix, layernorm_conv1x1 with the attention's application before it (the
expansion of the feed-forward network, GDFN), gelu_gate_project. Where there are many partial sums, adding them is one
more launch; where pixels are few or channels many, the attention's application and the projection are launches of their
own, which more programs can share.

These are Triton kernels. With CUDA C++ three of them are replaced: depthwise_gram, and the gate where its projection is
a launch of its own, by sm80.cu, which takes tiles of pixels to shared memory; layernorm_conv1x1 without an application,
of the channels that it takes, by sm90.cu.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from restort.backends.fused.restormer_weights import Block, Expansion, Packed
from restort.kernels.attention_matrix import triton as attention_matrix
from restort.kernels.conv1x1 import triton as conv1x1
from restort.kernels.depthwise_gram import sm80 as depthwise_gram_sm80
from restort.kernels.depthwise_gram import triton as depthwise_gram
from restort.kernels.gelu_gate_project import sm80 as gelu_gate_sm80
from restort.kernels.gelu_gate_project import triton as gelu_gate_project
from restort.kernels.gpu_target import can_compile_cuda, gpu_target
from restort.kernels.launch import Launch
from restort.kernels.layernorm_conv1x1 import sm90 as layernorm_conv1x1_sm90
from restort.kernels.layernorm_conv1x1 import triton as layernorm_conv1x1
from restort.kernels.workspace import Workspace

Tensor = Any
Buffer = int  # a buffer's number in the workspace
Get = Callable[[Buffer], Tensor]

APPLY_ALONE = 192  # channels above which the attention's matrix is too large to apply beside an expansion


class UnfusedPlanner:
    """Plans buffers first, then launches: each step is a function that makes its launches once there is memory."""

    def __init__(
        self, packed: Packed, n: int, h: int, w: int, device: torch.device, fused_blocks: bool | None
    ) -> None:
        self.packed = packed
        self.n, self.h, self.w = n, h, w
        self.device = device
        self.fused_blocks = fused_blocks
        self.capability, self.num_sms = gpu_target(device)
        self.workspace = Workspace()
        self.steps: list[Callable[[Get], list[Launch]]] = []
        self.centred = packed.spec.layer_norm == "WithBias"

    def take(self, level: int, channels: int) -> Buffer:
        """Plan an activation's buffer at a level (0 is the image's size)."""
        return self.workspace.take((self.n, self.h >> level, self.w >> level, channels), self.packed.dtype)

    def cuda_enabled(self) -> bool:
        """Return whether the plan may have CUDA C++: of 16 bits, if it can be compiled or `fused_blocks` is True."""
        if self.fused_blocks is False or self.packed.dtype.itemsize != 2:
            return False
        return self.fused_blocks or can_compile_cuda(self.device)

    def attend(self, label: str, level: int, block: Block, x: Buffer) -> tuple[Buffer, Buffer, int]:
        """Plan LayerNorm to Gram matrix; return v, the partial sums of q and k, and how many of these there are."""
        channels, heads = block.channels, block.heads
        h, w = self.h >> level, self.w >> level
        name = f"{label}.attn"
        qkv = self.take(level, 3 * channels)
        v = self.take(level, channels)
        use_sm80 = self.cuda_enabled() and depthwise_gram_sm80.fits(channels, heads)
        if use_sm80:
            splits = depthwise_gram_sm80.splits(self.n, h, w, channels, heads, self.capability, self.num_sms)
        else:
            splits = depthwise_gram.splits(self.n, h, w, channels, heads, self.num_sms)
        shape = depthwise_gram.sums_shape(self.n, heads, channels, splits)
        sums = self.workspace.take(shape, torch.float32)
        weights = block.qkv

        def convolve(get: Get) -> Launch:
            arrays = get(qkv), weights.dw16 if use_sm80 else weights.dw, get(v), get(sums)
            if use_sm80:
                return depthwise_gram_sm80.launch(*arrays, **self.options(name))
            return depthwise_gram.launch(*arrays, label=name)

        self.steps.append(
            lambda get: [
                self.layernorm_expand(get(x), weights, get(qkv), name),
                convolve(get),
            ]
        )
        self.workspace.release(qkv)
        return v, sums, splits

    def finish_attention(self, label: str, block: Block, sums: Buffer, splits: int) -> Buffer:
        """Plan the attention's matrix and return its buffer; release `sums`."""
        out = self.workspace.take((self.n, block.channels, block.channels), self.packed.dtype)
        total = None
        if splits > attention_matrix.FEW:
            shape = depthwise_gram.sums_shape(self.n, block.heads, block.channels, 1)
            total = self.workspace.take(shape, torch.float32)
        self.steps.append(
            lambda get: attention_matrix.launches(
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
        """Plan the attention's application and the feed-forward network; return the block's output."""
        channels, rows = block.channels, block.ffn.w.shape[0]
        pixels = (self.h >> level) * (self.w >> level)
        name = f"{label}.ffn"
        alone = channels > APPLY_ALONE
        clash = not alone and layernorm_conv1x1.shared(
            self.n, pixels, channels, rows, self.capability, self.num_sms
        )
        out = self.take(level, channels) if keep or clash else x
        expanded = self.take(level, rows)
        self.steps.append(
            lambda get: self.expand(get(x), get(v), get(matrix), block, get(out), get(expanded), name, alone)
        )
        gated = None
        if gelu_gate_project.apart(channels, self.n * pixels, self.num_sms):
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
        """Launch the attention's application to x and the expansion of its result."""
        weights, options = block.ffn, self.options(label)
        if not alone:
            return [
                layernorm_conv1x1.launch_apply(
                    x, v, matrix, block.attention_b, out, weights.w, weights.affine, expanded, **options
                )
            ]
        return [
            conv1x1.launch(v, matrix, block.attention_b, out, x=x, label=label, num_sms=self.num_sms),
            self.layernorm_expand(out, weights, expanded, label),
        ]

    def layernorm_expand(self, x: Tensor, weights: Expansion, y: Tensor, label: str) -> Launch:
        """Launch LayerNorm and expansion alone."""
        rows, channels = weights.w.shape
        if self.cuda_enabled() and layernorm_conv1x1_sm90.fits(channels, rows, self.capability):
            return layernorm_conv1x1_sm90.launch(
                x, weights.w_sm90, weights.affine, y, label=label, num_sms=self.num_sms
            )
        return layernorm_conv1x1.launch(x, weights.w, weights.affine, y, **self.options(label))

    def gate(
        self, expanded: Tensor, block: Block, x: Tensor, gated: Tensor | None, label: str
    ) -> list[Launch]:
        """Launch gate, projection and residual, onto x."""
        dw, w, bias = block.ffn.dw, block.ffn_w, block.ffn_b
        if gated is None:
            return [gelu_gate_project.launch(expanded, dw, w, bias, x, x, label=label, num_sms=self.num_sms)]
        if self.cuda_enabled() and gelu_gate_sm80.fits(block.hidden):
            gating = gelu_gate_sm80.launch(expanded, block.ffn.dw16, gated, **self.options(label))
        else:
            gating = gelu_gate_project.launch_gate(expanded, dw, gated, label=label)
        return [
            gating,
            conv1x1.launch(gated, w, bias, x, x=x, transposed=True, label=label, num_sms=self.num_sms),
        ]

    def options(self, label: str) -> dict[str, Any]:
        """Return the keyword arguments that most launches take."""
        return {"label": label, "capability": self.capability, "num_sms": self.num_sms}
