"""Restormer's Triton kernels, in Triton's CPU interpreter, against plain PyTorch: odd sizes, batches, all types."""

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

from restort.utils.integers import next_power_of_2, two_powers_of_2  # noqa: E402

CHECK = """
import torch
from restort.backends.fused.restormer_weights import step
from restort.kernels.attention_matrix import triton as attention_matrix, reference as attention_matrix_r
from restort.kernels.conv1x1 import triton as conv1x1, reference as conv1x1_r
from restort.kernels.conv3x3 import triton as conv3x3, reference as conv3x3_r
from restort.kernels.conv3x3_first import triton as first, reference as first_r
from restort.kernels.conv3x3_last.reference import conv3x3_last
from restort.kernels.depthwise_gram import triton as depthwise_gram, reference as depthwise_gram_r
from restort.kernels.gelu_gate_project import triton as gelu_gate_project, reference as gelu_gate_project_r
from restort.utils.integers import round_up
from restort.kernels.layernorm_conv1x1 import triton as layernorm_conv1x1, reference as layernorm_conv1x1_r
torch.set_num_threads(2)
BOUNDS = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}  # the interpreter truncates bfloat16

class Case:
    def __init__(self, dtype, n, h, w, c):
        torch.manual_seed(0)
        self.dtype, self.shape = dtype, (n, h, w, c)

    def draw(self, *shape, scale=1.0, dtype=None):
        return (torch.randn(*shape) * scale).to(dtype or self.dtype)

    def pixels(self, channels, by=1):
        n, h, w, _ = self.shape
        return self.draw(n, by * h, by * w, channels)

    def check(self, what, found, expected):
        error = ((found.double() - expected.double()).norm() / expected.double().norm()).item()
        assert error < BOUNDS[self.dtype], (what, self.dtype, self.shape, error)

def expansions(case):
    n, h, w, c = case.shape
    rows = 3 * c
    x, v = case.pixels(c) + 3, case.pixels(c)  # a mean well above the deviation
    weight, affine = case.draw(rows, c, scale=c ** -0.5), torch.randn(2, rows)
    y = torch.empty(n, h, w, rows, dtype=case.dtype)
    for num_sms in (132, 1):  # columns shared out among programs, or not
        layernorm_conv1x1.launch(x, weight, affine, y, num_sms=num_sms)()
        case.check("layernorm_conv1x1", y, layernorm_conv1x1_r.layernorm_conv1x1(x, weight, affine))
        matrix, bias, out = case.draw(n, c, c, scale=c ** -0.5), torch.randn(c), torch.empty_like(x)
        layernorm_conv1x1.launch_apply(x, v, matrix, bias, out, weight, affine, y, num_sms=num_sms)()
        applied = layernorm_conv1x1_r.apply(x, v, matrix, bias)
        case.check("apply", out, applied)
        case.check("apply_layernorm_conv1x1", y, layernorm_conv1x1_r.layernorm_conv1x1(applied, weight, affine))
    other = torch.empty_like(x)
    conv1x1.launch(v, matrix, bias, other, x=x)()
    case.check("conv1x1 per image", other, applied)
    wide = case.draw(c, 2 * c, scale=c ** -0.5)
    conv1x1.launch(v, wide, bias, other, b=x)()
    case.check("conv1x1 of two", other, conv1x1_r.conv1x1(v, wide, bias, b=x))

def attention(case, heads):
    n, h, w, c = case.shape
    qkv, dw = case.pixels(3 * c), torch.randn(10, 3 * c) / 3
    splits = depthwise_gram.splits(n, h, w, c, heads)
    sums = torch.full(depthwise_gram.sums_shape(n, heads, c, splits), float("nan"))
    v = torch.empty(n, h, w, c, dtype=case.dtype)
    depthwise_gram.launch(qkv, dw, v, sums)()
    expected_v, expected_sums = depthwise_gram_r.depthwise_gram(qkv, dw, heads)
    case.check("v", v, expected_v)
    case.check("sums", sums.sum(0), expected_sums)
    heat, out_w = torch.rand(heads) + 0.5, case.draw(c, c, scale=c ** -0.5, dtype=torch.float32)
    expected = attention_matrix_r.attention_matrix(sums, heat, out_w)
    for total in (None, torch.empty(1, *sums.shape[1:])):
        matrix = torch.empty(n, c, c, dtype=case.dtype)
        for launch in attention_matrix.launches(sums, total, heat, out_w, matrix):
            launch()
        case.check("attention_matrix", matrix, expected)

def feed_forward(case, hidden):
    n, h, w, c = case.shape
    expanded, dw, x = case.pixels(2 * hidden), torch.randn(10, 2 * hidden) / 3, case.pixels(c)
    out_w, bias, y = case.draw(hidden, c, scale=hidden ** -0.5), torch.randn(c), torch.empty_like(x)
    expected = gelu_gate_project_r.gelu_gate_project(expanded, dw, out_w, bias, x)
    for num_sms in (132, 1):  # small tiles and large ones
        gelu_gate_project.launch(expanded, dw, out_w, bias, x, y, num_sms=num_sms)()
        case.check("gelu_gate_project", y, expected)
    gated = torch.empty(n, h, w, hidden, dtype=case.dtype)
    gelu_gate_project.launch_gate(expanded, dw, gated)()
    conv1x1.launch(gated, out_w, bias, y, x=x, transposed=True)()
    case.check("gate and conv1x1", y, expected)

def convolutions(case):
    n, h, w, c = case.shape
    k = round_up(3 * c, step(c))
    def make(rows):
        return case.draw(rows, 3, k, scale=(9 * c) ** -0.5), torch.randn(rows)
    def run(mode, x, rows, out, extra=None):
        weight, bias = make(rows)
        conv3x3.launch(mode, x, weight, bias, out, step=step(c), extra=extra)()
        return weight, bias
    x = case.pixels(c, by=2)
    y = torch.empty(n, h, w, 2 * c, dtype=case.dtype)
    case.check("down", y, conv3x3_r.down(x, *run(conv3x3.DOWN, x, c // 2, y)))
    x, skip = case.pixels(c), case.pixels(c // 2, by=2)
    y = torch.empty(n, 2 * h, 2 * w, c // 2, dtype=case.dtype)
    case.check("up", y, conv3x3_r.up(x, *run(conv3x3.UP, x, 2 * c, y)))
    y = torch.empty(n, 2 * h, 2 * w, c, dtype=case.dtype)
    case.check("up beside", y, conv3x3_r.up(x, *run(conv3x3.UP, x, 2 * c, y, skip), skip))
    for channels in (1, 3):
        image, y = torch.randn(n, channels, h, w), torch.empty(n, channels, h, w)
        case.check("last", y, conv3x3_last(x, *run(conv3x3.LAST, x, channels, y)))
        case.check("last and image", y, conv3x3_last(x, *run(conv3x3.LAST, x, channels, y, image), image))
    for channels, columns in ((1, 16), (3, 32), (6, 64)):
        image, weight = torch.randn(n, channels, h, w), torch.randn(c, columns)
        y = torch.empty(n, h, w, c, dtype=case.dtype)
        first.launch(image, weight, y)()
        case.check("first", y, first_r.conv3x3_first(image, weight, case.dtype))
"""

