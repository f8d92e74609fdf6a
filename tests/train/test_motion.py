"""The degradations of the training recipe: exact where an answer is known, plausible where none is."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training recipe needs PyTorch")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from train.degradations import filters, motion, noise  # noqa: E402


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=generator(seed)).double()


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_equals_the_published_files_to_the_bit(shared: Path, scale: int) -> None:
    from PIL import Image

    for path in sorted((shared / "data/test/set5/HR").glob("*.png")):
        high = np.asarray(Image.open(path))
        low = np.asarray(Image.open(shared / f"data/test/set5/LR_bicubic/X{scale}/{path.stem}x{scale}.png"))
        high = high[: high.shape[0] // scale * scale, : high.shape[1] // scale * scale]
        x = torch.from_numpy(high.copy()).permute(2, 0, 1)[None].double()
        assert np.array_equal(filters.bicubic_downscale(x, scale)[0].permute(1, 2, 0).numpy(), low), path.name


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_equals_the_numpy_version(scale: int) -> None:
    from restort.evaluation.resize import imresize

    x = picture(1, 3, 12 * scale, 7 * scale)
    ours = filters.bicubic_downscale(x, scale)[0].permute(1, 2, 0).numpy()
    image = x[0].permute(1, 2, 0).numpy()
    assert np.array_equal(ours, imresize(image.astype(np.uint8), 1 / scale))
    exact = filters.bicubic_downscale(x, scale, eight_bit=False)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(exact, imresize(image, 1 / scale), atol=1e-10)


def test_bicubic_in_unit_range_rounds_to_the_same_levels() -> None:
    x = picture(2, 3, 16, 24)
    unit = filters.bicubic_downscale(x / 255, 2, peak=1.0)
    assert (unit * 255 - filters.bicubic_downscale(x, 2)).abs().max() <= 1 + 1e-9


def test_noise_has_the_asked_strength_and_repeats() -> None:
    x = torch.zeros(3, 3, 64, 64)
    sigma = torch.tensor([0.0, 0.1, 0.2])
    noisy = noise.gaussian_noise(x, sigma, generator())
    assert noisy[0].abs().max() == 0
    torch.testing.assert_close(noisy.flatten(1).std(1), sigma, atol=3e-3, rtol=0)
    assert torch.equal(noisy, noise.gaussian_noise(x, sigma, generator()))
    drawn = noise.gaussian_noise(x, (0.3, 0.4), generator()).flatten(1).std(1)
    assert ((drawn > 0.28) & (drawn < 0.42)).all()


@pytest.mark.parametrize("size", [21, 37])
@pytest.mark.parametrize("centre", ["box", "centroid"])
def test_kernels_are_point_spread_functions(size: int, centre: str) -> None:
    kernels = motion.motion_kernels(200, size, generator(), centre=centre)
    assert kernels.shape == (200, size, size)
    assert kernels.min() >= 0
    torch.testing.assert_close(kernels.sum((1, 2)), torch.ones(200), atol=1e-5, rtol=0)
    edge = kernels.clone()
    edge[:, 1:-1, 1:-1] = 0
    assert edge.sum((1, 2)).max() < 0.02, "a kernel is cut off by its array"


def test_kernels_differ_in_size_and_repeat_exactly() -> None:
    kernels = motion.motion_kernels(400, 37, generator(), centre="box")
    assert torch.equal(kernels, motion.motion_kernels(400, 37, generator(), centre="box"))
    seen = kernels > 0.02 * kernels.amax((1, 2), keepdim=True)
    extent = torch.maximum(seen.any(1).sum(1), seen.any(2).sum(1))
    assert extent.min() <= 3 and extent.max() >= 26
    assert 10 <= extent.float().median() <= 19


def test_box_centred_kernels_lie_in_the_middle() -> None:
    kernels = motion.motion_kernels(300, 37, generator(3), centre="box")
    seen = kernels > 1e-3 * kernels.amax((1, 2), keepdim=True)
    for axis in (1, 2):
        profile = seen.any(axis).int()
        first, last = profile.argmax(1), 36 - profile.flip(1).argmax(1)
        assert ((first + last) / 2 - 18).abs().max() <= 2


def test_centroid_centred_kernels_balance() -> None:
    kernels = motion.motion_kernels(300, 37, generator(4))
    grid = torch.arange(37) - 18.0
    for axis in (1, 2):
        assert ((kernels.sum(axis) * grid).sum(1)).abs().max() < 0.1


def test_blur_is_the_convolution_where_it_fits() -> None:
    from scipy.signal import convolve2d

    x = torch.randn(2, 3, 29, 34, generator=generator(), dtype=torch.float64)
    kernels = motion.motion_kernels(2, 9, generator(), longest=5.0)
    ours = motion.blur(x, kernels)
    assert ours.shape == (2, 3, 21, 26)
    for i in range(2):
        for c in range(3):
            expected = convolve2d(x[i, c].numpy(), kernels[i].double().numpy(), mode="valid")
            np.testing.assert_allclose(ours[i, c].numpy(), expected, atol=1e-12)
    near = motion.blur(x.float(), kernels)
    torch.testing.assert_close(near.double(), ours, atol=1e-5, rtol=0)


def test_a_spot_leaves_the_picture_as_it_is() -> None:
    x = torch.rand(1, 3, 20, 20, generator=generator())
    spot = torch.zeros(1, 9, 9)
    spot[0, 4, 4] = 1
    torch.testing.assert_close(motion.blur(x, spot), x[..., 4:-4, 4:-4], atol=1e-6, rtol=0)
