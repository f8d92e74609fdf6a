"""Whole Restormers through the fused kernels, in Triton's CPU interpreter, against the reference network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
if tuple(int(n) for n in triton.__version__.split(".")[:2]) < (3, 7):
    pytest.skip("the CPU interpreter of this Triton does not run with NumPy 2.4", allow_module_level=True)

from restort.backends.fused.restormer_blocks import fused_halves  # noqa: E402
from restort.backends.fused.restormer_planner import pack, plan  # noqa: E402
from restort.errors import RestortError  # noqa: E402
from restort.kernels.gpu_target import planning_for  # noqa: E402
from restort.models.spec import RestormerSpec  # noqa: E402
from restort.models.torch_network import build  # noqa: E402
from restort.weights.checkpoint import Weights  # noqa: E402

OFFICIAL = RestormerSpec(3, 3, 48, (4, 6, 6, 8), 4, (1, 2, 4, 8), 2.66, False, "WithBias", False)

PRELUDE = """
import sys
from pathlib import Path
import torch
from restort.backends.fused.restormer_planner import pack, plan
from restort.models.block_names import block_names
from restort.models.torch_network import build
from restort.weights.checkpoint import Weights
from restort.models.spec import RestormerSpec
from restort.kernels.nvrtc import CudaKernel
torch.set_num_threads(2)

def error(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()

def network(seed=0, **changes):
    torch.manual_seed(seed)
    names = dict(in_channels=3, out_channels=3, dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1,
                 heads=(1, 2, 2, 4), ffn_expansion=2.66, bias=False, layer_norm="WithBias", dual_pixel=False)
    spec = RestormerSpec(**{**names, **changes})
    net = build(spec)
    with torch.no_grad():  # defaults would hide a forgotten bias or a norm's weight
        for name, value in net.named_parameters():
            if value.ndim == 1 or "temperature" in name:
                value.add_(torch.randn_like(value) * 0.3)
    state = {name: value.numpy() for name, value in net.state_dict().items()}
    return spec, net, Weights(state, spec, {}, "", Path("."))

def compare(shape, dtype, bound, **changes):
    spec, net, weights = network(**changes)
    image = torch.rand(shape[0], spec.in_channels, *shape[1:])
    with torch.no_grad():
        expected = net.double()(image.double())
    made = plan(pack(weights, dtype), spec, *shape, dtype, "cpu")
    made.input.copy_(image)
    made.run()
    found = error(made.output, expected)
    assert found < bound, (shape, dtype, changes, found)
    return made, image, net
"""

VARIANTS = """
compare((1, 8, 24), torch.float32, 2e-6, bias=True)
compare((2, 8, 8), torch.float32, 2e-6, layer_norm="BiasFree", in_channels=1, out_channels=1)
print("agree")
"""

BLOCKS = """
spec, net, weights = network(num_blocks=(2, 1, 1, 1), dual_pixel=True, in_channels=6, bias=True)
made = plan(pack(weights, torch.float32), spec, 1, 8, 16, torch.float32, "cpu", keep_blocks=True)
seen = {}
for name in block_names(spec):
    net.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: seen.update({name: o}))
image = torch.rand(1, 6, 8, 16)
with torch.no_grad():
    whole = net(image)
made.input.copy_(image)
made.run()
assert list(made.blocks) == list(seen) == list(block_names(spec))
for name, expected in seen.items():
    assert error(made.blocks[name].permute(0, 3, 1, 2), expected) < 5e-6, name
assert error(made.output, whole) < 5e-6
print("agree")
"""

FUSED = """
from tests.emulator import emulate
spec, net, weights = network(dim=48, layer_norm="BiasFree", heads=(1, 2, 4, 8))
image = torch.rand(1, 3, 8, 16)
made = plan(pack(weights, torch.float16), spec, 1, 8, 16, torch.float16, "cpu", fused_blocks=True)
kinds = {launch.name for launch in made.launches}
assert {"conv3x3_first_sm80", "conv3x3_sm90", "conv3x3_last_sm90"} <= kinds, kinds
assert {"gdfn_sm90", "mdta_gram_sm90", "layernorm_conv1x1_sm90"} <= kinds, kinds
assert {"gelu_gate_sm80", "depthwise_gram_sm80"} <= kinds, kinds
made.input.copy_(image)
for launch in made.launches:
    emulate(launch) if isinstance(launch.kernel, CudaKernel) else launch()
with torch.no_grad():
    found = error(made.output, net(image))
assert found < 2e-3, found
print("agree")
"""


@pytest.mark.parametrize("check", [VARIANTS, BLOCKS, FUSED], ids=["variants", "blocks", "fused blocks"])
def test_networks_agree(check: str) -> None:
    """In a process of its own: Triton reads TRITON_INTERPRET when it is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + check],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=280,
    )
    if "Skipped: " in done.stderr:
        pytest.skip(done.stderr.rsplit("Skipped: ", 1)[1].strip())
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "agree"


def weights(spec: RestormerSpec) -> Weights:
    state = {name: value.numpy() for name, value in build(spec).state_dict().items()}
    return Weights(state, spec, {}, "", Path("."))


def test_plans_of_the_official_network() -> None:
    """Without a GPU and without memory: 4K fits into 12 GiB, and arrays that live at once do not overlap."""
    packed = pack(weights(OFFICIAL), torch.float16).to("meta")
    made = plan(packed, OFFICIAL, 1, 2160, 3840, torch.float16, torch.device("meta"))
    assert made.workspace.bytes < 6 << 30
    apart = plan(packed, OFFICIAL, 1, 2160, 3840, torch.float16, torch.device("meta"), fused_blocks=False)
    assert made.workspace.bytes < apart.workspace.bytes < 12 << 30
    assert 280e9 < plan(packed, OFFICIAL, 1, 256, 256, torch.float16, "meta").flops < 300e9
    blocks = sum(OFFICIAL.num_blocks) + sum(OFFICIAL.num_blocks[:3]) + OFFICIAL.num_refinement_blocks
    small = plan(packed, OFFICIAL, 1, 256, 256, torch.float16, "meta")
    assert len(small.launches) < 7 * blocks


def test_the_latent_level_expands_by_its_own_kernel_on_hopper_alone() -> None:
    packed = pack(weights(OFFICIAL), torch.float16).to("meta")
    blocks = OFFICIAL.num_blocks[3]
    cases = ((90, None, 2 * blocks), (90, False, 0), (86, None, 0), (100, None, 0))
    for capability, fused_blocks, count in cases:
        with planning_for(capability):
            made = plan(packed, OFFICIAL, 1, 64, 72, torch.float16, "meta", fused_blocks=fused_blocks)
        found = [launch for launch in made.launches if launch.name == "layernorm_conv1x1_sm90"]
        assert len(found) == count, (capability, fused_blocks)
        assert {launch.sizes["pixels"] for launch in found} <= {72}


def test_few_pixels_are_not_fused() -> None:
    assert fused_halves(1280 * 720, 96, 1, 90, 132) == (True, True)
    assert fused_halves(64 * 64, 96, 2, 90, 132) == (False, False)
    assert fused_halves(1280 * 720, 384, 8, 90, 132) == (False, False)


def test_odd_widths_are_refused_in_a_sentence() -> None:
    spec = RestormerSpec(3, 3, 12, (1, 1, 1, 1), 1, (1, 1, 1, 1), 2.66, False, "WithBias", False)
    with pytest.raises(RestortError, match="multiple of 8"):
        pack(weights(spec), torch.float16)
