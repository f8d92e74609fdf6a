"""Whole passes of an ELAN in Triton's CPU interpreter, against the reference network in float64."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.fakes import triton_interpreter

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
if tuple(int(n) for n in triton.__version__.split(".")[:2]) < (3, 7):
    pytest.skip("the CPU interpreter of this Triton does not run with NumPy 2.4", allow_module_level=True)

from restort.backends.fused import elan_planner  # noqa: E402
from restort.backends.fused.elan_weights import hidden_width  # noqa: E402
from restort.errors import RestortError  # noqa: E402
from restort.models.spec import ElanSpec, parameter_shapes  # noqa: E402

RANDOM = """
import sys
from types import SimpleNamespace
import torch
from tests.fakes import triton_interpreter
from restort.backends.fused import elan_planner
from restort.kernels.lfe import triton as lfe
from restort.kernels.window_attention import triton as window_attention
from restort.models.torch_network import build
from restort.models.spec import ElanSpec

triton_interpreter.widen_products()
# The fewest programs, each of which costs the interpreter time.
lfe.tiling = lambda *_: dict(TH=16, TW=16, warps=4, stages=1, AHEAD=1)
window_attention.tiling = lambda *_: dict(QUADS=2, KEYS=256, warps=4, AHEAD=1, AHEAD_OUT=1)
torch.manual_seed(0)

def random_state(spec):
    # As large as trained weights make features and scores: the default's scores are in the thousands.
    state = {}
    for name, value in build(spec).state_dict().items():
        if name.endswith(("running_mean", "project_inp.1.bias")):
            value = torch.randn_like(value) * 0.1
        elif name.endswith("running_var"):
            value = torch.rand_like(value) + 0.5
        elif name.endswith("project_inp.1.weight"):
            value = torch.rand_like(value) * 0.05 + 0.02
        elif name.endswith("conv1x1.weight"):
            value = torch.randn_like(value) * 0.3 / value.shape[1] ** 0.5
        state[name] = value
    return state

def relative(mine, wanted):
    return ((mine.double() - wanted).norm() / wanted.norm()).item()

for spec, n, h, w, limits in [
    (ElanSpec(4, 4, 60, 1, 3, (4, 8, 16), 255.0, 2), 2, 16, 32, {torch.float32: 1e-6, torch.float16: 1e-3}),
    (ElanSpec(3, 6, 60, 2, 1, (4, 8, 16), 1.0, 2), 1, 32, 16, {torch.bfloat16: 2e-2}),
    (ElanSpec(2, 2, 180, 0, 3, (4, 8, 16), 255.0, 2), 1, 16, 16, {torch.float32: 1e-6}),
]:
    state = random_state(spec)
    weights = SimpleNamespace(spec=spec, state={name: value.numpy() for name, value in state.items()})
    x = torch.rand(n, spec.colors, h, w)
    model, kept = build(spec, state, torch.float64), {}
    for i, group in enumerate(model.body):
        group.register_forward_hook(lambda _, __, y, i=i: kept.update({f"body.{i}": y}))
    with torch.no_grad():
        wanted = model(x.double() * spec.value_range) / spec.value_range
    for dtype, limit in limits.items():
        keep = dtype == torch.float32
        made = elan_planner.plan(elan_planner.pack(weights, dtype), spec, n, h, w, dtype, "cpu", keep_blocks=keep)
        made.input.copy_(x)
        for _ in range(1 if keep else 2):  # a second run finds what the first one left
            made.run()
        error = relative(made.output, wanted)
        assert error < limit, (spec, dtype, error)
        assert (made.blocks is not None) == keep
        for name, y in (made.blocks or {}).items():
            error = relative(y[..., : spec.channels].permute(0, 3, 1, 2), kept[name])
            assert error < 1e-5, (name, error)
        assert not keep or list(made.blocks) == list(kept)
print("agree")
"""

TRAINED = """
import sys
import numpy as np, torch
from PIL import Image
from tests.fakes import triton_interpreter
from restort.backends.fused import elan_planner
from restort.kernels.lfe import triton as lfe
from restort.kernels.window_attention import triton as window_attention
from restort.models.torch_network import build
from restort.weights.checkpoint import load_weights

triton_interpreter.widen_products()
# The fewest programs, each of which costs the interpreter time.
lfe.tiling = lambda *_: dict(TH=16, TW=16, warps=4, stages=1, AHEAD=1)
window_attention.tiling = lambda *_: dict(QUADS=2, KEYS=256, warps=4, AHEAD=1, AHEAD_OUT=1)
weights = load_weights(sys.argv[1])
spec = weights.spec
pixels = np.asarray(Image.open(sys.argv[2]).convert("RGB"), np.float32)[:32, :32] / 255
x = torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()
with torch.no_grad():
    wanted = build(spec, weights.state, torch.float64)(x.double() * 255) / 255
