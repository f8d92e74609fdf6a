"""The arithmetic of `--tile exact`: what a Restormer computes on one cell of a strip.

Functions take pixels (N, H, W, C) with a halo, the rows and columns around them that their convolutions read, and
return the pixels without it. A `Halo` has fewer pixels than a convolution reaches only at the border of the picture,
where zeros follow. Statistics of the normalisation are float32 or float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from restort.backends.strips.feature_maps import Tensor
from restort.models.restormer import EPSILON, Block, ChannelNorm


class Halo(NamedTuple):
    """Number of rows above and below, and columns left and right, that belong to the neighbours."""

    above: int = 0
    below: int = 0
    left: int = 0
    right: int = 0

    def keep(self, reach: int) -> Halo:
        """Return the halo with at most `reach` pixels on each side."""
        return Halo(*(min(side, reach) for side in self))


def crop(x: Tensor, halo: Halo, keep: int = 0) -> Tensor:
    """Return a view of `x` with at most `keep` pixels of the halo on each side."""
    above, below, left, right = (a - b for a, b in zip(halo, halo.keep(keep)))
    return x[:, above : x.shape[1] - below, left : x.shape[2] - right]


@dataclass
class Sums:
    """Sums over all pixels so far for each image and head, in float64.

    gram   q.k^T (N, heads, c, c)
    q, k   |q|^2 and |k|^2 (N, heads, c)
    """

    gram: Tensor
    q: Tensor
    k: Tensor

    def add(self, other: Sums) -> None:
        self.gram += other.gram
        self.q += other.q
        self.k += other.k


class BlockOperations:
    """A block of Restormer in three steps.

    gather             over all strips: the sums that the attention needs of the whole picture
    attention_matrix   once: the matrix that these sums make
    finish             over all strips: the output of the block

    q and k exist in `gather`, v and the expanded channels in `finish`, each for one cell only.
    """

    reach_gather = 1
    reach_finish = 2  # one for the convolution of v, one for that of the feed-forward network

    def __init__(self, block: Block) -> None:
        attention: Any = block.attn
        self._attention, self._feed_forward = attention, block.ffn
        self._norm1, self._norm2 = block.norm1, block.norm2
        self._channels = attention.project_out.weight.shape[0]
        split = 2 * self._channels
        expand, depthwise = attention.qkv, attention.qkv_dwconv
        self._qk = [_part(conv, slice(0, split)) for conv in (expand, depthwise)]
        self._v = [_part(conv, slice(split, None)) for conv in (expand, depthwise)]

    def gather(self, x: Tensor, halo: Halo) -> Sums:
        """Return the sums over one cell."""
        heads = self._attention.heads
        both = _expand(_normalise(self._norm1, x), *self._qk)
        both = both.float() if both.dtype == torch.float16 else both  # whose range the squares would pass
        n, h, w, channels = (both := crop(both, halo)).shape
        both = both.reshape(n, h * w, 2, heads, channels // (2 * heads))
        q, k = both[:, :, 0].transpose(1, 2), both[:, :, 1].transpose(1, 2)  # (N, heads, pixels, c)
        squares = both.square().sum(1).double()
        return Sums((q.transpose(2, 3) @ k).double(), squares[:, 0], squares[:, 1])

    def attention_matrix(self, sums: Sums) -> Tensor:
        """Return (N, C, C): the output projection times the softmax of temperature times the cosines of q and k."""
        smallest = 1e-12  # as in torch.nn.functional.normalize
        q, k = sums.q.sqrt().clamp_min(smallest), sums.k.sqrt().clamp_min(smallest)
        cosines = sums.gram / (q[..., :, None] * k[..., None, :])
        weights = (cosines * self._attention.temperature.double()).softmax(-1)
        n, heads, c, _ = weights.shape
        project = self._attention.project_out.weight.double().view(self._channels, heads, c)
        matrix = torch.einsum("ohc,nhcd->nohd", project, weights).reshape(n, self._channels, self._channels)
        return matrix.to(self._attention.project_out.weight.dtype)

    def finish(self, matrix: Tensor, x: Tensor, halo: Halo) -> Tensor:
        """Return the output of the block for one cell, without the halo."""
        v = crop(_expand(_normalise(self._norm1, x), *self._v), halo, 1)
        n, h, w, c = v.shape
        x = crop(x, halo, 1) + (v.reshape(n, h * w, c) @ matrix.transpose(1, 2)).view(n, h, w, c)
        if (bias := self._attention.project_out.bias) is not None:
            x += bias
        forward: Any = self._feed_forward
        inner = halo.keep(1)
        hidden = convolve(convolve(_normalise(self._norm2, x), forward.project_in), forward.dwconv)
        gate, value = crop(hidden, inner).chunk(2, dim=-1)
        return crop(x, inner) + convolve(F.gelu(gate).mul_(value), forward.project_out)


def convolve(x: Tensor, convolution: Any) -> Tensor:
    """Apply a convolution module to (N, H, W, C), with zeros beyond the borders."""
    return _convolve(x, convolution.weight, convolution.bias)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    groups = x.shape[-1] // weight.shape[1]
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=weight.shape[2] // 2, groups=groups)
    return y.permute(0, 2, 3, 1)


def shuffle(x: Tensor, up: bool) -> Tensor:
    """Shuffle pixels by 2, (N, H, W, 4C) -> (N, 2H, 2W, C), or, with up=False, the inverse."""
    planes = x.permute(0, 3, 1, 2)
    planes = F.pixel_shuffle(planes, 2) if up else F.pixel_unshuffle(planes, 2)
    return planes.permute(0, 2, 3, 1)


def _part(convolution: Any, channels: slice) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of some output channels."""
    bias = convolution.bias
    return convolution.weight[channels], None if bias is None else bias[channels]


def _expand(x: Tensor, conv1x1: tuple[Tensor, Any], depthwise: tuple[Tensor, Any]) -> Tensor:
    return _convolve(_convolve(x, *conv1x1), *depthwise)


def _normalise(norm: ChannelNorm, x: Tensor) -> Tensor:
    """Apply a ChannelNorm to (N, H, W, C)."""
    float32 = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    weight, bias = norm.body.weight, norm.body.bias
    if bias is not None:
        return F.layer_norm(float32, float32.shape[-1:], weight, bias, EPSILON).to(x.dtype)
    # Without a bias the mean is not subtracted; the fused operation is by far the fastest way to the deviation.
    _, _, scale = torch.native_layer_norm(float32, float32.shape[-1:], None, None, EPSILON)
    return (float32 * scale * weight).to(x.dtype)
