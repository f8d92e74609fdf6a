"""Camera shake: random point-spread functions of hand motion, and blurring each picture by its own kernel."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

# How the three motions share a path of unit extent, by kind of camera motion: (least, most) of drift, shake
# and jitter, and the share of kernels that are of this kind.
MOTIONS = (
    # share  drift        shake        jitter
    (0.10, (1.0, 1.0), (0.0, 0.05), (0.0, 0.02)),  # a straight pan
    (0.20, (1.0, 1.0), (0.1, 0.6), (0.0, 0.05)),  # a curve
    (0.45, (0.0, 0.5), (1.0, 1.0), (0.0, 0.10)),  # a hand that swings: loops, hooks, there and back
    (0.25, (0.2, 1.0), (0.3, 1.0), (0.1, 0.35)),  # a nervous hand
)
POINTS = 384  # of a path; at 27 px extent they lie about 0.2 px apart


def motion_kernels(
    n: int,
    size: int,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    *,
    longest: float = 27.0,
    spread: float = 1.0,
    centre: str = "centroid",
) -> Tensor:
    """Random point-spread functions of camera motion: (n, size, size) float32, each of sum 1, size odd.

    A path is a drift with a constant acceleration, plus the swing of a damped oscillator that noise and a few
    knocks drive (a hand with inertia; compare Boracchi and Foi, "Modeling the performance of image
    restoration from motion blur", IEEE TIP 21, 2012, section III), plus a faster jitter of the same sort. Its
    larger side is `longest` pixels times u ** spread, u uniform in [0, 1] (below 1: long paths more often);
    the time spent along it varies, and in a quarter of the kernels the camera rests at one spot. The path is
    drawn with sub-pixel accuracy (bilinear) and softened by a Gaussian of 0.2 to 0.6 px, in a tenth up to
    1.5 px as slight defocus.

    `centre` says which point stays in place: the "centroid" (low frequencies stay where they are, so that a
    blind network has nothing to guess; paths that would leave the array shrink), or the middle of the path's
    bounding "box" (as kernel files with tight arrays lie).
    """
    if size % 2 == 0 or size < 9:
        raise ValueError(f"the size of a kernel must be odd and at least 9, not {size}")
    with torch.autocast(torch.device(device).type, enabled=False):
        path, dwell = _paths(n, generator, device)
        uniform = torch.rand((4, n, 1), generator=generator, device=device)
        soft = 0.2 + 0.4 * uniform[0]
        soft = torch.where(uniform[1] < 0.1, 0.6 + 0.9 * uniform[0], soft)
        room = (size - 3) - 4 * soft  # 2 sigma and the bilinear tap on both sides
        extent = torch.minimum(longest * uniform[2] ** spread, room)
        low, high = path.amin(2), path.amax(2)
        path = path - ((low + high) / 2)[..., None]
        path = path * (extent / (high - low).amax(1, keepdim=True))[..., None]
        if centre == "centroid":
            shift = (path * dwell[:, None]).sum(2) / dwell.sum(1, keepdim=True)
            path = path - shift[..., None]
            reach = path.abs().amax((1, 2))[:, None, None]
            path = path * torch.clamp(room[..., None] / 2 / reach.clamp_min(1e-6), max=1)
        return _draw(path, dwell, soft, size)


def _paths(n: int, generator: torch.Generator, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Paths (n, 2, POINTS) of about unit extent, and the time spent at each point, (n, POINTS)."""
    uniform = torch.rand((16, n, 1), generator=generator, device=device)
    normal = torch.randn((n, 9, POINTS), generator=generator, device=device)
    t = torch.linspace(0, 1, POINTS, device=device)

    angle = 2 * math.pi * uniform[0]
    along = torch.stack((angle.cos(), angle.sin()), 1)
    bend = 1.2 * normal[:, 7, :2, None] * uniform[1][:, None]
    drift = along * t + bend * (t * t - t)

    knocks = torch.where(normal[:, 4:5] > 2.6, 12.0, 1.0)  # about two in an exposure
    shake = _swing(normal[:, 0:2] * knocks, 0.3 * 12 ** uniform[2], 1 + 9 * uniform[3])
    jitter = _swing(normal[:, 2:4], 4 + 8 * uniform[4], 4 + 12 * uniform[5])
    hurry = _swing(normal[:, 5:6], 1 + 4 * uniform[6], 3 + 5 * uniform[7])[:, 0]

    edges, table = _motions(torch.device(device))
    kind = torch.searchsorted(edges, uniform[8, :, 0].contiguous()).clamp_max(len(MOTIONS) - 1)
    shares = table[kind]  # n, 3, 2
    mixed = shares[..., 0] + (shares[..., 1] - shares[..., 0]) * uniform[9:12, :, 0].T
    path = sum(mixed[:, i, None, None] * _unit(part) for i, part in enumerate((drift, shake, jitter)))

    pace = torch.exp(1.5 * uniform[12] * (hurry - hurry.mean(1, keepdim=True)) / hurry.std(1, keepdim=True))
    pace = (pace / pace.mean(1, keepdim=True)).clamp_min(0.25)  # no invisible tails: they would move the box
    rest = torch.exp(-0.5 * ((t - uniform[13]) / 0.02) ** 2)
    rest = rest / rest.mean(1, keepdim=True)
    share = torch.where(uniform[14] < 0.25, 0.15 + 0.45 * uniform[15], 0.0)
    return path, (1 - share) * pace + share * rest


@lru_cache(maxsize=4)
def _motions(device: torch.device) -> tuple[Tensor, Tensor]:
    shares = torch.tensor([motion[0] for motion in MOTIONS], dtype=torch.float64).cumsum(0)
    return shares.float().to(device), torch.tensor([motion[1:] for motion in MOTIONS]).to(device)


def _unit(path: Tensor) -> Tensor:
    return path / (path.amax(2) - path.amin(2)).amax(1)[:, None, None].clamp_min(1e-6)


def _swing(push: Tensor, turns: Tensor, damping: Tensor) -> Tensor:
    """What damped oscillators of `turns` periods in the exposure do when pushed by `push` (n, k, POINTS)."""
    t = torch.linspace(0, 1, POINTS, device=push.device)
    response = torch.exp(-damping * t) * torch.sin(2 * math.pi * turns * t)
    spectrum = torch.fft.rfft(push, 2 * POINTS) * torch.fft.rfft(response, 2 * POINTS)[:, None]
    return torch.fft.irfft(spectrum, 2 * POINTS)[..., :POINTS]


def _draw(path: Tensor, dwell: Tensor, soft: Tensor, size: int) -> Tensor:
    """Points and weights, splatted bilinearly as one matrix product per kernel (no atomics), then
    softened."""
    grid = torch.arange(size, device=path.device) - (size - 1) / 2
    hats = torch.relu(1 - (path[..., None] - grid).abs())  # n, 2, POINTS, size
    kernels = (hats[:, 0] * dwell[..., None]).transpose(1, 2) @ hats[:, 1]
    gauss = torch.exp(-0.5 * ((grid[:, None] - grid) / soft[..., None]) ** 2)
    gauss = gauss / gauss.sum(2, keepdim=True)
    kernels = gauss @ kernels @ gauss.transpose(1, 2)
    return kernels / kernels.sum((1, 2), keepdim=True)


def blur(x: Tensor, kernels: Tensor) -> Tensor:
    """Pictures (N, C, H, W), each convolved with its own kernel of `kernels` (N, k, k), where it fits inside.

    A true convolution (the kernel is what a point becomes), so the result is (N, C, H - k + 1, W - k + 1) and
    its pixel (0, 0) lies over pixel (k // 2, k // 2) of `x`. Made by FFT in float32 or float64, whatever x
    is.
    """
    k, (height, width) = kernels.shape[-1], x.shape[-2:]
    size = (_quick(height), _quick(width))
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        spectrum = torch.fft.rfft2(x.to(dtype), s=size) * torch.fft.rfft2(kernels.to(dtype)[:, None], s=size)
        full = torch.fft.irfft2(spectrum, s=size)
    # Only what lies before row k - 1 has wrapped around: the rest is as if nothing were cyclic.
    return full[..., k - 1 : height, k - 1 : width].to(x.dtype)


def _quick(n: int) -> int:
    """The next even length whose only prime factors are 2, 3, 5 and 7: what FFTs are fast at."""
    n += n % 2
    while True:
        rest = n
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 2


def blur_varying(x: Tensor, first: Tensor, second: Tensor, angle: Tensor) -> Tensor:
    """`blur` by a kernel that turns from `first` into `second` across the picture.

    `angle`, (N,) in radians, is the direction of the change.
    """
    a, b = blur(x, first), blur(x, second)
    height, width = a.shape[-2:]
    y = torch.linspace(-1, 1, height, device=x.device).view(1, 1, -1, 1)
    across = torch.linspace(-1, 1, width, device=x.device).view(1, 1, 1, -1)
    angle = angle.view(-1, 1, 1, 1)
    share = torch.sigmoid(4 * (y * angle.sin() + across * angle.cos()))
    return a + (b - a) * share
