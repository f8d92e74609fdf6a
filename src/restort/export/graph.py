"""A builder of ONNX graphs: nodes from calls, initialisers from NumPy arrays, names from scopes."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from restort.export.qdq import LARGEST, Quantization, float8_bits

Precision: TypeAlias = Literal["fp32", "fp16", "bf16"]
Array: TypeAlias = npt.NDArray[Any]

FLOAT_TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
IR_VERSIONS = {17: 8, 20: 9, 22: 10}
QUANTIZED_TYPES = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}
STORED_QUANTIZED = (
    19  # from this opset on weights are stored quantised; TensorRT 8.6 wants float ones and a QuantizeLinear
)
RANGE = "range/"  # begins the name of an output with the largest absolute values of a layer's input
KEPT = "stays float32"  # doc_string of a node that a weakly typed builder must keep in float32


class GraphBuilder:
    """Collects nodes and weights. A value is the name of a tensor.

    precision   type of activations and weights of the section being written. Values marked `float32` are float32 in
                every precision; in fp32 the casts between the two make no nodes.
    keep_fp32   names of sections that are written in fp32 whatever `precision` is. Their nodes carry KEPT as
                doc_string, for a builder that chooses types by itself.
    ports       type of input and output, by default `precision`. Nodes outside of sections have it, too; they carry
                KEPT where it was given as fp32.
    quantization    the layers to quantise (`conv`).
    observe     add an output RANGE + layer for every layer that can be quantised: the largest absolute value of each
                channel of its input, (1, C, 1, 1).

    Values pass from one section to the next through `enter`.
    """

    def __init__(
        self,
        precision: Precision,
        opset: int,
        *,
        ports: Precision | None = None,
        keep_fp32: Collection[str] = (),
        quantization: Quantization | None = None,
        observe: bool = False,
    ) -> None:
        self.precision: Precision = precision
        self.quantization, self.observe = quantization, observe
        self._observed: dict[str, str] = {}  # output by layer
        self._dequantized: dict[str, str] = {}  # rounded input by layer
        self.opset = opset
        self.ports: Precision = ports or precision
        self.keep_fp32 = frozenset(keep_fp32)
        self._made: dict[str, Precision] = {"input": self.ports}
        self._entered: dict[tuple[str, Precision], str] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._scope: list[str] = []
        self._doc = KEPT if ports == "fp32" else ""
        self._count = 0
        self._operator: tuple[str, int] | None = None
        self.groups: dict[str, tuple[str, int]] = {}
        """The operator that a node is part of, by the node's name: its type, and a number of its own."""

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of nodes and tensors made inside with `name/`, so that profiles can be read."""
        self._scope.append(name)
        yield
        self._scope.pop()

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Write what is inside as the section `name`, in its precision."""
        kept = name in self.keep_fp32
        outside, self._doc = self._doc, KEPT if kept else ""
        with self.at("fp32" if kept else self.precision):
            yield
        self._doc = outside

    @contextmanager
    def operator(self, kind: str | None) -> Iterator[None]:
        """Note that the nodes made inside are an operator of that type; with None, that they are shared by several."""
        outside = self._operator
        self._operator = None if kind is None else (kind, self._count)
        yield
        self._operator = outside

    @contextmanager
    def at(self, precision: Precision) -> Iterator[None]:
        """Write what is inside in this precision."""
        outside, self.precision = self.precision, precision
        yield
        self.precision = outside

    def enter(self, x: str) -> str:
        """Cast `x`, a value of any section, to the precision of this one, if it has another."""
        return self._as(x, self.precision)

    def leave(self, x: str) -> str:
        """Cast `x` to the precision of the output, if it has another."""
        return self._as(x, self.ports)

    def _as(self, x: str, precision: Precision) -> str:
        if self._made[x] == precision:
            return x
        if (x, precision) not in self._entered:
            result = self._entered[x, precision] = self.op("Cast", x, to=FLOAT_TYPES[precision])
            self._made[result] = precision
        return self._entered[x, precision]

    def _name(self, kind: str) -> str:
        self._count += 1
        return "/".join([*self._scope, f"{kind.lower()}_{self._count}"])

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Append a node of one output and return that output's name."""
        return self.multi(kind, 1, *inputs, **attributes)[0]

    def multi(self, kind: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """Append a node of several outputs and return their names."""
        name = self._name(kind)
        names = [name] if outputs == 1 else [f"{name}.{i}" for i in range(outputs)]
        node = helper.make_node(kind, list(inputs), names, name=name, **attributes)
        if self._doc:
            node.doc_string = self._doc
        self._nodes.append(node)
        if self._operator is not None:
            self.groups[name] = self._operator
        self._made.update((name, self.precision) for name in names)
        return names

    def call(self, value: str, name: str) -> str:
        """Rename `value` to `name`; the last node must have made it, and no node may have used it yet."""
        outputs = self._nodes[-1].output
        outputs[list(outputs).index(value)] = name
        self._made[name] = self._made.pop(value)
        return name

    def weight(self, values: Array, float32: bool = False) -> str:
        """Store an initialiser, in float32 or in the graph's float type; equal ones are stored once."""
        kind = "fp32" if float32 else self.precision
        if kind == "bf16":
            return self._store(bfloat16_bits(values), TensorProto.BFLOAT16)
        return self._store(np.ascontiguousarray(values, np.float16 if kind == "fp16" else np.float32))

    def integers(self, values: Sequence[int] | int) -> str:
        """Store an int64 initialiser: a vector, or a scalar for a single int."""
        return self._store(np.asarray(values, np.int64))

    def _store(self, values: Array, kind: int | None = None) -> str:
        digest = hashlib.blake2b(
            values.tobytes(), digest_size=8, key=str((values.shape, values.dtype)).encode()
        )
        name = f"w_{digest.hexdigest()}"
        if name not in self._initializers:
            tensor = self._initializers[name] = numpy_helper.from_array(values, name)
            tensor.data_type = kind or tensor.data_type  # NumPy has no bfloat16: these are its bits as uint16
        return name

    def to_float32(self, x: str) -> str:
        """Cast `x` from the graph's float type to float32, if that is another."""
        return x if self.precision == "fp32" else self.op("Cast", x, to=TensorProto.FLOAT)

    def from_float32(self, x: str) -> str:
        """Cast `x` from float32 to the graph's float type, if that is another."""
        return x if self.precision == "fp32" else self.op("Cast", x, to=FLOAT_TYPES[self.precision])

    def split(self, x: str, sizes: Sequence[int], axis: int) -> list[str]:
        """Split `x` into parts of the given sizes along `axis`."""
        return self.multi("Split", len(sizes), x, self.integers(list(sizes)), axis=axis)

    def conv(
        self,
        x: str,
        weight: Array,
        bias: Array | None = None,
        groups: int = 1,
        float32: bool = False,
        layer: str = "",
    ) -> str:
        """Convolve with stride 1 and zero padding, which keeps the size.

        layer   the module's name, of a convolution that can be quantised (restort.export.qdq). Calls with one layer
                have one x.
        """
        k = weight.shape[-1]
        if layer and self.observe and layer not in self._observed:
            largest = self.reduce("ReduceMax", self.op("Abs", x), 0, 2, 3)
            self._observed[layer] = self.call(largest, f"{RANGE}{layer}")
        if layer and self.quantization and layer in self.quantization.ranges:
            inputs = [
                self._rounded(x, layer, self.quantization),
                self._rounded_weight(weight, self.quantization),
            ]
        else:
            inputs = [x, self.weight(weight, float32)]
        if bias is not None:
            inputs.append(self.weight(bias, float32))
        return self.op("Conv", *inputs, kernel_shape=[k, k], pads=[k // 2] * 4, group=groups)

    def _rounded(self, x: str, layer: str, to: Quantization) -> str:
        """Quantise and dequantise the input `x` of `layer` with one scale."""
        if layer not in self._dequantized:
            largest = max(to.ranges[layer], 1e-6)  # an input that is 0 everywhere has any scale
            # A scalar: `weight` would store a vector of length 1, which means a scale along an axis.
            kind = np.float16 if self.precision == "fp16" else np.float32
            scale = self._store(np.array(largest / LARGEST[to.kind], kind))
            zero = self._store(
                np.array(0, np.int8 if to.kind == "int8" else np.uint8), QUANTIZED_TYPES[to.kind]
            )
            x = self.op("QuantizeLinear", x, scale, zero)
            self._dequantized[layer] = self.op("DequantizeLinear", x, scale, zero)
        return self._dequantized[layer]

    def _rounded_weight(self, weight: Array, to: Quantization) -> str:
        """Dequantise the rounded `weight` with a scale for each output channel."""
        limit = LARGEST[to.kind]
        largest = np.abs(weight.astype(np.float64)).max(axis=(1, 2, 3))
        scale = np.where(largest > 0, largest, 1.0) / limit
        scale = scale.astype(np.float16 if self.precision == "fp16" else np.float32)
        steps = np.clip(weight / scale.astype(np.float64).reshape(-1, 1, 1, 1), -limit, limit)
        kind, scales = QUANTIZED_TYPES[to.kind], self.weight(scale)
        values = np.rint(steps).astype(np.int8) if to.kind == "int8" else float8_bits(steps)
        zeros = self._store(np.zeros(len(scale), values.dtype), kind)
        if self.opset >= STORED_QUANTIZED:
            return self.op("DequantizeLinear", self._store(values, kind), scales, zeros, axis=0)
        rounded = self.op("QuantizeLinear", self.weight(weight), scales, zeros, axis=0)
        return self.op("DequantizeLinear", rounded, scales, zeros, axis=0)

    def reduce(self, kind: str, x: str, *axes: int) -> str:
        """Apply ReduceL2, ReduceMean, ... over `axes`, which are kept with size 1."""
        if self.opset < 18:  # axes became an input with opset 18
            return self.op(kind, x, axes=list(axes), keepdims=1)
        return self.op(kind, x, self.integers(list(axes)), keepdims=1)

    def finish(
        self,
        name: str,
        result: str,
        inputs: tuple[int, str],
        outputs: tuple[int, str],
        metadata: Mapping[str, str],
    ) -> onnx.ModelProto:
        """Return the model, with free N, H and W.

        inputs, outputs     (channels, suffix of the symbolic height and width) of 'input' and 'output'.
        result              the value of the last node, in the precision of the output (`leave`); it is renamed to
                            'output'.
        """
        self._nodes[-1].output[list(self._nodes[-1].output).index(result)] = "output"
        kind = FLOAT_TYPES[self.ports]

        def value(port: str, channels: int, suffix: str) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(port, kind, ["N", channels, f"H{suffix}", f"W{suffix}"])

        observed = [
            helper.make_tensor_value_info(output, FLOAT_TYPES[self._made[output]], [1, None, 1, 1])
            for output in self._observed.values()
        ]
        graph = helper.make_graph(
            self._nodes,
            name,
            [value("input", *inputs)],
            [value("output", *outputs), *observed],
            list(self._initializers.values()),
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], producer_name="restort"
        )
        model.ir_version = IR_VERSIONS[self.opset]
        helper.set_model_props(model, dict(metadata))
        return model


def bfloat16_bits(values: Array) -> npt.NDArray[np.uint16]:
    """Round finite `values` to bfloat16, to nearest even, and return the bits."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded: npt.NDArray[np.uint16] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded
