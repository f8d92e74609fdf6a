"""Restormer as a sequence of kernels: stages and what lies between them; blocks are planned by restormer_blocks."""

from __future__ import annotations

from typing import Any

import torch

from restort.backends.fused.forward_pass import Pass
from restort.backends.fused.restormer_blocks import BlockPlanner
from restort.backends.fused.restormer_unfused import Buffer, Get
from restort.backends.fused.restormer_weights import Packed, pack, step
from restort.kernels.conv1x1 import triton as conv1x1
from restort.kernels.conv3x3 import sm90 as conv3x3_sm90
from restort.kernels.conv3x3 import triton as conv3x3
from restort.kernels.conv3x3_first import sm80 as conv3x3_first_sm80
from restort.kernels.conv3x3_first import triton as conv3x3_first
from restort.kernels.conv3x3_last import sm90 as conv3x3_last_sm90
from restort.kernels.launch import Launch
from restort.models.spec import RestormerSpec

Tensor = Any

__all__ = ["Packed", "pack", "plan"]


def plan(
    packed: Packed,
    spec: RestormerSpec,
    n: int,
    h: int,
    w: int,
    dtype: torch.dtype,
    device: Any,
    *,
    fused_blocks: bool | None = None,
    keep_blocks: bool = False,
) -> Pass:
    """Plan the launches of a forward pass of `n` images of `h` x `w` (multiples of 8) on `device`.

    packed        weights of `spec` in `dtype`, on the device.
    fused_blocks  fused blocks and other kernels in CUDA C++ wherever they fit (True), or no CUDA C++ at all (False); by
                  default what is fastest on that GPU.
    keep_blocks   every block's output stays in a buffer of its own: Pass.blocks.
    """
    planner = _Planner(packed, n, h, w, torch.device(device), fused_blocks, keep_blocks)
    planner.network(spec)
    return planner.finish()


class _Planner(BlockPlanner):
    """Plans the stages and what lies between them."""

    def __init__(
        self,
        packed: Packed,
        n: int,
        h: int,
        w: int,
        device: torch.device,
        fused_blocks: bool | None,
        keep_blocks: bool,
    ) -> None:
        super().__init__(packed, n, h, w, device, fused_blocks)
        self.keep_blocks = keep_blocks
        self.kept: dict[str, Buffer] = {}
        spec = packed.spec
        self.input = torch.empty(n, spec.in_channels, h, w, dtype=torch.float32, device=device)
        self.output = torch.empty(n, spec.out_channels, h, w, dtype=torch.float32, device=device)

    def finish(self) -> Pass:
        self.workspace.allocate(self.device)
        launches = [launch for make in self.steps for launch in make(self.workspace.tensor)]
        blocks = {name: self.workspace.tensor(buffer) for name, buffer in self.kept.items()}
        return Pass(launches, self.input, self.output, self.workspace, blocks if self.keep_blocks else None)

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

        def make(get: Get) -> list[Launch]:
            y = get(out)
            if self.cuda_enabled() and conv3x3_first_sm80.fits(
                self.input.shape[1], channels, y.dtype, self.capability
            ):
                return [conv3x3_first_sm80.launch(self.input, self.packed.first_sm80, y, label="patch_embed")]
            return [conv3x3_first.launch(self.input, weight, y, label="patch_embed")]

        self.steps.append(make)
        return out

    def stage(self, name: str, count: int, level: int, x: Buffer, spare: bool = False) -> Buffer:
        """Plan blocks one after another; if `spare`, the first does not overwrite its input."""
        for i in range(count):
            label = f"{name}.{i}"
            before = x
            keep = (spare and i == 0) or before in self.kept.values()
            x = self.block(label, level, before, keep)
            if self.keep_blocks:
                self.kept[label] = x
        return x

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
            if self.use_sm90(mode, source, len(bias)):
                return [self.conv_sm90(mode, name, source, bias, to, beside)]
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
                    num_sms=self.num_sms,
                )
            ]

        self.steps.append(make)

    def conv_sm90(self, mode: int, name: str, x: Tensor, bias: Tensor, y: Tensor, extra: Any) -> Launch:
        """Launch a 3x3 convolution in CUDA C++."""
        n, h, w, channels = x.shape
        if mode == conv3x3.LAST:
            blob = self.packed.last_sm90
            return conv3x3_last_sm90.launch(x, blob, bias, y, extra=extra, label=name)
        macros = conv3x3_sm90.tiling(mode, channels, len(bias), n, h, w, self.num_sms)
        blob = self.packed.conv_sm90(name, channels, macros)  # in the order that these macros need
        return conv3x3_sm90.launch(mode, x, blob, bias, y, extra=extra, label=name, **macros)

    def use_sm90(self, mode: int, x: Tensor, rows: int) -> bool:
        """Return whether a 3x3 convolution of x is that in CUDA C++: if it pays, or fits and `fused_blocks` is True."""
        if not self.cuda_enabled():
            return False
        n, h, w, channels = x.shape
        last = mode == conv3x3.LAST
        if self.fused_blocks:
            if last:
                return conv3x3_last_sm90.fits(channels, rows, x.dtype, self.capability)
            return conv3x3_sm90.fits(mode, channels, rows, x.dtype, self.capability)
        size = channels, rows, n, h, w, x.dtype, self.capability, self.num_sms
        return conv3x3_last_sm90.pays(*size) if last else conv3x3_sm90.pays(mode, *size)

    def down(self, name: str, level: int, x: Buffer, channels: int) -> Buffer:
        """Plan a convolution to the next level. x stays: a later stage takes it in again."""
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
                conv1x1.launch(get(x), weight, bias, get(out), b=get(skip), label=name, num_sms=self.num_sms)
            ]
        )
        self.drop(x)
        self.drop(skip)
        return out

    def skip(self, x: Buffer, embedded: Buffer, channels: int) -> Buffer:
        """Plan x + skip_conv(embedded)."""
        out = self.take(0, channels)
        weight, bias = self.packed.layers["skip_conv"]
        self.steps.append(
            lambda get: [
                conv1x1.launch(
                    get(embedded),
                    weight,
                    bias,
                    get(out),
                    x=get(x),
                    label="skip_conv",
                    num_sms=self.num_sms,
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
        """Release a buffer that no later launch reads, unless it is one of the kept blocks' outputs."""
        if buffer not in self.kept.values():
            self.workspace.release(buffer)
