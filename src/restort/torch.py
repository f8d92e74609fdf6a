"""RestoRT's GPU kernels inside a PyTorch program: `fuse` makes a module that takes a network's place.

    import restort.torch

    model = restort.torch.fuse(model)     # a Restormer or an ELAN with its weights, from any code
    with torch.no_grad():
        y = model(x)                      # the same shapes and ranges as before

It needs the extra `fused` and, to be faster than before, an NVIDIA GPU; tensors on other devices go through the module
itself. `fuse` is for inference: it has no backward pass.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from typing import TYPE_CHECKING, Any

from restort.errors import RestortError, UsageError
from restort.utils.extras import install_command

try:
    import torch
except ImportError:
    raise RestortError(
        f"restort.torch needs PyTorch, which is not installed; install it with: {install_command('fused')}"
    ) from None
from torch import nn

from restort.models.spec import Spec
from restort.models.torch_network import build
from restort.tiling.padding import reflect_index
from restort.utils.integers import round_up
from restort.weights.checkpoint import Weights, weights_from_state

if TYPE_CHECKING:
    from restort.runner import Runner

Tensor = Any

__all__ = ["FusedModule", "fuse"]

PRECISIONS = ("fp16", "bf16", "fp32")
AGREEMENT = 5e-3
"""Largest relative L2 distance, in float32 or TF32, between the given module and the network its weights are of."""


def fuse(model: nn.Module, precision: str = "fp16", *, check_finite: bool = True) -> FusedModule:
    """Make a module that computes what `model` computes, by RestoRT's kernels where the input is on a GPU.

    model         a Restormer or an ELAN: recognised by the names and shapes in its `state_dict()`, whoever wrote its
                  code. It is put into evaluation mode.
    precision     'fp16' or 'bf16': activations and products; sums are float32. 'fp32': PyTorch's own operations.
    check_finite  compute a result that holds NaN or infinity again in bf16, then float32. The check waits for the GPU
                  after every call; without it a call returns as soon as its kernels are queued.

    The weights are copied: call `refresh()` after changing them in place (`load_state_dict` does so by itself).
    Raises UsageError for an unknown precision, RestortError where the weights are of another network, or where
    `model` computes something else from them than the published network (tried on a small input).
    """
    return FusedModule(model, precision, check_finite=check_finite)


class FusedModule(nn.Module):
    """A network of RestoRT's kernels with the interface of the module that it replaces; made by `fuse`.

    module   the given network, without a DataParallel around it: keeps the parameters, and computes where x is not on
             a GPU.
    spec     its hyper-parameters (restort.models.spec).
    """

    def __init__(self, module: nn.Module, precision: str = "fp16", *, check_finite: bool = True) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise UsageError(f"unknown precision {precision!r}; use one of {', '.join(PRECISIONS)}")
        parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
        self.module = (module.module if isinstance(module, parallel) else module).eval()
        self.precision, self.check_finite = precision, check_finite
        self._runners: dict[Any, Runner] = {}
        self._lock = threading.Lock()
        self._number = next(_numbers)
        _modules[self._number] = self
        self.refresh()
        mine = weakref.ref(self)  # the module outlives this one, perhaps
        self.module.register_load_state_dict_post_hook(lambda *_: _refresh(mine()))

    def train(self, mode: bool = True) -> FusedModule:
        """Stay in evaluation mode, which is the only one."""
        super().train(False)
        return self

    def refresh(self) -> None:
        """Read the weights of `module` again. Raises RestortError as `fuse` does."""
        state = {
            name: value.detach().float().cpu().numpy() for name, value in self.module.state_dict().items()
        }
        weights = weights_from_state(state, type(self.module).__name__)
        self._check(weights)
        self.spec: Spec = weights.spec
        with self._lock:
            self._weights = weights
            runners, self._runners = list(self._runners.values()), {}
        for runner in runners:
            runner.close()

    def _check(self, weights: Weights) -> None:
        """Raise RestortError unless the module computes what the published network computes from its weights."""
        spec, name = weights.spec, type(self.module).__name__
        device = next(self.module.parameters()).device
        shape = (1, spec.in_channels, 2 * spec.size_multiple, 2 * spec.size_multiple)
        x = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * spec.value_range
        state = {
            key: value.float() if value.is_floating_point() else value
            for key, value in self.module.state_dict().items()
        }
        with torch.no_grad():
            expected = build(spec, weights.state)(x)
            found = torch.func.functional_call(self.module, state, (x.to(device),))
        if not isinstance(found, torch.Tensor) or found.shape != expected.shape:
            kind = list(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise RestortError(
                f"cannot fuse {name}: it returns {kind}, not one tensor of shape {list(expected.shape)}"
            )
        distance = float((found.float().cpu() - expected).norm() / expected.norm())
        if not distance <= AGREEMENT:
            raise RestortError(
                f"cannot fuse {name}: its results differ from those of a published {spec.architecture} with its "
                f"weights (relative L2 {distance:.1e}); its forward pass is another one"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Run the network.

        x         (N, C, H, W) of any floating-point type, in the network's range ([0, 1]; ELAN [0, rgb_range]); any
                  height and width, padded by reflection to the network's multiple and cropped again.
        returns   (N, C', H * scale, W * scale) in the type of x, not clipped.

        Raises RestortError where x wants a gradient, UsageError for another shape or type.
        """
        spec = self.spec
        if x.dim() != 4 or x.shape[1] != spec.in_channels or not x.is_floating_point():
            raise UsageError(
                f"a fused network takes a floating-point tensor (N, {spec.in_channels}, H, W), not {x.dtype} "
                f"{list(x.shape)}"
            )
        if x.requires_grad and torch.is_grad_enabled():
            raise RestortError(
                "a fused network has no backward pass; call it under torch.no_grad(), or the module it was made of"
            )
        if self._has_kernels(x):
            return _run_op(x, self._number)
        with torch.no_grad():
            padded = _padded(x, spec.size_multiple)
            return self.module(padded)[..., : x.shape[2] * spec.scale, : x.shape[3] * spec.scale]

    def _has_kernels(self, x: Tensor) -> bool:
        return bool(x.is_cuda)

    def run_kernels(self, x: Tensor) -> Tensor:
        """Run the kernels on x, as `forward` does for a tensor on a GPU."""
        spec, unit = self.spec, self.spec.value_range
        x32 = _padded(x.detach().float(), spec.size_multiple)
        inputs = x32.contiguous() if unit == 1 else x32 / unit  # a runner takes [0, 1]
        y = self._runner(x.device).run_tensor(inputs, check=self.check_finite)  # type: ignore[attr-defined]
        y = y[..., : x.shape[2] * spec.scale, : x.shape[3] * spec.scale]
        return (y if unit == 1 else y * unit).to(x.dtype).contiguous()

    def _runner(self, device: Any) -> Runner:
        """Return the runner of a device, made on first use."""
        with self._lock:
            if device not in self._runners:
                self._runners[device] = _make_runner(self._weights, self.precision, device)
            return self._runners[device]


