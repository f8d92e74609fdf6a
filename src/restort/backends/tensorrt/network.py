"""From a graph to TensorRT's network: parsing, profile, and precisions of layers of a weakly typed network."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import onnx

from restort.backends.tensorrt.library import Flavour
from restort.backends.tensorrt.logger import plain
from restort.backends.tensorrt.options import Profile
from restort.errors import RestortError, UsageError
from restort.export.typed import ENDS, NAMES, float32_nodes, float32_values


def parse(flavour: Flavour, builder: Any, data: bytes) -> tuple[Any, Any]:
    """Parse a serialized graph and return (network, parser); the parser must live as long as the network.

    Raises RestortError that names the node which the library cannot read.
    """
    module = flavour.module
    flags = 0
    named = module.NetworkDefinitionCreationFlag
    if flavour.capabilities.strongly_typed:
        flags |= 1 << int(named.STRONGLY_TYPED)
    elif hasattr(named, "EXPLICIT_BATCH"):
        flags |= 1 << int(named.EXPLICIT_BATCH)
    with flavour.logger.capture() as captured:
        network = builder.create_network(flags)
        parser = module.OnnxParser(network, flavour.logger.ilogger)
        if not parser.parse(data):
            raise _unreadable(flavour, parser) or captured.error("reading the graph")
    return network, parser


def _unreadable(flavour: Flavour, parser: Any) -> RestortError | None:
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        node = error.node_name() if hasattr(error, "node_name") else ""
        where = f" at the node {node}" if node else ""
        return RestortError(
            f"{flavour.title} cannot read the graph{where}: {plain(str(error.desc()))}; install a newer one, or build "
            "with --model or --weights instead of --onnx"
        )
    return None


def input_shape(model: onnx.ModelProto) -> tuple[int, int, int, int]:
    """Return (N, C, H, W) of the only input of a graph, -1 for a free size.

    Raises RestortError where the graph is not of one picture in and one out.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [port for port in model.graph.input if port.name not in weights]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise RestortError(
            f"the graph has {len(inputs)} inputs and {len(model.graph.output)} outputs; give one with one input and "
            "one output"
        )
    dims = inputs[0].type.tensor_type.shape.dim
    if len(dims) != 4 or not dims[1].dim_value:
        raise RestortError("the input of the graph must be a picture of shape (N, channels, H, W)")
    n, c, h, w = (d.dim_value if d.dim_value > 0 else -1 for d in dims)
    return n, c, h, w


def check_profile(shape: tuple[int, int, int, int], profile: Profile, multiple: int) -> None:
    """Raise UsageError where `profile` does not fit a graph of this input shape and size multiple."""
    n, _, h, w = shape
    for size in (profile.min, profile.opt, profile.max, *profile.others):
        text = "x".join(map(str, size))
        if min(size) < 1 or size[1] % multiple or size[2] % multiple:
            raise UsageError(
                f"--shape {text} does not fit the network: sizes must be positive, height and width multiples of "
                f"{multiple}"
            )
        if any(fixed not in (-1, given) for fixed, given in zip((n, h, w), size, strict=True)):
            fixed = "x".join("any" if d == -1 else str(d) for d in (n, h, w))
            raise UsageError(f"--shape {text} does not fit the graph, whose input is {fixed} (BxHxW)")
    if not all(a <= b <= c for a, b, c in zip(profile.min, profile.opt, profile.max, strict=True)):
        raise UsageError(
            f"--shape {profile} is out of order: no size may be larger than the next (min, opt, max)"
        )


def add_profile(
    flavour: Flavour, builder: Any, config: Any, network: Any, channels: int, profile: Profile
) -> None:
    """Add optimization profiles of (B, H, W) sizes for the network's input: one, and one for each of `others`."""
    ranges = [(profile.min, profile.opt, profile.max), *((size,) * 3 for size in profile.others)]
    with flavour.logger.capture() as captured:
        for sizes in ranges:
            made = builder.create_optimization_profile()
            made.set_shape(network.get_input(0).name, *[(b, channels, h, w) for b, h, w in sizes])
            if config.add_optimization_profile(made) < 0:
                raise captured.error("setting the sizes")


