"""Compile the kernels of every network for GPUs that are not here, and compare their machine code with a record.

    python -m restort.backends.fused.kernel_sweep [--all] [--capability 80 86] [--network restormer] [--table]
        [--processes N] [--record FILE] [--compare FILE]

Passes are planned on PyTorch's 'meta' device, which has shapes and no memory, as for a GPU of each compute capability.
Every kernel of their launches is compiled by Triton to a cubin (or by NVRTC, where that is installed), whose shared
memory must be within that GPU's limit. Without --all: the shipped small models in float16. With it: all published
networks, too, and bfloat16.

A record has the digest of the machine code behind each launch of each pass, with its grid, and no names. It shows what
a renaming or a restructuring of kernels left as it was: --record before it, --compare after it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from restort.backends.fused.architectures import planner_of
from restort.backends.fused.forward_pass import Pass
from restort.errors import RestortError
from restort.kernels.gpu_target import SHARED_KIB, planning_for
from restort.kernels.launch import Launch
from restort.kernels.nvrtc import available
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
SIZES = ((1, 128, 128), (1, 256, 256), (1, 720, 1280))  # N, H, W; plans differ with the size
CODE = (
    ".text",
    ".nv.constant",
    ".nv.global",
    ".rodata",
    ".nv.shared",
)  # sections that are machine code and its data


@dataclass(frozen=True)
class Compiled:
    """One kernel for one compute capability; `error` says why it is not usable there, or is None.

    code    digest of its machine code, without names.
    """

    kernel: str
    capability: int
    label: str
    cubin_bytes: int = 0
    shared_bytes: int = 0
    registers: int = 0
    spilled: int = 0
    seconds: float = 0.0
    error: str | None = None
    code: str = ""


def plan_for(spec: Spec, capability: int, precision: str = "fp16", size: Any = SIZES[0]) -> Pass:
    """Plan a pass of a network without memory, as on a GPU of that compute capability."""
    import torch

    from restort.models.torch_network import build
    from restort.weights.checkpoint import Weights

    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    planner: Any = planner_of(spec)
    key = spec, precision
    if key not in _packed:
        state = {name: value.numpy() for name, value in build(spec).state_dict().items()}
        _packed[key] = planner.pack(Weights(state, spec, {}, "", None), dtype).to("meta")  # type: ignore[arg-type]
    with planning_for(capability):
        made: Pass = planner.plan(_packed[key], spec, *size, dtype, torch.device("meta"))
    return made


_packed: dict[Any, Any] = {}


def launches_of(one: Pass) -> list[Launch]:
    """Return the launches of a pass, with the check of its output."""
    import torch

    from restort.kernels.finite_check import triton as finite_check

    flags = torch.empty(finite_check.programs(one.output.numel()), dtype=torch.int32, device="meta")
    return [*one.launches, finite_check.launch(one.output, flags)]


def variants(passes: Iterable[Pass]) -> list[Launch]:
    """Return one launch of every kernel that the passes need compiled."""
    found: dict[Any, Launch] = {}
    for one in passes:
        for launch in launches_of(one):
            found.setdefault(launch.variant(), launch)
    return list(found.values())


def compile_launch(launch: Launch, capability: int) -> Compiled:
    """Compile a kernel in this process, exactly as a launch on that GPU would; no GPU is needed."""
    wanted = job(launch, capability)
    if wanted is not None:
        return compile_triton(wanted, launch.label)
    start = time.perf_counter()
    try:
        cubin = launch.kernel.compile(launch.constants, capability)
    except RestortError as error:
        return Compiled(launch.name, capability, launch.label, error=str(error))
    shared, seconds = int(launch.constants["SHARED"]), time.perf_counter() - start
    size = len(cubin), shared, *resources(cubin), seconds
    return checked(Compiled(launch.name, capability, launch.label, *size, code=code_digest(cubin)))


def compile_triton(wanted: Job, label: str) -> Compiled:
    """Compile a Triton kernel, which may be described by another process."""
    from restort.kernels.precompile_worker import compile_job

    start = time.perf_counter()
    name = wanted.kernel
    try:
        made = compile_job(wanted)
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        return Compiled(name, wanted.capability, label, error=text)
    binary = made.asm["cubin"]
    shared, seconds = int(made.metadata.shared), time.perf_counter() - start
    size = len(binary), shared, *resources(binary), seconds
    return checked(Compiled(name, wanted.capability, label, *size, code=code_digest(binary)))


def checked(made: Compiled) -> Compiled:
    """Return it with an error if it needs more shared memory than that GPU has."""
    limit = SHARED_KIB[made.capability] << 10
    if made.shared_bytes <= limit:
        return made
    return replace(made, error=f"needs {made.shared_bytes} bytes of shared memory, {limit} are there")


def sections(cubin: bytes) -> Iterator[tuple[str, int, bytes]]:
    """Yield name, size and contents of each section of an ELF file; a NOBITS section has no contents."""
    offset = struct.unpack_from("<Q", cubin, 0x28)[0]
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", cubin, offset + i * size) for i in range(count)]
    for name, kind, _, _, start, length in headers:
        at = headers[names][4] + name
        content = b"" if kind == 8 else cubin[start : start + length]
        yield cubin[at : cubin.index(b"\0", at)].decode(), length, content


def code_digest(cubin: bytes) -> str:
    """Return a digest of the machine code and its constants, without the names of functions."""
    parts = [
        (kind, content, size)
        for name, size, content in sections(cubin)
        for kind in CODE
        if name.startswith(kind)
    ]
    digest = hashlib.sha256()
    for kind, content, size in sorted(parts):
        digest.update(f"{kind} {size}\n".encode() + content)
    return digest.hexdigest()[:24]


def resources(cubin: bytes) -> tuple[int, int]:
    """Return registers a thread and bytes of stack a thread (spilled registers), as the cubin's notes say.

    Read from the section .nv.info: attribute 0x2f REGCOUNT and 0x12 MIN_STACK_SIZE, each (symbol, value); format as
    `cuobjdump --dump-resource-usage` shows it. (0, 0) where they are not found.
    """
    registers = stack = 0
    if cubin[:4] != b"\x7fELF":
        return 0, 0
    for name, _, content in sections(cubin):
        place = 0
        while name == ".nv.info" and place + 4 <= len(content):
            form, attribute, payload = struct.unpack_from("<BBH", content, place)
            if form == 4 and payload >= 8:  # EIFMT_SVAL: the payload follows
                value = struct.unpack_from("<I", content, place + 8)[0]
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
    """Yield every kernel of the networks' passes with each compute capability."""
    specs = list(specs)
    for capability in capabilities:
        passes = (plan_for(spec, capability, p, size) for spec in specs for p in precisions for size in sizes)
        for launch in variants(passes):
            yield launch, capability


