"""Kernels compiled for GPUs that are not here: that they compile, and fit, is checked without one.

    python -m restort.kernels.aot [--all] [--capability 80 86] [--network restormer] [--processes N] [--table]

Plans are made on PyTorch's 'meta' device, which has shapes and no memory, as for a GPU of each compute capability;
every kernel of their launches is compiled by Triton to a cubin (or by NVRTC, where that is installed), whose shared
memory must be within that GPU's limit. Without --all: the shipped small models in float16. With it: all published
networks, too, and bfloat16.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

from restort.backends.fused.forward_pass import Pass
from restort.errors import RestortError
from restort.kernels.cuda import available
from restort.kernels.launch import Launch
from restort.kernels.machine import SHARED_KIB, planning_for
from restort.kernels.precompile import Job, job
from restort.models.spec import ElanSpec, RestormerSpec, Spec

CAPABILITIES = (80, 86, 89, 90, 120)
SMALL: dict[str, Spec] = {
    "restormer-small": RestormerSpec(3, 3, 24, (1, 2, 3, 4), 1, (1, 2, 4, 8), 2.67, False, "BiasFree", False),
    "elan-light-x4": ElanSpec(4, 24, 60, 1, 3, (4, 8, 16), 255.0, 2),
}
PUBLISHED: dict[str, Spec] = {
    "restormer": RestormerSpec(3, 3, 48, (4, 6, 6, 8), 4, (1, 2, 4, 8), 2.66, False, "WithBias", False),
    "restormer-biasfree-gray": RestormerSpec(
        1, 1, 48, (4, 6, 6, 8), 4, (1, 2, 4, 8), 2.66, False, "BiasFree", False
    ),
    "restormer-dual-pixel": RestormerSpec(
        6, 3, 48, (4, 6, 6, 8), 4, (1, 2, 4, 8), 2.66, False, "WithBias", True
    ),
    "elan-x4": ElanSpec(4, 36, 180, 1, 3, (4, 8, 16), 255.0, 2),
    "elan-x3": ElanSpec(3, 36, 180, 1, 3, (4, 8, 16), 255.0, 2),
    "elan-x2": ElanSpec(2, 36, 180, 1, 3, (4, 8, 16), 255.0, 2),
    "elan-light-x3": ElanSpec(3, 24, 60, 1, 3, (4, 8, 16), 255.0, 2),
    "elan-light-x2": ElanSpec(2, 24, 60, 1, 3, (4, 8, 16), 255.0, 2),
}
SIZES = ((1, 256, 256), (1, 720, 1280))  # plans may differ with the size


@dataclass(frozen=True)
class Compiled:
    """One kernel for one compute capability; `error` says why it is not usable there, or is None."""

    kernel: str
    capability: int
    label: str
    cubin_bytes: int = 0
    shared_bytes: int = 0
    registers: int = 0
    spilled: int = 0
    seconds: float = 0.0
    error: str | None = None


def plan_for(spec: Spec, capability: int, precision: str = "fp16", size: Any = SIZES[0]) -> Pass:
    """A pass of a network with no memory, as it would be made on a GPU of that compute capability."""
    import torch

    from restort.models.build import build
    from restort.weights.checkpoint import Weights

    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    module: Any = importlib.import_module(f"restort.backends.fused.{spec.architecture}")
    key = spec, precision
    if key not in _packed:
        state = {name: value.numpy() for name, value in build(spec).state_dict().items()}
        _packed[key] = module.pack(Weights(state, spec, {}, "", None), dtype).to("meta")  # type: ignore[arg-type]
    with planning_for(capability):
        made: Pass = module.plan(_packed[key], spec, *size, dtype, torch.device("meta"))
    return made


_packed: dict[Any, Any] = {}


def variants(passes: Iterable[Pass]) -> list[Launch]:
    """One launch of every kernel to be compiled, the sentinel's included."""
    import torch

    from restort.kernels import sentinel

    found: dict[Any, Launch] = {}
    for one in passes:
        flags = torch.empty(sentinel.programs(one.output.numel()), dtype=torch.int32, device="meta")
        for launch in [*one.launches, sentinel.launch(one.output, flags)]:
            found.setdefault(launch.variant(), launch)
    return list(found.values())


def compile_launch(launch: Launch, capability: int) -> Compiled:
    """In this process. Triton compiles it exactly as a launch there would; no GPU is needed."""
    wanted = job(launch, capability)
    if wanted is not None:
        return compile_triton(wanted, launch.label)
    start = time.perf_counter()
    try:
        cubin = launch.kernel.compile(launch.constants, capability)
    except RestortError as error:
        return Compiled(launch.name, capability, launch.label, error=str(error))
    shared = int(launch.constants["SHARED"])
    made = Compiled(launch.name, capability, launch.label, len(cubin), shared)
    return checked(replace(made, seconds=time.perf_counter() - start))