def layer_types(module: Any, network: Any) -> dict[str, int]:
    """Count the layers of the network by the type of their output: {'float16': 900, 'float32': 800, ...}."""
    names = type_names(module)
    counts: Counter[str] = Counter()
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type != module.LayerType.CONSTANT and layer.num_outputs:
            counts[names.get(layer.get_output(0).dtype, "")] += 1
    counts.pop("", None)
    return dict(sorted(counts.items()))


def type_names(module: Any) -> dict[Any, str]:
    """The library's floating-point types, and their names in NumPy."""
    names = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
    return {
        getattr(module.DataType, name): text for name, text in names.items() if hasattr(module.DataType, name)
    }


def set_layer_precisions_from_graph(
    flavour: Flavour, network: Any, types: Mapping[str, int], *, all_layers: bool
) -> int:
    """Hold layers of a weakly typed network to the types of its graph; return how many.

    types       the element type of every value of the graph (restort.export.typed.tensor_types).
    all_layers  False holds only the float32 layers, and the builder chooses for the others.

    Layers are named after the nodes. Layers that the parser adds (ONNXTRT_...) compute shapes and stay free, except
    those that broadcast numbers.
    """
    module = flavour.module
    by_name = {text: kind for kind, text in type_names(module).items()}
    half, full = by_name["float16"], by_name["float32"]
    skip = {module.LayerType.CONSTANT, module.LayerType.SHAPE}
    count = 0
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        outputs = [layer.get_output(j) for j in range(layer.num_outputs)]
        if layer.type in skip or not outputs or any(out.is_shape_tensor for out in outputs):
            continue
        known = (types.get(name) for name in (outputs[0].name, layer.name, re.sub(r"_\d+$", "", layer.name)))
        kind = by_name.get(NAMES.get(next((found for found in known if found), 0), ""))
        if layer.name.startswith("ONNXTRT_Broadcast"):  # of a number that may exceed float16
            kind = outputs[0].dtype
        if kind not in (half, full) or (kind == half and not all_layers):
            continue
        if layer.type != module.LayerType.CAST:
            layer.precision = kind
        for j in range(len(outputs)):
            layer.set_output_type(j, kind)
        count += 1
    return count


def set_fp16_layer_precisions(flavour: Flavour, network: Any, model: onnx.ModelProto) -> int:
    """Hold layers of a weakly typed network, of a float32 graph, to float16 or float32; return how many.

    Convolutions and matrix products become float16. Layers of `typed.float32_values` and `typed.float32_nodes` become
    float32, such as the addition of the result onto the image. The builder chooses for all other layers. Types of
    outputs are set only between two float32 layers, so that no value is converted twice.
    """
    module = flavour.module
    by_name = {text: kind for kind, text in type_names(module).items()}
    named, stay = float32_values(model), float32_nodes(model)
    readers: dict[str, set[str]] = {}
    for node in model.graph.node:
        for value in node.input:
            readers.setdefault(value, set()).add(node.name)
    inside = {
        node.name
        for node in model.graph.node
        if node.name in stay and (used := readers.get(node.output[0])) and used <= stay
    }
    last = {node.op_type for node in model.graph.node if node.output[0] in named} & ENDS
    ends = {node.output[0] for node in model.graph.node if node.op_type in last}
    count = 0
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        outputs = [layer.get_output(j) for j in range(layer.num_outputs)]
        if layer.type in (module.LayerType.CONSTANT, module.LayerType.SHAPE) or not outputs:
            continue
        names = {outputs[0].name, layer.name, re.sub(r"_\d+$", "", layer.name)}
        of_numbers = not outputs[0].is_shape_tensor and outputs[0].dtype == by_name["float32"]
        if names & named or (names & stay and of_numbers):
            layer.precision = by_name["float32"]
            if names & inside or (names & named and not names & ends):
                layer.set_output_type(0, by_name["float32"])
        elif layer.type in (module.LayerType.CONVOLUTION, module.LayerType.MATRIX_MULTIPLY):
            layer.precision = by_name["float16"]
        else:
            continue
        count += 1
    return count
