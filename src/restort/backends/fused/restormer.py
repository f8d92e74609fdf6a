"""Restormer as a sequence of fused kernels: blocks by restormer_blocks, weights as in restormer_weights."""

from __future__ import annotations

from typing import Any

import torch

from restort.backends.fused.forward_pass import Pass
from restort.backends.fused.restormer_blocks import BlockPlanner, choose
from restort.backends.fused.restormer_plain import Buffer, Get
from restort.backends.fused.restormer_weights import Packed, pack, step
from restort.kernels.conv3x3 import first, first_tile
from restort.kernels.conv3x3 import kernel as conv3x3
from restort.kernels.conv3x3 import tile as conv_tile
from restort.kernels.launch import Launch
from restort.kernels.pointwise import kernel as pointwise
from restort.models.spec import RestormerSpec

Tensor = Any

__all__ = ["Packed", "choose", "pack", "plan"]


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
    streamed      kernels in CUDA C++ everywhere (True) or nowhere (False) instead of where `choose` wants them.
    keep_blocks   every block's output stays in a buffer of its own: Pass.blocks.
    """
    planner = _Planner(packed, n, h, w, torch.device(device), streamed, keep_blocks)
    planner.network(spec)
    return planner.finish()


class _Planner(BlockPlanner):
    """The stages, and what lies between them."""

    def __init__(
        self,
        packed: Packed,
        n: int,
        h: int,
        w: int,
        device: torch.device,
        streamed: bool | None,
        keep_blocks: bool,
    ) -> None:
        super().__init__(packed, n, h, w, device, streamed)
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
            if self.by_cuda() and first_tile.fits(self.input.shape[1], channels, y.dtype, self.capability):
                return [first_tile.launch(self.input, self.packed.first_tiled, y, label="patch_embed")]
            return [first.launch(self.input, weight, y, label="patch_embed")]

        self.steps.append(make)
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
            if self.tiled(mode, source, len(bias)):
                n, h, w, channels = source.shape
                how = conv_tile.cut(mode, channels, len(bias), n, h, w, self.processors)
                blob = self.packed.tiled(mode, name, channels, how)
                return [
                    conv_tile.launch(
                        mode,
                        source,
                        blob,
                        bias,
                        to,
                        extra=beside,
                        label=name,
                        **how,  # for which the blob was packed
                    )
                ]
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

    def tiled(self, mode: int, x: Tensor, rows: int) -> bool:
        """Whether a 3x3 convolution of x is that in CUDA C++; `streamed` has the word here, too."""
        n, h, w, channels = x.shape
        if not self.by_cuda():
            return False
        if self.streamed:
            return conv_tile.fits(mode, channels, rows, x.dtype, self.capability)
        return conv_tile.pays(mode, channels, rows, n, h, w, x.dtype, self.capability, self.processors)

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
