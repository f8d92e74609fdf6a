"""A plain ONNX export of a network as its original is written, by PyTorch: what the ports of 2022 began with.

    python benchmarks/plain_export.py elan-light-x4 192 320 plain.onnx

Static shape, float32, opset 17 and IR version 8, which TensorRT 8.6 reads; the same random weights as in
gpu_workloads. For benchmarks/tensorrt86.py --plain.
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import onnxruntime as ort
import torch
from gpu_workloads import weights_of
from peers import Eager


class Plain(torch.nn.Module):
    """The peer as a module: pictures in [0, 1] in and out, as restort's graphs have them."""

    def __init__(self, network: str) -> None:
        super().__init__()
        weights = weights_of(network)
        self.range = weights.spec.value_range
        self.eager = Eager(weights.state, weights.spec)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.eager(x * self.range) / self.range


def main() -> None:
    network, height, width, target = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    x = torch.rand(1, 3, height, width)
    names = {"input_names": ["input"], "output_names": ["output"]}
    with torch.no_grad():
        torch.onnx.export(Plain(network), (x,), str(target), opset_version=17, dynamo=False, **names)
    # The shape is fixed, so the arithmetic on shapes is constant; the ports ran a simplifier to the same end.
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    ort.InferenceSession(target.read_bytes(), options, providers=["CPUExecutionProvider"])
    model = onnx.load(target)
    model.ir_version = 8
    used = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    del model.opset_import[:]
    model.opset_import.extend(used)
    onnx.save(model, target)
    print(f"{target}: {len(model.graph.node)} nodes, {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