dtype = getattr(torch, sys.argv[3])
made = elan_planner.plan(elan_planner.pack(weights, dtype), spec, 1, 32, 32, dtype, "cpu")
made.input.copy_(x)
made.run()
print(((made.output.double() - wanted).norm() / wanted.norm()).item())
"""


def test_passes_agree_with_the_network() -> None:
    assert triton_interpreter.run(RANDOM) == "agree"


def test_passes_in_cuda_agree_with_the_network() -> None:
    """With the kernels in CUDA C++, which the emulator runs; with 180 channels the LFE for Hopper."""
    head, loop, rest = RANDOM.partition("for spec, n, h, w, limits in [")
    _, tail, rest = rest.partition("]:\n")
    check = (
        head.replace(
            "from tests.fakes import triton_interpreter",
            "from tests import emulator\nfrom tests.fakes import triton_interpreter",
        )
        + loop
        + """
    (ElanSpec(4, 4, 60, 1, 3, (4, 8, 16), 255.0, 2), 1, 16, 32, {torch.float16: 1e-3, torch.bfloat16: 1e-2}),
    (ElanSpec(2, 2, 180, 0, 3, (4, 8, 16), 255.0, 2), 1, 16, 16, {torch.float16: 1e-3}),
"""
        + tail
        + rest.replace(
            '"cpu", keep_blocks=keep', '"cpu", keep_blocks=keep, cuda=True, sm90=spec.channels == 180'
        )
        .replace("keep = dtype == torch.float32", "keep = dtype == torch.bfloat16")
        .replace(
            "made.run()", "[emulator.emulate(l) if hasattr(l.kernel, 'path') else l() for l in made.launches]"
        )
        .replace("error < 1e-5", "error < 2e-2")
    )
    assert triton_interpreter.run(check) == "agree"


def test_trained_weights_keep_their_accuracy(shared: Path) -> None:
    """The scores of a trained network are large, their softmax sharp: what 16 bits lose shows here."""
    weights = shared / "weights" / "elan_light_x4_friedricelab.safetensors"
    picture = shared / "data" / "test" / "set5" / "LR_bicubic" / "X4" / "butterflyx4.png"
    assert float(triton_interpreter.run(TRAINED, str(weights), str(picture), "float16")) < 2e-3


SPEC = ElanSpec(4, 2, 60, 1, 3, (4, 8, 16), 255.0, 2)


def _weights(spec: ElanSpec) -> SimpleNamespace:
    state = {name: np.ones(shape, np.float32) for name, shape in parameter_shapes(spec).items()}
    state["sub_mean.weight"] = np.eye(spec.colors, dtype=np.float32)[:, :, None, None]
    return SimpleNamespace(spec=spec, state=state)


def test_launches_are_few_and_say_what_they_do() -> None:
    packed = elan_planner.pack(_weights(SPEC), torch.float16).to("meta")
    made = elan_planner.plan(packed, SPEC, 1, 192, 320, torch.float16, "meta")
    assert [launch.label for launch in made.launches] == [
        "head",
        "body.0.0.lfe",
        "body.0.0.gmsa",
        "body.0.1.lfe",
        "body.0.1.gmsa",
        "tail",
    ]
    assert made.output.shape == (1, 3, 768, 1280)
    assert made.blocks is None
    multiply_adds = 192 * 320 * (27 * 60 + 2 * 4 * 60 * 60 + 3 * 60 * 60 + 2 * (3600 + 40 * 336) + 540 * 48)
    assert made.flops == 2 * multiply_adds
    assert packed.bytes > 2 * sum(value.size for value in _weights(SPEC).state.values())


def test_other_networks_are_refused() -> None:
    with pytest.raises(RestortError, match="windows of 4, 8 and 16"):
        elan_planner.pack(_weights(ElanSpec(4, 2, 60, 1, 3, (8, 16), 255.0, 2)), torch.float16)
    with pytest.raises(RestortError, match="240 channels"):
        elan_planner.pack(_weights(ElanSpec(4, 2, 240, 1, 3, (4, 8, 16), 255.0, 2)), torch.float16)


@pytest.mark.parametrize(("group", "width"), [(1, 16), (24, 32), (36, 48), (72, 80), (100, 128), (144, 144)])
def test_hidden_widths_are_sums_of_two_powers(group: int, width: int) -> None:
    assert hidden_width(group) == width
