"""Precisions of layers for TensorRT 8.6, on the parser of TensorRT-RTX, which names layers alike."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from restort.backends.tensorrt import builder, network
from restort.backends.tensorrt.library import Flavour, find
from restort.errors import RestortError
from restort.export.emit import emit
from restort.export.fixed import with_fixed_input
from restort.export.form import WEAKLY_TYPED
from restort.export.typed import check_precision, convolutions, float32_nodes, tensor_types, typed_graph
from tests.export.test_graphs import FORMS, weights_of

SIZE = (1, 3, 64, 64)


class Noted:
    """A layer that records what is set on it."""

    def __init__(self, layer: Any) -> None:
        vars(self).update(layer=layer, set={})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.set[name] = value.name

    def set_output_type(self, index: int, kind: Any) -> None:
        self.set[index] = kind.name


class Network:
    def __init__(self, real: Any) -> None:
        self.layers = [Noted(real.get_layer(i)) for i in range(real.num_layers)]
        self.num_layers = real.num_layers
        self.get_layer = self.layers.__getitem__


@pytest.fixture(scope="module")
def rtx() -> Flavour:
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    return find("rtx")


def parsed(
    rtx: Flavour, precision: str, static: bool, keep_fp32: tuple[str, ...] = ()
) -> tuple[Network, Any, tuple[Any, ...]]:
    graph = typed_graph(
        weights_of(FORMS["restormer-bias"]),
        precision,
        keep_fp32=keep_fp32,
        newer_operators=False,
        form=WEAKLY_TYPED,
    )
    if static:
        channels = graph.graph.input[0].type.tensor_type.shape.dim[1].dim_value
        graph = with_fixed_input(graph, (SIZE[0], channels, *SIZE[2:]))
    trt_builder = rtx.module.Builder(rtx.logger.ilogger)
    parsed_ = network.parse(rtx, trt_builder, graph.SerializeToString())
    return Network(parsed_[0]), graph, (trt_builder, *parsed_)


def test_a_graph_of_one_size_has_no_arithmetic_of_sizes(rtx: Flavour) -> None:
    free, graph, kept = parsed(rtx, "fp16", False)
    fixed, other, others = parsed(rtx, "fp16", True)
    assert fixed.num_layers < 0.9 * free.num_layers
    assert not [layer for layer in fixed.layers if layer.type == rtx.module.LayerType.SHAPE]
    assert graph.graph.input[0].type.tensor_type.shape.dim[2].dim_param == "H"
    assert tensor_types(other).items() <= tensor_types(graph).items()
    assert kept and others


@pytest.mark.parametrize("static", [False, True])
def test_every_layer_is_held_to_its_type_numbers_too(rtx: Flavour, static: bool) -> None:
    net, graph, kept = parsed(rtx, "fp16", static)
    network.set_layer_precisions_from_graph(rtx, net, tensor_types(graph), all_layers=True)
    kinds = rtx.module.LayerType
    free = [
        layer.name
        for layer in net.layers
        if not layer.set
        and layer.get_output(0).dtype.name in ("FLOAT", "HALF")
        and layer.type not in (kinds.CONSTANT, kinds.SHAPE)
    ]
    assert not free and kept


def test_fp16_layer_precisions(rtx: Flavour) -> None:
    net, graph, kept = parsed(rtx, "fp32", True)
    network.set_fp16_layer_precisions(rtx, net, graph)
    held = Counter((layer.type.name, layer.set.get("precision")) for layer in net.layers)
    blocks = held["SOFTMAX", "FLOAT"]
    assert blocks and held["REDUCE", "FLOAT"] >= blocks and held["MATRIX_MULTIPLY", "FLOAT"] == 3 * blocks
    assert not held["CONVOLUTION", None] and held["CONVOLUTION", "HALF"] > 4 * blocks
    assert not held["MATRIX_MULTIPLY", None] and held["MATRIX_MULTIPLY", "HALF"] == blocks
    assert not held["SOFTMAX", None] and not held["REDUCE", None]
    ends = [layer for layer in net.layers if layer.type.name in ("SOFTMAX", "NORMALIZATION")]
    assert all(0 not in layer.set for layer in ends) and kept


def test_fp16_layer_precisions_of_kept_sections(rtx: Flavour) -> None:
    sections = ("patch_embed", "up3_2", "decoder_level1.0")
    net, graph, alive = parsed(rtx, "fp32", True, sections)
    network.set_fp16_layer_precisions(rtx, net, graph)
    usual, other, others = parsed(rtx, "fp32", True)
    network.set_fp16_layer_precisions(rtx, usual, other)
    convolutions = [
        (layer.name, layer.set["precision"], before.set["precision"])
        for layer, before in zip(net.layers, usual.layers, strict=True)
        if layer.type.name == "CONVOLUTION"
    ]
    stay = float32_nodes(graph) & {name for name, *_ in convolutions}
    assert len(stay) >= len(sections) and alive and others
    (last,) = float32_nodes(other)  # the addition onto the image
    assert next(layer.set for layer in usual.layers if layer.name == last) == {"precision": "FLOAT"}
    assert all(now == ("FLOAT" if name in stay else before) for name, now, before in convolutions)
    assert {before for *_, before in convolutions} == {"HALF"}
    products = [
        layer
        for layer in net.layers
        if layer.type.name == "MATRIX_MULTIPLY" and layer.name in float32_nodes(graph)
    ]
    assert products and all(layer.set["precision"] == "FLOAT" for layer in products)


@pytest.mark.parametrize("static", [False, True])
def test_a_kept_block_is_float32_within(rtx: Flavour, static: bool) -> None:
    net, graph, alive = parsed(rtx, "fp32", static, ("encoder_level1.0",))
    network.set_fp16_layer_precisions(rtx, net, graph)
    stay = float32_nodes(graph)
    block = [
        layer for layer in net.layers if layer.name in stay and layer.name.startswith("encoder_level1.0")
    ]
    held = [layer.set.get(0) for layer in block if layer.type.name in ("CONVOLUTION", "ELEMENTWISE")]
    assert held.count("FLOAT") > 4 and alive
    (end,) = [
        layer
        for layer in block
        if layer.name == "encoder_level1.0" or layer.get_output(0).name == "encoder_level1.0"
    ]
    assert 0 not in end.set and end.set["precision"] == "FLOAT"  # read by what may be float16
    other = [layer for layer in net.layers if layer.get_output(0).dtype.name not in ("FLOAT", "HALF")]
    assert static or other
    assert not any(layer.set for layer in other)


def test_kept_convolutions_may_be_float32_in_the_engine(rtx: Flavour) -> None:
    _, graph, alive = parsed(rtx, "fp32", True, ("patch_embed", "encoder_level1.0"))
    kinds = convolutions(graph)
    low = builder.low_convolutions(graph, kinds, True)
    assert low == set(kinds) - float32_nodes(graph) and 0 < len(low) < len(kinds) and alive
    assert builder.low_convolutions(graph, dict.fromkeys(kinds, "float32"), False) == set()


def test_a_mixed_restormer_is_built_from_a_float32_graph() -> None:
    weak: Any = SimpleNamespace(capabilities=SimpleNamespace(strongly_typed=False))
    assert builder.graph_precision(weak, "mixed", "restormer") == "fp32"
    assert builder.graph_precision(weak, "mixed", "elan") == "mixed"
    with pytest.raises(RestortError, match="precision mixed requested"):
        check_precision(emit(weights_of(FORMS["restormer-bias"]), "fp32", opset=17), "mixed")
