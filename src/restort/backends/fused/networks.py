"""A network on the GPU in one precision: fused kernels for fp16 and bf16, PyTorch's operations for fp32.

`run` takes arrays of the host, `run_tensor` tensors of the device; both also return whether the result is finite.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch

from restort.backends.fused.architectures import planner_of
from restort.backends.fused.forward_pass import Pass
from restort.backends.fused.instances import Instance, Instances, Shape
from restort.backends.fused.pixels import HostResults, on_device, padded_shape, to_pixels, to_planes
from restort.kernels.gpu_target import gpu_target, planning_for
from restort.models.block_names import block_channels, block_names
from restort.models.memory_estimate import bytes_per_pixel
from restort.models.spec import Spec
from restort.models.torch_network import build
from restort.runner import Array
from restort.utils.integers import cdiv
from restort.weights.checkpoint import Weights

Tensor = Any
Notify = Callable[[str], None]
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class Network(Protocol):
    """The contract between FusedRunner and a network in one precision."""

    def run(self, x: Array) -> tuple[Array, bool]:
        """Run float32 (N, C, H, W) of the host; return the result, a new array, and whether it is finite."""

    def run_tensor(self, x: Tensor, check: bool) -> tuple[Tensor, bool]:
        """Run a tensor of the device in the order of the caller's stream. Without `check` it does not wait for the
        GPU and returns True."""

    def run_pixels(self, pixels: Array) -> tuple[Array, bool]:
        """Run uint8 or uint16 (H, W, C) of the host; return (H * scale, W * scale, C') of its type, clipped and
        rounded, and whether the network's result is finite."""

    def timer(self, x: Array) -> Callable[[], float]:
        """Copy x to the device; return a function that runs it and returns milliseconds."""

    def blocks(self, x: Array) -> dict[str, Array]:
        """Return every block's output, float32 (N, C, H, W) on the host, by name."""

    def bytes_per_pixel(self) -> int:
        """Return bytes of device memory per pixel of the input."""

    def clear(self) -> None:
        """Free the memory of all shapes."""


class FusedNetwork:
    """A network planned by restort.backends.fused.restormer_planner or .elan_planner."""

    def __init__(
        self, weights: Weights, precision: str, device: Any, count: int, limit: int, notify: Notify
    ) -> None:
        self.spec, self._device, self._dtype = weights.spec, device, TYPES[precision]
        self._planner: Any = planner_of(self.spec)
        self._packed: Any = self._planner.pack(weights, self._dtype).to(device)
        self._notify = notify
        self._per_pixel: int | None = None
        self.instances = Instances(self._make, count, limit)
        self._results = HostResults()

    def _make(self, shape: Shape) -> Instance:
        return Instance(lambda: self._plan(shape, self._device), self._device, self._notify)

    def _plan(self, shape: Shape, device: Any, keep_blocks: bool = False) -> Pass:
        # 'meta' needs no weights there: to arrange them on it, PyTorch would import SymPy and its compiler, 5 s
        packed = self._packed if device.type in (self._device.type, "meta") else self._packed.to(device)
        made: Pass = self._planner.plan(
            packed, self.spec, *shape, self._dtype, device, keep_blocks=keep_blocks
        )
        return made

    def run(self, x: Array) -> tuple[Array, bool]:
        instance = self.instances.get(_shape(x))
        host = torch.from_numpy(x)
        if instance.stream is None:
            with instance.lock, torch.no_grad():
                instance.input.copy_(host)
                instance.launch()
                return instance.output.numpy().copy(), not bool(instance.flags.any())
        with torch.no_grad():
            staged = host.pin_memory()
            result = torch.empty(instance.output.shape, dtype=torch.float32, pin_memory=True)
            flags = torch.empty(instance.flags.shape, dtype=torch.int32, pin_memory=True)
            done = torch.cuda.Event()
            with instance.lock, instance.on_stream():
                instance.input.copy_(staged, non_blocking=True)
                instance.launch()
                result.copy_(instance.output, non_blocking=True)
                flags.copy_(instance.flags, non_blocking=True)
                done.record(instance.stream)
            done.synchronize()
        return result.numpy(), not flags.numpy().any()

    def run_tensor(self, x: Tensor, check: bool) -> tuple[Tensor, bool]:
        instance = self.instances.get(_shape(x))
        with torch.no_grad():
            if instance.stream is None:
                with instance.lock:
                    instance.input.copy_(x)
                    instance.launch()
                    return instance.output.clone(), not bool(instance.flags.any())
            mine = torch.cuda.current_stream(self._device)
            result = torch.empty_like(instance.output)  # of the caller's stream, which outlives this call
            with instance.lock, instance.on_stream():
                instance.stream.wait_stream(mine)
                instance.input.copy_(x, non_blocking=True)
                instance.launch()
                result.copy_(instance.output, non_blocking=True)
                flags = instance.flags.clone() if check else None
                x.record_stream(instance.stream)
                result.record_stream(instance.stream)
                mine.wait_stream(instance.stream)
            if flags is None:
                return result, True
            flags.record_stream(mine)
            return result, not bool(flags.any())

    def run_pixels(self, pixels: Array) -> tuple[Array, bool]:
        n, _, height, width = padded_shape(pixels, self.spec.size_multiple)
        instance = self.instances.get((n, height, width))
        bits, shape = 8 * pixels.itemsize, _result_shape(pixels, self.spec)
        with torch.no_grad():
            if instance.stream is None:
                with instance.lock:
                    instance.input.copy_(to_planes(on_device(pixels, self._device), height, width))
                    instance.launch()
                    made = to_pixels(instance.output, *shape[:2], bits)
                    result = torch.from_numpy(np.empty(shape, made.numpy().dtype)).copy_(made)
                    return _typed(result.numpy(), bits), not bool(instance.flags.any())
            # on the caller's stream, while the GPU may compute the picture before
            planes = to_planes(on_device(pixels, self._device), height, width)
            target, array = self._results.take(shape, bits)
            flags = torch.empty(instance.flags.shape, dtype=torch.int32, pin_memory=True)
            done = torch.cuda.Event()
            mine = torch.cuda.current_stream(self._device)
            with instance.lock, instance.on_stream():
                instance.stream.wait_stream(mine)
                instance.input.copy_(planes, non_blocking=True)
                planes.record_stream(instance.stream)
                instance.launch()
                target.copy_(to_pixels(instance.output, *shape[:2], bits), non_blocking=True)
                flags.copy_(instance.flags, non_blocking=True)
                done.record(instance.stream)
            done.synchronize()
        return array, not flags.numpy().any()

    def timer(self, x: Array) -> Callable[[], float]:
        instance = self.instances.get(_shape(x))
        with instance.lock, instance.on_stream(), torch.no_grad():
            instance.input.copy_(torch.from_numpy(x))

        def once() -> float:
            with instance.lock, instance.on_stream(), torch.no_grad():
                return timed(instance.launch)

        return once

    def blocks(self, x: Array) -> dict[str, Array]:
        """Return every block's output, float32 (N, C, H, W), from a separate pass that keeps them."""
        instance = Instance(lambda: self._plan(_shape(x), self._device, True), self._device, self._notify)
        with instance.lock, instance.on_stream(), torch.no_grad():
            instance.input.copy_(torch.from_numpy(x))
            instance.launch()
            channels, found = block_channels(self.spec), {}
            for name, y in (instance.blocks or {}).items():
                planes = y[..., : channels[name]].permute(0, 3, 1, 2).float().cpu().numpy()
                found[name] = np.ascontiguousarray(planes)
        return found

    def bytes_per_pixel(self) -> int:
        if self._per_pixel is None:
            side = 512  # large enough that what does not grow with the picture hardly counts
            with planning_for(*gpu_target(self._device)):
                made = self._plan((1, side, side), torch.device("meta"))
            ends = 4 * (made.input.numel() + made.output.numel())
            self._per_pixel = cdiv(made.workspace.bytes + ends, side**2)
        return self._per_pixel

    def clear(self) -> None:
        self.instances.clear()


class PlainNetwork:
    """The reference network of restort.models in float32: the truth for other precisions, and their last fallback."""

    def __init__(self, weights: Weights, device: Any, dtype: Any = torch.float32) -> None:
        self.spec, self._device = weights.spec, device
        self.model: Any = build(weights.spec, weights.state, dtype).to(device)
        self._lock = threading.Lock()

    def _forward(self, x: Tensor) -> Tensor:
        scale = self.spec.value_range
        with torch.no_grad(), full_float32:
            return self.model(x * scale) / scale

    def run(self, x: Array) -> tuple[Array, bool]:
        y, finite = self.run_tensor(torch.from_numpy(x).to(self._device), True)
        return y.cpu().contiguous().numpy(), finite

    def run_tensor(self, x: Tensor, check: bool) -> tuple[Tensor, bool]:
        with self._lock:  # one picture's intermediates at a time
            y = self._forward(x.float())
            return y, not check or bool(y.isfinite().all())

    def run_pixels(self, pixels: Array) -> tuple[Array, bool]:
        _, _, height, width = padded_shape(pixels, self.spec.size_multiple)
        bits, shape = 8 * pixels.itemsize, _result_shape(pixels, self.spec)
        y, finite = self.run_tensor(
            to_planes(on_device(pixels, self._device), height, width).contiguous(), True
        )
        with torch.no_grad():
            return _typed(to_pixels(y, *shape[:2], bits).cpu().numpy(), bits), finite

    def timer(self, x: Array) -> Callable[[], float]:
        held = torch.from_numpy(x).to(self._device)

        def once() -> float:
            with self._lock:
                return timed(lambda: self._forward(held))

        return once

    def blocks(self, x: Array) -> dict[str, Array]:
        """Return every block's output, float32 (N, C, H, W)."""
        found: dict[str, Array] = {}

        def keep(name: str) -> Any:
            def hook(module: Any, inputs: Any, output: Any) -> None:
                found[name] = np.ascontiguousarray(output.cpu().numpy())

            return hook

        names = block_names(self.spec)
        with self._lock:
            handles = [self.model.get_submodule(n).register_forward_hook(keep(n)) for n in names]
            try:
                self._forward(torch.from_numpy(x).to(self._device))
            finally:
                for handle in handles:
                    handle.remove()
        return found

    def bytes_per_pixel(self) -> int:
        return bytes_per_pixel(self.spec)

    def clear(self) -> None:
        pass


def _result_shape(pixels: Array, spec: Spec) -> tuple[int, int, int]:
    return pixels.shape[0] * spec.scale, pixels.shape[1] * spec.scale, spec.out_channels


def _typed(array: Array, bits: int) -> Array:
    """An array of bytes as it is; of 16 bits as uint16."""
    return array if bits == 8 else array.view(np.uint16)


def timed(run: Callable[[], Any]) -> float:
    """Run and return milliseconds on the current stream, by CUDA events."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


class _FullFloat32:
    """Turns off TF32, which PyTorch allows in convolutions by default; contexts of several threads may overlap."""

    def __init__(self) -> None:
        self._lock, self._depth, self._before = threading.Lock(), 0, (False, False)

    def __enter__(self) -> None:
        with self._lock:
            if not self._depth:
                self._before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
                torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
            self._depth += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._depth -= 1
            if not self._depth:
                torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = self._before


full_float32 = _FullFloat32()


def _shape(x: Any) -> Shape:
    return int(x.shape[0]), int(x.shape[2]), int(x.shape[3])
