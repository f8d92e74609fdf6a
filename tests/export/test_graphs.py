"""The emitted graphs: against the PyTorch network, against the parity vectors, and what is promised of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from restort.errors import RestortError
from restort.export.emit import emit
from restort.models.elan_names import shift_weights
from restort.models.spec import ElanSpec, RestormerSpec, Spec, detect, parameter_shapes
from restort.weights.checkpoint import Weights, load_weights


def restormer(**changes: Any) -> RestormerSpec:
    values: dict[str, Any] = {
        "in_channels": 3,
        "out_channels": 3,
        "dim": 8,
        "num_blocks": (1, 2, 1, 1),
        "num_refinement_blocks": 1,
        "heads": (1, 2, 4, 8),
        "ffn_expansion": 2.66,
        "bias": False,
        "layer_norm": "WithBias",
        "dual_pixel": False,
    }
    return RestormerSpec(**(values | changes))


def elan(**changes: Any) -> ElanSpec:
    values: dict[str, Any] = {
        "scale": 2,
        "blocks": 4,
        "channels": 60,
        "n_share": 1,
        "colors": 3,
        "window_sizes": (4, 8, 16),
        "rgb_range": 255.0,
        "expand": 2,
    }
    return ElanSpec(**(values | changes))


FORMS: dict[str, Spec] = {
    "restormer": restormer(),
    "restormer-biasfree": restormer(layer_norm="BiasFree"),
    "restormer-gray": restormer(in_channels=1, out_channels=1, layer_norm="BiasFree"),
    "restormer-dual-pixel": restormer(in_channels=6, dual_pixel=True),
    "restormer-bias": restormer(bias=True, dim=16),
    "restormer-bias-biasfree-dual": restormer(
        bias=True, in_channels=6, dual_pixel=True, layer_norm="BiasFree"
    ),
    "restormer-two-heads": restormer(heads=(2, 2, 2, 2)),
    "elan-x1": elan(scale=1, blocks=2),
    "elan-x2": elan(),
    "elan-x3": elan(scale=3, blocks=2),
    "elan-x4": elan(scale=4, blocks=6, n_share=2),
    "elan-unit-range": elan(rgb_range=1.0, blocks=2),
    "elan-full": elan(blocks=2, n_share=0, channels=180),
}


def weights_of(spec: Spec, seed: int = 0) -> Weights:
    """Well-conditioned random weights: unit gain convolutions, and ELAN's unscaled scores kept small."""
    random = np.random.default_rng(seed)
    state: dict[str, np.ndarray] = {}
    for name, shape in parameter_shapes(spec).items():
        value = random.standard_normal(shape)
        if name.endswith("shift_conv.weight"):
            value = shift_weights(shape[0])
        elif name.endswith("num_batches_tracked"):
            value = np.zeros((), np.int64)
        elif name.endswith("_mean.weight"):
            value = np.eye(shape[0]).reshape(shape)
        elif name in ("sub_mean.bias", "add_mean.bias"):
            sign = 1 if name.startswith("add") else -1
            value = sign * np.array([0.4488, 0.4371, 0.4040]) * spec.value_range
        elif name.endswith(("running_var", "project_inp.1.weight", "body.weight", "temperature")):
            value = 0.5 + random.random(shape)
        elif len(shape) == 4:
            value = value / np.sqrt(np.prod(shape[1:]))
        else:
            value = 0.1 * value
        if isinstance(spec, ElanSpec) and name == "head.0.weight":
            value = value / spec.value_range  # so that the unscaled scores stay of order 1
        state[name] = value.astype(np.int64 if name.endswith("tracked") else np.float32)
    assert detect(state) == spec
    return Weights(state, spec, {}, "0" * 64, Path(f"{spec.architecture}.safetensors"))


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def assert_close(actual: np.ndarray, expected: np.ndarray, limit: float) -> None:
    assert actual.shape == expected.shape
    difference = actual.astype(np.float64) - expected
    worst = float(np.abs(difference).max() / (np.abs(expected).max() or 1))
    mean = float(np.linalg.norm(difference) / (np.linalg.norm(expected) or 1))
    assert worst <= limit and mean <= limit, f"max {worst:.2e}, relative L2 {mean:.2e}, limit {limit:.0e}"


