"""Quantised graphs: which layers, which types, how near in ONNX Runtime, and the command that writes them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

import restort
from restort.errors import RestortError
from restort.export.emit import emit
from restort.export.graph import RANGE, Precision
from restort.export.qdq import Quantization, QuantType, float8_bits, quantizable_layers
from restort.models.spec import RestormerSpec
from restort.profiling.calibration import TRAINED_KIND, TRAINED_RANGES, Calibrated, calibrated
from restort.profiling.synthetic import dead_leaves
from restort.weights.checkpoint import Weights, load_weights

SHIPPED = Path(restort.__file__).parent / "weights" / "shipped"
LAYERS = {"elan-light-x4": 96, "restormer-small-denoise": 51}


@pytest.fixture(scope="module", params=LAYERS)
def weights(request: pytest.FixtureRequest) -> Weights:
    return load_weights(SHIPPED / f"{request.param}.safetensors")


@pytest.fixture(scope="module")
def found(weights: Weights) -> Calibrated:
    return calibrated(weights, "int8")


@pytest.fixture(scope="module")
def ranges(found: Calibrated) -> dict[str, float]:
    return dict(found.quantization.ranges)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    kind = np.float16 if session.get_inputs()[0].type == "tensor(float16)" else np.float32
    return np.asarray(session.run(None, {"input": x.astype(kind)})[0], np.float64)


def observed(weights: Weights) -> dict[str, float]:
    """The largest input of each layer without equalisation, on a picture."""
    session = onnxruntime.InferenceSession(
        emit(weights, observe=True).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()[1:]]
    values = session.run(names, {"input": dead_leaves(128, 128, 3, 0)[None]})
    return {name.removeprefix(RANGE): float(value.max()) for name, value in zip(names, values)}


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a - b) ** 2)))


@pytest.mark.parametrize(
    ("kind", "precision", "opset", "least"),
    [
        ("int8", "fp32", None, 44),
        ("int8", "fp32", 17, 44),
        ("int8", "fp16", None, 44),
        ("fp8", "fp32", None, 40),
    ],
)
def test_a_quantised_graph_is_near_in_onnx_runtime(
    weights: Weights, found: Calibrated, kind: QuantType, precision: Precision, opset: Any, least: float
) -> None:
    x = dead_leaves(48, 48, 3, 7)[None]
    quantization = Quantization(kind, found.quantization.ranges)
    model = emit(found.weights, precision, opset=opset, quantization=quantization)
    assert psnr(run(model, x), run(emit(weights), x)) > least


def test_equalised_weights_are_the_same_network_and_nearer_in_int8(
    weights: Weights, found: Calibrated
) -> None:
    x = dead_leaves(48, 48, 3, 7)[None]
    reference = run(emit(weights), x)
    assert psnr(run(emit(found.weights), x), reference) > 100
    plain = emit(weights, quantization=Quantization("int8", observed(weights)))
    better = emit(found.weights, quantization=found.quantization)
    gain = 1 if isinstance(weights.spec, RestormerSpec) else -0.5  # ranges of an ELAN are even enough already
    assert psnr(run(better, x), reference) > psnr(run(plain, x), reference) + gain


def test_every_layer_of_the_list_is_observed_and_quantised_and_no_other(
    weights: Weights, ranges: dict[str, float]
) -> None:
    names = quantizable_layers(weights.spec)
    assert len(names) == LAYERS[weights.metadata["model"]]
    observed = [output.name for output in emit(weights, observe=True).graph.output[1:]]
    assert observed == [f"{RANGE}{name}" for name in names]
    graph = emit(weights, quantization=Quantization("int8", ranges)).graph
    made = {node.output[0]: node for node in graph.node}
    stored = {tensor.name: tensor for tensor in graph.initializer}
    inputs = set()
    for conv in (node for node in graph.node if node.op_type == "Conv"):
        x, weight = (made.get(name) for name in conv.input[:2])
        if weight is None:  # a float initialiser: a 3x3 or depthwise convolution, MDTA's projection or a norm
            assert conv.input[1] in stored and (x is None or x.op_type != "DequantizeLinear")
            continue
        assert x is not None and x.op_type == weight.op_type == "DequantizeLinear"
        kernel = stored[weight.input[0]]
        assert kernel.data_type == TensorProto.INT8 and list(kernel.dims)[2:] == [1, 1]
        assert list(stored[weight.input[1]].dims) == [kernel.dims[0]]  # a scale for each output channel
        assert list(stored[x.input[1]].dims) == []  # one for the input
        inputs.add(x.output[0])
    assert len(inputs) == len(names)  # gate and value of a GDFN are two convolutions of one input


def test_opset_17_stores_float_weights_and_quantises_them_in_the_graph(
    weights: Weights, ranges: dict[str, float]
) -> None:
    graph = emit(weights, opset=17, quantization=Quantization("int8", ranges)).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    pairs = [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] in stored]
    assert len(pairs) >= len(ranges)
    for node in pairs:
        kernel, scale = (numpy_helper.to_array(stored[name]) for name in node.input[:2])
        assert np.abs(kernel).max(axis=(1, 2, 3)) == pytest.approx(
            scale * 127, abs=2
        )  # rows of zeros have 1 / 127


def test_what_cannot_be_quantised_is_one_sentence(weights: Weights) -> None:
    def refused(kind: QuantType, layer: str, **options: Any) -> str:
        with pytest.raises(RestortError) as caught:
            emit(weights, quantization=Quantization(kind, {layer: 1.0}), **options)
        return str(caught.value)

    layer = quantizable_layers(weights.spec)[0]
    assert "'head.0' cannot be quantised" in refused("int8", "head.0")
    assert "opset 17 has no FP8" in refused("fp8", layer, opset=17)
    assert "no INT8 beside fp16" in refused("int8", layer, opset=17, precision="fp16")


def test_float8_is_rounded_to_nearest_even() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    codes = np.arange(127, dtype=np.uint8)
    exact = torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy().astype(np.float64)
    values = np.concatenate([exact, (exact[1:] + exact[:-1]) / 2, rng.normal(0, 50, 10_000).clip(-448, 448)])
    values = np.concatenate([values, -values])
    expected = torch.from_numpy(values).float().to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert np.array_equal(float8_bits(values.astype(np.float32)), expected)
    assert float8_bits(np.array([1e9, -1e9])).tolist() == [126, 254]  # 448, not NaN


def test_ranges_of_trained_weights_need_no_pictures(weights: Weights, ranges: dict[str, float]) -> None:
    about = {TRAINED_RANGES: json.dumps(ranges), TRAINED_KIND: "int8"}
    trained = dataclasses.replace(weights, metadata={**weights.metadata, **about})
    again = calibrated(trained, "int8")
    assert again.weights is trained and again.quantization.ranges == ranges and again.pictures == []
    with pytest.raises(RestortError, match="trained for int8, not fp8; choose --precision int8"):
        calibrated(trained, "fp8")
    about[TRAINED_RANGES] = json.dumps({"head.0": 1.0})
    with pytest.raises(RestortError, match="do not fit the network; give --calibration"):
        calibrated(dataclasses.replace(weights, metadata=about), "int8")


def test_the_command_calibrates_on_pictures_and_writes_a_file(
    restort: Any, tmp_path: Path, shared: Path
) -> None:
    photo, target = shared / "data" / "test" / "set5" / "HR", tmp_path / "x4.onnx"
    export = ("export", "--model", "elan-light-x4", "-o", target, "--precision", "int8")
    told = restort(*export, "--calibration", photo / "baby.png", "--json")
    report = json.loads(told.out)
    assert told.status == 0 and report["quantized_layers"] == 96 and report["calibration"] == ["baby.png"]
    assert report["metadata"]["restort.quantization"] == "int8" and "synthetic" not in told.err
    kinds = {tensor.data_type for tensor in onnx.load(target).graph.initializer}
    assert TensorProto.INT8 in kinds and target.stat().st_size < 1_200_000  # 2.6 MB in float32


def test_a_folder_without_pictures_is_one_sentence(restort: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    export = ("export", "--model", "elan-light-x4", "-o", tmp_path / "x.onnx", "--precision", "int8")
    told = restort(*export, "--calibration", tmp_path / "empty")
    assert told.status == 1 and len(told.lines) == 1 and "there are no pictures in" in told.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--calibration", "."), "--calibration is only for --precision int8 and fp8"),
        (("--precision", "fp16", "--opset", "17"), "--opset is only for --precision int8 and fp8"),
        (("--precision", "int8", "--operators", "lfe"), "--operators is only for fp32 and fp16, not int8"),
        (("--precision", "fp8", "--opset", "17"), "opset 17 has neither FP8"),
        (
            ("--format", "aot", "--precision", "int8", "--shape", "1x64x64"),
            "AOT packages do not support int8",
        ),
        (("--format", "aot", "--opset", "17", "--shape", "1x64x64"), "--opset is only for --precision"),
    ],
)
def test_wrong_use_is_one_sentence(
    restort: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    suffix = "rtaot" if "aot" in arguments else "onnx"
    told = restort("export", "--model", "elan-light-x4", "-o", f"x.{suffix}", *arguments)
    assert told.status == 2 and len(told.lines) == 1 and expected in told.err, told.err
