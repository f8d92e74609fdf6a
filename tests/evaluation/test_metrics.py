"""PSNR, SSIM, luma, resizing and kernels, where the right answer is known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from restort.errors import RestortError, UsageError
from restort.evaluation import metrics
from restort.evaluation.blur_kernels import blur, read_kernels
from restort.evaluation.resize import imresize, resize_matrix

RNG = np.random.default_rng(7)


def picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_psnr_of_a_known_error() -> None:
    a = np.full((8, 9, 3), 100, np.uint8)
    assert metrics.psnr(a, a) == math.inf
    assert metrics.psnr(a, a + 5) == pytest.approx(20 * math.log10(255 / 5))
    assert metrics.psnr(a / 255, (a + 5) / 255, peak=1.0) == pytest.approx(20 * math.log10(255 / 5))


def test_the_border_does_not_count() -> None:
    a = picture(12, 14)
    b = a.copy()
    b[:2], b[:, -2:] = 0, 255
    assert metrics.psnr(a, b, border=2) == math.inf
    assert metrics.psnr(a, b, border=1) < math.inf
    with pytest.raises(RestortError, match="border of 6"):
        metrics.psnr(a, b, border=6)
    with pytest.raises(RestortError, match="cannot be compared"):
        metrics.psnr(a, b[1:])


def test_luma_of_black_white_and_the_primaries() -> None:
    colours = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    np.testing.assert_allclose(metrics.rgb_to_y(colours)[0], [16, 235, 81.481, 144.553, 40.966], atol=1e-9)
    gray = picture(4, 5, 1)
    np.testing.assert_allclose(metrics.rgb_to_y(gray), metrics.rgb_to_y(gray.repeat(3, axis=2)), atol=1e-9)


def test_ssim_is_one_for_equals_and_falls_with_noise() -> None:
    a = picture(32, 40)
    assert metrics.ssim(a, a) == pytest.approx(1)
    some = metrics.ssim(a, np.clip(a + RNG.normal(0, 10, a.shape), 0, 255))
    more = metrics.ssim(a, np.clip(a + RNG.normal(0, 60, a.shape), 0, 255))
    assert 1 > some > more > 0
    with pytest.raises(RestortError, match="at least 11 x 11"):
        metrics.ssim(a[:10], a[:10])


def test_ssim_equals_its_definition() -> None:
    """Wang et al., equation 13, by hand, over the pixels whose window lies inside."""
    from scipy.ndimage import gaussian_filter

    a, b = RNG.uniform(0, 255, (2, 40, 36))

    def mean(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 1.5, truncate=3.5)

    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    local = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    assert metrics.ssim(a, b) == pytest.approx(local[5:-5, 5:-5].mean(), abs=1e-9)


@pytest.mark.parametrize("shape", [(40, 36), (11, 11), (30, 52, 3), (20, 13, 1)])
@pytest.mark.parametrize("peak", [255.0, 1.0])
def test_ssim_is_that_of_scikit_image(shape: tuple[int, ...], peak: float) -> None:
    skimage = pytest.importorskip("skimage.metrics")
    a = RNG.uniform(0, peak, shape)
    b = np.clip(a + RNG.normal(0, 0.1 * peak, shape), 0, peak)
    expected = skimage.structural_similarity(
        a,
        b,
        data_range=peak,
        channel_axis=None if len(shape) == 2 else 2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert metrics.ssim(a, b, peak=peak) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("move", [(0.0, 0.0), (1.0, -2.0), (-0.5, 1.25)])
def test_alignment_finds_the_translation(move: tuple[float, float]) -> None:
    from scipy.ndimage import gaussian_filter, shift

    a = gaussian_filter(RNG.uniform(0, 255, (64, 80, 3)), (1.5, 1.5, 0))
    moved = shift(a, (*move, 0), order=3, mode="mirror")
    back, found = metrics.align(moved, a)
    assert found == pytest.approx([-n for n in move], abs=0.1)
    assert metrics.psnr(back, a, border=6) > 40


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_imresize_equals_the_published_files_to_the_bit(shared: Path, scale: int) -> None:
    from restort.evaluation.datasets import read_8_bit

    for path in sorted((shared / "data/test/set5/HR").glob("*.png")):
        high = read_8_bit(path, 3)
        low = read_8_bit(shared / f"data/test/set5/LR_bicubic/X{scale}/{path.stem}x{scale}.png", 3)
        high = high[: low.shape[0] * scale, : low.shape[1] * scale]
        assert np.array_equal(imresize(high, 1 / scale), low), path.name


@pytest.mark.parametrize("scale", [1 / 4, 1 / 3, 0.5, 1.0, 1.5, 2.0, 3.0])
def test_resizing_keeps_flat_pictures_and_shapes(scale: float) -> None:
    flat = np.full((13, 9, 3), 77, np.uint8)
    out = imresize(flat, scale)
    assert out.dtype == np.uint8 and (out == 77).all()
    assert out.shape == (math.ceil(13 * scale), math.ceil(9 * scale), 3)
    assert imresize(flat[:, :, 0] / 255.0, scale).ndim == 2


def test_resizing_at_scale_one_changes_nothing_and_extremes_work() -> None:
    image = picture(5, 7)
    assert np.array_equal(imresize(image, 1.0), image)
    assert imresize(image[:1, :1], 4.0).shape == (4, 4, 3)
    assert imresize(image[:1, :1], 0.25).shape == (1, 1, 3)
    assert resize_matrix(3, 1 / 3).shape == (1, 3)
    with pytest.raises(UsageError, match="must be positive"):
        imresize(image, 0.0)


def test_kernels_of_both_matlab_formats(shared: Path) -> None:
    folder = shared / "data/test/kernels"
    for name, count in (("Levin09.mat", 8), ("kernels_12.mat", 12)):
        kernels = read_kernels(folder / name, "stored")
        assert len(kernels) == count
        assert len({kernel.shape for kernel in kernels}) == 1 and len(kernels[0]) % 2 == 1
        assert all(abs(kernel.sum() - 1) < 1e-12 for kernel in kernels)
        for kernel in read_kernels(folder / name):
            middle = len(kernel) // 2
            centroid = [(axis * kernel).sum() - middle for axis in np.indices(kernel.shape)]
            assert max(map(abs, centroid)) <= 0.5 + 1e-9


def test_kernels_of_numpy_files_keep_their_orientation(tmp_path: Path) -> None:
    stack = np.zeros((2, 5, 5))
    stack[0, 2, 1:4] = 2
    stack[1, 2, 2] = 1
    np.save(tmp_path / "k.npy", stack)
    found = read_kernels(tmp_path / "k.npy", "stored")
    np.testing.assert_allclose(found, stack / stack.sum((1, 2), keepdims=True))
    np.savez(tmp_path / "k.npz", a=stack[0], b=np.ones((2, 2)))
    assert [kernel.shape for kernel in read_kernels(tmp_path / "k.npz")] == [(5, 5), (5, 5)]


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"\x93NUMPY\x01", b"MATLAB 5.0 MAT-file" + b"\0" * 300, b"MATLAB 7.3", b"PK\x03\x04"],
)
def test_damaged_kernels_get_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "k.mat").write_bytes(content)
    with pytest.raises(RestortError, match=r"k\.mat"):
        read_kernels(tmp_path / "k.mat")
    with pytest.raises(RestortError, match="No such file"):
        read_kernels(tmp_path / "none.mat")


def test_negative_kernels_are_refused(tmp_path: Path) -> None:
    for number, bad in enumerate((np.array([[1.0, -1.0]]), np.zeros((3, 3)), np.full((3, 3), np.nan))):
        np.save(tmp_path / f"{number}.npy", bad)
        with pytest.raises(RestortError, match="negative or infinite"):
            read_kernels(tmp_path / f"{number}.npy")


def test_blur_is_a_convolution() -> None:
    from scipy.signal import convolve2d

    image, kernel = picture(20, 23), RNG.uniform(size=(5, 5))
    expected = np.stack([convolve2d(image[:, :, c], kernel, mode="valid") for c in range(3)], axis=2)
    np.testing.assert_allclose(blur(image, kernel), expected, atol=1e-9)
    with pytest.raises(RestortError, match="smaller than the kernel"):
        blur(image[:4], kernel)
