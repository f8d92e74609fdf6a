"""The runner of the backend `fused`: a network on an NVIDIA GPU, its passes CUDA graphs of fused kernels."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from restort.backends.fused.networks import FusedNetwork, Network, PlainNetwork, full_float32
from restort.backends.fused.pixels import padded_shape
from restort.backends.precision_fallback import PRECISION_FALLBACK, FallbackWarning, run_with_fallback
from restort.errors import OutOfMemory, RestortError, UsageError, not_finite
from restort.kernels import nvrtc
from restort.runner import Array, Runner, check_shape, checked, checked_rows, closed
from restort.utils.array_types import Rows
from restort.weights.checkpoint import Weights

Tensor = Any
Result = TypeVar("Result")

PRECISIONS = ("fp16", "bf16", "fp32")
SHAPES = 8
"""The number of shapes that stay ready to run."""

_log = logging.getLogger("restort")


class FusedRunner(Runner):
    """A network on the current CUDA device.

    precision   'fp16' or 'bf16': storage and matrix products; statistics and sums are float32. 'fp32': PyTorch's own
                operations, for comparison and as the last resort.
    shapes      graphs of so many shapes are kept; `limit` bounds their bytes (default: half of the device's memory).
    device      for tests: 'cpu' runs the kernels in Triton's interpreter, without graphs.

    Several threads may call one runner, and several runners may exist at once. `notify` reports what takes long, `warn`
    once that results had to be computed in another precision. Raises RestortError if kernels cannot be compiled,
    OutOfMemory if the device's memory is not enough.
    """

    name = "fused"

    def __init__(
        self,
        weights: Weights,
        precision: str = "fp16",
        threads: int | None = None,
        *,
        shapes: int = SHAPES,
        limit: int | None = None,
        device: str | None = None,
    ) -> None:
        self.precision = precision
        self.spec = weights.spec
        self.notify: Callable[[str], None] = _log.info
        self.warn: Callable[[str], None] = _log.warning
        self._weights: Weights | None = weights
        self._device = torch.device(device or f"cuda:{torch.cuda.current_device()}")
        if limit is None:
            limit = 1 << 34 if self._device.type == "cpu" else _total(self._device) // 2
        self._shapes, self._limit = shapes, limit
        self._networks: dict[str, Network] = {}
        self._lock = threading.Lock()
        self._warn_fallback = FallbackWarning()
        self._warned_nvrtc = False
        self._guarded(lambda: self._network(precision))

    def __call__(self, x: Array) -> Array:
        x = checked(x, self.spec)
        return self._run_with_fallback(
            lambda network: network.run(x), lambda: bool(np.isfinite(x).all()), x.shape
        )

    def restore_pixels(self, pixels: Array) -> Array:
        shape, finite = padded_shape(pixels, self.spec.size_multiple), False
        check_shape(shape, self.spec)

        def run(network: Network) -> tuple[Array, bool]:
            nonlocal finite
            made, finite = network.run_pixels(pixels)
            return made, finite

        made = self._run_with_fallback(run, lambda: True, shape)
        if not finite:
            raise not_finite()
        return made

    def run_tensor(self, x: Tensor, *, check: bool = True) -> Tensor:
        """Run a tensor of the device: (N, C, H, W) in [0, 1] -> float32 (N, C', H * scale, ...).

        The result is ready for the caller's current stream. `check=False` skips the check for NaN and infinity, and
        with it the wait for the GPU.
        """
        if not isinstance(x, torch.Tensor) or x.device != self._device:
            raise RestortError(f"run_tensor takes a tensor on {self._device}; for others call the runner")
        check_shape(tuple(x.shape), self.spec)
        return self._run_with_fallback(
            lambda network: network.run_tensor(x, check), lambda: bool(x.isfinite().all()), tuple(x.shape)
        )

    def _run_with_fallback(
        self,
        run: Callable[[Network], tuple[Result, bool]],
        input_is_finite: Callable[[], bool],
        shape: tuple[int, ...],
    ) -> Result:
        """Run in this precision and, while the result is not finite although the input is, in safer ones."""
        if not self._warned_nvrtc:
            self._warn_without_nvrtc()
        return run_with_fallback(
            PRECISION_FALLBACK[self.precision],
            lambda precision: self._guarded(partial(self._once, precision, run), shape),
            input_is_finite,
            partial(self._warn_fallback, self.warn),
        )

    def _once(self, precision: str, run: Callable[[Network], Result]) -> Result:
        return run(self._network(precision))

    def _warn_without_nvrtc(self) -> None:
        """Warn once if kernels in CUDA C++ cannot be compiled."""
        with self._lock:
            first, self._warned_nvrtc = not self._warned_nvrtc, True
        if first and self._device.type == "cuda" and self.precision != "fp32" and not nvrtc.available():
            self.warn(
                f"NVRTC cannot be loaded, so the fastest kernels are not used; install it with: {nvrtc.REMEDY}"
            )

    def _network(self, precision: str) -> Network:
        with self._lock:
            weights = self._weights
            if weights is None:
                raise closed(self.name)
            if precision not in self._networks:
                self._networks[precision] = (
                    PlainNetwork(weights, self._device)
                    if precision == "fp32"
                    else FusedNetwork(
                        weights,
                        precision,
                        self._device,
                        self._shapes,
                        self._limit,
                        lambda line: self.notify(line),
                    )
                )
            return self._networks[precision]

    def _guarded(self, run: Callable[[], Result], shape: tuple[int, ...] | None = None) -> Result:
        """Return `run()`; if it runs out of memory, free that of all shapes and try once more."""
        try:
            return run()
        except Exception as error:
            self._explain(error)
        # Not in the except clause: there the error keeps alive the frames that hold the memory.
        for network in list(self._networks.values()):
            network.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            return run()
        except Exception as error:
            self._explain(error)
        what = "this network" if shape is None else f"an array of shape {list(shape)}"
        raise OutOfMemory(f"out of memory on {self.device} for {what}")

    def _explain(self, error: Exception) -> None:
        """Raise the error, or a clearer one, unless it says that memory ran out."""
        if out_of_memory(error):
            return
        if "C compiler" in str(error):
            raise RestortError(
                "no C compiler found, which Triton needs to launch kernels; install gcc or set CC"
            ) from None
        raise error

    @property
    def device(self) -> str:
        """The GPU's name."""
        if self._device.type == "cpu":
            return "the CPU (Triton's interpreter)"
        return str(torch.cuda.get_device_name(self._device))

    def device_peak_bytes(self) -> int:
        """Return the peak of this process's tensors on the device so far."""
        return int(torch.cuda.max_memory_allocated(self._device)) if self._device.type == "cuda" else 0

    def tile_memory(self) -> tuple[int, int]:
        """Return (bytes of the device that an image may take now, bytes per pixel of the input)."""
        network = self._guarded(lambda: self._network(self.precision))
        if self._device.type == "cpu":
            return 1 << 32, network.bytes_per_pixel()
        free, _ = torch.cuda.mem_get_info(self._device)
        kept = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        held = network.instances.bytes if isinstance(network, FusedNetwork) else 0  # can be freed
        return int(0.9 * (free + kept + held)), network.bytes_per_pixel()

    def timer(self, x: Array) -> Callable[[], float]:
        """Copy x to the device; return a function that runs it and returns milliseconds, by CUDA events."""
        x = checked(x, self.spec)
        network = self._network(self.precision)
        return self._guarded(lambda: network.timer(x), x.shape)

    def blocks(self, x: Array) -> dict[str, Array]:
        """Return every block's output, float32 (N, C, H, W), by name."""
        x = checked(x, self.spec)
        network = self._network(self.precision)
        return self._guarded(lambda: network.blocks(x), x.shape)

    def exact(
        self,
        x: Array | Rows,
        *,
        memory_bytes: int,
        folder: Path,
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[tuple[int, Array]]:
        """Yield the result of the whole image, strip by strip, by PyTorch's operations (restort.backends.strips).

        In float16 for a runner in fp16, else in float32.
        """
        from restort.backends.strips.network import GPU_CELL_BYTES, StripNetwork

        if not self.spec.whole_image:
            raise UsageError("strips are for Restormer; run an ELAN on the whole image or on tiles")
        x = checked_rows(x, self.spec)
        dtype = torch.float16 if self.precision == "fp16" else torch.float32
        strips = StripNetwork(self._guarded(lambda: self._plain(dtype)).model)
        for network in list(self._networks.values()):
            network.clear()
        room, cell = 0, None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            free, _ = torch.cuda.mem_get_info(self._device)
            cell = min(GPU_CELL_BYTES, free // 32)
            room = free - 12 * cell  # a dozen tensors of a cell live at a time
        with full_float32:
            yield from strips.stream(
                x,
                memory_bytes=memory_bytes,
                folder=folder,
                cell_bytes=cell,
                device_bytes=room,
                progress=progress,
                notify=self.notify,
            )

    def _plain(self, dtype: Any) -> PlainNetwork:
        """Return a new PyTorch network for strips."""
        with self._lock:
            if self._weights is None:
                raise closed(self.name)
            return PlainNetwork(self._weights, self._device, dtype)

    def close(self) -> None:
        with self._lock:
            networks, self._networks, self._weights = list(self._networks.values()), {}, None
        for network in networks:
            network.clear()


def out_of_memory(error: BaseException) -> bool:
    """Return whether the error says that memory ran out: PyTorch's own, or the driver's through Triton."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "out of memory" in str(error).lower()


def _total(device: Any) -> int:
    return int(torch.cuda.get_device_properties(device).total_memory)
