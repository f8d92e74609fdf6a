"""Restormer in plain PyTorch, the reference for every other form of the network.

Source: S. W. Zamir et al., "Restormer: Efficient Transformer for High-Resolution Image Restoration",
CVPR 2022: figure 2 (the network), section 3.1 (multi-Dconv head transposed attention, MDTA) and
section 3.2 (gated-Dconv feed-forward network, GDFN). Parameter names are those of the published weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restort.models.spec import RestormerSpec

EPSILON = 1e-5


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel, (N, C, H, W) -> (N, C, H, W).

    With a bias: (x - mean) / sqrt(var + 1e-5) * weight + bias. Without: x / sqrt(var + 1e-5) * weight, where
    the variance is still taken about the mean. Statistics are computed in float32 or better.
    """

    def __init__(self, channels: int, with_bias: bool) -> None:
        super().__init__()
        self.body = nn.Module()
        self.body.weight = nn.Parameter(torch.ones(channels))
        self.body.bias = nn.Parameter(torch.zeros(channels)) if with_bias else None

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        variance, mean = torch.var_mean(x32, dim=1, correction=0, keepdim=True)
        scale = torch.rsqrt(variance + EPSILON)
        weight = self.body.weight.view(1, -1, 1, 1)
        if self.body.bias is None:
            return (x32 * scale * weight).to(x.dtype)
        return ((x32 - mean) * scale * weight + self.body.bias.view(1, -1, 1, 1)).to(x.dtype)


class Attention(nn.Module):
    """MDTA: attention between channels, whose C x C scores are sums over all pixels (section 3.1)."""

    def __init__(self, channels: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, channels * 3, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(channels * 3, channels * 3, 3, padding=1, groups=channels * 3, bias=bias)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        qkv = self.qkv_dwconv(self.qkv(x)).view(n, 3, self.heads, c // self.heads, h * w)
        q, k, v = qkv.unbind(1)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        weights = (scores * self.temperature).softmax(dim=-1)
        return self.project_out((weights.to(v.dtype) @ v).view(n, c, h, w))


class FeedForward(nn.Module):
    """GDFN: one half of the expanded channels, through GELU, gates the other half (section 3.2)."""

    def __init__(self, channels: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.project_in = nn.Conv2d(channels, hidden * 2, 1, bias=bias)
        self.dwconv = nn.Conv2d(hidden * 2, hidden * 2, 3, padding=1, groups=hidden * 2, bias=bias)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.gelu(gate) * value)


class Block(nn.Module):
    """A transformer block: y = x + MDTA(norm(x)), then y + GDFN(norm(y))."""

    def __init__(self, spec: RestormerSpec, channels: int, heads: int) -> None:
        super().__init__()
        with_bias = spec.layer_norm == "WithBias"
        self.norm1 = ChannelNorm(channels, with_bias)
        self.attn = Attention(channels, heads, spec.bias)
        self.norm2 = ChannelNorm(channels, with_bias)
        self.ffn = FeedForward(channels, spec.hidden(channels), spec.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class Resample(nn.Module):
    """A 3x3 convolution and (un)shuffle: half the size with twice the channels, or the reverse."""

    def __init__(self, channels: int, up: bool) -> None:
        super().__init__()
        conv = nn.Conv2d(channels, channels * 2 if up else channels // 2, 3, padding=1, bias=False)
        self.body = nn.Sequential(conv, nn.PixelShuffle(2) if up else nn.PixelUnshuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Restormer(nn.Module):
    """The network: (N, in_channels, H, W) in [0, 1] -> (N, out_channels, H, W), not clipped; H, W multiples of 8."""

    def __init__(self, spec: RestormerSpec) -> None:
        super().__init__()
        self.spec = spec
        dim, blocks, heads = spec.dim, spec.num_blocks, spec.heads

        def stage(level: int, count: int, channels: int) -> nn.Sequential:
            return nn.Sequential(*(Block(spec, channels, heads[level]) for _ in range(count)))

        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(spec.in_channels, dim, 3, padding=1, bias=False)
        self.encoder_level1 = stage(0, blocks[0], dim)
        self.down1_2 = Resample(dim, up=False)
        self.encoder_level2 = stage(1, blocks[1], dim * 2)
        self.down2_3 = Resample(dim * 2, up=False)
        self.encoder_level3 = stage(2, blocks[2], dim * 4)
        self.down3_4 = Resample(dim * 4, up=False)
        self.latent = stage(3, blocks[3], dim * 8)
        self.up4_3 = Resample(dim * 8, up=True)
        self.reduce_chan_level3 = nn.Conv2d(dim * 8, dim * 4, 1, bias=spec.bias)
        self.decoder_level3 = stage(2, blocks[2], dim * 4)
        self.up3_2 = Resample(dim * 4, up=True)
        self.reduce_chan_level2 = nn.Conv2d(dim * 4, dim * 2, 1, bias=spec.bias)
        self.decoder_level2 = stage(1, blocks[1], dim * 2)
        self.up2_1 = Resample(dim * 2, up=True)
        self.decoder_level1 = stage(0, blocks[0], dim * 2)
        self.refinement = stage(0, spec.num_refinement_blocks, dim * 2)
        if spec.dual_pixel:
            self.skip_conv = nn.Conv2d(dim, dim * 2, 1, bias=spec.bias)
        self.output = nn.Conv2d(dim * 2, spec.out_channels, 3, padding=1, bias=spec.bias)

    def forward(self, image: Tensor) -> Tensor:
        embedded = self.patch_embed.proj(image)
        one = self.encoder_level1(embedded)
        two = self.encoder_level2(self.down1_2(one))
        three = self.encoder_level3(self.down2_3(two))
        x = self.latent(self.down3_4(three))
        x = self.decoder_level3(self.reduce_chan_level3(torch.cat([self.up4_3(x), three], 1)))
        x = self.decoder_level2(self.reduce_chan_level2(torch.cat([self.up3_2(x), two], 1)))
        x = self.decoder_level1(torch.cat([self.up2_1(x), one], 1))
        x = self.refinement(x)
        if self.spec.dual_pixel:
            return self.output(x + self.skip_conv(embedded))
        return self.output(x) + image