def compile_triton(wanted: Job, label: str) -> Compiled:
    """Likewise, of a kernel that may come from another process."""
    from restort.kernels.precompile_child import compile_job

    start = time.perf_counter()
    name = wanted.kernel
    try:
        made = compile_job(wanted)
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        return Compiled(name, wanted.capability, label, error=text)
    binary = made.asm["cubin"]
    registers, spilled = resources(binary)
    shared = int(made.metadata.shared)
    seconds = time.perf_counter() - start
    return checked(Compiled(name, wanted.capability, label, len(binary), shared, registers, spilled, seconds))


def checked(made: Compiled) -> Compiled:
    """With the error that its shared memory is too much, if it is."""
    limit = SHARED_KIB[made.capability] << 10
    if made.shared_bytes <= limit:
        return made
    return replace(made, error=f"needs {made.shared_bytes} bytes of shared memory, {limit} are there")


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers a thread, and bytes a thread keeps in memory for lack of registers, as the cubin's notes say.

    Read from the section .nv.info: attribute 0x2f REGCOUNT and 0x12 MIN_STACK_SIZE, each (symbol, value); format as
    `cuobjdump --dump-resource-usage` shows it. (0, 0) where they are not found.
    """
    import struct

    if cubin[:4] != b"\x7fELF":
        return 0, 0
    offset, size, count, names = (
        struct.unpack_from("<Q", cubin, 0x28)[0],
        *struct.unpack_from("<HHH", cubin, 0x3A),
    )
    sections = [struct.unpack_from("<IIQQQQ", cubin, offset + i * size) for i in range(count)]
    registers = stack = 0
    for name, _, _, _, start, length in sections:
        at = sections[names][4] + name
        if cubin[at : cubin.index(b"\0", at)] != b".nv.info":
            continue
        place = start
        while place + 4 <= start + length:
            form, attribute, payload = struct.unpack_from("<BBH", cubin, place)
            if form == 4 and payload >= 8:  # EIFMT_SVAL: the payload follows
                value = struct.unpack_from("<I", cubin, place + 8)[0]
                registers = max(registers, value) if attribute == 0x2F else registers
                stack = max(stack, value) if attribute == 0x12 else stack
            place += 4 + (payload if form == 4 else 0)
    return registers, stack


def everything(
    specs: Iterable[Spec],
    capabilities: Sequence[int] = CAPABILITIES,
    precisions: Sequence[str] = ("fp16",),
    sizes: Sequence[Any] = SIZES,
) -> Iterator[tuple[Launch, int]]:
    """Every kernel of the plans, for every capability."""
    specs = list(specs)
    for capability in capabilities:
        passes = (plan_for(spec, capability, p, size) for spec in specs for p in precisions for size in sizes)
        for launch in variants(passes):
            yield launch, capability


def sample(work: Iterable[tuple[Launch, int]]) -> list[tuple[Launch, int]]:
    """For every capability one launch of every kernel function; which of its variants, goes round."""
    found: dict[tuple[int, str], list[Launch]] = {}
    for launch, capability in work:
        found.setdefault((capability, launch.name), []).append(launch)
    order = {capability: i for i, capability in enumerate(dict.fromkeys(c for c, _ in found))}
    return [(some[order[c] % len(some)], c) for (c, _), some in found.items()]


def compile_all(work: Iterable[tuple[Launch, int]], processes: int = 1) -> Iterator[Compiled]:
    """The results as they come; kernels in CUDA C++ are left out where there is no NVRTC."""
    nvrtc = available()
    context = get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool, ThreadPoolExecutor(processes) as threads:
        waiting = []
        for launch, capability in work:
            wanted = job(launch, capability)
            if wanted is not None:
                waiting.append(pool.submit(compile_triton, wanted, launch.label))
            elif nvrtc:
                waiting.append(threads.submit(compile_launch, launch, capability))
        for future in waiting:
            yield future.result()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m restort.kernels.aot")
    parser.add_argument("--all", action="store_true", help="all published networks, and bfloat16")
    parser.add_argument("--capability", type=int, nargs="+", default=list(CAPABILITIES))
    parser.add_argument("--network", nargs="+", help="of these names only")
    parser.add_argument("--precision", nargs="+", choices=("fp16", "bf16"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="a line per kernel, not only those that fail")
    args = parser.parse_args(arguments)
    known = SMALL | PUBLISHED
    names = args.network or list(known if args.all else SMALL)
    precisions = args.precision or (["fp16", "bf16"] if args.all else ["fp16"])
    work = everything([known[name] for name in names], args.capability, precisions)
    count = failed = 0
    start = time.perf_counter()
    for made in compile_all(work, args.processes):
        count += 1
        failed += made.error is not None
        if args.table or made.error:
            print(
                f"sm_{made.capability:<4} {made.kernel:28} {made.label:28} {made.shared_bytes / 1024:6.1f} KiB shared  "
                f"{made.registers:3} registers  {made.spilled:4} B spilled  {made.seconds:5.1f} s  {made.error or ''}",
                flush=True,
            )
    if not available():
        print(
            "kernels in CUDA C++ were left out: there is no NVRTC (pip install cuda-bindings nvidia-cuda-nvrtc)"
        )
    print(f"{count} kernels compiled in {time.perf_counter() - start:.0f} s, {failed} of them not usable")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
