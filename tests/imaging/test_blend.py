"""Results blended with their inputs, and the bicubic enlargement that stands for the input."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from restort.evaluation.resize import imresize
from restort.imaging.blend import blend, blended_bands, enlarged_rows

RNG = np.random.default_rng(3)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("size", [(9, 14), (1, 1), (2, 5)])
def test_enlargement_is_matlabs(scale: int, size: tuple[int, int]) -> None:
    x = RNG.random((2, 3, *size), dtype=np.float32)
    height = size[0] * scale
    expected = np.stack([imresize(one.transpose(1, 2, 0), scale).transpose(2, 0, 1) for one in x])
    np.testing.assert_allclose(enlarged_rows(x, scale, 0, height), expected, atol=2e-6)
    part = slice(height // 3, height)
    np.testing.assert_allclose(
        enlarged_rows(x, scale, part.start, height - part.start), expected[:, :, part], atol=2e-6
    )


def test_half_strength_is_the_mean_of_the_clipped_result_and_the_input() -> None:
    x = RNG.random((1, 3, 6, 7), dtype=np.float32)
    result = (3 * RNG.random((1, 3, 6, 7), dtype=np.float32) - 1).astype(np.float32)
    np.testing.assert_allclose(blend(result, x, 0.5), (np.clip(result, 0, 1) + x) / 2, atol=1e-6)
    assert np.array_equal(blend(result, x, 0.0), x)
    np.testing.assert_allclose(blend(result, x, 1.0), np.clip(result, 0, 1), atol=1e-6)


@pytest.mark.parametrize("scale", [1, 3])
def test_bands_of_any_height_make_the_same_picture(scale: int) -> None:
    x = RNG.random((1, 1, 220, 5), dtype=np.float32)
    result = RNG.random((1, 1, 220 * scale, 5 * scale), dtype=np.float32)
    whole = blend(result, x, 0.3)
    cuts = [0, 1, 130, 131, 220 * scale]
    bands = [(top, result[:, :, top:end]) for top, end in itertools.pairwise(cuts)]
    tops, parts = zip(*blended_bands(bands, x, scale, 0.3), strict=True)
    assert list(tops) == sorted(set(tops)) and tops[0] == 0
    assert np.array_equal(np.concatenate(parts, axis=2), whole)


def test_values_that_are_no_numbers_stay_visible() -> None:
    x = np.zeros((1, 1, 2, 2), np.float32)
    result = np.full((1, 1, 2, 2), np.nan, np.float32)
    assert np.isnan(blend(result, x, 0.5)).all()
