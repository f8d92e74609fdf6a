"""Large feature maps, stored in memory or in a file, read and written by strips of rows.

Files are read and written instead of mapped, because mapped pages count as memory of the process. A file has no name
where the system allows that (elsewhere it is deleted on closing), so nothing is left behind even after `kill -9`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch

from restort.errors import RestortError
from restort.runner import Notify

Tensor: TypeAlias = Any  # torch.Tensor; PyTorch is not followed by mypy
Shape: TypeAlias = tuple[int, int, int, int]


class FeatureMap(Protocol):
    """(N, H, W, C), channels last: a strip of rows of one image is contiguous."""

    shape: Shape

    def read(self, a: int, b: int) -> Tensor:
        """Return rows a to b - 1, (N, b - a, W, C). They may be a view: do not change them."""

    def write(self, a: int, rows: Tensor) -> None:
        """Replace the rows from a on."""

    def close(self) -> None:
        """Free the memory or the file. A second call does nothing."""


class MemoryMap:
    """One tensor.

    device   that computes
    kept     device that holds the tensor; reading gives views where it is the one that computes
    """

    def __init__(self, shape: Shape, dtype: Any, device: Any, kept: Any = None) -> None:
        self.shape = shape
        self._device = device
        self._all: Tensor = torch.empty(shape, dtype=dtype, device=device if kept is None else kept)

    def read(self, a: int, b: int) -> Tensor:
        return self._all[:, a:b].to(self._device)

    def write(self, a: int, rows: Tensor) -> None:
        self._all[:, a : a + rows.shape[1]] = rows

    def close(self) -> None:
        self._all = None


class FileMap:
    """One temporary file, one image after the other. Raises RestortError where the disk is full or fails."""

    def __init__(self, shape: Shape, dtype: Any, device: Any, folder: Path) -> None:
        self.shape = shape
        self._dtype, self._device, self._folder = dtype, device, folder
        self._row = shape[2] * shape[3] * dtype.itemsize  # bytes
        needed = shape[0] * shape[1] * self._row
        check_space(folder, needed)
        try:
            # With buffering=0 it is a raw file; the annotation of tempfile says otherwise.
            self._file: Any = tempfile.TemporaryFile(prefix="restort-", dir=folder, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise _failure(folder, error) from None

    def read(self, a: int, b: int) -> Tensor:
        n, height, width, channels = self.shape
        rows = torch.empty((n, b - a, width, channels), dtype=self._dtype)
        for i in range(n):
            view = memoryview(rows[i].numpy().reshape(-1).view(np.uint8))
            try:
                self._file.seek((i * height + a) * self._row)
                while len(view):
                    count = self._file.readinto(view)
                    if not count:
                        raise OSError("the file ends too early")
                    view = view[count:]
            except OSError as error:
                raise _failure(self._folder, error) from None
        return rows.to(self._device)

    def write(self, a: int, rows: Tensor) -> None:
        height = self.shape[1]
        for i, image in enumerate(rows.to("cpu", self._dtype).contiguous()):
            view = memoryview(image.numpy().reshape(-1).view(np.uint8))
            try:
                self._file.seek((i * height + a) * self._row)
                while len(view):  # a raw file writes at most 2 GiB at once
                    view = view[self._file.write(view) :]
            except OSError as error:
                raise _failure(self._folder, error) from None

    def close(self) -> None:
        self._file.close()


def check_space(folder: Path, needed: int, notify: Notify | None = None) -> None:
    """Raise RestortError where `folder` lacks space for files of so many bytes; otherwise report their size."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise _failure(folder, error) from None
    if free < needed:
        raise RestortError(
            f"not enough space for the temporary files of --tile exact: {folder} has {_gib(free)} GiB left of "
            f"{_gib(needed)} GiB needed; free some space, or set TMPDIR to another folder"
        )
    if notify is not None:
        notify(
            f"--tile exact keeps up to {_gib(needed)} GiB in temporary files in {folder} ({_gib(free)} GiB free)"
        )


def _failure(folder: Path, error: OSError) -> RestortError:
    return RestortError(
        f"a temporary file in {folder} failed: {error.strerror or error}; free some space there, or set "
        "TMPDIR to another folder"
    )


class Store:
    """The maps of one run; leaving it as a context manager closes them.

    device   that computes
    folder   for files; None to keep all maps in memory
    kept     device that holds maps in memory; None for `device`
    """

    def __init__(self, dtype: Any, device: Any, folder: Path | None, kept: Any = None) -> None:
        self._dtype, self._device, self._folder, self._kept = dtype, device, folder, kept
        self._open: list[FeatureMap] = []

    def new(self, shape: Shape) -> FeatureMap:
        made: FeatureMap
        if self._folder is None:
            made = MemoryMap(shape, self._dtype, self._device, self._kept)
        else:
            made = FileMap(shape, self._dtype, self._device, self._folder)
        self._open.append(made)
        return made

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        for made in self._open:
            made.close()


def temporary_folder() -> Path:
    """Return the folder for large temporary files: TMPDIR if set, otherwise /var/tmp, as /tmp is often in memory."""
    usual = Path("/var/tmp")
    if not os.environ.get("TMPDIR") and os.access(usual, os.W_OK):
        return usual
    return Path(tempfile.gettempdir())


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.1f}"
