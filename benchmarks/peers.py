"""The peer of every speed figure: both networks as plain eager PyTorch in the manner of the original code.

Nothing is folded, fused or reordered: the shift convolution is a depthwise convolution with stored weights,
batch normalisation runs as such, windows are cut by view/permute copies, attention scores are kept and handed
to the next block, layer normalisation flattens to tokens and back, queries and keys are normalised before
their product. Written from the papers' equations (Restormer, CVPR 2022, section 3; ELAN, ECCV 2022, section 3)
and checked against the originals' recorded outputs in tests/backends/test_registry.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from restort.models.spec import LEVELS, ElanSpec, RestormerSpec, Spec


class Eager:
    """A network as the originals run it: `peer(x)` with x float32 NCHW in the network's own value range."""

    def __init__(
        self, state: Mapping[str, np.ndarray], spec: Spec, dtype: torch.dtype = torch.float32
    ) -> None:
        self.state = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
        self.state = {n: t.to(dtype) if t.is_floating_point() else t for n, t in self.state.items()}
        self.spec = spec

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        return self.network(x)

    def network(self, x: Tensor) -> Tensor:
        """The network without inference mode, as torch.compile wants it."""
        if isinstance(self.spec, ElanSpec):
            return _elan(self, self.spec, x)
        return _restormer(self, self.spec, x)

    def conv(self, x: Tensor, name: str, padding: int = 0, groups: int = 1) -> Tensor:
        bias = self.state.get(f"{name}.bias")
        return F.conv2d(x, self.state[f"{name}.weight"], bias, padding=padding, groups=groups)