def sample(work: Iterable[tuple[Launch, int]]) -> list[tuple[Launch, int]]:
    """Return one launch of every kernel function for every capability, a different variant for each."""
    found: dict[tuple[int, str], list[Launch]] = {}
    for launch, capability in work:
        found.setdefault((capability, launch.name), []).append(launch)
    order = {capability: i for i, capability in enumerate(dict.fromkeys(c for c, _ in found))}
    return [(some[order[c] % len(some)], c) for (c, _), some in found.items()]


def compile_all(work: Iterable[tuple[Launch, int]], processes: int = 1) -> Iterator[Compiled]:
    """Yield the results in order; without NVRTC kernels in CUDA C++ are left out."""
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


def record(
    specs: dict[str, Spec],
    capabilities: Sequence[int] = CAPABILITIES,
    precisions: Sequence[str] = ("fp16",),
    sizes: Sequence[Any] = SIZES,
    processes: int = 1,
) -> dict[str, list[str]]:
    """Return, for every pass, a line for each launch: label, grid, threads' and shared memory, digest of the code."""
    rows: dict[str, list[tuple[Launch, int]]] = {}
    work: dict[Any, tuple[Launch, int]] = {}
    for name, spec in specs.items():
        for capability in capabilities:
            for precision in precisions:
                for size in sizes:
                    launches = launches_of(plan_for(spec, capability, precision, size))
                    place = f"{name} {precision} {'x'.join(map(str, size))} sm{capability}"
                    rows[place] = [(launch, capability) for launch in launches]
                    for launch in launches:
                        work.setdefault((capability, launch.variant()), (launch, capability))
    found = dict(zip(work, compile_all(work.values(), processes)))

    def line(launch: Launch, capability: int) -> str:
        made = found[capability, launch.variant()]
        grid, sizes = "x".join(map(str, launch.grid)), " ".join(map(str, launch.sizes.values()))
        return f"{launch.label} | {grid} | {sizes} | {launch.warps} {made.shared_bytes} | {made.error or made.code}"

    return {place: [line(*row) for row in launches] for place, launches in rows.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m restort.backends.fused.kernel_sweep")
    parser.add_argument("--all", action="store_true", help="all published networks, and bfloat16")
    parser.add_argument("--capability", type=int, nargs="+", default=list(CAPABILITIES))
    parser.add_argument("--network", nargs="+", help="of these names only")
    parser.add_argument("--precision", nargs="+", choices=("fp16", "bf16"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--table", action="store_true", help="print a line per kernel, not only those that fail"
    )
    parser.add_argument("--record", type=Path, metavar="FILE", help="write a record of the machine code")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="compare the machine code with a record")
    args = parser.parse_args(arguments)
    known = SMALL | PUBLISHED
    names = args.network or list(known if args.all else SMALL)
    precisions = args.precision or (["fp16", "bf16"] if args.all else ["fp16"])
    if args.record or args.compare:
        if not available():
            raise SystemExit("a record needs NVRTC (pip install cuda-bindings nvidia-cuda-nvrtc)")
        specs = {name: known[name] for name in names}
        return _recorded(record(specs, args.capability, precisions, processes=args.processes), args)
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


def _recorded(found: dict[str, list[str]], args: argparse.Namespace) -> int:
    """Write the record and print how it differs from that of --compare; return the exit status."""
    if args.record:
        args.record.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    if not args.compare:
        return 0
    before = json.loads(args.compare.read_text("utf-8"))
    differing = 0
    for place, lines in found.items():
        old = before.get(place, [])
        for i in range(max(len(lines), len(old))):
            pair = [rows[i] if i < len(rows) else "no launch" for rows in (old, lines)]
            if pair[0] != pair[1]:
                differing += 1
                print(f"{place}: launch {i}\n  before  {pair[0]}\n  now     {pair[1]}")
    total = sum(map(len, found.values()))
    print(
        f"{total - differing} of {total} launches in {len(found)} passes have the recorded machine code and grid"
    )
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
