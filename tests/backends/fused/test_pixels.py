"""Conversion of pictures on the device, against that of the host, for every value that a sample can have."""

from __future__ import annotations

import gc

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from restort.backends.fused.pixels import HostResults, on_device, padded_shape, to_pixels, to_planes  # noqa: E402
from restort.imaging.picture import Picture  # noqa: E402
from restort.tiling.padding import pad_to_multiple  # noqa: E402

CPU = torch.device("cpu")


def every_value(bits: int) -> np.ndarray:
    """(H, W, 3) that holds each value of a sample, of a size that needs padding."""
    values = np.arange(1 << bits, dtype=np.uint8 if bits == 8 else np.uint16)
    width = 51 if bits == 8 else 1001
    rows = -(-3 * len(values) // (3 * width)) + 1
    return np.resize(values, (rows, width, 3))


@pytest.mark.parametrize("bits", [8, 16])
def test_planes_are_the_hosts(bits: int) -> None:
    pixels = every_value(bits)
    expected = pad_to_multiple(Picture(pixels).to_unit(3), 16)
    shape = padded_shape(pixels, 16)
    made = to_planes(on_device(pixels, CPU), *shape[2:])
    assert tuple(made.shape) == shape == expected.shape
    np.testing.assert_array_equal(made.numpy(), expected)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("scale", [1, 2])
def test_pixels_are_the_hosts(bits: int, scale: int) -> None:
    source = Picture(np.zeros((21, 13, 3), np.uint8 if bits == 8 else np.uint16))
    peak = source.peak
    y = np.random.default_rng(1).uniform(-0.2, 1.2, (1, 3, 32 * scale, 16 * scale)).astype(np.float32)
    halves = (np.arange(y[0, 0].size) % peak + 0.5).astype(np.float32) / np.float32(peak)
    y[0, 0] = halves.reshape(y.shape[2:])  # as near to a tie as float32 comes
    expected = source.from_unit(y[:, :, : 21 * scale, : 13 * scale].copy()).pixels
    made = to_pixels(torch.from_numpy(y.copy()), 21 * scale, 13 * scale, bits).numpy()
    np.testing.assert_array_equal(made.view(source.pixels.dtype), expected)


def test_read_only_and_strided_pixels() -> None:
    pixels = every_value(8)
    pixels.flags.writeable = False
    np.testing.assert_array_equal(on_device(pixels[::2, ::-1], CPU).numpy(), pixels[::2, ::-1])


def test_what_is_lent_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[bool] = []
    empty = torch.empty

    def noted(*shape: object, pin_memory: bool = False, **options: object) -> object:
        taken.append(pin_memory)
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", noted)
    results = HostResults(limit=250)
    first = results.take((10, 10), 8)
    second = results.take((10, 10), 8)
    third = results.take((10, 10), 8)
    assert taken == [True, True, False]
    view = second[1][2:4]
    del second, third
    gc.collect()
    results.take((10, 10), 8)
    assert taken[-1] is False, "a view keeps the memory"
    del view
    gc.collect()
    tensor, array = results.take((5, 10), 16)
    assert taken[-1] is True and array.dtype == np.uint16
    tensor[0, 0] = -1
    assert array[0, 0] == 65535
    del first
