"""Operators as nodes with functions: the same values as the ordinary graph, tensor by tensor, in ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from restort.errors import UsageError
from restort.export.emit import emit
from restort.export.operators import OPERATORS, inlined
from restort.weights.checkpoint import Weights
from tests.export.test_graphs import FORMS, weights_of
from tests.fakes.fake_backend import ELAN, write_weights

NAMES = (
    "restormer-bias",
    "restormer-two-heads",
    "restormer-bias-biasfree-dual",
    "elan-x2",
    "elan-x4",
    "elan-full",
)


def operators_of(weights: Weights) -> tuple[str, ...]:
    return tuple(OPERATORS[weights.spec.architecture])


def run(model: onnx.ModelProto, values: list[str], x: np.ndarray) -> list[np.ndarray]:
    """The results and some values between the nodes, without optimizations across them."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    known = {port.name for port in model.graph.output}
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in values if name not in known)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(tapped.SerializeToString(), options)
    found: list[np.ndarray] = session.run(values, {"input": x})
    return found


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", NAMES)
def test_every_operator_gives_what_its_nodes_give(name: str, precision: Any) -> None:
    weights = weights_of(FORMS[name])
    plain, folded = emit(weights, precision), emit(weights, precision, operators=operators_of(weights))
    onnx.checker.check_model(folded)
    nodes = [node for node in folded.graph.node if node.domain == "restort"]
    values = ["output", *(value for node in nodes for value in node.output)]
    kind = np.float16 if precision == "fp16" else np.float32
    x = np.random.default_rng(0).random((2, weights.spec.in_channels, 32, 48)).astype(kind)
    for value, ours, theirs in zip(values, run(folded, values, x), run(plain, values, x)):
        np.testing.assert_array_equal(ours, theirs, err_msg=value)
    optimized = onnxruntime.InferenceSession(folded.SerializeToString()).run(None, {"input": x})[0]
    (expected,) = run(plain, ["output"], x)
    error = np.linalg.norm(optimized.astype(float) - expected) / np.linalg.norm(expected.astype(float))
    assert error < (1e-2 if precision == "fp16" else 1e-5)


def test_what_a_viewer_shows() -> None:
    weights = weights_of(FORMS["elan-x4"])
    spec = weights.spec
    model = emit(weights, operators=("lfe", "gmsa"))
    kinds = Counter(node.op_type for node in model.graph.node if node.domain)
    blocks = spec.groups * (spec.n_share + 1)
    assert kinds == {"RestortLFE": blocks, "RestortGMSA": spec.groups, "RestortGMSA_2": blocks - spec.groups}
    first = next(node for node in model.graph.node if node.op_type == "RestortLFE")
    assert first.name == "body.0.0/lfe" and first.output[0].startswith("body.0.0/")
    lfe = next(function for function in model.functions if function.name == "RestortLFE")
    assert [node.op_type for node in lfe.node] == ["Conv", "Conv", "Relu", "Conv", "Conv"]
    assert list(lfe.input[:4]) == ["x", "conv_0_weight", "conv_1_weight", "conv_1_bias"]
    assert "shift convolutions" in lfe.doc_string and lfe.domain == "restort"
    gmsa = next(node for node in model.graph.node if node.op_type == "RestortGMSA")
    assert len(gmsa.output) == 1 + len(
        spec.window_sizes
    )  # the result, and scores for the blocks that share them
    assert {p.key: p.value for p in model.metadata_props}["restort.operators"] == "gmsa,lfe"
    names = {tensor.name for tensor in model.graph.initializer}
    assert names == {value for node in model.graph.node for value in node.input} & names


def test_one_operator_alone_and_inlined_again() -> None:
    weights = weights_of(FORMS["restormer-bias"])
    plain, folded = emit(weights), emit(weights, operators=("gdfn",))
    assert {node.op_type.split("_")[0] for node in folded.graph.node if node.domain} == {"RestortGDFN"}
    again = inlined(folded)
    assert not again.functions and inlined(plain) is plain

    def kinds(model: onnx.ModelProto) -> Counter[str]:
        return Counter(node.op_type for node in model.graph.node if node.op_type != "Identity")

    assert kinds(again) == kinds(plain)
    assert [entry.domain for entry in again.opset_import] == [""]
    onnx.checker.check_model(again)
    x = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
    np.testing.assert_array_equal(run(again, ["output"], x)[0], run(plain, ["output"], x)[0])


def test_operators_of_another_network() -> None:
    with pytest.raises(
        UsageError, match=r"--operators mdta is no operator of this network \(elan\); choose lfe or gmsa"
    ):
        emit(weights_of(FORMS["elan-x2"]), operators=("lfe", "mdta"))


def test_the_command(tmp_path: Path, restort: Any) -> None:
    weights = write_weights(tmp_path / "tiny.safetensors", ELAN[2])
    target = tmp_path / "tiny.onnx"
    told = restort("export", "--weights", weights, "-o", target, "--operators", "lfe,gmsa", "--json")
    assert told.status == 0 and '"RestortLFE"' in told.out, told.err
    assert {node.op_type for node in onnx.load(target).graph.node if node.domain} >= {
        "RestortLFE",
        "RestortGMSA",
    }
    told = restort("export", "--weights", weights, "-o", tmp_path / "b.onnx", "--operators", "gdfn")
    assert told.status == 2 and "is no operator of this network" in told.err
    told = restort(
        "export", "--weights", weights, "--format", "aot", "--shape", "1x32x32", "--operators", "lfe"
    )
    assert told.status == 2 and "--operators is only for ONNX files" in told.err
