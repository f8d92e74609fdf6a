"""What tests of several kernels share: the emulator's bounds, relative errors, and ELAN's padded arrays."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from restort.backends.fused.kernel_sweep import resources  # noqa: E402
from restort.kernels import nvrtc  # noqa: E402

HALF, BRAIN = torch.float16, torch.bfloat16
needs_nvrtc = pytest.mark.skipif(not nvrtc.available(), reason="no NVRTC here")


def error(a: Any, b: Any) -> float:
    """The relative L2 error of a, with b as the truth."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def registers_and_spills(launch: Any, capability: int) -> tuple[int, int]:
    return resources(launch.kernel.compile(launch.constants, capability))


def padded(n: int, h: int, w: int, channels: int, dtype: Any) -> Any:
    x = torch.zeros(n, h + 4, w + 4, -(-channels // 64) * 64, dtype=dtype)
    x[:, 2:-2, 2:-2, :channels] = torch.randn(n, h, w, channels)
    return x


def inner(x: Any) -> Any:
    return x[:, 2:-2, 2:-2]


def local_weights(channels: int, padded: int, dtype: Any) -> tuple[Any, Any, Any, Any]:
    """As restort.backends.fused.elan_weights pads them."""
    stored, hidden = -(-channels // 64) * 64, 2 * channels // 5
    w0, b0 = torch.zeros(5, stored, padded), torch.zeros(5, padded)
    w1, b1 = torch.zeros(5, padded, stored), torch.zeros(stored)
    w0[:, :channels, :hidden] = torch.randn(5, channels, hidden) / channels**0.5
    w1[:, :hidden, :channels] = torch.randn(5, hidden, channels) / channels**0.5
    b0[:, :hidden], b1[:channels] = torch.randn(5, hidden), torch.randn(channels)
    return w0.to(dtype), b0, w1.to(dtype), b1


def projections(channels: int, padded: int, dtype: Any) -> tuple[Any, Any]:
    depth = channels // 3
    w, b = torch.zeros(3, -(-channels // 64) * 64, padded), torch.zeros(3, padded)
    w[:, :channels, :depth] = torch.randn(3, channels, depth) / channels**0.5
    b[:, :depth] = torch.randn(3, depth)
    return w.to(dtype), b


def depthwise_inputs(n: int, h: int, w: int, channels: int, dtype: Any) -> tuple[Any, Any]:
    """An expanded array and its taps."""
    torch.manual_seed(0)
    return torch.randn(n, h, w, channels).to(dtype), (torch.randn(10, channels) / 3).to(dtype)


def depthwise_exact(x: Any, dw: Any) -> Any:
    """The depthwise 3x3 in float64."""
    x, dw = x.double().permute(0, 3, 1, 2), dw.double()
    weight = dw[:9].T.reshape(-1, 1, 3, 3)
    y = torch.nn.functional.conv2d(x, weight, dw[9], padding=1, groups=len(weight))
    return y.permute(0, 2, 3, 1)


def convolution_weights(n: int, h: int, w: int, c: int, rows: int, dtype: Any) -> tuple[Any, Any, Any]:
    """x (n, h, w, c), weights as restort.kernels.conv3x3.reference takes them, and a bias."""
    torch.manual_seed(h * w + c)
    x = torch.randn(n, h, w, c).to(dtype)
    weights = torch.zeros(rows, 3, -(-3 * c // 32) * 32)
    weights[:, :, : 3 * c] = torch.randn(rows, 3, 3 * c) * (9 * c) ** -0.5
    return x, weights.to(dtype), torch.randn(rows)


def exact_convolution(x: Any, w: Any, bias: Any) -> Any:
    """A 3x3 convolution in float64: (N, H, W, C) -> (N, rows, H, W)."""
    c = x.shape[-1]
    kernel = w[:, :, : 3 * c].double().view(-1, 3, 3, c).permute(0, 3, 1, 2)
    return torch.nn.functional.conv2d(x.double().permute(0, 3, 1, 2), kernel, bias.double(), padding=1)