def picture(spec: Spec, batch: int, height: int, width: int) -> np.ndarray:
    random = np.random.default_rng(height * 31 + width)
    return random.random((batch, spec.in_channels, height, width), dtype=np.float32)


def by_torch(weights: Weights, x: np.ndarray) -> np.ndarray:
    torch = pytest.importorskip("torch")
    from restort.models.torch_network import build

    scale = weights.spec.value_range
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # these inputs are too small to share
    with torch.no_grad():
        y: np.ndarray = build(weights.spec, weights.state)(torch.from_numpy(x * np.float32(scale))).numpy()
    torch.set_num_threads(threads)
    return y / np.float32(scale)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_at_several_sizes_and_batches(form: str) -> None:
    weights = weights_of(FORMS[form])
    model = emit(weights)
    onnx.checker.check_model(model, full_check=True)
    runner = session(model)
    m = weights.spec.size_multiple
    for batch, rows, columns in ((1, 1, 1), (2, 3, 2)):
        x = picture(weights.spec, batch, rows * m, columns * m)
        assert_close(runner.run(None, {"input": x})[0], by_torch(weights, x), 1e-5)


@pytest.mark.parametrize(
    "options", [{"opset": 17}, {"norm": "convolution"}, {"norm": "convolution", "opset": 17}]
)
@pytest.mark.parametrize("form", ["restormer", "restormer-bias", "restormer-biasfree"])
def test_other_forms_of_a_restormer(form: str, options: dict[str, Any]) -> None:
    weights = weights_of(FORMS[form])
    model = emit(weights, **options)
    onnx.checker.check_model(model, full_check=True)
    x = picture(weights.spec, 2, 24, 16)
    assert_close(session(model).run(None, {"input": x})[0], by_torch(weights, x), 1e-5)


def test_an_elan_with_an_unusual_shift_takes_the_stored_kernel() -> None:
    weights = weights_of(FORMS["elan-x2"])
    plain = session(emit(weights))
    x = picture(weights.spec, 2, 16, 32)
    fixed = plain.run(None, {"input": x})[0]
    name = "body.0.modules_lfe.lfe_0.conv0.shift_conv.weight"
    weights.state[name] = weights.state[name] * (1 + np.float32(1e-7))  # no longer the fixed numbers
    model = emit(weights)
    assert "Conv" in {n.op_type for n in model.graph.node if n.name.startswith("body.0.0")}
    assert_close(session(model).run(None, {"input": x})[0], fixed, 1e-5)


@pytest.mark.parametrize("form", ["restormer", "restormer-biasfree", "restormer-bias", "elan-x2"])
def test_a_constant_black_picture_gives_numbers(form: str) -> None:
    """Norms of zero must not become 0 / 0, in either precision."""
    weights = weights_of(FORMS[form])
    for name in weights.state:
        if name.endswith(("norm1.body.bias", "qkv.bias", "qkv_dwconv.bias")):
            weights.state[name] = np.zeros_like(weights.state[name])
    x = np.zeros((1, weights.spec.in_channels, 16, 16), np.float32)
    expected = by_torch(weights, x)
    actual = session(emit(weights)).run(None, {"input": x})[0]
    assert_close(actual, expected, 5e-5)  # random weights amplify what a black picture leaves of the signal
    half = session(emit(weights, "fp16")).run(None, {"input": x.astype(np.float16)})[0]
    assert np.isfinite(half).all()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("form", ["restormer", "restormer-biasfree", "elan-x2"])
