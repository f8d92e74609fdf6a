"""ELAN in plain PyTorch, the reference for every other form of the network.

Source: X. Zhang et al., "Efficient Long-Range Attention Network for Image Super-resolution", ECCV 2022:
section 3.1 (the network), 3.2 (shift convolution and LFE), 3.3 (group-wise multi-scale self-attention, GMSA,
with shared scores and cyclic shifts). Parameter names are those of the published code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restort.models.elan_names import shift_weights
from restort.models.spec import ELAN_RGB_MEAN, ElanSpec


def shift_kernel(channels: int) -> Tensor:
    """Return the depthwise kernel (channels, 1, 3, 3) of the shift: groups read right, left, below, above, centre.

    Five groups of channels // 5; the remaining channels belong to the last group (section 3.2).
    """
    return torch.from_numpy(shift_weights(channels))


def shift(x: Tensor) -> Tensor:
    """Convolve x (N, C, H, W) with `shift_kernel`, zero padded, by index arithmetic."""
    g = x.shape[1] // 5
    padded = F.pad(x, (1, 1, 1, 1))
    moved = [
        padded[:, :g, 1:-1, 2:],
        padded[:, g : 2 * g, 1:-1, :-2],
        padded[:, 2 * g : 3 * g, 2:, 1:-1],
        padded[:, 3 * g : 4 * g, :-2, 1:-1],
        x[:, 4 * g :],
    ]
    return torch.cat(moved, 1)


class ShiftConv(nn.Module):
    """A fixed shift of five channel groups, then a 1x1 convolution (section 3.2).

    The shift is stored as a depthwise 3x3 kernel under its published name and computed by index arithmetic; reading
    weights with another kernel raises an error.
    """

    def __init__(self, inp: int, out: int) -> None:
        super().__init__()
        self.shift_conv = nn.Module()
        self.shift_conv.register_buffer("weight", shift_kernel(inp))
        self.shift_conv.conv1x1 = nn.Conv2d(inp, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shift_conv.conv1x1(shift(x))


class LFE(nn.Module):
    """Local feature extraction: shift convolution, ReLU, shift convolution (section 3.2)."""

    def __init__(self, channels: int, expand: int) -> None:
        super().__init__()
        self.conv0 = ShiftConv(channels, channels * expand)
        self.conv1 = ShiftConv(channels * expand, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1(F.relu(self.conv0(x)))


def windows(x: Tensor, size: int) -> Tensor:
    """Cut a picture into windows: (N, C, H, W) -> (N * windows, size * size, C)."""
    n, c, h, w = x.shape
    x = x.view(n, c, h // size, size, w // size, size)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(-1, size * size, c)


def unwindows(x: Tensor, size: int, shape: torch.Size) -> Tensor:
    """Undo `windows`; `shape` is the (N, C, H, W) of the result."""
    n, c, h, w = shape
    x = x.view(n, h // size, w // size, size, size, c)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)


def window_attention(q: Tensor, v: Tensor, size: int, rolled: bool) -> Tensor:
    """Compute softmax(q q^T) v within windows of size x size pixels; q, v and the result (N, C, H, W).

    Scores are not scaled, and keys equal queries. Every second group of blocks rolls the image cyclically by half a
    window (section 3.3): `rolled`.
    """
    offset = size // 2 if rolled else 0
    if offset:
        q, v = (torch.roll(t, (-offset, -offset), (2, 3)) for t in (q, v))
    in_windows = windows(q, size)[:, None]  # one head: PyTorch fuses attention on CPUs for four axes only
    y = F.scaled_dot_product_attention(in_windows, in_windows, windows(v, size)[:, None], scale=1.0)
    y = unwindows(y, size, v.shape)
    return torch.roll(y, (offset, offset), (2, 3)) if offset else y


class GMSA(nn.Module):
    """Group-wise multi-scale self-attention: a third of the channels for each window size (section 3.3).

    The first block of a group projects queries and values. The others project values only and attend with the first
    block's queries: its scores are shared.
    """

    def __init__(self, channels: int, window_sizes: tuple[int, ...], rolled: bool, has_queries: bool) -> None:
        super().__init__()
        self.window_sizes, self.rolled = window_sizes, rolled
        projected = channels * 2 if has_queries else channels
        self.project_inp = nn.Sequential(nn.Conv2d(channels, projected, 1), nn.BatchNorm2d(projected))
        self.project_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, queries: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        parts = self.project_inp(x).chunk(len(self.window_sizes), dim=1)
        if queries is None:
            pairs = [part.chunk(2, dim=1) for part in parts]
            queries, values = [q for q, _ in pairs], [v for _, v in pairs]
        else:
            values = list(parts)
        attended = [
            window_attention(q, v, size, self.rolled)
            for q, v, size in zip(queries, values, self.window_sizes, strict=True)
        ]
        return self.project_out(torch.cat(attended, 1)), queries


class Group(nn.Module):
    """n_share + 1 blocks of LFE and GMSA, each with a residual, that share one set of scores."""

    def __init__(self, spec: ElanSpec, rolled: bool) -> None:
        super().__init__()
        count = range(spec.n_share + 1)
        self.modules_lfe = nn.ModuleDict({f"lfe_{i}": LFE(spec.channels, spec.expand) for i in count})
        self.modules_gmsa = nn.ModuleDict(
            {f"gmsa_{i}": GMSA(spec.channels, spec.window_sizes, rolled, i == 0) for i in count}
        )

    def forward(self, x: Tensor) -> Tensor:
        queries = None
        for lfe, gmsa in zip(self.modules_lfe.values(), self.modules_gmsa.values(), strict=True):
            x = lfe(x) + x
            y, queries = gmsa(x, queries)
            x = y + x
        return x


def mean_shift(rgb_range: float, colors: int, sign: int) -> nn.Conv2d:
    """Return the 1x1 convolution that adds (sign 1) or subtracts (sign -1) the mean colour of DIV2K."""
    conv = nn.Conv2d(colors, colors, 1)
    mean = torch.tensor(ELAN_RGB_MEAN if colors == 3 else [sum(ELAN_RGB_MEAN) / 3] * colors)
    conv.weight.data = torch.eye(colors).view(colors, colors, 1, 1)
    conv.bias.data = sign * rgb_range * mean
    return conv.requires_grad_(False)


class Elan(nn.Module):
    """The network: (N, colors, H, W) in [0, rgb_range] -> (N, colors, H * scale, W * scale), not clipped.

    Any size: the input is padded by reflection at the bottom and right to a multiple of the windows, and the result is
    cropped, as in the published code. The reflection repeats where a side is shorter than the padding.
    """

    def __init__(self, spec: ElanSpec) -> None:
        super().__init__()
        self.spec = spec
        self.sub_mean = mean_shift(spec.rgb_range, spec.colors, -1)
        self.add_mean = mean_shift(spec.rgb_range, spec.colors, 1)
        self.head = nn.Sequential(nn.Conv2d(spec.colors, spec.channels, 3, padding=1))
        self.body = nn.Sequential(*(Group(spec, rolled=i % 2 == 1) for i in range(spec.groups)))
        shuffle = nn.PixelShuffle(spec.scale)
        self.tail = nn.Sequential(
            nn.Conv2d(spec.channels, spec.colors * spec.scale**2, 3, padding=1), shuffle
        )

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        x = self.head(self.sub_mean(self._pad(image)))
        x = self.add_mean(self.tail(self.body(x) + x))
        return x[..., : height * self.spec.scale, : width * self.spec.scale]

    def _pad(self, image: Tensor) -> Tensor:
        multiple = self.spec.size_multiple
        while (missing := [-n % multiple for n in image.shape[-2:]]) != [0, 0]:
            below, right = (min(m, max(n - 1, 0)) for m, n in zip(missing, image.shape[-2:], strict=True))
            if (below, right) == (0, 0):  # a single row or column cannot be reflected: repeat it
                return F.pad(image, (0, missing[1], 0, missing[0]), mode="replicate")
            image = F.pad(image, (0, right, 0, below), mode="reflect")
        return image