_numbers = itertools.count()
_modules: weakref.WeakValueDictionary[int, FusedModule] = weakref.WeakValueDictionary()


def _refresh(module: FusedModule | None) -> None:
    if module is not None:
        module.refresh()


def _make_runner(weights: Weights, precision: str, device: Any) -> Runner:
    from restort.backends.registry import create

    with torch.cuda.device(device):
        return create(weights, "fused", precision)


def _padded(x: Tensor, multiple: int) -> Tensor:
    """Pad (N, C, H, W) by reflection at the bottom and on the right to multiples of `multiple`."""
    for axis in (2, 3):
        size = x.shape[axis]
        if size % multiple:
            index = torch.from_numpy(reflect_index(size, round_up(size, multiple)))
            x = x.index_select(axis, index.to(x.device))
    return x


# One operator for all fused modules, so that torch.compile of a program around them sees a single opaque call.


@torch.library.custom_op("restort::fused_network", mutates_args=())
def _run_op(x: torch.Tensor, number: int) -> torch.Tensor:
    return _modules[number].run_kernels(x)


@_run_op.register_fake
def _(x: torch.Tensor, number: int) -> torch.Tensor:
    spec = _modules[number].spec
    n, _, h, w = x.shape
    return x.new_empty((n, spec.out_channels, h * spec.scale, w * spec.scale))