def _elan(net: Eager, spec: ElanSpec, x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    multiple = spec.size_multiple
    x = F.pad(x, (0, -width % multiple, 0, -height % multiple), "reflect")
    x = net.conv(net.conv(x, "sub_mean"), "head.0", padding=1)
    skip = x
    for group in range(spec.groups):
        scores: list[Tensor] | None = None
        for i in range(spec.n_share + 1):
            x = x + _local_features(net, f"body.{group}.modules_lfe.lfe_{i}", x)
            y, scores = _group_attention(
                net, spec, f"body.{group}.modules_gmsa.gmsa_{i}", x, group % 2, scores
            )
            x = x + y
    x = F.pixel_shuffle(net.conv(x + skip, "tail.0", padding=1), spec.scale)
    return net.conv(x, "add_mean")[:, :, : height * spec.scale, : width * spec.scale]


def _shift_conv(net: Eager, name: str, x: Tensor) -> Tensor:
    shifted = F.conv2d(x, net.state[f"{name}.shift_conv.weight"], None, padding=1, groups=x.shape[1])
    return net.conv(shifted, f"{name}.shift_conv.conv1x1")


def _local_features(net: Eager, name: str, x: Tensor) -> Tensor:
    return _shift_conv(net, f"{name}.conv1", F.relu(_shift_conv(net, f"{name}.conv0", x)))


def _windows(x: Tensor, size: int) -> Tensor:
    """[n, c, h, w] -> [n * windows, size * size, c]."""
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // size, size, w // size, size).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(-1, size * size, c)


def _unwindows(x: Tensor, size: int, h: int, w: int) -> Tensor:
    c = x.shape[-1]
    x = x.reshape(-1, h // size, w // size, size, size, c).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(-1, c, h, w)


def _group_attention(
    net: Eager, spec: ElanSpec, name: str, x: Tensor, shifted: int, scores: list[Tensor] | None
) -> tuple[Tensor, list[Tensor]]:
    h, w = x.shape[-2:]
    x = net.conv(x, f"{name}.project_inp.0")
    norm = [
        net.state[f"{name}.project_inp.1.{part}"]
        for part in ("running_mean", "running_var", "weight", "bias")
    ]
    x = F.batch_norm(x, *norm, training=False)
    made: list[Tensor] = []
    results = []
    for i, (part, size) in enumerate(
        zip(x.chunk(len(spec.window_sizes), dim=1), spec.window_sizes, strict=True)
    ):
        if shifted:
            part = torch.roll(part, (-(size // 2), -(size // 2)), (2, 3))
        if scores is None:
            q, v = (_windows(half, size) for half in part.chunk(2, dim=1))
            made.append((q @ q.transpose(-2, -1)).softmax(-1))
        else:
            v = _windows(part, size)
            made.append(scores[i])
        y = _unwindows(made[i] @ v, size, h, w)
        results.append(torch.roll(y, (size // 2, size // 2), (2, 3)) if shifted else y)
    return net.conv(torch.cat(results, 1), f"{name}.project_out"), made


def _restormer(net: Eager, spec: RestormerSpec, image: Tensor) -> Tensor:
    x = net.conv(image, "patch_embed.proj", padding=1)
    first = x
    skips = []
    for i, level in enumerate(LEVELS):
        x = _stage(net, spec, level, x, spec.num_blocks[i], spec.heads[i])
        if i < 3:
            skips.append(x)
            x = F.pixel_unshuffle(net.conv(x, f"down{i + 1}_{i + 2}.body.0", padding=1), 2)
    for i in (2, 1, 0):
        x = F.pixel_shuffle(net.conv(x, f"up{i + 2}_{i + 1}.body.0", padding=1), 2)
        x = torch.cat([x, skips[i]], 1)
        if i:
            x = net.conv(x, f"reduce_chan_level{i + 1}")
        x = _stage(net, spec, f"decoder_level{i + 1}", x, spec.num_blocks[i], spec.heads[i])
    x = _stage(net, spec, "refinement", x, spec.num_refinement_blocks, spec.heads[0])
    if spec.dual_pixel:
        return net.conv(x + net.conv(first, "skip_conv"), "output", padding=1)
    return net.conv(x, "output", padding=1) + image


def _stage(net: Eager, spec: RestormerSpec, name: str, x: Tensor, blocks: int, heads: int) -> Tensor:
    for i in range(blocks):
        block = f"{name}.{i}"
        x = x + _transposed_attention(net, f"{block}.attn", _layer_norm(net, f"{block}.norm1", x), heads)
        x = x + _feed_forward(net, f"{block}.ffn", _layer_norm(net, f"{block}.norm2", x))
    return x


def _layer_norm(net: Eager, name: str, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    tokens = x.permute(0, 2, 3, 1).reshape(n, h * w, c)
    weight, bias = net.state[f"{name}.body.weight"], net.state.get(f"{name}.body.bias")
    scale = torch.sqrt(tokens.var(-1, keepdim=True, unbiased=False) + 1e-5)
    if bias is None:
        tokens = tokens / scale * weight
    else:
        tokens = (tokens - tokens.mean(-1, keepdim=True)) / scale * weight + bias
    return tokens.reshape(n, h, w, c).permute(0, 3, 1, 2).contiguous()


def _transposed_attention(net: Eager, name: str, x: Tensor, heads: int) -> Tensor:
    n, c, h, w = x.shape
    qkv = net.conv(net.conv(x, f"{name}.qkv"), f"{name}.qkv_dwconv", padding=1, groups=3 * c)
    q, k, v = (part.reshape(n, heads, c // heads, h * w) for part in qkv.chunk(3, 1))
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    scores = (q @ k.transpose(-2, -1) * net.state[f"{name}.temperature"]).softmax(-1)
    return net.conv((scores @ v).reshape(n, c, h, w), f"{name}.project_out")


def _feed_forward(net: Eager, name: str, x: Tensor) -> Tensor:
    x = net.conv(x, f"{name}.project_in")
    gate, value = net.conv(x, f"{name}.dwconv", padding=1, groups=x.shape[1]).chunk(2, 1)
    return net.conv(F.gelu(gate) * value, f"{name}.project_out")
