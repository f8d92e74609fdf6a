"""The blocks' operators as nodes of their own: RestortLFE and RestortGMSA of an ELAN, RestortMDTA and RestortGDFN of a
Restormer, each with its body as an ONNX local function.

A tool that knows functions (ONNX Runtime, TensorRT 10 and 11) computes the body; a viewer such as Netron shows a few
nodes, which open. The weights are inputs of a node, so all blocks of one form share one function; another form (other
heads, another level, scores of an earlier block) has a function with a number: RestortMDTA_2.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import onnx
from onnx import TensorProto, helper

from restort.errors import UsageError
from restort.models.spec import Spec

DOMAIN = "restort"
OPERATORS: Mapping[str, Mapping[str, str]] = {
    "elan": {"lfe": "RestortLFE", "gmsa": "RestortGMSA"},
    "restormer": {"mdta": "RestortMDTA", "gdfn": "RestortGDFN"},
}
"""For each architecture the names of --operators, and the types of their nodes."""
DOCS = {
    "RestortLFE": "Local feature extraction (ELAN, section 3.2): two shift convolutions with ReLU between them.",
    "RestortGMSA": "Group-wise multi-scale self-attention (ELAN, section 3.3): softmax(q q^T) v in windows.",
    "RestortMDTA": "Multi-Dconv head transposed attention (Restormer, section 3.1): softmax(q k^T) v over channels.",
    "RestortGDFN": "Gated-Dconv feed-forward network (Restormer, section 3.2): gelu(gate) * value, projected.",
}
ROLES = {"Conv": ("x", "weight", "bias"), "LayerNormalization": ("x", "scale", "bias")}

Group = tuple[str, int]
"""The type of an operator's node, and a number of its own."""


def chosen(spec: Spec, names: Collection[str]) -> frozenset[str]:
    """The types of nodes for names of --operators. Raises UsageError for one that the network does not have."""
    known = OPERATORS[spec.architecture]
    for name in names:
        if name not in known:
            raise UsageError(
                f"--operators {name} is no operator of this network ({spec.architecture}); choose {' or '.join(known)}"
            )
    return frozenset(known[name] for name in names)


def fold(model: onnx.ModelProto, groups: Mapping[str, Group]) -> None:
    """Replace the nodes of each group, by name, by one node, and add the functions of these nodes to the model."""
    graph = model.graph
    members: dict[Group, list[onnx.NodeProto]] = {}
    for node in graph.node:
        if node.name in groups:
            members.setdefault(groups[node.name], []).append(node)
    users: dict[str, set[Group | None]] = {port.name: {None} for port in graph.output}
    for node in graph.node:
        for value in node.input:
            users.setdefault(value, set()).add(groups.get(node.name))
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    functions: dict[bytes, onnx.FunctionProto] = {}
    calls: dict[str, onnx.NodeProto] = {}  # by the name of the last node of a group
    for group, nodes in members.items():
        function, inputs, outputs = _function(group, nodes, users, tensors, model.opset_import)
        known = functions.setdefault(function.SerializeToString(deterministic=True), function)
        if known is function:
            same = [other for other in functions.values() if re.fullmatch(rf"{group[0]}(_\d+)?", other.name)]
            function.name = group[0] if len(same) == 1 else f"{group[0]}_{len(same)}"
        name = f"{nodes[-1].name.rpartition('/')[0]}/{group[0].removeprefix('Restort').lower()}"
        calls[nodes[-1].name] = helper.make_node(known.name, inputs, outputs, name=name, domain=DOMAIN)
    kept = [
        calls.get(node.name, node) for node in graph.node if node.name in calls or node.name not in groups
    ]
    del graph.node[:]
    graph.node.extend(kept)
    model.functions.extend(functions.values())
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    used = {value for node in kept for value in node.input}
    left = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(left)


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the bodies of its functions instead of calls, for a reader that knows none (TensorRT 8.6)."""
    if not model.functions:
        return model
    from onnx.inliner import inline_local_functions

    made = inline_local_functions(model)
    nodes = list(made.graph.node)
    del made.graph.node[:]
    for node in nodes:
        if node.op_type == "Constant" and [entry.name for entry in node.attribute] == ["value"]:
            tensor = made.graph.initializer.add()  # as `emit` writes shapes and axes
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
        else:
            made.graph.node.append(node)
    opsets = [entry for entry in made.opset_import if entry.domain != DOMAIN]
    del made.opset_import[:]
    made.opset_import.extend(opsets)
    return made


def _function(
    group: Group,
    nodes: Sequence[onnx.NodeProto],
    users: Mapping[str, set[Group | None]],
    tensors: Mapping[str, onnx.TensorProto],
    opsets: Sequence[onnx.OperatorSetIdProto],
) -> tuple[onnx.FunctionProto, list[str], list[str]]:
    """Return the function of a group, still named after its operator, and the inputs and outputs of its call.

    Floating-point weights become inputs, one for each use, so that the function does not depend on their values;
    integers, which are shapes and axes, become constants.
    """
    names: dict[str, str] = {}  # of values in the function
    inputs: dict[str, str] = {}  # by name in the function
    body: list[onnx.NodeProto] = []
    for number, node in enumerate(nodes):
        label = f"{node.op_type.lower()}_{number}"
        made = onnx.NodeProto()
        made.CopyFrom(node)
        made.name, made.doc_string = label, ""
        for i, value in enumerate(node.input):
            if value in tensors:
                role = ROLES.get(node.op_type, ())[i : i + 1]
                own = f"{label}_{role[0] if role else f'input{i}'}"
                if tensors[value].data_type == TensorProto.INT64:
                    unnamed = onnx.TensorProto()
                    unnamed.CopyFrom(tensors[value])
                    unnamed.name = ""
                    body.append(helper.make_node("Constant", [], [own], name=own, value=unnamed))
                else:
                    inputs[own] = value
                made.input[i] = own
            elif value:
                if value not in names:
                    names[value] = "x" if not names else f"x{sum(value.startswith('x') for value in inputs)}"
                    inputs[names[value]] = value
                made.input[i] = names[value]
        for i, value in enumerate(node.output):
            made.output[i] = names[value] = label if len(node.output) == 1 else f"{label}_{i}"
        body.append(made)
    outputs = [
        value for node in reversed(nodes) for value in node.output if users.get(value, set()) - {group}
    ]
    function = helper.make_function(
        DOMAIN,
        group[0],
        list(inputs),
        [names[value] for value in outputs],
        body,
        list(opsets),
        doc_string=DOCS[group[0]],
    )
    return function, list(inputs.values()), outputs
