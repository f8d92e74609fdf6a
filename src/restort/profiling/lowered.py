"""Run a section of the reference network in a lower precision, as an engine computes it, on any processor.

Rounded to 16 bits is what an engine stores in 16 bits: the input of the section, the weights of convolutions, and the
result of every operation. Sums run in float32, as on tensor cores. What the graph keeps in float32 (restort.export) is
not rounded: the statistics and arithmetic of layer normalisation, the norms of q and k, the scores and softmax. Half
precision of PyTorch on a processor would be ten times slower and would take all of these in half, too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from restort.models.spec import RestormerSpec, Spec

Low: TypeAlias = Literal["fp16", "bf16"]
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}

_FLOAT32 = "_restort_wide"  # marks tensors that an engine keeps in float32
_WIDENING = {"var_mean", "normalize"}
_NARROWING = {"to", "scaled_dot_product_attention"}
_EXACT = {  # no arithmetic: views, copies, queries
    *(
        "view",
        "reshape",
        "permute",
        "transpose",
        "chunk",
        "unbind",
        "cat",
        "pad",
        "roll",
        "contiguous",
        "float",
    ),
    *(
        "__getitem__",
        "__get__",
        "size",
        "dim",
        "stride",
        "is_contiguous",
        "relu",
        "pixel_shuffle",
        "pixel_unshuffle",
    ),
}


def modules_of(section: str, spec: Spec) -> tuple[str, ...]:
    """Return the names of the modules in a section of restort.export.form.sections."""
    if not isinstance(spec, RestormerSpec):
        return {"head": ("sub_mean", "head"), "tail": ("tail", "add_mean")}.get(section, (section,))
    if section == "patch_embed":
        return ("patch_embed.proj",)
    if section.startswith("up") and not section.endswith("_1"):
        return (section, f"reduce_chan_level{section[-1]}")
    if section == "output" and spec.dual_pixel:
        return ("skip_conv", "output")
    return (section,)


class Rounding(TorchFunctionMode):  # type: ignore[misc]
    """A mode in which the results of PyTorch functions are rounded to `kind`."""

    def __init__(self, kind: torch.dtype) -> None:
        super().__init__()
        self.kind = kind

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "")
        in_float32 = name in _WIDENING or (
            name not in _NARROWING and any(isinstance(a, Tensor) and hasattr(a, _FLOAT32) for a in args)
        )
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and in_float32:
                setattr(tensor, _FLOAT32, True)
        if in_float32 or name in _EXACT or not isinstance(result, Tensor) or not result.is_floating_point():
            return result
        return rounded(result, self.kind)


def rounded(x: Tensor, kind: torch.dtype) -> Tensor:
    """Round x to the values of `kind`, keeping its type; float16 overflows to infinity."""
    return x.to(kind).to(x.dtype)


@contextlib.contextmanager
def lowered(network: nn.Module, sections: Any, spec: Spec, low: Low) -> Iterator[None]:
    """Compute `sections` of `network` in `low` within the context; restore the network afterwards."""
    kind = TYPES[low]
    undo: list[Callable[[], object]] = []
    try:
        for section in sections:
            for name in modules_of(section, spec):
                module = network.get_submodule(name)
                undo += _round_weights(module, kind)
                mode = Rounding(kind)
                undo.append(module.register_forward_pre_hook(_enter(mode)).remove)
                undo.append(module.register_forward_hook(_leave(mode), always_call=True).remove)
        yield
    finally:
        for step in reversed(undo):
            step()


def _enter(mode: Rounding) -> Callable[..., Any]:
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        inputs = tuple(rounded(x, mode.kind) if isinstance(x, Tensor) else x for x in inputs)
        mode.__enter__()
        return inputs

    return hook


def _leave(mode: Rounding) -> Callable[..., Any]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        mode.__exit__(None, None, None)

    return hook


def _round_weights(module: nn.Module, kind: torch.dtype) -> list[Callable[[], object]]:
    """Round the weights of all convolutions in `module`; return functions that restore them."""
    undo: list[Callable[[], object]] = []
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            for parameter in (part.weight, part.bias):
                if parameter is not None:
                    undo.append(_restore(parameter, parameter.data))
                    parameter.data = rounded(parameter.data, kind)
    return undo


def _restore(parameter: Tensor, values: Tensor) -> Callable[[], object]:
    def restore() -> None:
        parameter.data = values

    return restore


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """Fold every BatchNorm of `network` into the convolution before it, as engines do; return the network."""
    for part in list(network.modules()):
        if isinstance(part, nn.Sequential) and len(part) == 2 and isinstance(part[1], nn.BatchNorm2d):
            part[0] = nn.utils.fusion.fuse_conv_bn_eval(part[0], part[1])
            part[1] = nn.Identity()
    return network