def test_fp16_agrees_and_ports_have_the_right_types(form: str, precision: Any) -> None:
    weights = weights_of(FORMS[form])
    model = emit(weights, precision)
    onnx.checker.check_model(model, full_check=True)
    kind = np.float16 if precision == "fp16" else np.float32
    for port in (*model.graph.input, *model.graph.output):
        assert onnx.helper.tensor_dtype_to_np_dtype(port.type.tensor_type.elem_type) == kind
        assert [d.dim_param != "" for d in port.type.tensor_type.shape.dim] == [True, False, True, True]
    x = picture(weights.spec, 2, 32, 16).astype(kind)
    y = session(model).run(None, {"input": x})[0]
    assert y.dtype == kind
    assert_close(y, by_torch(weights, x.astype(np.float32)), 1e-5 if precision == "fp32" else 5e-3)


@pytest.mark.parametrize(
    "form", ["restormer", "restormer-biasfree", "restormer-bias", "elan-x2", "elan-full"]
)
def test_statistics_of_an_fp16_graph_are_float32(form: str) -> None:
    model = onnx.shape_inference.infer_shapes(emit(weights_of(FORMS[form]), "fp16"), strict_mode=True)
    types = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.value_info, *model.graph.output)}
    types |= {w.name: w.data_type for w in model.graph.initializer}
    types |= {v.name: v.type.tensor_type.elem_type for v in model.graph.input}
    producers = {name: node for node in model.graph.node for name in node.output}
    seen: Counter[str] = Counter()
    for node in model.graph.node:
        wide = {"Softmax", "ReduceL2", "BatchNormalization", "Div", "Einsum"}
        scores = node.op_type == "Softmax" and producers[node.input[0]]
        if node.op_type in wide and types[node.output[0]] != onnx.TensorProto.INT64:
            ports = [types[name] for name in (*node.input, *node.output)]
            assert set(ports) - {onnx.TensorProto.INT64} == {onnx.TensorProto.FLOAT}, node.name
            seen[node.op_type] += 1
        if scores:
            assert all(types[name] == onnx.TensorProto.FLOAT for name in scores.input)
        if node.op_type == "LayerNormalization":
            stash = {a.name: a.i for a in node.attribute}["stash_type"]
            assert stash == onnx.TensorProto.FLOAT
            seen["LayerNormalization"] += 1
    assert seen["Softmax"]
    if form.startswith("restormer"):
        assert seen["ReduceL2"] and (seen["LayerNormalization"] or form == "restormer-biasfree")


def test_metadata() -> None:
    weights = weights_of(FORMS["elan-x3"])
    kept = {entry.key: entry.value for entry in emit(weights, "fp16").metadata_props}
    assert kept["restort.architecture"] == "elan"
    assert kept["restort.scale"] == "3"
    assert kept["restort.size_multiple"] == "16"
    assert kept["restort.precision"] == "fp16"
    assert kept["restort.model"] == "elan"
    assert kept["restort.weights_sha256"] == "0" * 64
    assert kept["restort.version"]


def test_emitting_twice_gives_the_same_bytes() -> None:
    weights = weights_of(FORMS["restormer"])
    first, second = (emit(weights).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(RestortError, match="unknown precision of a graph: 'int8'"):
        emit(weights_of(FORMS["elan-x2"]), "int8")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "precision", "limit"),
    [
        pytest.param(
            restormer(dim=48, num_blocks=(4, 6, 6, 8), num_refinement_blocks=4), p, 1250, id=f"restormer-{p}"
        )
        for p in ("fp32", "fp16")
    ]
    + [
        pytest.param(
            restormer(dim=48, num_blocks=(4, 6, 6, 8), num_refinement_blocks=4, layer_norm="BiasFree"),
            "fp32",
            1250,
            id="restormer-biasfree-fp32",
        )
    ]
    + [pytest.param(elan(scale=4, blocks=24), p, 1100, id=f"elan-light-{p}") for p in ("fp32", "fp16")],
)
def test_the_graphs_are_small(spec: Spec, precision: Any, limit: int) -> None:
    """Counted at full depth; zeros for the numbers, because only the nodes matter."""
    state = {name: np.zeros(shape, np.float32) for name, shape in parameter_shapes(spec).items()}
    for name, value in state.items():
        if name.endswith("shift_conv.weight"):
            state[name] = shift_weights(len(value))
        if name.endswith("_mean.weight"):
            state[name] = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)
    model = emit(Weights(state, spec, {}, "0" * 64, Path("x")), precision)
    assert len(model.graph.node) <= limit


