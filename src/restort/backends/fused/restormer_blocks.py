"""One transformer block of a Restormer as launches over buffers of a workspace.

Where a level has many pixels, memory for the expanded arrays would cost most, and a block is three launches:
stream_gram (v, and all of the attention up to the sums of q and k), fold (the attention as one matrix), stream_ffn (the
attention's application and the feed-forward network). `choose` says where; on compute capability 9.0 both are those of
wide.cu where they fit. Elsewhere either half is as restormer_plain says. Where there are many partial sums, adding them
is one launch more.
"""

from __future__ import annotations

import torch

from restort.backends.fused.restormer_plain import Buffer, PlainPlanner
from restort.backends.fused.restormer_weights import Block
from restort.kernels.depthwise_gram import kernel as depthwise_gram
from restort.kernels.stream_ffn import kernel as stream_ffn
from restort.kernels.stream_ffn import wide
from restort.kernels.stream_gram import kernel as stream_gram
from restort.kernels.stream_gram import wide as gram_wide

FEW_TILES = 0.6  # of 128 pixels, for each multiprocessor


def choose(pixels: int, channels: int, heads: int, capability: int, processors: int) -> tuple[bool, bool]:
    """Whether (q, k, v with their sums; the feed-forward network) of a block at so many pixels are streamed.

    Not where most multiprocessors would have no tile: from about half of them on one wave of tiles takes less time than
    the plain kernels (at 256x256 on an H100, 2.5 times less at half size).
    """
    many = pixels >= FEW_TILES * 128 * processors
    return (
        many and stream_gram.worthwhile(pixels, channels, heads, capability),
        many and stream_ffn.worthwhile(pixels, channels, capability),
    )


class BlockPlanner(PlainPlanner):
    """Plans blocks: streamed halves where they are faster, plain ones elsewhere."""

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
        """`choose` as overridden, and as far as the streaming kernels go."""
        if not self.by_cuda():
            return False, False
        pixels = 1 << 40 if self.streamed else self.n * (self.h >> level) * (self.w >> level)
        return choose(pixels, block.channels, block.heads, self.capability, self.processors)

    def attend_streamed(self, label: str, level: int, block: Block, x: Buffer) -> tuple[Buffer, Buffer, int]:
        """`attend` in one kernel."""
        h, w, channels, heads = self.h >> level, self.w >> level, block.channels, block.heads
        v = self.take(level, channels)
        broad = gram_wide.fits(channels, heads, self.capability)
        if broad:
            splits = gram_wide.splits(self.n, h, w, channels, self.processors)
        else:
            splits = stream_gram.splits(self.n, h, w, channels, self.processors, self.capability)
        sums = self.workspace.take(depthwise_gram.sums_shape(self.n, heads, channels, splits), torch.float32)
        if broad:
            packed = block.qkv_wide
            self.steps.append(
                lambda get: [
                    gram_wide.launch(
                        get(x), packed, get(v), get(sums), centred=self.centred, label=f"{label}.attn"
                    )
                ]
            )
        else:
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
        if wide.fits(block.channels, block.hidden, self.capability):
            broad = block.ffn_wide
            self.steps.append(
                lambda get: [
                    wide.launch(
                        get(x),
                        get(v),
                        get(matrix),
                        block.attention_b if bias else None,
                        broad,
                        block.ffn_b if bias else None,
                        get(out),
                        centred=self.centred,
                        capability=self.capability,
                        label=f"{label}.ffn",
                    )
                ]
            )
        else:
            image = block.ffn_image
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
                        weights=image,
                        label=f"{label}.ffn",
                    )
                ]
            )
        if not keep:
            self.workspace.release(x)
        return out
