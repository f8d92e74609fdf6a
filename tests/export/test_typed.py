"""Graphs for engines: every form, their types, and mixed precision, against the PyTorch network."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from restort.errors import RestortError
from restort.export.emit import emit
from restort.export.fixed import with_fixed_input
from restort.export.form import Form, sections
from restort.export.graph import bfloat16_bits
from restort.export.typed import (
    NAMES,
    check_precision,
    convolutions,
    float32_values,
    tensor_types,
    typed_graph,
    with_float32_ports,
)
from tests.export.test_graphs import FORMS, assert_close, by_torch, picture, session, weights_of

CHOICES = [
    Form("cast", "rows", "split"),
    Form("layer", "rows", "separate"),
    Form("cast", "before", "separate"),
    Form("arithmetic", "rows", "split"),
    Form("arithmetic", "gram", "separate"),
]
SOME = ["restormer-gray", "restormer-bias", "restormer-bias-biasfree-dual", "restormer-two-heads"]


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    y: np.ndarray = session(model).run(None, {"input": x})[0]
    return y


@pytest.mark.parametrize("way", CHOICES, ids=lambda way: f"{way.norm}-{way.attention}-{way.gate}")
@pytest.mark.parametrize("form", ["restormer", *SOME])
def test_every_form_computes_the_network(form: str, way: Form) -> None:
    weights = weights_of(FORMS[form])
    x = picture(weights.spec, 2, 24, 16)
    expected = by_torch(weights, x)
    for opset in (17, 20):
        model = emit(weights, form=way, opset=opset)  # type: ignore[arg-type]
        onnx.checker.check_model(model, full_check=True)
        assert_close(run(model, x), expected, 1e-5)
    assert_close(run(emit(weights, "fp16", form=way, ports="fp32"), x), expected, 8e-3)


def test_what_must_be_float32_in_a_float32_graph() -> None:
    model = typed_graph(weights_of(FORMS["restormer-bias"]), form=Form("cast", "rows"), newer_operators=False)
    made = {node.output[0]: node.op_type for node in model.graph.node}
    kinds = {made.get(name, "Split") for name in float32_values(model)}
    assert {"LayerNormalization", "ReduceL2", "Softmax", "MatMul"} <= kinds
    assert not kinds & {"Conv", "Split", "Reshape", "Erf"}
    products = [name for name in float32_values(model) if made.get(name) == "MatMul"]
    softmaxes = list(made.values()).count("Softmax")  # with what weights make of the scores
    assert len(products) == 2 * softmaxes


def test_one_product_of_q_and_k_is_float32_with_its_sums_and_norms() -> None:
    way = Form("arithmetic", "gram")
    model = typed_graph(weights_of(FORMS["restormer-two-heads"]), form=way, newer_operators=False)
    found = float32_values(model)
    kinds = [node.op_type for node in model.graph.node if node.output[0] in found]
    softmaxes = [node.op_type for node in model.graph.node].count("Softmax")
    assert kinds.count("MatMul") == 3 * kinds.count("Softmax") == 3 * softmaxes
    assert {"ReduceSum", "Sqrt", "Mul", "Div"} <= set(kinds)
    assert not set(kinds) & {"Conv", "Split", "Erf"}


@pytest.mark.parametrize(
    ("form", "way"),
    [
        ("elan-x2", Form()),
        ("elan-full", Form()),
        ("restormer-bias", Form("cast", "rows", "split")),
        ("restormer", Form("layer", "rows")),
        ("restormer-two-heads", Form("arithmetic", "gram")),
    ],
)
def test_a_graph_of_one_size(form: str, way: Form) -> None:
    weights = weights_of(FORMS[form])
    x = picture(weights.spec, 2, 48, 32)
    free = typed_graph(weights, form=way, newer_operators=False)
    fixed = with_fixed_input(free, x.shape)  # type: ignore[arg-type]
    onnx.checker.check_model(fixed, full_check=True)
    kinds = {node.op_type for node in fixed.graph.node}
    assert not kinds & {"Shape", "Range", "Mod", "ScatterElements", "Unsqueeze"}
    assert len(fixed.graph.node) < len(free.graph.node)
    assert free.graph.input[0].type.tensor_type.shape.dim[2].dim_param == "H"
    assert_close(run(fixed, x), run(free, x), 1e-6)
    large = with_fixed_input(free, (1, x.shape[1], 2**10, 2**11))
    assert ("Range" in {node.op_type for node in large.graph.node}) == (way == Form())


@pytest.mark.parametrize("form", ["restormer", "restormer-biasfree", "elan-x2", "elan-full"])
def test_an_engines_graph_keeps_statistics_in_float32(form: str) -> None:
    weights = weights_of(FORMS[form])
    for precision, narrow in (("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)):
        model = typed_graph(weights, precision)
        onnx.checker.check_model(model, full_check=True)
        types = tensor_types(model)
        types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        producers = {name: node for node in model.graph.node for name in node.output}
        wide, seen = {"Softmax", "ReduceL2", "ReduceMean", "LayerNormalization", "Sqrt", "Div"}, set()
        for node in model.graph.node:
            ports = {types[name] for name in (*node.input, *node.output)} - {TensorProto.INT64}
            if node.op_type in wide:
                seen.add(node.op_type)
                assert ports == {TensorProto.FLOAT}, node.name
            if node.op_type == "Conv":
                assert ports == {narrow}, node.name
            if node.op_type == "Softmax":  # the product whose softmax it is, through scale and mask
                name = node.input[0]
                while (maker := producers[name]).op_type != "MatMul":
                    name = maker.input[0]
                assert {types[name] for name in maker.input} == {TensorProto.FLOAT}
        assert "Softmax" in seen and (not form.startswith("restormer") or "ReduceL2" in seen)
        for port in (*model.graph.input, *model.graph.output):
            assert port.type.tensor_type.elem_type == TensorProto.FLOAT


@pytest.mark.parametrize("form", ["restormer", "restormer-dual-pixel", "elan-x2", "elan-unit-range"])
def test_mixed_precision_lies_between(form: str) -> None:
    weights = weights_of(FORMS[form])
    names = sections(weights.spec)
    x = picture(weights.spec, 1, 32, 16)
    expected = by_torch(weights, x)
    errors = []
    for keep in ((), names[:-2], names):
        model = typed_graph(weights, "mixed", keep_fp32=keep)
        onnx.checker.check_model(model, full_check=True)
        error = run(model, x) - expected
        errors.append(float(np.linalg.norm(error) / np.linalg.norm(expected)))
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-5 and errors[0] < 5e-3
    kept = typed_graph(weights, "mixed", keep_fp32=names[1:3])
    about = {entry.key: entry.value for entry in kept.metadata_props}
    assert about["restort.precision"] == "mixed" and about["restort.keep_fp32"] == ",".join(names[1:3])
    types = tensor_types(kept)
    inside = {types[n.output[0]] for n in kept.graph.node if n.op_type == "Conv" and f"{names[1]}/" in n.name}
    assert inside <= {TensorProto.FLOAT}


def test_every_section_can_be_kept_alone() -> None:
    """Each adds casts at its own borders and float32 convolutions inside, and nothing else."""
    for form in ("restormer-dual-pixel", "elan-x2"):
        weights = weights_of(FORMS[form])
        x = picture(weights.spec, 1, 16, 16)
        expected = by_torch(weights, x)
        for i, name in enumerate(sections(weights.spec)):
            model = typed_graph(weights, "mixed", keep_fp32=[name])
            kinds = list(convolutions(model).values())
            assert 0 < kinds.count("float32") < len(kinds), name
            if i % 6 == 0:
                assert_close(run(model, x), expected, 1e-2)


def test_bfloat16_agrees_by_the_reference_of_onnx() -> None:
    from onnx.reference import ReferenceEvaluator

    for form, limit in (("restormer-gray", 4e-2), ("elan-x1", 1e-2)):
        weights = weights_of(FORMS[form])
        x = picture(weights.spec, 1, 16, 16)
        y = ReferenceEvaluator(typed_graph(weights, "bf16")).run(None, {"input": x})[0]
        assert_close(y, by_torch(weights, x), limit)


def test_bfloat16_is_rounded_to_the_nearest_even() -> None:
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -2.5, 3e38, 1e-38, 0.0], np.float32)
    found = (bfloat16_bits(values).astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(found[:4], [1.0, 1.0, 1 + 2**-6, -2.5])
    np.testing.assert_allclose(found[4:], values[4:], rtol=2**-7)


def test_no_precision_falls_back_in_silence() -> None:
    weights = weights_of(FORMS["elan-x2"])
    for precision in ("fp32", "tf32", "fp16", "bf16", "mixed"):
        check_precision(typed_graph(weights, precision), precision)
    for precision, other in (("fp32", "fp16"), ("fp16", "fp32"), ("bf16", "fp16"), ("mixed", "fp32")):
        with pytest.raises(
            RestortError, match=rf"precision {precision} requested, but \d+ of \d+ convolutions .*conv_"
        ):
            check_precision(typed_graph(weights, other), precision)
    half_kept = typed_graph(weights, "mixed", keep_fp32=["tail"])
    with pytest.raises(RestortError, match="but 1 of"):
        check_precision(half_kept, "fp16")


def test_old_operators_for_the_oldest_library() -> None:
    model = typed_graph(weights_of(FORMS["restormer"]), "fp16", newer_operators=False)
    assert model.opset_import[0].version == 17 and model.ir_version == 8
    assert "Gelu" not in {node.op_type for node in model.graph.node}
    for node in model.graph.node:
        if node.op_type.startswith("Reduce"):
            assert len(node.input) == 1 and "axes" in {a.name for a in node.attribute}
    with pytest.raises(RestortError, match="no bfloat16"):
        typed_graph(weights_of(FORMS["restormer"]), "bf16", newer_operators=False)


def test_wrong_requests() -> None:
    weights = weights_of(FORMS["elan-x2"])
    with pytest.raises(RestortError, match="unknown precision of an engine: 'int8'"):
        typed_graph(weights, "int8")
    with pytest.raises(RestortError, match="precision fp16 keeps no sections in float32"):
        typed_graph(weights, "fp16", keep_fp32=["head"])
    with pytest.raises(RestortError, match=r"unknown section to keep in float32: 'body\.9'"):
        typed_graph(weights, "mixed", keep_fp32=["body.9"])


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_ports_become_float32(precision: Any) -> None:
    weights = weights_of(FORMS["elan-x2"])
    model = emit(weights, precision)
    wide = with_float32_ports(model)
    onnx.checker.check_model(wide, full_check=True)
    types = tensor_types(wide)
    assert {types["input"], types["output"]} == {TensorProto.FLOAT}
    assert NAMES[tensor_types(model)["input"]] in ("float16", "bfloat16")
    assert with_float32_ports(wide) is wide
    if precision == "fp16":
        x = picture(weights.spec, 1, 16, 32)
        assert_close(run(wide, x), run(model, x.astype(np.float16)).astype(np.float32), 1e-3)
