"""Is a network compiled ahead right, and as fast as the fused backend? Run by the driver alone, and in TensorRT.

    python benchmarks/check_aot.py compile WEIGHTS OUT [--precision fp16] [--shape 1 720 1280] [--plain]
    python benchmarks/check_aot.py compile --workloads [--only WORDS] [--processes 16] [--capability 90]
    python benchmarks/check_aot.py run FILE [--input x.npy] [--reference y.npy] [--weights FILE] [--save y.npy]
                       [--repeat 100] [--launches]
    . D/env.sh && PYTHONPATH=src:$PYTHONPATH $TRT_PYTHON benchmarks/check_aot.py engine librestort_pass.so GRAPH.onnx
                       [--aot FILE] [--input x.npy] [--reference y.npy] [--save y.npy] [--engine FILE] [--repeat 100]

compile  needs no GPU. WEIGHTS OUT writes OUT.rtaot, OUT.onnx with the package inside, and OUT.path.onnx, which names
         OUT.rtaot by its path; --plain: no kernel begins before the one before it has ended. --workloads puts those of
         bench_tensorrt.py, with their random weights, into the cache folder (RESTORT_CACHE), several at once.
run      needs cuda-bindings, and PyTorch with Triton only for --weights, whose result by the fused backend is a
         reference, too. Checks that a second pass gives the same bits, also after scratch was filled with NaN, and that
         nothing is written before or behind a region; times launches one by one and as a CUDA graph.
engine   D as in bench_tensorrt.py; GRAPH.onnx is of `compile`, and with --aot names that file instead of holding it.
         Two contexts of an engine that was serialized, at once on two streams and as a CUDA graph, give the same bits.

The status is 1 where any of that fails, or a result is further from a reference than 1e-2 of its norm.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from harness import matching, median, relative_l2
from workloads import WORKLOADS, name_of, weights_of, workload_of

GUARD = 4096  # bytes on both sides of every region
PATTERN, NAN = 0xA5, 0xFF
FAR = 1e-2


def same(a: Any, b: Any) -> bool:
    """Bit by bit."""
    return bool((a.view(np.uint32) == b.view(np.uint32)).all())


def input_of(args: argparse.Namespace, shape: tuple[int, ...]) -> Any:
    """The given input, or seeded noise."""
    x = np.load(args.input) if args.input else np.random.default_rng(0).random(shape, np.float32)
    if x.shape != tuple(shape):
        sys.exit(f"the input has shape {x.shape}; the network was compiled for {tuple(shape)}")
    return np.ascontiguousarray(x, np.float32)


def compared(name: str, mine: Any, wanted: Any, rows: list[tuple[str, str]], bad: list[str]) -> None:
    """Note how far a result is from a reference."""
    found = relative_l2(mine, wanted)
    rows.append((name, f"{found:.2e} of its norm away, at most {np.abs(mine - wanted).max():.2e}"))
    if not found <= FAR:
        bad.append(f"the result is {found:.2e} from that of the {name}")


def looked_at(y: Any, rows: list[tuple[str, str]], bad: list[str]) -> None:
    rows.append(("output", f"{y.min():.5f} to {y.max():.5f}, mean {y.mean():.5f}"))
    if not np.isfinite(y).all():
        bad.append("the output is not finite, or not all written")
    elif y.min() == y.max():
        bad.append("the output is one number everywhere")


def timing(milliseconds: list[float]) -> str:
    return f"{median(milliseconds):.3f} ms (median of {len(milliseconds)}, min {min(milliseconds):.3f})"


def print_checks(rows: list[tuple[str, str]], bad: list[str]) -> int:
    for name, value in rows:
        print(f"{name:28} {value}")
    for line in bad:
        print(f"FAILED: {line}")
    return 1 if bad else 0


# compile


def workloads(args: argparse.Namespace) -> int:
    """Compile all workloads; the status is 1 where one cannot be compiled."""
    wanted = [workload_of(name) for name in matching(map(name_of, WORKLOADS), args.only)]
    failed = 0
    start = time.perf_counter()
    each = max(1, args.processes // max(1, len(wanted)))
    with ProcessPoolExecutor(min(len(wanted), args.processes) or 1, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(provided, *task, args.precision, args.capability, each) for task in wanted]
        for task, job in zip(wanted, jobs):
            try:
                print(job.result(), flush=True)
            except Exception as error:
                failed += 1
                print(f"{task}: FAILED: {error}", flush=True)
    print(f"{len(wanted)} networks in {time.perf_counter() - start:.1f} s")
    return 1 if failed else 0


def provided(network: str, h: int, w: int, precision: str, capability: int, processes: int) -> str:
    """In a process of its own: a package in the cache; a line about it."""
    from restort.backends.fused.aot_cache import AotCache, AotRequest, open_aot

    start = time.perf_counter()
    request = AotRequest(weights_of(network), precision, (1, h, w), capability)
    path = AotCache().provide(request, lambda line: None, processes)
    made = open_aot(path)
    return (
        f"{path.name}: {path.stat().st_size / 2**20:.1f} MiB, {len(made.launches)} launches, "
        f"{made.memory / 2**20:.1f} MiB on the GPU, {time.perf_counter() - start:.1f} s"
    )


def one(args: argparse.Namespace) -> None:
    """The package of WEIGHTS, and its graphs."""
    from restort.backends.fused.aot_compile import compile_aot, read_aot
    from restort.weights.checkpoint import load_weights

    weights = load_weights(args.weights)
    n, h, w = args.shape
    data = compile_aot(weights, args.precision, (n, h, w), args.capability, overlap=not args.plain)
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    file = out.with_name(out.name + ".rtaot")
    file.write_bytes(data)
    try:
        from restort.backends.tensorrt.aot_builder import aot_graph

        for ending, plan in ((".onnx", data), (".path.onnx", file)):
            graph = aot_graph(weights, plan)
            out.with_name(out.name + ending).write_bytes(graph.SerializeToString())
    except ImportError as error:
        print(f"no graph is made: {error}")
    made = read_aot(data)
    print(
        f"{file}: {len(data) / 2**20:.1f} MiB, {len(made.kernels)} kernels, {len(made.launches)} launches, "
        f"{made.memory / 2**20:.1f} MiB on the GPU"
    )


# run


def driver() -> Any:
    from restort.kernels import nvrtc

    return nvrtc._driver()


def check(result: tuple[Any, ...], what: str) -> Any:
    """What a call gives besides its error code."""
    code, *values = result
    if int(code) != 0:
        sys.exit(f"{what} failed: {getattr(code, 'name', code)}")
    return values[0] if values else None


class DriverRunner:
    """A package on the current device: memory, functions and launches."""

    def __init__(self, plan: Any) -> None:
        self.plan = plan
        from restort.kernels import nvrtc

        cu = driver()
        check(cu.cuInit(0), "cuInit")
        nvrtc._set_context(0)
        attribute = cu.CUdevice_attribute
        major, minor = (
            check(cu.cuDeviceGetAttribute(name, 0), "asking the device")
            for name in (
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        if 10 * major + minor != plan.capability:
            sys.exit(f"the package is for compute capability {plan.capability}, the GPU's is {major}.{minor}")
        self.stream = check(cu.cuStreamCreate(1), "cuStreamCreate")  # 1: without the default stream's order
        self.offsets, total = [], GUARD
        for region in plan.regions:
            self.offsets.append(total)
            total += region.size + GUARD
        self.bytes = total
        self.start = int(check(cu.cuMemAlloc(total), f"taking {total / 2**20:.0f} MiB"))
        check(cu.cuMemsetD8(self.start, PATTERN, total), "cuMemsetD8")
        for number, region in enumerate(plan.regions):
            check(cu.cuMemsetD8(self.place(number), 0, region.size), "cuMemsetD8")
            if region.data:
                self.write(number, np.frombuffer(region.data, np.uint8))
        self.functions = [self._load(i) for i in range(len(plan.kernels))]
        self.arguments = [self._arguments(i) for i in range(len(plan.launches))]
        check(cu.cuCtxSynchronize(), "loading")

    def place(self, region: int) -> int:
        return self.start + self.offsets[region]

    def number(self, kind: str) -> int:
        return next(i for i, region in enumerate(self.plan.regions) if region.kind == kind)

    def write(self, region: int, array: Any) -> None:
        array = np.ascontiguousarray(array)
        done = driver().cuMemcpyHtoD(self.place(region), array.ctypes.data, array.nbytes)
        check(done, f"writing to region {region}")
        check(driver().cuCtxSynchronize(), "writing")

    def read(self, address: int, count: int) -> Any:
        array = np.empty(count, np.uint8)
        check(driver().cuMemcpyDtoH(array.ctypes.data, address, count), "reading")
        return array

    def _load(self, number: int) -> Any:
        cu, kernel = driver(), self.plan.kernels[number]
        what = f"loading kernel {number} ({kernel.name})"
        module = check(cu.cuModuleLoadData(kernel.cubin), what)
        function = check(cu.cuModuleGetFunction(module, kernel.name.encode()), what)
        attribute = cu.CUfunction_attribute
        most = check(cu.cuFuncGetAttribute(attribute.CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, function), what)
        if most < kernel.threads:
            sys.exit(f"{what}: a block has {kernel.threads} threads, and at most {most} fit")
        wanted = []
        if kernel.carveout >= 0 or kernel.shared > 48 << 10:
            wanted.append((attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, kernel.shared))
        if kernel.carveout >= 0:
            wanted.append((attribute.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, kernel.carveout))
        for name, value in wanted:
            check(cu.cuFuncSetAttribute(function, name, value), what)
        return function

    def _arguments(self, number: int) -> tuple[Any, Any]:
        """The values, which have to stay, and the addresses of them."""
        from restort.backends.fused.aot_package import ADDRESS, NUMBER

        values: list[Any] = []
        for argument in self.plan.launches[number].arguments:
            if argument.kind == ADDRESS:
                values.append(ctypes.c_void_p(self.place(argument.region) + argument.value))
            elif argument.kind == NUMBER:
                values.append(ctypes.c_int(argument.value))
            else:
                values.append(ctypes.c_void_p(0))
        return values, (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))

    def launch(self, number: int) -> None:
        from restort.kernels import nvrtc

        cu, call = driver(), self.plan.launches[number]
        kernel, function = self.plan.kernels[call.kernel], self.functions[call.kernel]
        arguments = ctypes.addressof(self.arguments[number][1])
        what = f"launch {number} ({call.label}) of kernel {call.kernel} ({kernel.name})"
        if kernel.overlap:
            config = nvrtc._dependent_launch(call.grid, kernel.threads, kernel.shared, int(self.stream))
            check(cu.cuLaunchKernelEx(config, function, arguments, 0), what)
            return
        shape = *call.grid, kernel.threads, 1, 1, kernel.shared
        check(cu.cuLaunchKernel(function, *shape, self.stream, arguments, 0), what)

    def run(self) -> None:
        for number in range(len(self.plan.launches)):
            self.launch(number)

    def wait(self) -> None:
        check(driver().cuStreamSynchronize(self.stream), "the pass")

    def one_by_one(self) -> None:
        """Waits after each launch, so that a failure tells which it was."""
        for number, call in enumerate(self.plan.launches):
            self.launch(number)
            check(driver().cuStreamSynchronize(self.stream), f"launch {number} ({call.label})")

    def output(self) -> Any:
        shape = self.plan.output
        count = 4 * int(np.prod(shape))
        return self.read(self.place(self.number("output")), count).view(np.float32).reshape(shape)

    def spoil(self, region: int) -> None:
        """Fill with NaN what a pass has to write before anything reads it."""
        done = driver().cuMemsetD8(self.place(region), NAN, self.plan.regions[region].size)
        check(done, f"filling region {region}")
        check(driver().cuCtxSynchronize(), "filling")

    def touched(self) -> list[str]:
        """Where something was written outside of the regions."""
        found = []
        for number, region in enumerate(self.plan.regions):
            start = self.place(number)
            for side, at in (("before", start - GUARD), ("behind", start + region.size)):
                if (self.read(at, GUARD) != PATTERN).any():
                    found.append(f"{side} region {number} ({region.kind})")
        return found

    def timed(self, run: Callable[[], None], repeat: int) -> list[float]:
        """Milliseconds by the device's clock, of each of `repeat` runs after a few."""
        cu = driver()
        found = []
        start, end = (check(cu.cuEventCreate(0), "cuEventCreate") for _ in range(2))
        for i in range(repeat + 5):
            check(cu.cuEventRecord(start, self.stream), "cuEventRecord")
            run()
            check(cu.cuEventRecord(end, self.stream), "cuEventRecord")
            check(cu.cuEventSynchronize(end), "the pass")
            if i >= 5:
                found.append(float(check(cu.cuEventElapsedTime(start, end), "cuEventElapsedTime")))
        return found

    def graph(self) -> Callable[[], None]:
        """The pass captured."""
        cu = driver()
        mode = cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        check(cu.cuStreamBeginCapture(self.stream, mode), "cuStreamBeginCapture")
        self.run()
        graph = check(cu.cuStreamEndCapture(self.stream), "cuStreamEndCapture")
        made = check(cu.cuGraphInstantiate(graph, 0), "cuGraphInstantiate")
        return lambda: check(cu.cuGraphLaunch(made, self.stream), "cuGraphLaunch")


