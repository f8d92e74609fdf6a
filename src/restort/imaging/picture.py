"""A picture in memory: pixels as they are stored, alpha apart, and the metadata of its file.

To a network and back:

    x = picture.to_unit(spec.in_channels)   # float32 (N, C, H, W) in [0, 1]
    y = run_tiled(runner, x, layout)        # float32 (N, C', H * scale, W * scale)
    restored = picture.from_unit(y)         # a Picture with the bit depth and channels of `picture`

`picture.from_bands(stream_tiled(runner, x, layout), scale)` does this with one row of tiles in memory at a time.
`restort.inference.model.Model` is the one caller that also sends alpha through the network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from restort.errors import RestortError, not_finite
from restort.imaging.alpha import fill_transparent, is_constant, keep_flat_alpha, resize_alpha
from restort.imaging.animation import Animation
from restort.utils.array_types import Array, Float32

Bands: TypeAlias = Iterable[tuple[int, Float32]]

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in brightness, ITU-R BT.601."""


@dataclass
class Picture:
    """Pixels, alpha and metadata of one picture.

    pixels      (H, W, C) uint8 or uint16; C is 1 (gray) or 3 (red, green, blue in the colours of `icc`, sRGB without
                one); not premultiplied with alpha
    alpha       (H, W) of the dtype of `pixels`, 0 transparent to `peak` opaque; None without alpha
    icc         ICC profile of the pixels, or None
    exif, xmp, iptc   metadata blocks as stored in files, orientation 1; None without
    resolution  pixels per millimetre, horizontal and vertical; None where unknown
    text        PNG chunks (type, data) with text, time or the definition of the colours (COLOUR_CHUNKS)
    comments    JPEG comments
    format      the format it was read from ('png', 'jpeg', ...), or None
    notes       what the reader left out or converted, one clause each
    animation   all frames, where the reader was asked for them; `pixels` are the first
    """

    pixels: Array
    alpha: Array | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    resolution: tuple[float, float] | None = None
    text: tuple[tuple[bytes, bytes], ...] = ()
    comments: tuple[bytes, ...] = ()
    format: str | None = None
    notes: tuple[str, ...] = ()
    animation: Animation | None = None

    def __post_init__(self) -> None:
        pixels, alpha = self.pixels, self.alpha
        if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or 0 in pixels.shape:
            raise ValueError(f"pixels of shape {pixels.shape}; (H, W, 1) or (H, W, 3) is needed")
        if pixels.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"pixels of type {pixels.dtype}; uint8 or uint16 is needed")
        if alpha is not None and (alpha.shape != pixels.shape[:2] or alpha.dtype != pixels.dtype):
            raise ValueError(
                f"alpha {alpha.shape} {alpha.dtype} does not fit pixels {pixels.shape} {pixels.dtype}"
            )

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def channels(self) -> int:
        return int(self.pixels.shape[2])

    @property
    def bits(self) -> int:
        """8 or 16."""
        return int(self.pixels.dtype.itemsize) * 8

    @property
    def peak(self) -> int:
        """The value of white: 255 or 65535."""
        return (1 << self.bits) - 1

    def to_unit(self, channels: int) -> Float32:
        """Convert to the input of a network with `channels` input channels: float32 (N, channels, H, W) in [0, 1].

        N is 1, except for a colour picture and a network of 1 channel: it gets red, green and blue as three pictures. A
        network of 3 channels gets a gray picture three times. Colours under alpha 0 are replaced by a continuation of
        the visible ones. Raises RestortError for other networks (dual-pixel networks take two files).
        """
        if channels not in (1, 3):
            raise RestortError(
                f"this network takes {channels} channels, a pair of dual-pixel pictures, which cannot be read; "
                "use weights that take one picture"
            )
        x: Float32 = np.empty((self.channels, self.height, self.width), np.float32)
        for plane, values in zip(x, np.moveaxis(self.pixels, 2, 0), strict=True):  # no copy beside x
            np.divide(values, np.float32(self.peak), out=plane, dtype=np.float32)
        if self.alpha is not None:
            x = fill_transparent(x, self.alpha)
        if channels == self.channels:
            return np.ascontiguousarray(x[None])
        return np.ascontiguousarray(x[:, None] if channels == 1 else x.repeat(3, axis=0)[None])

    def alpha_to_unit(self, channels: int, scale: int) -> Float32 | None:
        """Convert alpha to the input of an upscaling network, as a gray picture: float32 (1, channels, H, W) in [0, 1].

        None if alpha needs no network: there is none, it is constant, or `scale` is 1. On masks and text the shipped
        ELAN-light models come 3 to 8 dB nearer to the truth than cubic interpolation.
        """
        if self.alpha is None or scale == 1 or channels not in (1, 3) or is_constant(self.alpha):
            return None
        x: Float32 = self.alpha.astype(np.float32) / np.float32(self.peak)
        return np.ascontiguousarray(x[None, None].repeat(channels, axis=1))

    def from_unit(self, result: Float32, alpha: Float32 | None = None) -> Picture:
        """Convert the output of a network, (N, C, H * scale, W * scale), to a picture: the inverse of `to_unit`.

        Values are clipped to [0, 1] and rounded to the bit depth of this picture; a gray picture stays gray (three
        channels are weighted by `LUMA`). `alpha` is the network's output for `alpha_to_unit`; without it, alpha is
        enlarged by cubic interpolation, or kept exactly at scale 1. Metadata stays, also the resolution: 300 dpi remain
        300 dpi. Raises RestortError if the output holds NaN or infinity.
        """
        scale = result.shape[2] // self.height
        return self.from_bands([(0, result)], scale, None if alpha is None else [(0, alpha)])

    def from_bands(self, bands: Bands, scale: int, alpha_bands: Bands | None = None) -> Picture:
        """Like `from_unit`, from bands (top, (N, C, rows, W * scale)) in order, as `stream_tiled` yields them."""
        height, width, dtype = self.height * scale, self.width * scale, self.pixels.dtype
        pixels = _assembled(bands, np.empty((height, width, self.channels), dtype))
        if alpha_bands is not None:
            assert self.alpha is not None
            restored = _assembled(alpha_bands, np.empty((height, width, 1), dtype))[:, :, 0]
            alpha: Array | None = keep_flat_alpha(restored, self.alpha, scale)
        else:
            alpha = None if self.alpha is None else resize_alpha(self.alpha, scale)
        return dataclasses.replace(self, pixels=pixels, alpha=alpha)


