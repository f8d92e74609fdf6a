"""Feature maps that are too large to pass around: held as a whole in memory or in a file, used by strips of rows.

A file is read and written, not mapped: mapped pages would count, and grow, as the memory of the process.
It has no name where the system allows that (or is deleted on closing), so that nothing is left behind even after
`kill -9`.
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

Tensor: TypeAlias = Any  # torch.Tensor; PyTorch is not followed by mypy
Shape: TypeAlias = tuple[int, int, int, int]


class FeatureMap(Protocol):
    """(N, H, W, C), pixels in rows, channels last: a strip of rows of one image is one piece of memory."""

    shape: Shape

    def read(self, a: int, b: int) -> Tensor:
        """Rows a up to, not including, b: (N, b - a, W, C), not to be changed; it may be a view."""

    def write(self, a: int, rows: Tensor) -> None:
        """Replaces the rows from a on."""

    def close(self) -> None:
        """Gives back the memory or the file; may be called twice."""


class MemoryMap:
    """One tensor, `kept` on the device that computes (where reading gives views) or in the computer's memory."""

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
    """One temporary file, image after image. Raises RestortError where the disk is full or fails."""

    def __init__(self, shape: Shape, dtype: Any, device: Any, folder: Path) -> None:
        self.shape = shape
        self._dtype, self._device, self._folder = dtype, device, folder
        self._row = shape[2] * shape[3] * dtype.itemsize  # bytes
        needed = shape[0] * shape[1] * self._row
        try:
            free = shutil.disk_usage(folder).free
            if free < needed:
                raise RestortError(
                    f"--tile exact needs {_gib(needed)} GiB more for a temporary file, and {folder} has "
                    f"{_gib(free)} GiB left; free some space, or name another folder in the variable TMPDIR"
                )
            # Without a buffer it is a raw file, whatever its type says.
            self._file: Any = tempfile.TemporaryFile(prefix="restort-", dir=folder, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise self._trouble(error) from None

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
                raise self._trouble(error) from None
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
                raise self._trouble(error) from None

    def close(self) -> None:
        self._file.close()

    def _trouble(self, error: OSError) -> RestortError:
        return RestortError(
            f"a temporary file in {self._folder} failed ({error.strerror or error}); free some space there, or name "
            "another folder in the variable TMPDIR"
        )


class Store:
    """Makes the maps of one run, all in memory (`kept` on which device) or all in files of `folder`, and closes those
    that are left."""

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

    def __exit__(self, *trouble: object) -> None:
        for made in self._open:
            made.close()


def temporary_folder() -> Path:
    """Where large temporary files go: TMPDIR if it is set, else /var/tmp, because /tmp is often memory itself."""
    usual = Path("/var/tmp")
    if not os.environ.get("TMPDIR") and os.access(usual, os.W_OK):
        return usual
    return Path(tempfile.gettempdir())


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.1f}"