def fused(weights: str, plan: Any, x: Any) -> Any:
    """The result of the fused backend in the plan's precision."""
    from restort.backends.fused.runner import FusedRunner
    from restort.weights.checkpoint import load_weights

    return FusedRunner(load_weights(weights), plan.text["precision"])(x)


def run(args: argparse.Namespace) -> int:
    from restort.backends.fused.aot_package import read_aot

    plan = read_aot(Path(args.file).read_bytes())
    x = input_of(args, plan.input)
    rows: list[tuple[str, str]] = []
    bad: list[str] = []
    runner = DriverRunner(plan)
    rows.append(("package", f"{plan.input} -> {plan.output}"))
    rows += [(name, str(value)) for name, value in plan.text.items()]
    rows.append(("kernels, launches", f"{len(plan.kernels)}, {len(plan.launches)}"))
    rows.append(("memory", f"{plan.memory / 2**20:.1f} MiB"))

    runner.write(runner.number("input"), x)
    result = runner.number("output")
    runner.spoil(result)
    runner.one_by_one()
    first = runner.output()
    looked_at(first, rows, bad)
    runner.spoil(result)
    runner.run()
    runner.wait()
    if not same(first, runner.output()):
        bad.append("a second pass gave other bits")
    for number, region in enumerate(plan.regions):
        if region.kind == "scratch" and not region.data:
            runner.spoil(number)
    runner.run()
    runner.wait()
    if not same(first, runner.output()):
        bad.append("a pass after scratch was filled with NaN gave other bits")
    bad += [f"something was written {where}" for where in runner.touched()]
    if args.save:
        np.save(args.save, first)
    references = [("reference", np.load(args.reference))] if args.reference else []
    if args.weights:
        references.append(("fused backend", fused(args.weights, plan, x)))
    for name, wanted in references:
        compared(name, first, wanted, rows, bad)

    replay = runner.graph()
    for name, run in (("launched one by one", runner.run), ("as a CUDA graph", replay)):
        rows.append((name, timing(runner.timed(run, args.repeat))))
    if not same(first, runner.output()):
        bad.append("the CUDA graph gave other bits")
    if args.launches:
        for number, call in enumerate(plan.launches):
            times = runner.timed(lambda number=number: runner.launch(number), 20)  # type: ignore[misc]
            name = plan.kernels[call.kernel].name
            rows.append((f"{number} {call.label}", f"{1000 * median(times):8.1f} us  {name}"))
    return print_checks(rows, bad)