def _assembled(bands: Bands, pixels: Array) -> Array:
    """Fill `pixels` (H, W, C) from top to bottom with the quantised bands, and return it."""
    filled = 0
    for top, rows in quantised_rows(bands, pixels.shape[2], pixels.dtype):
        place = pixels[top : top + len(rows)]
        if rows.shape != place.shape or top != filled:
            raise ValueError(f"rows {rows.shape} at {top} do not fit a picture {pixels.shape}")
        np.copyto(place, rows, casting="unsafe")
        filled += len(rows)
    if filled != len(pixels):
        raise ValueError(f"{filled} rows for a picture of {len(pixels)}")
    return pixels


def quantised_rows(bands: Bands, channels: int, dtype: np.dtype[Any]) -> Iterator[tuple[int, Float32]]:
    """Yield (top, rows (rows, W, channels)) of bands: whole numbers in the range of `dtype`, as float32."""
    for top, band in bands:
        for start in range(0, band.shape[2], 256):  # a few rows at a time, to keep the copies small
            values = _quantised(band[:, :, start : start + 256], channels, dtype)
            yield top + start, np.moveaxis(values, 0, 2)


def _quantised(rows: Float32, channels: int, dtype: np.dtype[Any]) -> Float32:
    """Convert (N, C, H, W) in [0, 1] to (channels, H, W) whole numbers in the range of `dtype`, as float32."""
    if not (np.isfinite(rows.min()) and np.isfinite(rows.max())):  # NaN is the least and the largest of all
        raise not_finite()
    planes: Array = rows[0] if len(rows) == 1 else rows[:, 0]  # one picture, or three of one channel
    if channels == 1 and planes.shape[0] == 3:
        planes = np.tensordot(np.asarray(LUMA, np.float32), planes, axes=1)[None]
    if planes.shape[0] != channels:
        raise ValueError(f"an output of shape {rows.shape} for a picture of {channels} channels")
    peak = np.float32(np.iinfo(dtype).max)
    values: Float32 = np.clip(planes, np.float32(0), np.float32(1))
    values *= peak
    return np.rint(values, out=values)
