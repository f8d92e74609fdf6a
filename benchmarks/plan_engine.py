"""Builds an engine of TensorRT 8.6 from the graph of a plan, runs it through the plugin RestortPass, and times it.

    . D/env.sh && PYTHONPATH=src:$PYTHONPATH $TRT_PYTHON benchmarks/plan_engine.py librestort_pass.so GRAPH.onnx
                  [--plan FILE] [--input x.npy] [--reference y.npy] [--save y.npy] [--engine FILE]
                  [--repeat 100]

D as in tensorrt86.py. GRAPH.onnx is of benchmarks/plan_make.py; with --plan its node names that file instead of holding
a plan. The reference is of `plan_check.py --save`, which takes the same random input by default. Looked at, too: two
contexts of an engine that was serialized, at once on two streams, give the same bits; the same as a CUDA graph. The
status is 1 where something fails.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from restort.backends.tensorrt import cuda

FAR = 1e-2


def naming(graph: bytes, plan: Path) -> bytes:
    """The graph with the path of a plan in place of its bytes."""
    import onnx

    model = onnx.load_from_string(graph)
    model.graph.node[0].attribute[0].s = f"file:{plan.resolve()}".encode()
    return bytes(model.SerializeToString())


def build(trt: Any, logger: Any, graph: bytes) -> bytes:
    """The engine, serialized."""
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        sys.exit("\n".join(str(parser.get_error(i)) for i in range(parser.num_errors)) or "not parsed")
    config = builder.create_builder_config()
    # Else contexts would ask for cuBLAS and cuDNN, which the pack has no more of than their names.
    sources = trt.TacticSource.EDGE_MASK_CONVOLUTIONS, trt.TacticSource.JIT_CONVOLUTIONS
    config.set_tactic_sources(sum(1 << int(source) for source in sources))
    start = time.perf_counter()
    made = builder.build_serialized_network(network, config)
    if made is None:
        sys.exit("TensorRT built no engine; its messages are above")
    print(f"{'built in':28} {time.perf_counter() - start:.1f} s, {network.num_layers} layers")
    return bytes(memoryview(made))


class Lane:
    """A context with its buffers and its stream."""

    def __init__(self, engine: Any, x: Any) -> None:
        self.context = engine.create_execution_context()
        if self.context is None:
            sys.exit("there is no execution context; TensorRT's messages are above")
        self.stream = cuda.Stream()
        self.host_in, shape = cuda.Pinned(x.shape), tuple(engine.get_tensor_shape("output"))
        self.host_out = cuda.Pinned(shape)
        self.host_in.array[:] = x
        self.input, self.output = cuda.Buffer(self.host_in.size), cuda.Buffer(self.host_out.size)
        self.context.set_tensor_address("input", self.input.pointer)
        self.context.set_tensor_address("output", self.output.pointer)
        self.stream.upload(self.input, self.host_in)
        self.stream.synchronize()

    def enqueue(self) -> None:
        if not self.context.execute_async_v3(self.stream.number):
            sys.exit("the pass was not put on the stream; TensorRT's messages are above")

    def spoil(self) -> None:
        """NaN where the output is to be."""
        cuda.call("MemsetAsync", self.output.pointer, 0xFF, self.output.size, self.stream.handle)

    def result(self) -> Any:
        self.stream.download(self.host_out, self.output)
        self.stream.synchronize()
        return self.host_out.array.copy()

    def timed(self, run: Any, repeat: int) -> list[float]:
        """Milliseconds by the device's clock."""
        start, end, found = cuda.Event(True), cuda.Event(True), []
        for i in range(repeat + 5):
            self.stream.record(start)
            run()
            self.stream.record(end)
            end.wait()
            if i >= 5:
                found.append(end.since(start))
        return found


def same(a: Any, b: Any) -> bool:
    return bool((a.view(np.uint32) == b.view(np.uint32)).all())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("plugin")
    parser.add_argument("graph")
    parser.add_argument("--plan", help="let the graph name this file")
    parser.add_argument("--input")
    parser.add_argument("--reference")
    parser.add_argument("--save")
    parser.add_argument("--engine", help="write the engine there")
    parser.add_argument("--repeat", type=int, default=100)
    args = parser.parse_args()
    import tensorrt as trt  # first: the plugin takes the libnvinfer.so.8 that this has loaded

    logger = trt.Logger(trt.Logger.WARNING)
    ctypes.CDLL(str(Path(args.plugin).resolve()))
    creator = trt.get_plugin_registry().get_plugin_creator("RestortPass", "1", "")
    if creator is None:
        sys.exit("the plugin was loaded, and TensorRT does not know it: is it bound to another libnvinfer?")
    print(f"{'TensorRT':28} {trt.__version__}")
    graph = Path(args.graph).read_bytes()
    made = build(trt, logger, naming(graph, Path(args.plan)) if args.plan else graph)
    if args.engine:
        Path(args.engine).write_bytes(made)
    engine = trt.Runtime(logger).deserialize_cuda_engine(made)
    if engine is None:
        sys.exit("the engine is not deserialized; TensorRT's messages are above")
    shape = tuple(engine.get_tensor_shape("input"))
    x = np.load(args.input) if args.input else np.random.default_rng(0).random(shape, np.float32)
    print(f"{'engine':28} {len(made) / 2**20:.1f} MiB, {shape} -> {tuple(engine.get_tensor_shape('output'))}")
    lanes, bad = [Lane(engine, np.ascontiguousarray(x, np.float32)) for _ in range(2)], []
    for lane in lanes:
        lane.spoil()
        lane.enqueue()
    first, second = (lane.result() for lane in lanes)
    print(f"{'output':28} {first.min():.5f} to {first.max():.5f}, mean {first.mean():.5f}")
    if not np.isfinite(first).all():
        bad.append("the output is not finite, or not all written")
    if not same(first, second):
        bad.append("two contexts gave different bits")
    for _ in range(20):
        for lane in lanes:
            lane.enqueue()
    if not all(same(first, lane.result()) for lane in lanes):
        bad.append("contexts at once on two streams gave other bits")
    if args.save:
        np.save(args.save, first)
    if args.reference:
        wanted = np.load(args.reference).astype(np.float64)
        found = float(np.linalg.norm(first - wanted) / np.linalg.norm(wanted))
        print(f"{'reference':28} {found:.2e} of its norm away, at most {np.abs(first - wanted).max():.2e}")
        if not found <= FAR:
            bad.append(f"the result is {found:.2e} from the reference")

    lane = lanes[0]
    times = [("launched one by one", lane.timed(lane.enqueue, args.repeat))]
    try:
        lane.stream.begin_capture()
        lane.enqueue()
        replay = lane.stream.end_capture()
        lane.spoil()
        times.append(("as a CUDA graph", lane.timed(lambda: lane.stream.launch(replay), args.repeat)))
        if not same(first, lane.result()):
            bad.append("the CUDA graph gave other bits")
    except Exception as error:
        bad.append(f"the pass cannot be captured: {error}")
    for name, found_ms in times:
        median = statistics.median(found_ms)
        print(f"{name:28} {median:.3f} ms (median of {len(found_ms)}, min {min(found_ms):.3f})")
    for line in bad:
        print(f"FAILED: {line}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
