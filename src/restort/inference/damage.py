"""Detect the damage of a picture: lossy compression, noise or blur. `restort upscale` chooses its model by it.

A file of a lossy format counts as damaged by its header. For other pictures the centre is measured; the thresholds and
their hit rates are in docs/design/damage.md (`python benchmarks/damage_rates.py`).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from restort.errors import RestortError
from restort.imaging import formats
from restort.imaging.decode import open_lazily, read
from restort.imaging.picture import LUMA, Picture
from restort.imaging.vips import to_array, vips
from restort.utils.array_types import Array, Float32

COMPRESSED = "compressed with loss"
NOISY = "noisy"
BLURRED = "blurred"

VERSION = 1
"""Raised by one whenever `damage_of` finds other reasons for the same pixels."""

NOISE_CROP = 512
GRID_CROP = 256  # also of blur; edges of the centre that is measured, in pixels
LEAST_SIZE = 32  # smaller pictures are not measured

GRID_ZEROS = 4.0
"""Vanishing DCT coefficients, of 63 a block, that the best grid offset has more than the median of the others."""
NOISE_SIGMA = 1.5
NOISE_SIGMA_GRAY = 2.0
"""Noise of the flattest blocks, in 8-bit steps. Gray pictures lack the second look at chroma."""
EDGE_RATIO = 1.42
"""Gradient of the sharpest edges under a Gaussian of sigma 0.8, divided by that under sigma 1.6."""

_LOSSY = ("jpeg", "avif", "heic")
_LOSSY_TIFF = {6, 7, 33007, 34712, 34892, 50001}  # JPEG (three codes), JPEG 2000, lossy DNG JPEG, WebP
_DCT = np.array(
    [
        [np.cos((2 * x + 1) * k * np.pi / 16) * (np.sqrt(1 / 8) if k == 0 else 0.5) for x in range(8)]
        for k in range(8)
    ],
    np.float32,
)


def damage_of(image: str | Path | Picture) -> str | None:
    """Return what damaged a picture: COMPRESSED, NOISY or BLURRED; None for an undamaged one.

    image   a Picture, or the path of a file. JPEG, AVIF, lossy WebP and lossy TIFF files are COMPRESSED without being
            decoded; of all others at most the centre of NOISE_CROP pixels is kept.

    Noise of sigma 3 and more, JPEG of quality 95 and less that was saved again without loss, and Gaussian blur of
    sigma 2 and more are found. JPEG that was resized or shrunk afterwards is not.

    Raises RestortError for a file that cannot be decoded.
    """
    if isinstance(image, Picture):
        if image.format in _LOSSY:
            return COMPRESSED
        return measured_damage(_centre(image.pixels, NOISE_CROP))
    path = Path(image)
    try:
        with path.open("rb") as file:
            if _is_lossy(file):
                return COMPRESSED
        pixels = _decode_centre(path)
        return damage_of(read(path)) if pixels is None else measured_damage(pixels)
    except OSError as error:
        raise RestortError(f"cannot read {path}: {error.strerror or error}") from None


def measured_damage(pixels: Array) -> str | None:
    """Return what damaged these pixels, (H, W, 1 or 3) uint8 or uint16; None for undamaged ones."""
    if min(pixels.shape[:2]) < LEAST_SIZE:
        return None
    values: Float32 = pixels.astype(np.float32)
    if pixels.dtype == np.uint16:
        values /= np.float32(257)
    if values.shape[2] == 3 and np.array_equal(values[..., 0], values[..., 1]):
        values = values[..., 1:2]
    luma: Float32 = values[..., 0] if values.shape[2] == 1 else values @ np.array(LUMA, np.float32)
    centre = np.ascontiguousarray(_centre(luma, GRID_CROP))
    if not _is_drawing(_centre(values, GRID_CROP)) and grid_zeros(centre) >= GRID_ZEROS:
        return COMPRESSED
    if noise_sigma(values, luma) >= (NOISE_SIGMA if values.shape[2] == 3 else NOISE_SIGMA_GRAY):
        return NOISY
    return BLURRED if edge_ratio(centre) <= EDGE_RATIO else None


def _is_drawing(values: Float32) -> bool:
    """Return whether a colour picture has at most 256 colours, which no decoded JPEG has: shapes may follow a grid."""
    if values.shape[2] == 1:
        return False
    red, green, blue = np.moveaxis(values.astype(np.uint32), 2, 0)
    return np.unique(red << 16 | green << 8 | blue).size <= 256


def grid_zeros(luma: Float32) -> float:
    """Measure the 8 x 8 grid that JPEG leaves: quantization makes DCT coefficients of its blocks vanish.

    Of each of the 64 offsets of a grid, the mean number of coefficients below 0.5 in a block is counted (Nikoukhah et
    al., "ZERO", IPOL 2021, vote by the same count). Blocks that are constant down or across are left out: drawings have
    many of them, often on a grid of 8.

    luma   (H, W), 0 to 255

    Returns the count of the best offset minus the median of all.
    """
    height, width = luma.shape[0] - 7, luma.shape[1] - 7
    columns = sliding_window_view(luma, 8, axis=0) @ _DCT.T
    rows = sliding_window_view(columns, 8, axis=1)  # (height, width, vertical frequency, 8 columns)
    zeros = np.zeros((height, width), np.int64)
    down, across = np.zeros((height, width), bool), np.zeros((height, width), bool)  # where a block varies
    for frequency in range(8):
        small = np.abs(rows[:, :, frequency] @ _DCT.T) < 0.5
        if frequency > 0:
            down |= ~small.all(-1)
        across |= ~small[..., 1:].all(-1)
        zeros += small[..., frequency == 0 :].sum(-1)  # without the mean (frequency 0, 0)
    textures = down & across
    counts = np.zeros((8, 8))
    for y, x in np.ndindex(8, 8):
        textured = zeros[y::8, x::8][textures[y::8, x::8]]
        if textured.size == 0:
            return 0.0
        counts[y, x] = textured.mean()
    return float(counts.max() - np.median(counts))


def noise_sigma(values: Float32, luma: Float32) -> float:
    """Estimate the standard deviation of noise, in 8-bit steps, from the flattest blocks of 8 x 8.

    Immerkaer's Laplacian difference (CVIU 1996), the 2nd percentile over blocks that are neither near black nor near
    white. Of luma and two chroma differences the smallest counts: texture is strong in luma only.

    values   (H, W, 1 or 3), 0 to 255
    luma     (H, W)
    """
    inside = (luma > 8) & (luma < 247)
    planes = [luma]
    if values.shape[2] == 3:
        planes += [(values[..., other] - values[..., 1]) / np.float32(2**0.5) for other in (0, 2)]
    return min(_flattest(plane, inside) for plane in planes)


def _flattest(plane: Float32, inside: Array) -> float:
    second = plane[2:] - 2 * plane[1:-1] + plane[:-2]
    mixed = np.abs(second[:, 2:] - 2 * second[:, 1:-1] + second[:, :-2])
    # The mask [1 -2 1; -2 4 -2; 1 -2 1] multiplies white noise by 6; a mean of |x| is sqrt(2 / pi) sigma.
    sigmas = _block_means(mixed)[_block_means(inside[1:-1, 1:-1]) > 0.9] * (np.pi / 2) ** 0.5 / 6
    return float(np.percentile(sigmas, 2)) if sigmas.size >= 4 else 0.0


def _block_means(plane: Array) -> Array:
    height, width = plane.shape[0] // 8, plane.shape[1] // 8
    means: Array = plane[: height * 8, : width * 8].reshape(height, 8, width, 8).mean((1, 3))
    return means


def edge_ratio(luma: Float32) -> float:
    """Measure the sharpest edges: their gradient under a weak blur over that under a strong one; inf without edges.

    An edge that a Gaussian of sigma s has blurred gives sqrt((s^2 + 1.6^2) / (s^2 + 0.8^2)): 2 where s = 0, 1.25 where
    s = 2. The 90th percentile counts, so that one sharp plane before a blurred background is enough.

    luma   (H, W), 0 to 255
    """
    weak, strong = (_gradient(_gaussian(luma, sigma)) for sigma in (0.8, 1.6))
    edges = strong >= max(float(np.percentile(strong, 95)), 2.0)
    if edges.sum() <= 20:
        return float("inf")
    return float(np.percentile(weak[edges] / strong[edges], 90))


def _gaussian(plane: Float32, sigma: float) -> Float32:
    reach = int(4 * sigma + 0.5)
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    weights = (weights / weights.sum()).astype(np.float32)
    padded = np.pad(plane, reach, mode="edge")
    blurred: Float32 = (
        sliding_window_view(sliding_window_view(padded, 2 * reach + 1, 0) @ weights, 2 * reach + 1, 1)
        @ weights
    )
    return blurred


def _gradient(plane: Float32) -> Float32:
    across, down = np.zeros_like(plane), np.zeros_like(plane)
    across[:, 1:-1] = (plane[:, 2:] - plane[:, :-2]) / 2
    down[1:-1] = (plane[2:] - plane[:-2]) / 2
    length: Float32 = np.hypot(across, down)
    return length


def _centre(pixels: Array, edge: int) -> Array:
    top, left = (max(0, (size - edge) // 2) for size in pixels.shape[:2])
    return pixels[top : top + edge, left : left + edge]


def _decode_centre(path: Path) -> Array | None:
    """Decode the centre of a file, (H, W, 1 or 3); more only where the format must be decoded from its beginning.

    None where `read` must do it: for formats that libvips does not read, and for damaged files, whose error it raises.
    """
    image = open_lazily(path)
    if image is None:
        return None
    try:
        width, height = min(image.width, NOISE_CROP), min(image.height, NOISE_CROP)
        image = image.crop((image.width - width) // 2, (image.height - height) // 2, width, height)
        if image.format not in ("uchar", "ushort") or image.interpretation not in (
            "b-w",
            "grey16",
            "srgb",
            "rgb16",
            "rgb",
        ):
            image = image.colourspace("srgb").cast("uchar")
        colours = 1 if image.bands < 3 else 3
        return to_array(image)[..., :colours]
    except vips().Error:
        return None


def _is_lossy(file: BinaryIO) -> bool:
    """Return whether the header of a file says that its pixels were compressed with loss."""
    head = file.read(formats.HEAD)
    name = formats.sniff(head) if head else None
    if name in _LOSSY:
        return True
    if name == "webp":
        return _is_lossy_webp(file)
    return name == "tiff" and _tiff_compression(file, head) in _LOSSY_TIFF


def _is_lossy_webp(file: BinaryIO) -> bool:
    """Look for the chunk `VP8 ` (lossy) before `VP8L` (lossless), also in the first frame of an animation."""
    position = 12
    while True:
        file.seek(position)
        chunk = file.read(8)
        if len(chunk) < 8 or chunk[:4] == b"VP8L":
            return False
        if chunk[:4] == b"VP8 ":
            return True
        # A frame (ANMF) holds 16 bytes and then chunks of its own; other chunks are skipped, with their padding.
        size = int.from_bytes(chunk[4:], "little")
        position += 24 if chunk[:4] == b"ANMF" else 8 + size + size % 2


def _tiff_compression(file: BinaryIO, head: bytes) -> int | None:
    """Return the value of the tag Compression (259) in the first directory of a TIFF or BigTIFF."""
    order = "<" if head[:2] == b"II" else ">"
    try:
        big = struct.unpack_from(order + "H", head, 2)[0] == 43
        offset = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)[0]
        entry, count = (20, "Q") if big else (12, "H")
        file.seek(offset)
        (entries,) = struct.unpack(order + count, file.read(struct.calcsize(count)))
        for _ in range(min(entries, 4096)):
            fields = file.read(entry)
            if struct.unpack_from(order + "H", fields)[0] == 259:
                return int(struct.unpack_from(order + "H", fields, entry - (8 if big else 4))[0])
    except (struct.error, OSError, OverflowError, ValueError):
        pass  # reading the pixels will say what is wrong with the file
    return None
