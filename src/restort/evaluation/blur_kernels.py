"""Read blur kernels from files and blur pictures with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from restort.errors import RestortError, UsageError
from restort.utils.extras import need

Float64: TypeAlias = NDArray[np.float64]
Centre: TypeAlias = Literal["stored", "box", "centroid"]


def read_kernels(path: Path, centre: Centre = "centroid") -> list[Float64]:
    """Return the blur kernels of a file: float64 arrays (k, k) of one odd size, each scaled to sum 1.

    Formats: MATLAB files of both kinds (HDF5 from 7.3 on) with a cell array of kernels or single matrices; NumPy's .npy
    of shape (k, k) or (n, k, k), and .npz. Smaller kernels are padded with zeros.

    centre   which point of a kernel stays in place when it blurs: the middle of the array as "stored", the
             middle of the "box" around all above 5 % of the peak, or the "centroid"; to whole pixels.

    Raises RestortError, one sentence, for anything else.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
        found = _kernels_of(path, head)
    except RestortError:
        raise
    except OSError as error:
        raise RestortError(f"cannot read the kernels {path}: {error.strerror or error}") from None
    except Exception as error:  # whatever h5py, scipy and NumPy raise at a damaged file
        raise RestortError(f"cannot read the kernels {path}: the file is damaged ({error})") from None
    kernels = [_checked(path, i, np.asarray(kernel)) for i, kernel in enumerate(found, 1)]
    if not kernels:
        raise RestortError(
            f"{path} holds no blur kernels; give a file with a cell array of them, or a .npy stack"
        )
    return _same_size([_centred(kernel, centre) for kernel in kernels])


def _kernels_of(path: Path, head: bytes) -> list[Any]:
    if head.startswith((b"MATLAB 7.3", b"\x89HDF")):
        return _from_hdf5(path)
    if head.startswith(b"MATLAB 5.0"):
        content = need("scipy.io", f"reading {path.name}").loadmat(str(path))
        values = [value for name, value in sorted(content.items()) if not name.startswith("__")]
        return [part for value in values for part in (value.ravel() if value.dtype == object else [value])]
    if head.startswith(b"\x93NUMPY"):
        stack = np.load(path, allow_pickle=False)
        return list(stack) if stack.ndim == 3 else [stack]
    if head.startswith(b"PK"):
        with np.load(path, allow_pickle=False) as archive:
            return [archive[name] for name in archive.files]
    raise RestortError(f"{path} is no file of kernels known here; give a MATLAB .mat file, a .npy or a .npz")


def _from_hdf5(path: Path) -> list[Any]:
    h5py = need("h5py", f"reading {path.name}")
    found: list[Any] = []
    with h5py.File(path, "r") as file:
        for name in sorted(file):
            if name.startswith("#") or not isinstance(file[name], h5py.Dataset):
                continue
            value = file[name][()]
            parts = [file[part][()] for part in value.ravel()] if value.dtype == object else [value]
            found += [part.T for part in parts]  # MATLAB writes columns first
    return found


def _checked(path: Path, number: int, kernel: NDArray[Any]) -> Float64:
    if kernel.ndim != 2 or kernel.dtype.kind not in "fiu" or 0 in kernel.shape:
        raise RestortError(f"{path}: entry {number} (shape {kernel.shape}) is not a matrix of numbers")
    kernel = kernel.astype(np.float64)
    if not np.isfinite(kernel).all() or kernel.min() < 0 or not kernel.sum() > 0:
        raise RestortError(f"{path}: kernel {number} holds negative or infinite numbers, or only zeros")
    return np.asarray(kernel / kernel.sum())


def _centred(kernel: Float64, centre: Centre) -> Float64:
    """Return the kernel in a square array of odd size, with the chosen point in the middle."""
    if centre == "stored":
        middle = [n // 2 for n in kernel.shape]
    elif centre == "box":
        seen = np.nonzero(kernel > 0.05 * kernel.max())
        middle = [round(float(index.min() + index.max()) / 2) for index in seen]
    elif centre == "centroid":
        grid = np.indices(kernel.shape)
        middle = [round(float((axis * kernel).sum())) for axis in grid]
    else:
        raise UsageError(f"a kernel's centre is stored, box or centroid, not {centre}")
    reach = max(max(m, n - 1 - m) for m, n in zip(middle, kernel.shape, strict=True))
    room = np.zeros((2 * reach + 1, 2 * reach + 1))
    top, left = (reach - m for m in middle)
    room[top : top + kernel.shape[0], left : left + kernel.shape[1]] = kernel
    return room


def _same_size(kernels: list[Float64]) -> list[Float64]:
    size = max(len(kernel) for kernel in kernels)
    return [np.pad(kernel, (size - len(kernel)) // 2) for kernel in kernels]


def blur(image: NDArray[Any], kernel: Float64) -> Float64:
    """Convolve `image` (H, W, C) with `kernel` (k, k), k odd; return (H - k + 1, W - k + 1, C), without borders.

    This is a convolution, not a correlation: a point becomes the kernel. Pixel (0, 0) of the result lies over pixel
    (k // 2, k // 2) of the image.
    """
    signal = need("scipy.signal", "blurring")
    if min(image.shape[:2]) < len(kernel):
        raise RestortError(
            f"a picture of {image.shape[1]} x {image.shape[0]} pixels is smaller than the kernel "
            f"({len(kernel)} pixels)"
        )
    return np.asarray(
        signal.fftconvolve(image.astype(np.float64), kernel[:, :, None], mode="valid", axes=(0, 1))
    )
