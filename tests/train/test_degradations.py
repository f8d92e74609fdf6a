"""Degradations of real photographs: each against an independent implementation or a known answer."""

from __future__ import annotations

import io

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training recipe needs PyTorch")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from PIL import Image  # noqa: E402

from train.degradations import camera, filters, motion, noise, recipes  # noqa: E402
from train.degradations.colour import from_linear, to_linear, to_rgb, to_ycc, tone_curve  # noqa: E402
from train.degradations.draw import Draw, random_windows, windows  # noqa: E402
from train.degradations.jpeg import S420, S422, S444, jpeg  # noqa: E402
from train.drawings import drawing  # noqa: E402


def draw(seed: int = 0) -> Draw:
    return Draw(torch.Generator().manual_seed(seed))


def picture(side: int = 96, seed: int = 0, n: int = 1) -> torch.Tensor:
    """Smooth shapes with texture, multiples of 1 / 255, (n, 3, side, side)."""
    d = draw(seed)
    x = filters.gaussian_blur(torch.rand(n, 3, side, side, generator=d.generator), d.uniform(n, 1, 6))
    x = (x - x.amin()) / (x.amax() - x.amin()) + 0.03 * d.normal(n, 3, side, side)
    return (x.clamp(0, 1) * 255).round() / 255