@pytest.mark.parametrize(
    "entry", ["restormer_official", "restormer_official_dual_pixel", "elan_light_x4", "elan_x2"]
)
def test_official_shapes_are_emitted_whole(entry: str, shared: Path) -> None:
    shapes = json.loads((shared / "golden" / "official_state_shapes.json").read_text())[entry]
    state = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    weights = Weights(state, detect(state), {}, "0" * 64, Path("x"))
    model = emit(weights)
    kept = sum(int(np.prod(w.dims)) for w in model.graph.initializer if w.data_type == onnx.TensorProto.FLOAT)
    assert len(model.graph.node) > 200 and kept < sum(v.size for v in state.values()) * 1.1


GOLDEN = [
    *(f"restormer_{form}" for form in ("withbias", "biasfree", "gray_biasfree", "dual_pixel", "bias_dim16")),
    *(f"elan_{form}" for form in ("light_x4", "light_x2_odd", "light_x3_odd", "noshare_x4")),
]


@pytest.mark.parametrize("name", GOLDEN)
def test_parity_with_the_original(name: str, shared: Path) -> None:
    """At most 4 times the original's own float32 error, padding outside the graph."""
    from safetensors.numpy import load_file

    data = load_file(shared / "golden" / f"{name}.safetensors")
    own_error = json.loads((shared / "golden" / "index.json").read_text())[name]["float32_max_abs_error"]
    state = {key[len("state.") :]: value for key, value in data.items() if key.startswith("state.")}
    spec = detect(state)
    height, width = data["input"].shape[2:]
    m, scale = spec.size_multiple, spec.scale
    x = np.pad(data["input"], ((0, 0), (0, 0), (0, -height % m), (0, -width % m)), mode="reflect")
    model = emit(Weights(state, spec, {}, "0" * 64, Path(name)))
    y = session(model).run(None, {"input": (x / spec.value_range).astype(np.float32)})[0]
    y = y[..., : height * scale, : width * scale].astype(np.float64) * spec.value_range
    assert np.abs(y - data["output_float64"]).max() <= 4 * own_error


def test_trained_elan(shared: Path) -> None:
    """A trained network on photographs: 1e-5 in float32 at several sizes, 2e-3 in fp16.

    Not on noise: far from what it was trained on, this network is chaotic even in float64.
    """
    from PIL import Image

    weights = load_weights(shared / "weights" / "elan_light_x4_friedricelab.safetensors")
    runner, half = session(emit(weights)), session(emit(weights, "fp16"))
    folder = shared / "data" / "test" / "set5" / "LR_bicubic" / "X4"
    bird, head = (
        np.asarray(Image.open(folder / f"{name}x4.png").convert("RGB"), np.float32).transpose(2, 0, 1) / 255
        for name in ("bird", "head")
    )
    for batch in (
        bird[None, :, :16, :32],
        bird[None, :, :64, :64],
        np.stack([p[:, 16:48, 8:56] for p in (bird, head)]),
    ):
        x = np.ascontiguousarray(batch)
        expected = by_torch(weights, x)
        assert_close(runner.run(None, {"input": x})[0], expected, 1e-5)
        low = half.run(None, {"input": x.astype(np.float16)})[0].astype(np.float64)
        assert np.linalg.norm(low - expected) <= 2e-3 * np.linalg.norm(expected)
