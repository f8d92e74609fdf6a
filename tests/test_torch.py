"""restort.torch.fuse: a module in another's place, on the CPU as it was, by kernels in Triton's interpreter."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import restort
from restort.errors import RestortError, UsageError
from restort.models.spec import Spec
from restort.tiling.padding import pad_to_multiple
from restort.weights.checkpoint import load_weights
from tests.fakes import triton_interpreter
from tests.fakes.fake_backend import ELAN, RESTORMER, write_weights

torch = pytest.importorskip("torch")

from restort.models.torch_network import build  # noqa: E402
from restort.torch import FusedModule, fuse  # noqa: E402

SPECS: dict[str, Spec] = {"restormer": RESTORMER, "elan": replace(ELAN[2], channels=20)}


def network(spec: Spec, folder: Path, seed: int = 0) -> Any:
    weights = load_weights(write_weights(folder / f"{seed}.safetensors", spec, seed))
    return build(spec, weights.state)


def picture(spec: Spec, height: int, width: int) -> Any:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, spec.in_channels, height, width, generator=generator) * spec.value_range


@pytest.mark.parametrize("name", SPECS)
def test_on_the_cpu_the_module_computes(name: str, tmp_path: Path) -> None:
    spec = SPECS[name]
    model = network(spec, tmp_path)
    fused = restort.torch.fuse(model)
    assert isinstance(fused, FusedModule) and fused.spec == spec and not fused.train().training
    assert list(fused.parameters()) == list(model.parameters())
    for height, width in ((32, 48), (19, 33)):
        x = picture(spec, height, width)
        padded = torch.from_numpy(pad_to_multiple(x.numpy(), spec.size_multiple))
        with torch.no_grad():
            expected = model(padded)[..., : height * spec.scale, : width * spec.scale]
            assert torch.equal(fused(x), expected)


def test_weights_are_read_again(tmp_path: Path) -> None:
    model, other = (network(RESTORMER, tmp_path, seed) for seed in (0, 1))
    fused = fuse(model)
    before = fused._weights.digest
    model.load_state_dict(other.state_dict())
    assert fused._weights.digest == fuse(other)._weights.digest != before
    with torch.no_grad():
        model.output.weight.mul_(2)
    fused.refresh()
    assert np.array_equal(fused._weights.state["output.weight"], 2 * other.output.weight.detach().numpy())


def test_parallel_and_half_modules(tmp_path: Path) -> None:
    """Names with a prefix, parameters in 16 bits: the weights are found and compared in float32."""
    model = network(RESTORMER, tmp_path)
    assert fuse(torch.nn.DataParallel(model)).module is model
    assert fuse(model.half()).spec == RESTORMER


class Doubled(torch.nn.Module):
    """A network with a forward pass of its own."""

    def __init__(self, network: Any, shape_too: bool = False) -> None:
        super().__init__()
        self.network, self.shape_too = network, shape_too

    def forward(self, x: Any) -> Any:
        y = 2 * self.network(x)
        return (y, y) if self.shape_too else y


def test_what_cannot_be_fused(tmp_path: Path) -> None:
    model = network(RESTORMER, tmp_path)
    with pytest.raises(RestortError, match=r"^Conv2d: these weights are neither a Restormer nor an ELAN"):
        fuse(torch.nn.Conv2d(3, 3, 3))
    with pytest.raises(
        RestortError, match=r"cannot fuse Doubled: its results differ .* \(relative L2 1.0e\+00\)"
    ):
        fuse(Doubled(model))
    with pytest.raises(RestortError, match="cannot fuse Doubled: it returns tuple, not one tensor of shape"):
        fuse(Doubled(model, shape_too=True))
    with pytest.raises(UsageError, match="unknown precision 'int8'; use one of fp16, bf16, fp32"):
        fuse(model, "int8")
    with torch.no_grad():
        model.output.weight.fill_(float("nan"))
    with pytest.raises(RestortError, match=r"^Restormer: the parameter output.weight holds NaN"):
        fuse(model)


def test_wrong_inputs(tmp_path: Path) -> None:
    fused = fuse(network(RESTORMER, tmp_path))
    for x in (
        torch.zeros(1, 4, 16, 16),
        torch.zeros(3, 16, 16),
        torch.zeros(1, 3, 16, 16, dtype=torch.uint8),
    ):
        with pytest.raises(UsageError, match="takes a floating-point tensor"):
            fused(x)
    with pytest.raises(RestortError, match="no backward pass"):
        fused(torch.zeros(1, 3, 16, 16, requires_grad=True))


def test_without_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "restort.torch")
    monkeypatch.delattr(restort, "torch")  # set by the import above
    with pytest.raises(RestortError, match=r"restort.torch needs PyTorch.*install it with: pip install"):
        _ = restort.torch


KERNELS = """
from types import SimpleNamespace
import torch
from tests.fakes import triton_interpreter
import restort.torch
from restort.backends.fused.runner import FusedRunner
from restort.kernels.lfe import triton as lfe
from restort.kernels.window_attention import triton as window_attention
from restort.models.spec import ElanSpec
from restort.models.torch_network import build

triton_interpreter.widen_products()
lfe.tiling = lambda *_: dict(TH=16, TW=16, warps=4, stages=1, AHEAD=1)
window_attention.tiling = lambda *_: dict(QUADS=2, KEYS=256, warps=4, AHEAD=1, AHEAD_OUT=1)
torch.manual_seed(0)
spec = ElanSpec(2, 2, 60, 0, 3, (4, 8, 16), 255.0, 2)
model = build(spec)
for name, value in model.state_dict().items():
    if name.endswith("project_inp.1.weight"):
        value.copy_(torch.rand_like(value) * 0.05 + 0.02)
made = []

def make(weights, precision, device):
    made.append(precision)
    return FusedRunner(weights, precision, device="cpu")

restort.torch._make_runner = make
restort.torch.FusedModule._has_kernels = lambda self, x: True
fused = restort.torch.fuse(model)
x = torch.rand(1, 3, 16, 27) * 255
with torch.no_grad():
    expected = model.double()(x.double())
    for kind in (torch.float32, torch.float16):
        y = fused(x.to(kind))
        assert y.dtype == kind and y.shape == (1, 3, 32, 54) and y.is_contiguous()
        error = ((y.double() - expected).norm() / expected.norm()).item()
        assert error < 2e-3, error
    whole = torch.compile(lambda x: fused(x + 1) * 2, backend="eager", fullgraph=True)
    assert torch.equal(whole(x), fused(x + 1) * 2)
assert made == ["fp16"]
print("agree")
"""


def test_the_kernels_take_the_modules_place() -> None:
    triton = pytest.importorskip("triton")
    if tuple(int(n) for n in triton.__version__.split(".")[:2]) < (3, 7):
        pytest.skip("the CPU interpreter of this Triton does not run with NumPy 2.4")
    assert triton_interpreter.run(KERNELS).strip().endswith("agree")