CASES = """
for dtype, n, h, w, c, heads, hidden in [
    (torch.float32, 2, 5, 9, 8, 2, 32),
    (torch.float32, 1, 6, 17, 48, 1, 128),
    (torch.float32, 1, 3, 7, 96, 1, 96),
    (torch.float32, 1, 2, 3, 192, 8, 96),
    (torch.float16, 2, 3, 5, 24, 1, 64),
    (torch.bfloat16, 2, 3, 5, 24, 3, 32),
]:
    case = Case(dtype, n, h, w, c)
    expansions(case)
    attention(case, heads)
    feed_forward(case, hidden)
    convolutions(case)
print("agree")
"""

GELU = """
import torch, triton, triton.language as tl
from restort.kernels.triton_helpers import gelu

@triton.jit
def run(x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y + i, gelu(tl.load(x + i)))

x = torch.cat([torch.linspace(-12, 12, 16384 - 8), torch.tensor([0, -0.0, 1e-30, 1e4, -1e4, 6e4, -6e4, 3e38])])
y = torch.empty_like(x)
run[(1,)](x, y, x.numel())
expected = torch.nn.functional.gelu(x.double())
assert ((y - expected).abs() <= 1e-6 * x.abs().clamp_min(1)).all(), (y - expected).abs().max()
print("agree")
"""


@pytest.mark.parametrize("check", [CHECK + CASES, GELU], ids=["kernels", "gelu"])
def test_kernels_agree_with_pytorch(check: str, tmp_path: Path) -> None:
    """In a process of its own: Triton reads TRITON_INTERPRET when it is imported, and kernels from a file."""
    script = tmp_path / "check.py"
    script.write_text(check)
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, cwd=root, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "agree"


@pytest.mark.parametrize("channels", [8, 16, 24, 36, 40, 48, 64, 72, 96, 120, 192, 384])
def test_two_tiles_cover_the_channels(channels: int) -> None:
    first, second = two_powers_of_2(channels)
    assert channels <= first + second <= next_power_of_2(channels)
    assert first == next_power_of_2(first) and (second == 0 or second == next_power_of_2(second) >= 16)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120])
@pytest.mark.parametrize("channels", [24, 48, 96, 192, 384])
def test_an_expansion_fits_shared_memory(channels: int, capability: int) -> None:
    """A 368x552 picture once did not: 128 rows of the weights, twice, at 384 channels."""
    from restort.kernels.gpu_target import shared_memory_limit
    from restort.kernels.layernorm_conv1x1.triton import tiling

    for pixels in (16, 256, 1024, 3174, 4096, 4097, 14400, 57600, 1 << 20):
        for rows in (3 * channels, 1024, 2048):
            for attends in (False, True):
                chosen = tiling(channels, rows, pixels, capability, 132, attends)
                need = 2 * sum(two_powers_of_2(channels)) * (chosen["BM"] + chosen["stages"] * chosen["BN"])
                assert need <= shared_memory_limit(capability), (pixels, rows, attends, chosen)
