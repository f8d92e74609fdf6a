"""Make a network's training step fast without changing what it computes or what its parameters are called.

1x1 convolutions become batched matrix products in NCHW, depthwise convolutions and window attention become the
kernels of `triton_ops`, and the repeated blocks are compiled, one compilation for all blocks of one shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restort.models import elan, restormer
from train.config import Config


class MatrixConv(nn.Conv2d):
    """nn.Conv2d with a 1x1 kernel, computed as one batched matrix product of (N, C, H * W) in `compute`."""

    compute: torch.dtype

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        # autocast would cast the expanded weight, one copy an image
        dtype = self.compute if self.training else x.dtype
        weight = self.weight.to(dtype).view(1, -1, c).expand(n, -1, -1)
        product = torch.bmm(weight, x.to(dtype).reshape(n, c, h * w)).view(n, -1, h, w)
        return product if self.bias is None else product + self.bias.to(dtype).view(1, -1, 1, 1)


class DepthwiseConv(nn.Conv2d):
    """nn.Conv2d with one 3x3 kernel a channel, computed by the Triton kernel."""

    def forward(self, x: Tensor) -> Tensor:
        from train.triton_ops import depthwise3x3

        y = depthwise3x3(x, self.weight)
        return y if self.bias is None else y + self.bias.to(y.dtype).view(1, -1, 1, 1)


def _kernel_attention(q: Tensor, v: Tensor, size: int, rolled: bool) -> Tensor:
    from train.triton_ops import window_attention

    return window_attention(q, v, size, rolled)


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The repeated units of either network."""
    return (m for m in model.modules() if isinstance(m, (restormer.Block, elan.Group)))


def speed_up(model: nn.Module, compute: torch.dtype, *, compiled: bool = True) -> nn.Module:
    """Change `model` in place for training on a GPU with products in `compute`; its state dict stays what it was."""
    for module in model.modules():
        if type(module) is nn.Conv2d and module.weight.requires_grad:
            if module.kernel_size == (1, 1):
                module.__class__, module.compute = MatrixConv, compute
            elif module.groups == module.in_channels > 1:
                module.__class__ = DepthwiseConv
    elan.window_attention = _kernel_attention
    if compiled:
        torch._dynamo.config.recompile_limit = 64
        for block in blocks(model):
            block.compile(dynamic=False)
    return model


def forward(model: nn.Module, x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Pictures in [0, 1] through the network, its blocks under autocast to `dtype` (None: all in float32).

    ELAN's first and last convolutions, which carry the picture itself, and its residual stream stay float32.
    """
    if isinstance(model, elan.Elan):
        unit = model.spec.value_range
        if dtype is None:
            return model(x * unit) / unit
        first = model.head(model.sub_mean(x * unit))
        with torch.autocast(x.device.type, dtype):
            deep = model.body(first)
        return model.add_mean(model.tail(deep.float() + first)) / unit
    if dtype is None:
        return model(x)
    device = x.device.type
    assert isinstance(model, restormer.Restormer)
    with torch.autocast(device, dtype):
        return model(x).float()


def charbonnier(a: Tensor, b: Tensor, epsilon: float = 1e-3) -> Tensor:
    """mean sqrt((a - b)^2 + epsilon^2)."""
    return torch.sqrt((a - b) ** 2 + epsilon**2).mean()


def negative_psnr(a: Tensor, b: Tensor, floor: float = 1e-8) -> Tensor:
    """-PSNR in dB for values in [0, 1], mean over the pictures of a batch: what the scores are made of.

    `floor` is added to the mean square error: pictures that are nearer than that have little more to gain.
    """
    squares = (a - b).square().mean((1, 2, 3))
    return 10 * torch.log10(squares + floor).mean()


def losses(config: Config) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """The losses that a configuration may name."""
    return {
        "l1": F.l1_loss,
        "charbonnier": charbonnier,
        "psnr": lambda a, b: negative_psnr(a, b, config.loss_floor),
    }