# engine


def naming(graph: bytes, package: Path) -> bytes:
    """The graph with the path of a package in place of its bytes."""
    import onnx

    model = onnx.load_from_string(graph)
    model.graph.node[0].attribute[0].s = f"file:{package.resolve()}".encode()
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


class EngineContext:
    """A context with its buffers and its stream."""

    def __init__(self, engine: Any, x: Any) -> None:
        from restort.backends.tensorrt import cuda

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
        from restort.backends.tensorrt import cuda

        cuda.call("MemsetAsync", self.output.pointer, 0xFF, self.output.size, self.stream.handle)

    def result(self) -> Any:
        self.stream.download(self.host_out, self.output)
        self.stream.synchronize()
        return self.host_out.array.copy()

    def timed(self, run: Any, repeat: int) -> list[float]:
        """Milliseconds by the device's clock."""
        from restort.backends.tensorrt import cuda

        start, end, found = cuda.Event(True), cuda.Event(True), []
        for i in range(repeat + 5):
            self.stream.record(start)
            run()
            self.stream.record(end)
            end.wait()
            if i >= 5:
                found.append(end.since(start))
        return found


def engine(args: argparse.Namespace) -> int:
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.WARNING)
    if trt.get_plugin_registry().load_library(str(Path(args.plugin).resolve())) is None:
        sys.exit("TensorRT does not register the plugin: is it compiled with headers of another version?")
    print(f"{'TensorRT':28} {trt.__version__}")
    graph = Path(args.graph).read_bytes()
    made = build(trt, logger, naming(graph, Path(args.aot)) if args.aot else graph)
    if args.engine:
        Path(args.engine).write_bytes(made)
    made_engine = trt.Runtime(logger).deserialize_cuda_engine(made)
    if made_engine is None:
        sys.exit("the engine is not deserialized; TensorRT's messages are above")
    shape = tuple(made_engine.get_tensor_shape("input"))
    x = input_of(args, shape)
    rows = [
        ("engine", f"{len(made) / 2**20:.1f} MiB, {shape} -> {tuple(made_engine.get_tensor_shape('output'))}")
    ]
    bad: list[str] = []
    contexts = [EngineContext(made_engine, x) for _ in range(2)]
    for context in contexts:
        context.spoil()
        context.enqueue()
    first, second = (context.result() for context in contexts)
    looked_at(first, rows, bad)
    if not same(first, second):
        bad.append("two contexts gave different bits")
    for _ in range(20):
        for context in contexts:
            context.enqueue()
    if not all(same(first, context.result()) for context in contexts):
        bad.append("contexts at once on two streams gave other bits")
    if args.save:
        np.save(args.save, first)
    if args.reference:
        compared("reference", first, np.load(args.reference), rows, bad)
    context = contexts[0]
    times = [("launched one by one", context.timed(context.enqueue, args.repeat))]
    try:
        context.stream.begin_capture()
        context.enqueue()
        replay = context.stream.end_capture()
        context.spoil()
        times.append(("as a CUDA graph", context.timed(lambda: context.stream.launch(replay), args.repeat)))
        if not same(first, context.result()):
            bad.append("the CUDA graph gave other bits")
    except Exception as error:
        bad.append(f"the pass cannot be captured: {error}")
    rows += [(name, timing(found)) for name, found in times]
    return print_checks(rows, bad)