def pillow(x: torch.Tensor, quality: int, sampling: int) -> torch.Tensor:
    data = io.BytesIO()
    array = (x[0] * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(array).save(data, "JPEG", quality=quality, subsampling=sampling)
    return torch.from_numpy(np.array(Image.open(data))).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("sampling", [S444, S422, S420])
@pytest.mark.parametrize("quality", [5, 20, 50, 75, 92])
def test_jpeg_equals_pillows_within_rounding(quality: int, sampling: int) -> None:
    """The integer DCT of libjpeg rounds differently; the distortion is the same."""
    x = picture(128, quality)
    ours = jpeg(x, torch.tensor([float(quality)]), torch.tensor([sampling]))
    theirs = pillow(x, quality, sampling)
    assert (ours - theirs).abs().mean().item() * 255 < 0.9
    ratio = (ours - x).square().mean() / (theirs - x).square().mean()
    assert 0.985 < ratio.item() < 1.015
    shifted = torch.roll(ours, 1, 3)
    assert (shifted - theirs).abs().mean() > 3 * (ours - theirs).abs().mean(), (
        "the comparison cannot tell pictures apart"
    )


def test_jpeg_of_a_batch_is_that_of_each() -> None:
    x = picture(48, n=3)
    quality, sampling = torch.tensor([10.0, 50.0, 90.0]), torch.tensor([S420, S444, S422])
    together = jpeg(x, quality, sampling)
    for i in range(3):
        assert torch.equal(together[i : i + 1], jpeg(x[i : i + 1], quality[i : i + 1], sampling[i : i + 1]))


def test_gray_stays_gray_in_jpeg() -> None:
    x = picture(64)[:, :1].expand(1, 3, 64, 64)
    y = jpeg(x, torch.tensor([30.0]), torch.tensor([S420]))
    assert torch.equal(y[:, 0], y[:, 1]) and torch.equal(y[:, 1], y[:, 2])


@pytest.mark.parametrize("corrected", [False, True])
def test_demosaicing_returns_an_even_picture(corrected: bool) -> None:
    even = torch.tensor([0.2, 0.5, 0.7]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    back = camera.demosaic(camera.mosaic(even), torch.tensor(corrected).view(1, 1, 1, 1))
    torch.testing.assert_close(back, even, atol=1e-6, rtol=0)


def test_demosaicing_keeps_the_samples_and_interpolates_between() -> None:
    x = picture(32)
    sampled = camera.mosaic(x)
    bilinear = camera.demosaic(sampled, torch.zeros(1, 1, 1, 1, dtype=torch.bool))
    assert torch.equal(bilinear[:, 0, ::2, ::2], x[:, 0, ::2, ::2])
    assert torch.equal(bilinear[:, 2, 1::2, 1::2], x[:, 2, 1::2, 1::2])
    assert torch.equal(bilinear[:, 1, ::2, 1::2], x[:, 1, ::2, 1::2])
    red = (x[:, 0, 4, 4] + x[:, 0, 4, 6]) / 2
    torch.testing.assert_close(bilinear[:, 0, 4, 5], red)
    blue = x[:, 2, [3, 3, 5, 5], [3, 5, 3, 5]].mean(1)
    torch.testing.assert_close(bilinear[:, 2, 4, 4], blue)


@given(st.floats(0.6, 2.0))
@settings(max_examples=20, deadline=None)
def test_curves_undo_each_other(power: float) -> None:
    x = torch.linspace(0.01, 0.99, 99)
    torch.testing.assert_close(from_linear(to_linear(x)), x, atol=1e-5, rtol=0)
    p = torch.tensor(power)
    torch.testing.assert_close(tone_curve(tone_curve(x, p), 1 / p), x, atol=1e-5, rtol=0)
    rgb = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(to_rgb(to_ycc(rgb)), rgb, atol=1e-6, rtol=0)


def test_correlated_noise_keeps_its_strength_and_reaches_as_far_as_asked() -> None:
    d = draw()
    white = d.normal(4, 1, 128, 128)
    blurred = noise.correlated(white, torch.full((4, 1, 1, 1), 2.0))
    assert blurred[..., 16:-16, 16:-16].std().item() == pytest.approx(1.0, abs=0.08)

    def at_lag(x: torch.Tensor, k: int) -> float:
        return ((x[..., :, k:] * x[..., :, :-k]).mean() / x.square().mean()).item()

    # the autocorrelation of a Gaussian of sigma s is exp(-k^2 / (4 s^2))
    for k in (1, 2, 4):
        assert at_lag(blurred, k) == pytest.approx(np.exp(-(k**2) / 16), abs=0.06)
        assert abs(at_lag(white, k)) < 0.03


def test_processed_noise_is_as_coarse_as_real_noise() -> None:
    """Real noise: about 0.73, 0.5 and 0.25 at lags 1, 2 and 4."""
    x = torch.full((64, 3, 64, 64), 0.5)
    y = noise.processed(x, draw()) - x
    y = y / y.std((1, 2, 3), keepdim=True)
    lags = [(y[..., k:] * y[..., :-k]).mean().item() for k in (1, 2, 4)]
    assert 0.55 < lags[0] < 0.9 and 0.4 < lags[1] < 0.75 and 0.15 < lags[2] < 0.5


def test_noise_of_camera_jpegs_is_fine_in_brightness_and_coarse_in_colour() -> None:
    """PolyU: luma about 0.65, 0.3, 0.15 at lags 1, 2, 4; chroma 0.9, 0.8, 0.5, 0.13 at lags 1, 2, 4, 8."""
    x = torch.full((64, 3, 64, 64), 0.5)
    ycc = to_ycc(noise.camera_jpeg(x, draw()) - x)
    means = {}
    for name, planes in (("luma", ycc[:, :1]), ("chroma", ycc[:, 1:])):
        planes = planes / planes.std((1, 2, 3), keepdim=True)
        means[name] = [(planes[..., k:] * planes[..., :-k]).mean().item() for k in (1, 2, 4, 8)]
    assert means["luma"][:3] == pytest.approx([0.66, 0.33, 0.15], abs=0.1)
    assert means["chroma"] == pytest.approx([0.92, 0.78, 0.5, 0.15], abs=0.1)
    strength = 255 * (noise.camera_jpeg(x, draw()) - x).std((1, 2, 3))
    assert strength.min() > 1.4 and strength.max() < 14.2


def test_a_camera_adds_noise_that_grows_with_light_and_nothing_to_its_clean_picture() -> None:
    x = torch.full((48, 3, 48, 48), 0.5)
    y, clean = camera.camera(x, draw())
    assert (clean.flatten(1).std(1) < 1e-3).all(), "an even picture stays even"
    strength = (y - clean).flatten(1).std(1)
    assert strength.min() > 0 and strength.max() < 0.3 and strength.median() < 0.1


@pytest.mark.parametrize("mode", filters.MODES)
def test_resizing_keeps_the_place(mode: str) -> None:
    """A centred spot stays centred, and an even picture even."""
    i = torch.arange(48.0)
    spot = torch.exp(-((i[:, None] - 23.5) ** 2 + (i - 23.5) ** 2) / 50)[None, None]
    small = filters.resize(spot, 12, mode)[0, 0]
    j = torch.arange(12.0)
    centre = (small.sum(0) * j).sum() / small.sum()
    assert centre.item() == pytest.approx(5.5, abs=1e-3)


def test_discs_have_their_radius() -> None:
    kernels = filters.disc_kernels(5, 33, 3.0, 3.0, draw())
    torch.testing.assert_close(kernels.sum((1, 2)), torch.ones(5))
    area = 1 / kernels.amax((1, 2))
    assert ((area - np.pi * 9).abs() < 1.0).all()


def test_varying_blur_is_one_kernel_at_each_end() -> None:
    x = torch.rand(1, 3, 80, 80)
    a, b = motion.motion_kernels(2, 9, torch.Generator().manual_seed(1), longest=5.0).split(1)
    mixed = motion.blur_varying(x, a, b, torch.zeros(1))
    left, right = motion.blur(x, a)[..., :2], motion.blur(x, b)[..., -2:]
    assert (mixed[..., :2] - left).abs().max() < 0.03
    assert (mixed[..., -2:] - right).abs().max() < 0.03


def test_windows_of_two_pictures_show_one_place() -> None:
    x = torch.rand(4, 3, 20, 24)
    tops, lefts = torch.tensor([0, 3, 12, 7]), torch.tensor([16, 2, 0, 5])
    a, b = windows(8, tops, lefts, x, x * 2)
    for i in range(4):
        assert torch.equal(a[i], x[i, :, tops[i] : tops[i] + 8, lefts[i] : lefts[i] + 8])
    assert torch.equal(b, a * 2)
    assert random_windows(8, draw(), x)[0].shape == (4, 3, 8, 8)


def crops(n: int, side: int) -> torch.Tensor:
    return picture(side, seed=n + side, n=n)


@pytest.mark.parametrize("n", [7, 14, 32])
def test_every_recipe_gives_pairs_that_belong_together(n: int) -> None:
    for name, (y, x), scale in (
        ("photo", recipes.photo(crops, 32, n, draw()), 1),
        ("low_resolution", recipes.low_resolution(crops, 16, n, draw(), 2), 2),
        ("shaken", recipes.shaken(crops, 32, n, draw(), 17, 1.0), 1),
    ):
        assert x.shape == (n, 3, y.shape[2] * scale, y.shape[3] * scale), name
        assert torch.isfinite(y).all() and x.min() >= 0 and x.max() <= 1, name
        large = torch.nn.functional.interpolate(y, x.shape[-2:], mode="bilinear")
        own = (large - x).square().mean((1, 2, 3))
        other = (large - x.roll(1, 0)).square().mean((1, 2, 3))
        assert (own < other).float().mean() > 0.8, f"{name}: degraded crops do not show their targets"


def test_recipes_repeat_with_their_seed() -> None:
    for recipe in (
        lambda d: recipes.photo(crops, 32, 14, d),
        lambda d: recipes.low_resolution(crops, 16, 14, d, 4),
        lambda d: recipes.shaken(crops, 32, 14, d, 17, 1.0),
    ):
        a, b, c = recipe(draw(1)), recipe(draw(1)), recipe(draw(2))
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
        assert not torch.equal(a[0], c[0])


def test_counts_fill_the_batch() -> None:
    shares = tuple(group[0] for group in recipes.PHOTO_GROUPS.values())
    assert sum(shares) == pytest.approx(1.0)
    for n in range(1, 70):
        assert sum(recipes.counts(n, shares)) == n and min(recipes.counts(n, shares)) >= 0


def test_undamaged_crops_reach_the_network_as_they_are() -> None:
    n = 64
    y, x = recipes.photo(crops, 32, n, draw())
    clean = recipes.counts(n, tuple(g[0] for g in recipes.PHOTO_GROUPS.values()))[-1]
    assert clean >= 3 and torch.equal(y[-clean:], x[-clean:])


def test_drawings_repeat_and_differ() -> None:
    first = drawing(0, 160)
    assert first.shape == (160, 160, 3) and first.dtype == np.uint8
    assert np.array_equal(first, drawing(0, 160)) and not np.array_equal(first, drawing(1, 160))
