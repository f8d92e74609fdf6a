"""From a graph to a parsed network: ports, profile, and the precision of layers where the library has no types."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import onnx

from restort.backends.tensorrt.flavour import Flavour
from restort.backends.tensorrt.keys import Profile
from restort.backends.tensorrt.log import plain
from restort.errors import RestortError, UsageError
from restort.export.typed import ENDS, NAMES, kept, statistics


def parse(flavour: Flavour, builder: Any, data: bytes) -> tuple[Any, Any]:
    """(network, parser) of a serialised graph; the parser must live as long as the network does.

    Raises RestortError with the node that the library cannot read.
    """
    module = flavour.module
    flags = 0
    named = module.NetworkDefinitionCreationFlag
    if flavour.capabilities.strongly_typed:
        flags |= 1 << int(named.STRONGLY_TYPED)
    elif hasattr(named, "EXPLICIT_BATCH"):
        flags |= 1 << int(named.EXPLICIT_BATCH)
    with flavour.log.listening() as heard:
        network = builder.create_network(flags)
        parser = module.OnnxParser(network, flavour.log.logger)
        if not parser.parse(data):
            raise _unreadable(flavour, parser) or heard.error("reading the graph")
    return network, parser


def _unreadable(flavour: Flavour, parser: Any) -> RestortError | None:
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        node = error.node_name() if hasattr(error, "node_name") else ""
        where = f" at the node {node}" if node else ""
        return RestortError(
            f"{flavour.title} cannot read the graph{where}: {plain(str(error.desc()))}; use a newer one, or a graph "
            "that `restort build --model` or --weights makes"
        )
    return None


def input_shape(model: onnx.ModelProto) -> tuple[int, int, int, int]:
    """(N, C, H, W) of the one input of a graph, -1 where it is free.

    Raises RestortError where the graph is not one picture in, one picture out.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [port for port in model.graph.input if port.name not in weights]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise RestortError(
            f"an engine takes a graph of one input and one output, not {len(inputs)} and {len(model.graph.output)}"
        )
    dims = inputs[0].type.tensor_type.shape.dim
    if len(dims) != 4 or not dims[1].dim_value:
        raise RestortError("the input of the graph is no picture of shape (N, channels, H, W)")
    n, c, h, w = (d.dim_value if d.dim_value > 0 else -1 for d in dims)
    return n, c, h, w


def check_profile(shape: tuple[int, int, int, int], profile: Profile, multiple: int) -> None:
    """UsageError where `profile` is none for a graph of this input shape and multiple of height and width."""
    n, _, h, w = shape
    for size in (profile.min, profile.opt, profile.max):
        text = "x".join(map(str, size))
        if min(size) < 1 or size[1] % multiple or size[2] % multiple:
            raise UsageError(
                f"--shape {text} does not fit: batch, height and width are positive, and height and width multiples "
                f"of {multiple}"
            )
        if any(fixed not in (-1, given) for fixed, given in zip((n, h, w), size, strict=True)):
            fixed = "x".join("any" if d == -1 else str(d) for d in (n, h, w))
            raise UsageError(f"--shape {text} does not fit the graph, whose input is {fixed} (BxHxW)")
    if not all(a <= b <= c for a, b, c in zip(profile.min, profile.opt, profile.max, strict=True)):
        raise UsageError(f"--shape {profile} does not fit: no size may be larger than the one after it")


def add_profile(
    flavour: Flavour, builder: Any, config: Any, network: Any, channels: int, profile: Profile
) -> None:
    """An optimisation profile of (B, H, W) sizes for the network's input."""
    shapes = [(b, channels, h, w) for b, h, w in (profile.min, profile.opt, profile.max)]
    with flavour.log.listening() as heard:
        made = builder.create_optimization_profile()
        made.set_shape(network.get_input(0).name, *shapes)
        if config.add_optimization_profile(made) < 0:
            raise heard.error("setting the sizes")


def layer_types(module: Any, network: Any) -> dict[str, int]:
    """How many layers of the network have an output of each type: {'float16': 900, 'float32': 800, ...}."""
    names = type_names(module)
    counts: Counter[str] = Counter()
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type != module.LayerType.CONSTANT and layer.num_outputs:
            counts[names.get(layer.get_output(0).dtype, "")] += 1
    counts.pop("", None)
    return dict(sorted(counts.items()))


def type_names(module: Any) -> dict[Any, str]:
    """The floating-point types, as NumPy and its friends call them."""
    names = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
    return {
        getattr(module.DataType, name): text for name, text in names.items() if hasattr(module.DataType, name)
    }


def constrain(flavour: Flavour, network: Any, types: Mapping[str, int], *, everything: bool) -> int:
    """Holds the layers of a weakly typed network to the types of its graph; how many.

    types       the element type of every value of the graph (restort.export.typed.tensor_types).
    everything  False holds only those that must be float32, and lets the builder choose for the others.

    A weakly typed builder takes the types of the graph as a starting point and may compute any layer in any
    precision that its flags allow. Layers are named after the nodes; those that the parser adds between them
    (ONNXTRT_...) work on shapes and are left alone, but for those that reshape numbers to fit what they meet.
    """
    module = flavour.module
    by_name = {text: kind for kind, text in type_names(module).items()}
    half, full = by_name["float16"], by_name["float32"]
    skip = {module.LayerType.CONSTANT, module.LayerType.SHAPE}
    held = 0
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        outputs = [layer.get_output(j) for j in range(layer.num_outputs)]
        if layer.type in skip or not outputs or any(out.is_shape_tensor for out in outputs):
            continue
        known = (types.get(name) for name in (outputs[0].name, layer.name, re.sub(r"_\d+$", "", layer.name)))
        kind = by_name.get(NAMES.get(next((found for found in known if found), 0), ""))
        if layer.name.startswith("ONNXTRT_Broadcast"):  # of a number, which float16 may not hold
            kind = outputs[0].dtype
        if kind not in (half, full) or (kind == half and not everything):
            continue
        if layer.type != module.LayerType.CAST:
            layer.precision = kind
        for j in range(len(outputs)):
            layer.set_output_type(j, kind)
        held += 1
    return held


def pin(flavour: Flavour, network: Any, model: onnx.ModelProto) -> int:
    """Holds a weakly typed network of a float32 graph to float16 where its work is and float32 where sums are long.

    Convolutions and other products get float16, what `typed.statistics` names and all that is `typed.kept` float32, and
    the builder chooses for all others. (Left to itself it adds the last result onto the image in float16.) Types of
    outputs are set only between layers that are both float32, so that no value is converted twice.
    """
    module = flavour.module
    by_name = {text: kind for kind, text in type_names(module).items()}
    named, stay = statistics(model), kept(model)
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
    held = 0
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
        held += 1
    return held
