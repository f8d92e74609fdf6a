"""One transformer block of a Restormer as launches over buffers of a workspace.

Where a level has many pixels, memory traffic of the expanded arrays would cost most, and a block is three launches:
mdta_gram (v, and all of the attention up to the sums of q and k), attention_matrix, gdfn (the attention's application
and the feed-forward network). `fused_halves` decides. On compute capability 9.0 both are those of sm90.cu where they
fit. Elsewhere either half is as restormer_unfused plans it. Where there are many partial sums, adding them is one more
launch.
"""

from __future__ import annotations

from typing import Any

import torch

from restort.backends.fused.restormer_unfused import Buffer, UnfusedPlanner
from restort.backends.fused.restormer_weights import Block
from restort.kernels.depthwise_gram import triton as depthwise_gram
from restort.kernels.gdfn import sm80 as gdfn_sm80
from restort.kernels.gdfn import sm90 as gdfn_sm90
from restort.kernels.mdta_gram import sm80 as mdta_gram_sm80
from restort.kernels.mdta_gram import sm90 as mdta_gram_sm90

FEW_TILES = 0.6  # of 128 pixels, per SM


def fused_halves(pixels: int, channels: int, heads: int, capability: int, num_sms: int) -> tuple[bool, bool]:
    """Return whether (q, k, v with their sums; the feed-forward network) of a block are fused kernels.

    Not where most SMs would have no tile: from about half of them on one wave of tiles takes less time than the unfused
    kernels (at 256x256 on an H100, 2.5 times less at half size).
    """
    many = pixels >= FEW_TILES * 128 * num_sms
    return (
        many and mdta_gram_sm80.fits(channels, heads, capability),
        many and gdfn_sm80.fits(channels, capability),
    )


class BlockPlanner(UnfusedPlanner):
    """Plans blocks: fused halves where they are faster, unfused ones elsewhere."""

    def block(self, label: str, level: int, x: Buffer, keep: bool) -> Buffer:
        """Plan one transformer block; `keep`: x stays as it is, otherwise it is overwritten or released."""
        block = self.packed.blocks[label]
        release = self.workspace.release
        fused_gram, fused_ffn = self.fused_halves(level, block)
        attend = self.attend_fused if fused_gram else self.attend
        feed = self.feed_fused if fused_ffn else self.feed
        v, sums, splits = attend(label, level, block, x)
        matrix = self.finish_attention(label, block, sums, splits)
        y = feed(label, level, block, x, v, matrix, keep)
        release(v)
        release(matrix)
        return y

    def fused_halves(self, level: int, block: Block) -> tuple[bool, bool]:
        """Return `fused_halves` of a block; if `fused_blocks` is True, both wherever the kernels take the block."""
        if not self.cuda_enabled():
            return False, False
        pixels = 1 << 40 if self.fused_blocks else self.n * (self.h >> level) * (self.w >> level)
        return fused_halves(pixels, block.channels, block.heads, self.capability, self.num_sms)

    def attend_fused(self, label: str, level: int, block: Block, x: Buffer) -> tuple[Buffer, Buffer, int]:
        """Plan `attend` as one kernel."""
        h, w, channels, heads = self.h >> level, self.w >> level, block.channels, block.heads
        v = self.take(level, channels)
        sm90 = mdta_gram_sm90.fits(channels, heads, self.capability)
        if sm90:
            splits = mdta_gram_sm90.splits(self.n, h, w, channels, self.num_sms)
        else:
            splits = mdta_gram_sm80.splits(self.n, h, w, channels, self.num_sms, self.capability)
        sums = self.workspace.take(depthwise_gram.sums_shape(self.n, heads, channels, splits), torch.float32)
        options: dict[str, Any] = {"centred": self.centred, "label": f"{label}.attn"}
        if sm90:
            packed = block.qkv_sm90
            self.steps.append(
                lambda get: [mdta_gram_sm90.launch(get(x), packed, get(v), get(sums), **options)]
            )
        else:
            weights = block.qkv
            options["capability"] = self.capability
            self.steps.append(
                lambda get: [
                    mdta_gram_sm80.launch(
                        get(x), weights.w, weights.affine, weights.dw16, get(v), get(sums), **options
                    )
                ]
            )
        return v, sums, splits

    def feed_fused(
        self, label: str, level: int, block: Block, x: Buffer, v: Buffer, matrix: Buffer, keep: bool
    ) -> Buffer:
        """Plan `feed` as one kernel."""
        out = self.take(level, block.channels)
        attention_b, out_b = (block.attention_b, block.ffn_b) if self.packed.spec.bias else (None, None)
        options: dict[str, Any] = {"centred": self.centred, "label": f"{label}.ffn"}
        if gdfn_sm90.fits(block.channels, block.hidden, self.capability):
            sm90 = block.ffn_sm90
            self.steps.append(
                lambda get: [
                    gdfn_sm90.launch(
                        get(x), get(v), get(matrix), attention_b, sm90, out_b, get(out), **options
                    )
                ]
            )
        else:
            sm80 = block.ffn_sm80
            options |= {"hidden": block.hidden, "capability": self.capability}
            self.steps.append(
                lambda get: [
                    gdfn_sm80.launch(
                        get(x), get(v), get(matrix), attention_b, sm80, out_b, get(out), **options
                    )
                ]
            )
        if not keep:
            self.workspace.release(x)
        return out
