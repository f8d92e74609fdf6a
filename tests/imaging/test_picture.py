"""Pictures to networks and back, alpha, padding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from restort.errors import RestortError
from restort.imaging.alpha import FLAT_RADIUS, fill_transparent, flat_pixels, resize_alpha
from restort.imaging.metadata import upright_exif, upright_xmp
from restort.imaging.picture import Picture
from restort.tiling.padding import crop, pad_to_multiple, reflect_index
from restort.utils.integers import round_up

RNG = np.random.default_rng(3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("own", [1, 3])
@pytest.mark.parametrize("network", [1, 3])
def test_every_value_survives(dtype: type, own: int, network: int) -> None:
    """There and back changes nothing, for every value of the type, gray or colour, in any network."""
    count = np.iinfo(dtype).max + 1
    values = np.arange(count, dtype=dtype).reshape(256, -1, 1)
    pixels = np.concatenate([np.roll(values, i, 0) for i in range(own)], axis=2)
    picture = Picture(pixels)
    x = picture.to_unit(network)
    assert x.dtype == np.float32
    assert x.flags.c_contiguous
    assert x.shape == ((3, 1) if own > network else (1, network)) + pixels.shape[:2]
    assert x.min() == 0
    assert x.max() == 1
    assert np.array_equal(picture.from_unit(x).pixels, pixels)


def test_clipping_rounding_and_metadata() -> None:
    picture = Picture(np.zeros((2, 2, 3), np.uint8), icc=b"profile", exif=b"exif", resolution=(4.0, 5.0))
    result = np.array([-0.5, 1.5, 0.6 / 255, 0.4 / 255], np.float32).reshape(1, 1, 2, 2).repeat(3, 1)
    restored = picture.from_unit(result)
    assert restored.pixels[:, :, 0].tolist() == [[0, 255], [1, 0]]
    assert (restored.icc, restored.exif, restored.resolution) == (b"profile", b"exif", (4.0, 5.0))


def test_gray_is_the_luma_of_colour() -> None:
    picture = Picture(np.zeros((1, 1, 1), np.uint8))
    result = np.array([1, 0, 0], np.float32).reshape(1, 3, 1, 1)
    assert picture.from_unit(result).pixels.item() == round(0.299 * 255)


def test_refusals() -> None:
    picture = Picture(np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(RestortError, match="6 channels, a pair of dual-pixel pictures"):
        picture.to_unit(6)
    with pytest.raises(RestortError, match="NaN or infinity; use --precision fp32"):
        picture.from_unit(np.full((1, 3, 2, 2), np.nan, np.float32))
    with pytest.raises(ValueError, match="float64"):
        Picture(np.zeros((2, 2, 3)))
    with pytest.raises(ValueError, match="shape"):
        Picture(np.zeros((2, 2, 4), np.uint8))
    with pytest.raises(ValueError, match="alpha"):
        Picture(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 3), np.uint8))
    with pytest.raises(ValueError, match="1 rows"):
        picture.from_bands([(0, np.zeros((1, 3, 1, 2), np.float32))], 1)


# --- alpha --------------------------------------------------------------------------------------------------


def test_hidden_colours_do_not_reach_the_network() -> None:
    pixels = np.zeros((20, 30, 3), np.uint8)  # black, and hidden, around a red square
    alpha = np.zeros((20, 30), np.uint8)
    pixels[5:15, 5:15], alpha[5:15, 5:15] = (255, 0, 0), 255
    x = Picture(pixels, alpha).to_unit(3)
    assert np.allclose(x[0, 0], 1)
    assert np.allclose(x[0, 1:], 0)


def test_filling_keeps_what_can_be_seen_and_stays_in_range() -> None:
    colours = RNG.random((3, 17, 23), dtype=np.float32)
    alpha = RNG.integers(0, 2, (17, 23)).astype(np.uint8) * 7
    filled = fill_transparent(colours, alpha)
    assert filled.dtype == np.float32
    assert np.array_equal(filled[:, alpha > 0], colours[:, alpha > 0])
    assert filled.min() >= colours.min()
    assert filled.max() <= colours.max() + 1e-6
    for same in (np.zeros_like(alpha), np.ones_like(alpha)):
        assert fill_transparent(colours, same) is colours


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 4))
def test_flat_pixels(height: int, width: int, radius: int) -> None:
    alpha = np.random.default_rng(height * 13 + width).integers(0, 8, (height, width), np.uint8) // 7
    for y, x in np.ndindex(height, width):
        around = alpha[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]
        assert flat_pixels(alpha, radius)[y, x] == (around == alpha[y, x]).all()


def test_a_network_cannot_make_an_opaque_field_transparent() -> None:
    """Where the source's alpha is flat the result has it exactly; elsewhere the network decides."""
    alpha = np.full((20, 30), 255, np.uint8)
    alpha[8:12, 14:16] = 100
    picture = Picture(np.zeros((20, 30, 3), np.uint8), alpha)
    dull = np.full((1, 3, 40, 60), 0.9, np.float32)
    restored = picture.from_unit(np.zeros((1, 3, 40, 60), np.float32), dull).alpha
    assert restored is not None
    near = np.zeros((40, 60), bool)
    near[2 * (8 - FLAT_RADIUS) : 2 * (12 + FLAT_RADIUS), 2 * (14 - FLAT_RADIUS) : 2 * (16 + FLAT_RADIUS)] = (
        True
    )
    assert (restored[near] == round(0.9 * 255)).all()
    assert (restored[~near] == 255).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_alpha_by_interpolation(dtype: type) -> None:
    peak = np.iinfo(dtype).max
    step = np.zeros((8, 8), dtype)
    step[:, 4:] = peak
    larger = resize_alpha(step, 4)
    assert larger.dtype == dtype
    assert (larger[:, :12] == 0).all()
    assert (larger[:, 20:] == peak).all()
    assert larger[0, 15] + larger[0, 16] == peak  # the edge stays in the middle
    assert (resize_alpha(np.full((3, 5), 77, dtype), 3) == 77).all()
    assert resize_alpha(step, 1) is step


