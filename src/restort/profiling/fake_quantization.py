"""Quantised 1x1 convolutions of the reference network in float arithmetic, as an INT8 or FP8 engine computes them.

Inputs and weights become steps of their scales: numbers that the type holds exactly, as does bfloat16, in which a
training step multiplies them. The gradient passes straight through the rounding and is 0 where a number was clipped, so
that a network can be trained with its rounding: Jacob et al., CVPR 2018, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restort.export.qdq import LARGEST, QuantType


class FakeQuantConv(nn.Conv2d):  # type: ignore[misc]
    """nn.Conv2d whose input is rounded per tensor and whose weight is rounded per output channel.

    input_range     a buffer outside of the state: the largest absolute value that the input is expected to have
    kind            the type to round to
    """

    input_range: Tensor
    kind: QuantType

    def weight_range(self) -> Tensor:
        """The largest absolute value of the weights of each output channel, (C', 1, 1, 1)."""
        return self.weight.detach().abs().amax((1, 2, 3), keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        x_scale, w_scale = scale_of(self.input_range, self.kind), scale_of(self.weight_range(), self.kind)
        x, weight = rounded_steps(x, x_scale, self.kind), rounded_steps(self.weight, w_scale, self.kind)
        y = F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)
        y = y * (x_scale * w_scale).view(1, -1, 1, 1)
        return y if self.bias is None else y + self.bias.view(1, -1, 1, 1)


def scale_of(largest: Tensor, kind: QuantType) -> Tensor:
    """The scale at which `largest` is the largest number of the type."""
    return largest.float().clamp_min(1e-12) / LARGEST[kind]


def rounded_steps(x: Tensor, scale: Tensor, kind: QuantType) -> Tensor:
    """`x` / `scale`, rounded to `kind`, in float32."""
    limit = LARGEST[kind]
    inside = (x.float() / scale).clamp(-limit, limit)
    rounded = inside.round() if kind == "int8" else inside.to(torch.float8_e4m3fn).float()
    return inside + (rounded - inside).detach()


def fake_quantize(x: Tensor, largest: Tensor, kind: QuantType) -> Tensor:
    """Round `x` to `kind`, with the scale of `largest` (broadcast to x)."""
    scale = scale_of(largest, kind)
    return rounded_steps(x, scale, kind) * scale


def quantize_layers(network: nn.Module, ranges: Mapping[str, float], kind: QuantType) -> nn.Module:
    """Change the convolutions of `network` that `ranges` names, in place, to FakeQuantConv; return the network."""
    for name, largest in ranges.items():
        conv = network.get_submodule(name)
        conv.__class__, conv.kind = FakeQuantConv, kind
        conv.register_buffer(
            "input_range", torch.tensor(largest, device=conv.weight.device), persistent=False
        )
    return network


@torch.no_grad()  # type: ignore[untyped-decorator]
def input_ranges(network: nn.Module, names: tuple[str, ...], inputs: list[Tensor]) -> dict[str, float]:
    """The largest absolute value of the input of each convolution, over `inputs`, in the network's own scale."""
    found = dict.fromkeys(names, 0.0)

    def observe(name: str) -> object:
        def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            found[name] = max(found[name], float(given[0].detach().abs().max()))

        return network.get_submodule(name).register_forward_pre_hook(hook)

    hooks = [observe(name) for name in names]
    for x in inputs:
        network(x)
    for hook in hooks:
        hook.remove()  # type: ignore[attr-defined]
    return found
