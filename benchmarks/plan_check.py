"""Runs a plan (restort.backends.fused.aot_compile) on the GPU through the driver alone, compares and times it.

    python benchmarks/plan_check.py PLAN [--input x.npy] [--reference y.npy] [--weights FILE] [--save y.npy]
                                    [--repeat 100] [--launches]

Needs cuda-bindings, and PyTorch with Triton only for --weights, whose result by the fused backend is the reference,
too. What is looked at besides: that a second pass gives the same bits, and one after scratch was filled with NaN; that
nothing is written before or behind a region. The status is 1 where any of that fails, or the result is further from a
reference than 1e-2 of its norm.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from restort.backends.fused.aot_package import ADDRESS, NUMBER, Plan, read_plan
from restort.kernels import cuda

GUARD = 4096  # bytes on both sides of every region
PATTERN, NAN = 0xA5, 0xFF
FAR = 1e-2


def driver() -> Any:
    return cuda._driver()


def check(result: tuple[Any, ...], what: str) -> Any:
    """What a call gives besides its error code."""
    code, *values = result
    if int(code) != 0:
        sys.exit(f"{what} failed: {getattr(code, 'name', code)}")
    return values[0] if values else None


class Runner:
    """A plan on the current device: memory, functions and launches."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        cu = driver()
        check(cu.cuInit(0), "cuInit")
        cuda._enter(0)
        attribute = cu.CUdevice_attribute
        major, minor = (
            check(cu.cuDeviceGetAttribute(name, 0), "asking the device")
            for name in (
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        if 10 * major + minor != plan.capability:
            sys.exit(f"the plan is for compute capability {plan.capability}, the GPU's is {major}.{minor}")
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
        cu, call = driver(), self.plan.launches[number]
        kernel, function = self.plan.kernels[call.kernel], self.functions[call.kernel]
        arguments = ctypes.addressof(self.arguments[number][1])
        what = f"launch {number} ({call.label}) of kernel {call.kernel} ({kernel.name})"
        if kernel.overlap:
            config = cuda._overlapping(call.grid, kernel.threads, kernel.shared, int(self.stream))
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


def same(a: Any, b: Any) -> bool:
    """Bit by bit."""
    return bool((a.view(np.uint32) == b.view(np.uint32)).all())


def distance(mine: Any, wanted: Any) -> float:
    """Norm of the difference by the norm of what is wanted."""
    wanted = np.asarray(wanted, np.float64)
    return float(np.linalg.norm(mine.astype(np.float64) - wanted) / np.linalg.norm(wanted))


def fused(weights: str, plan: Plan, x: Any) -> Any:
    """The result of the fused backend in the plan's precision."""
    from restort.backends.fused.runner import FusedRunner
    from restort.weights.checkpoint import load_weights

    return FusedRunner(load_weights(weights), plan.text["precision"])(x)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("plan")
    parser.add_argument("--input", help="float32 (N, C, H, W) in [0, 1]; by default random")
    parser.add_argument("--reference", help="what the output has to be near")
    parser.add_argument("--weights", help="the network's file: compare with the fused backend")
    parser.add_argument("--save", help="write the output there")
    parser.add_argument("--repeat", type=int, default=100)
    parser.add_argument("--launches", action="store_true", help="the time of each launch, alone")
    args = parser.parse_args()
    plan = read_plan(Path(args.plan).read_bytes())
    x = np.load(args.input) if args.input else np.random.default_rng(0).random(plan.input, np.float32)
    x = np.ascontiguousarray(x, np.float32)
    if x.shape != plan.input:
        sys.exit(f"the input has shape {x.shape}, the plan takes {plan.input}")
    runner, rows, bad = Runner(plan), [], []
    rows.append(("plan", f"{plan.input} -> {plan.output}"))
    rows += [(name, str(value)) for name, value in plan.text.items()]
    rows.append(("kernels, launches", f"{len(plan.kernels)}, {len(plan.launches)}"))
    rows.append(("memory", f"{plan.memory / 2**20:.1f} MiB"))

    runner.write(runner.number("input"), x)
    result = runner.number("output")
    runner.spoil(result)
    runner.one_by_one()
    first = runner.output()
    rows.append(("output", f"{first.min():.5f} to {first.max():.5f}, mean {first.mean():.5f}"))
    if not np.isfinite(first).all():
        bad.append("the output is not finite, or not all written")
    elif first.min() == first.max():
        bad.append("the output is the same number everywhere")
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
        found = distance(first, wanted)
        rows.append((name, f"{found:.2e} of its norm away, at most {np.abs(first - wanted).max():.2e}"))
        if not found <= FAR:
            bad.append(f"the result is {found:.2e} from that of the {name}")

    replay = runner.graph()
    for name, run in (("launched one by one", runner.run), ("as a CUDA graph", replay)):
        times = runner.timed(run, args.repeat)
        rows.append(
            (name, f"{statistics.median(times):.3f} ms (median of {len(times)}, min {min(times):.3f})")
        )
    if not same(first, runner.output()):
        bad.append("the CUDA graph gave other bits")
    if args.launches:
        for number, call in enumerate(plan.launches):
            times = runner.timed(lambda number=number: runner.launch(number), 20)  # type: ignore[misc]
            name = plan.kernels[call.kernel].name
            rows.append((f"{number} {call.label}", f"{1000 * statistics.median(times):8.1f} us  {name}"))
    for name, value in rows:
        print(f"{name:28} {value}")
    for line in bad:
        print(f"FAILED: {line}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