# --- padding ------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(0, 100))
def test_reflection_is_numpys(size: int, more: int) -> None:
    assert np.array_equal(
        reflect_index(size, size + more), np.pad(np.arange(size), (0, more), mode="reflect")
    )


def test_reflection_is_torchs_where_that_is_defined() -> None:
    torch = pytest.importorskip("torch")
    for height, width, multiple in ((33, 20, 16), (9, 15, 8), (64, 17, 16)):
        x = RNG.random((2, 3, height, width), dtype=np.float32)
        below, right = round_up(height, multiple) - height, round_up(width, multiple) - width
        expected = torch.nn.functional.pad(torch.from_numpy(x), (0, right, 0, below), mode="reflect").numpy()
        padded = pad_to_multiple(x, multiple)
        assert np.array_equal(padded, expected)
        assert np.array_equal(crop(padded, height, width), x)


def test_padding_of_a_single_pixel() -> None:
    assert (pad_to_multiple(np.full((1, 3, 1, 1), 5.0, np.float32), 8) == 5).all()
    whole = np.zeros((1, 3, 16, 8), np.float32)
    assert pad_to_multiple(whole, 8) is whole
    with pytest.raises(ValueError, match="cannot pad"):
        reflect_index(5, 4)


# --- metadata -----------------------------------------------------------------------------------------------


@given(st.binary(max_size=200))
def test_any_bytes_may_stand_for_metadata(data: bytes) -> None:
    for start in (b"", b"Exif\0\0II*\0", b"MM\0*\0\0\0\x08"):
        assert len(upright_exif(start + data)) == len(start + data)
    assert len(upright_xmp(data)) == len(data)


def test_orientation_in_xmp() -> None:
    for form in (
        b'tiff:Orientation="%d"',
        b"<tiff:Orientation>%d</tiff:Orientation>",
        b"tiff:Orientation = '%d'",
    ):
        assert upright_xmp(form % 6) == form % 1