def compile_ahead(args: argparse.Namespace) -> int:
    if args.workloads:
        return workloads(args)
    if args.out is None:
        sys.exit("give WEIGHTS and OUT, or --workloads")
    one(args)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(required=True, metavar="compile|run|engine")
    making = parts.add_parser("compile")
    making.set_defaults(work=compile_ahead)
    making.add_argument("weights", nargs="?")
    making.add_argument("out", nargs="?")
    making.add_argument("--precision", choices=("fp16", "bf16"), default="fp16")
    making.add_argument("--shape", type=int, nargs=3, default=(1, 720, 1280), metavar=("N", "H", "W"))
    making.add_argument("--capability", type=int, default=90)
    making.add_argument("--plain", action="store_true")
    making.add_argument("--workloads", action="store_true")
    making.add_argument("--only", help="workloads whose name holds one of these words")
    making.add_argument("--processes", type=int, default=os.cpu_count() or 2)
    running, building = parts.add_parser("run"), parts.add_parser("engine")
    running.set_defaults(work=run)
    building.set_defaults(work=engine)
    running.add_argument("file")
    running.add_argument("--weights", help="the network's file: compare with the fused backend")
    running.add_argument("--launches", action="store_true", help="the time of each launch, alone")
    building.add_argument("plugin")
    building.add_argument("graph")
    building.add_argument("--aot", help="let the graph name this file")
    building.add_argument("--engine", help="write the engine there")
    for part in (running, building):
        part.add_argument("--input", help="float32 (N, C, H, W) in [0, 1]; by default seeded noise")
        part.add_argument("--reference", help="what the output has to be near")
        part.add_argument("--save", help="write the output there")
        part.add_argument("--repeat", type=int, default=100)
    args = parser.parse_args()
    result: int = args.work(args)
    return result


if __name__ == "__main__":
    sys.exit(main())
