"""What TensorRT 8.6 is told of a network, on the parser of TensorRT-RTX, whose layers have the same names."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from restort.backends.tensorrt import build, network
from restort.backends.tensorrt.flavour import Flavour, find
from restort.errors import RestortError
from restort.export.emit import emit
from restort.export.fixed import with_fixed_input
from restort.export.form import WEAKLY_TYPED
from restort.export.typed import check_precision, convolutions, kept, tensor_types, typed_graph
from tests.export.test_graphs import FORMS, weights_of

SIZE = (1, 3, 64, 64)


class Noted:
    """A layer that keeps what it is told instead of doing it."""

    def __init__(self, layer: Any) -> None:
        vars(self).update(layer=layer, told={})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.told[name] = value.name

    def set_output_type(self, index: int, kind: Any) -> None:
        self.told[index] = kind.name


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
    builder = rtx.module.Builder(rtx.log.logger)
    kept = network.parse(rtx, builder, graph.SerializeToString())
    return Network(kept[0]), graph, (builder, *kept)


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
    network.constrain(rtx, net, tensor_types(graph), everything=True)
    kinds = rtx.module.LayerType
    free = [
        layer.name
        for layer in net.layers
        if not layer.told
        and layer.get_output(0).dtype.name in ("FLOAT", "HALF")
        and layer.type not in (kinds.CONSTANT, kinds.SHAPE)
    ]
    assert not free and kept


def test_pinned_layers(rtx: Flavour) -> None:
    net, graph, kept = parsed(rtx, "fp32", True)
    network.pin(rtx, net, graph)
    told = Counter((layer.type.name, layer.told.get("precision")) for layer in net.layers)
    blocks = told["SOFTMAX", "FLOAT"]
    assert blocks and told["REDUCE", "FLOAT"] >= blocks and told["MATRIX_MULTIPLY", "FLOAT"] == 3 * blocks
    assert not told["CONVOLUTION", None] and told["CONVOLUTION", "HALF"] > 4 * blocks
    assert not told["MATRIX_MULTIPLY", None] and told["MATRIX_MULTIPLY", "HALF"] == blocks
    assert not told["SOFTMAX", None] and not told["REDUCE", None]
    ends = [layer for layer in net.layers if layer.type.name in ("SOFTMAX", "NORMALIZATION")]
    assert all(0 not in layer.told for layer in ends) and kept


def test_pinned_layers_of_kept_sections(rtx: Flavour) -> None:
    sections = ("patch_embed", "up3_2", "decoder_level1.0")
    net, graph, alive = parsed(rtx, "fp32", True, sections)
    network.pin(rtx, net, graph)
    usual, other, others = parsed(rtx, "fp32", True)
    network.pin(rtx, usual, other)
    convolutions = [
        (layer.name, layer.told["precision"], before.told["precision"])
        for layer, before in zip(net.layers, usual.layers, strict=True)
        if layer.type.name == "CONVOLUTION"
    ]
    stay = kept(graph) & {name for name, *_ in convolutions}
    assert len(stay) >= len(sections) and alive and others
    (last,) = kept(other)  # the addition onto the image
    assert next(layer.told for layer in usual.layers if layer.name == last) == {"precision": "FLOAT"}
    assert all(now == ("FLOAT" if name in stay else before) for name, now, before in convolutions)
    assert {before for *_, before in convolutions} == {"HALF"}
    products = [
        layer for layer in net.layers if layer.type.name == "MATRIX_MULTIPLY" and layer.name in kept(graph)
    ]
    assert products and all(layer.told["precision"] == "FLOAT" for layer in products)


@pytest.mark.parametrize("static", [False, True])
def test_a_kept_block_is_float32_within(rtx: Flavour, static: bool) -> None:
    net, graph, alive = parsed(rtx, "fp32", static, ("encoder_level1.0",))
    network.pin(rtx, net, graph)
    stay = kept(graph)
    block = [
        layer for layer in net.layers if layer.name in stay and layer.name.startswith("encoder_level1.0")
    ]
    told = [layer.told.get(0) for layer in block if layer.type.name in ("CONVOLUTION", "ELEMENTWISE")]
    assert told.count("FLOAT") > 4 and alive
    (end,) = [
        layer
        for layer in block
        if layer.name == "encoder_level1.0" or layer.get_output(0).name == "encoder_level1.0"
    ]
    assert 0 not in end.told and end.told["precision"] == "FLOAT"  # read by what may be float16
    other = [layer for layer in net.layers if layer.get_output(0).dtype.name not in ("FLOAT", "HALF")]
    assert static or other
    assert not any(layer.told for layer in other)


def test_kept_convolutions_may_be_float32_in_the_engine(rtx: Flavour) -> None:
    _, graph, alive = parsed(rtx, "fp32", True, ("patch_embed", "encoder_level1.0"))
    kinds = convolutions(graph)
    low = build.lowered(graph, kinds, "pinned")
    assert low == set(kinds) - kept(graph) and 0 < len(low) < len(kinds) and alive
    assert build.lowered(graph, dict.fromkeys(kinds, "float32"), "wide") == set()


def test_a_mixed_restormer_is_pinned_and_a_typed_graph_is_not() -> None:
    weak: Any = SimpleNamespace(capabilities=SimpleNamespace(strongly_typed=False))
    assert build.graph_precision(weak, "mixed", None, "restormer") == "fp32"
    assert build.graph_precision(weak, "mixed", None, "elan") == "mixed"
    typed = build.WEAKLY_TYPED["restormer"]["typed"]
    assert build.graph_precision(weak, "mixed", typed, "restormer") == "mixed"
    with pytest.raises(RestortError, match="mixed was asked for"):
        check_precision(emit(weights_of(FORMS["restormer-bias"]), "fp32", opset=17), "mixed")
