"""PSNR and SSIM of a picture against its reference, computed as in the published tables.

Pictures are arrays (H, W) or (H, W, C) of numbers on one scale, whose white is `peak`. All arithmetic is float64.
Nothing is rounded here: restort.evaluation.scoring rounds results to 8 bits before it scores them.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from restort.errors import RestortError
from restort.utils.extras import need

Array: TypeAlias = NDArray[Any]

SSIM_NAME = (
    "Gaussian window of 11 x 11 pixels, sigma 1.5, K1 = 0.01, K2 = 0.03, windows inside the picture; equals "
    "skimage.metrics.structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False); "
    "mean over pixels and channels"
)
_WINDOW = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
_WINDOW /= _WINDOW.sum()  # (11,): SSIM's window along one axis


def rgb_to_y(image: Array) -> NDArray[np.float64]:
    """Return the luma (H, W) in [16, 235] of an RGB picture (H, W, 3) in [0, 255]: ITU-R BT.601 as MATLAB's rgb2ycbcr.

    Not rounded. A picture of one channel is taken as RGB with three equal channels.
    """
    pixels = image.astype(np.float64)
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return pixels.reshape(pixels.shape[:2]) * (219 / 255) + 16
    if pixels.shape[2] != 3:
        raise RestortError(f"luma is of a picture of 1 or 3 channels, not of {pixels.shape[2]}")
    return np.asarray(pixels @ np.array([65.481, 128.553, 24.966]) / 255 + 16)


def psnr(a: Array, b: Array, *, peak: float = 255.0, border: int = 0) -> float:
    """Return the peak signal-to-noise ratio in dB over all pixels and channels; infinity for equal pictures.

    `border` pixels are left out on every side.
    """
    a, b = _pair(a, b, border)
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)


def psnr_y(a: Array, b: Array, *, border: int = 0) -> float:
    """Return the PSNR in dB of the luma of two RGB pictures in [0, 255]; peak 255, as in super-resolution tables."""
    return psnr(rgb_to_y(a), rgb_to_y(b), border=border)


def ssim(a: Array, b: Array, *, peak: float = 255.0, border: int = 0) -> float:
    """Return the structural similarity, at most 1: the Gaussian-window form of Wang et al., IEEE TIP 13, 2004.

    Over all windows of 11 x 11 pixels that lie inside the picture, with population covariances; channels count alike.
    Raises RestortError for pictures smaller than the window.
    """
    a, b = _pair(a, b, border)
    if min(a.shape[:2]) < len(_WINDOW):
        raise RestortError(
            f"SSIM needs at least 11 x 11 pixels inside the border, and there are {a.shape[1]} x {a.shape[0]}"
        )
    planes = ((a, b),) if a.ndim == 2 else ((a[..., c], b[..., c]) for c in range(a.shape[2]))
    means = [_ssim_plane(x.astype(np.float64), y.astype(np.float64), peak) for x, y in planes]
    return float(np.mean(means))


def _ssim_plane(x: NDArray[np.float64], y: NDArray[np.float64], peak: float) -> float:
    """Return the SSIM of one channel: equation 13 of the paper, averaged over the windows."""
    mean_x, mean_y = _windowed(x), _windowed(y)
    variances = _windowed(x * x) + _windowed(y * y) - mean_x**2 - mean_y**2
    covariance = _windowed(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float(np.mean(likeness / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))))


def _windowed(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weighted mean of every window: (H, W) -> (H - 10, W - 10)."""
    rows, columns = (n - len(_WINDOW) + 1 for n in x.shape)
    x = sum(w * x[i : i + rows] for i, w in enumerate(_WINDOW))
    return np.asarray(sum(w * x[:, i : i + columns] for i, w in enumerate(_WINDOW)))


def ssim_y(a: Array, b: Array, *, border: int = 0) -> float:
    """Return the SSIM of the luma of two RGB pictures in [0, 255]; peak 255."""
    return ssim(rgb_to_y(a), rgb_to_y(b), border=border)


def align(image: Array, reference: Array, *, reach: float = 6.0) -> tuple[Array, tuple[float, float]]:
    """Translate `image` onto `reference`; return it and the translation (rows, columns), to 1/20 pixel.

    Blind deblurring cannot know where a kernel's origin lay, so its result may be shifted. Published comparisons
    therefore score it after the best translation (Levin et al., CVPR 2009; Köhler et al., ECCV 2012): the maximum of
    the luma's cross-correlation, applied by cubic splines. A translation above `reach` pixels is not applied.
    """
    registration = need("skimage.registration", "aligning pictures")
    ndimage = need("scipy.ndimage", "aligning pictures")
    y, target = (rgb_to_y(part) for part in (image, reference))
    window = np.outer(*(np.hanning(n + 2)[1:-1] for n in y.shape))
    move, _, _ = registration.phase_cross_correlation(
        (target - target.mean()) * window, (y - y.mean()) * window, upsample_factor=20, normalization=None
    )
    rows, columns = float(move[0]), float(move[1])
    if max(abs(rows), abs(columns)) > reach or rows == columns == 0:
        return image, (0.0, 0.0)
    shift = (rows, columns) if image.ndim == 2 else (rows, columns, 0)
    return np.asarray(ndimage.shift(image.astype(np.float64), shift, order=3, mode="mirror")), (rows, columns)


def _pair(a: Array, b: Array, border: int) -> tuple[Array, Array]:
    if a.shape != b.shape:
        raise RestortError(f"pictures of shapes {a.shape} and {b.shape} cannot be compared")
    if border < 0 or 2 * border >= min(a.shape[:2]):
        raise RestortError(f"a border of {border} pixels leaves nothing of a picture of shape {a.shape}")
    inner = slice(border, -border or None)
    return a[inner, inner], b[inner, inner]
