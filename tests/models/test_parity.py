"""The networks against the original's recorded outputs (parity vectors)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import load_file  # noqa: E402

from restort.models.elan import shift, shift_kernel  # noqa: E402
from restort.models.spec import ElanSpec, RestormerSpec, detect, parameter_shapes  # noqa: E402
from restort.models.torch_network import build  # noqa: E402

GOLDEN = (
    "restormer_withbias",
    "restormer_biasfree",
    "restormer_gray_biasfree",
    "restormer_dual_pixel",
    "restormer_bias_dim16",
    "elan_light_x4",
    "elan_light_x2_odd",
    "elan_light_x3_odd",
    "elan_noshare_x4",
)


def test_every_vector_is_listed(shared: Path) -> None:
    assert set(json.loads((shared / "golden/index.json").read_text())) == set(GOLDEN)


@pytest.mark.parametrize("name", GOLDEN)
def test_parity_with_the_original(shared: Path, name: str) -> None:
    tensors = load_file(shared / f"golden/{name}.safetensors")
    index = json.loads((shared / "golden/index.json").read_text())[name]
    state = {key[6:]: value for key, value in tensors.items() if key.startswith("state.")}
    expected = tensors["output_float64"]
    for dtype, limit in (
        (torch.float64, 1e-10 * index["output_abs_max"]),
        # The original's own error, recorded on one CPU; another vector width sums in another order, and an ELAN with
        # random weights magnifies that (4.7 times on AVX2 for elan_noshare_x4). Float64 is the proof.
        (torch.float32, 8 * index["float32_max_abs_error"]),
    ):
        model = build(detect(state), state, dtype)
        with torch.inference_mode():
            result = model(tensors["input"].to(dtype))
        assert result.shape == expected.shape
        assert (result.double() - expected).abs().max() <= limit


@pytest.mark.parametrize("channels", [60, 120, 33])
def test_shift_is_the_stored_convolution(channels: int) -> None:
    x = torch.rand(2, channels, 7, 9)
    expected = torch.nn.functional.conv2d(x, shift_kernel(channels), padding=1, groups=channels)
    assert torch.equal(shift(x), expected)


SPECS = (
    RestormerSpec(3, 3, 16, (1, 2, 1, 2), 2, (1, 2, 4, 8), 2.66, False, "WithBias", False),
    RestormerSpec(6, 3, 8, (1, 1, 1, 1), 1, (1, 2, 4, 8), 2.0, True, "BiasFree", True),
    RestormerSpec(1, 1, 24, (1, 1, 1, 1), 1, (1, 2, 4, 8), 2.67, False, "BiasFree", False),
    ElanSpec(3, 4, 60, 1, 3, (4, 8, 16), 255.0, 2),
    ElanSpec(2, 2, 180, 0, 3, (4, 8, 16), 255.0, 2),
)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_descriptor_round_trip(spec: RestormerSpec | ElanSpec) -> None:
    """detect() finds every hyper-parameter of a built network, whose names and shapes are the listed ones."""
    state = build(spec).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == parameter_shapes(spec)
    assert detect(state) == spec


@pytest.mark.parametrize("size", [(1, 1), (1, 20), (3, 40), (16, 5), (33, 16)])
def test_elan_takes_any_size(size: tuple[int, int]) -> None:
    spec = ElanSpec(2, 2, 60, 1, 3, (4, 8, 16), 255.0, 2)
    with torch.inference_mode():
        assert build(spec)(torch.rand(1, 3, *size) * 255).shape == (1, 3, size[0] * 2, size[1] * 2)
