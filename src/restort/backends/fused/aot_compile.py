"""Ahead-of-time compilation of a forward pass at one shape, without a GPU, into an AOT package.

The package needs neither PyTorch nor Triton to run. `compile_aot` plans the pass as the backend would on that GPU, with
memory on the CPU so that the weights are there, compiles its kernels, and records every launch as the real launchers
make it (restort.kernels.nvrtc, and Triton's driver.c). A kernel's arguments are taken from what Triton compiled and
checked against the parameters that the machine code declares. The file: restort.backends.fused.aot_package.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from restort.backends.fused.aot_package import (
    ADDRESS,
    ALIGNMENT,
    NOTHING,
    NUMBER,
    AotPackage,
    Argument,
    Call,
    Kernel,
    Region,
    read_aot,
    write_aot,
)
from restort.backends.fused.architectures import planner_of
from restort.backends.fused.forward_pass import Pass
from restort.backends.fused.sources import sources_digest
from restort.errors import OutOfMemory, RestortError, UsageError
from restort.kernels import nvrtc
from restort.kernels.finite_check import triton as finite_check
from restort.kernels.gpu_target import SHARED_KIB, planning_for
from restort.kernels.launch import Launch
from restort.kernels.precompile import Job, job, precompile_cuda
from restort.runner import check_shape
from restort.version import __version__
from restort.weights.checkpoint import Weights

__all__ = ["compile_aot", "parameters", "plan_pass", "read_aot"]

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
CARVEOUT = 100  # percent, as restort.kernels.nvrtc asks for; Triton does above MUCH_SHARED ("prefer shared")
MUCH_SHARED = 48 << 10
SECTION = struct.Struct("<IIQQQQ")


def compile_aot(
    weights: Weights,
    precision: str,
    shape: tuple[int, int, int],
    capability: int = 90,
    *,
    overlap: bool = True,
    processes: int = 2,
) -> bytes:
    """Return the bytes of the AOT package of `weights` in 'fp16' or 'bf16' over float32 (n, C, h, w).

    `shape` is (n, h, w), `capability` 90 for 9.0 (an H100). So many `processes` compile; the memory of the pass is
    needed on this machine. Without `overlap` every kernel begins after the one before has ended, with unchanged machine
    code. Raises RestortError for a shape that the network does not take, and if a kernel cannot be compiled or launched
    in this way.
    """
    if precision not in TYPES:
        raise RestortError(f"AOT packages are fp16 or bf16, not {precision}")
    made = plan_pass(weights, precision, shape, capability)
    package = _described(made, weights, precision, capability, processes)
    if not overlap:
        package = replace(
            package, kernels=tuple(replace(kernel, overlap=False) for kernel in package.kernels)
        )
    return write_aot(package)


def plan_pass(weights: Weights, precision: str, shape: tuple[int, int, int], capability: int) -> Pass:
    """Plan the pass as for the GPU, with its memory on the CPU: zeros wherever the pass writes before it reads."""
    n, h, w = shape
    check_shape((n, weights.spec.in_channels, h, w), weights.spec)
    if capability not in SHARED_KIB:
        known = ", ".join(f"{one / 10}" for one in sorted(SHARED_KIB))
        raise UsageError(f"compute capability {capability / 10} is not known; choose {known}")
    planner: Any = planner_of(weights.spec)
    dtype = TYPES[precision]
    try:
        with planning_for(capability), _Zeros(), torch.no_grad():
            packed = planner.pack(weights, dtype)
            made: Pass = planner.plan(packed, weights.spec, n, h, w, dtype, torch.device("cpu"))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "allocate memory" not in str(error):
            raise
        raise OutOfMemory(
            f"out of memory on this machine for an AOT package of {n}x{h}x{w}; choose a smaller size"
        ) from None
    if made.output.numel() > finite_check.LIMIT:  # as restort.backends.fused.instances
        raise OutOfMemory("the result has more elements than 32-bit indices reach; choose a smaller size")
    return made


class _Zeros(TorchFunctionMode):  # type: ignore[misc]
    """Makes torch.empty return zeros, so that what a plan writes to memory beforehand can be recognised."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (torch.zeros if func is torch.empty else func)(*args, **(kwargs or {}))


def _described(made: Pass, weights: Weights, precision: str, capability: int, processes: int) -> AotPackage:
    memory = _Memory(made)
    codes = _compiled(made.launches, capability, processes)
    kernels: dict[Kernel, int] = {}
    calls = []
    for launch, code in zip(made.launches, codes):
        number = kernels.setdefault(code.kernel, len(kernels))
        x, y, z = (*launch.grid, 1, 1)[:3]
        calls.append(Call(number, (x, y, z), tuple(memory.arguments(launch, code)), launch.label))
    text = {
        "architecture": weights.spec.architecture,
        "precision": precision,
        "model": weights.metadata.get("name") or weights.path.stem,
        "weights_sha256": weights.digest,
        "restort": __version__,
        "sources": sources_digest(),
        "compilers": _compilers(),
    }
    shapes = tuple(made.input.shape), tuple(made.output.shape)
    return AotPackage(capability, *shapes, memory.regions(), tuple(kernels), tuple(calls), text)


def _compilers() -> str:
    import triton

    return f"Triton {triton.__version__}" + (f", NVRTC {nvrtc._version()}" if nvrtc.available() else "")


class _Memory:
    """Regions of the storages of tensors, in the order in which these are added."""

    def __init__(self, made: Pass) -> None:
        self._numbers: dict[int, int] = {}
        self._storages: list[tuple[str, Any]] = []
        for kind, tensor in (("input", made.input), ("output", made.output)):
            if tensor.dtype != torch.float32 or not tensor.is_contiguous() or tensor.storage_offset():
                raise RestortError(
                    f"the pass's {kind} is not float32 and contiguous, which an AOT package needs"
                )
            self._add(kind, tensor)
        if made.workspace.bytes:
            self._add("scratch", made.workspace.tensor(0))

    def _add(self, kind: str, tensor: Any) -> int:
        storage = tensor.untyped_storage()
        if tensor.device.type != "cpu" or storage.data_ptr() % 16:
            raise RestortError("memory of an AOT package must be on the CPU, aligned to 16 bytes")
        number = self._numbers.setdefault(storage.data_ptr(), len(self._storages))
        if number == len(self._storages):
            self._storages.append((kind, storage))
        return number

    def address(self, tensor: Any) -> Argument:
        """Return the address of a tensor. RestortError unless all of it lies in its storage."""
        number = self._add("weights", tensor)
        storage = self._storages[number][1]
        start = tensor.data_ptr() - storage.data_ptr()
        last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride()))
        if not tensor.numel() or start < 0 or start + (last + 1) * tensor.element_size() > storage.nbytes():
            raise RestortError("a tensor of the pass does not lie in its storage")
        return Argument(ADDRESS, start, number)

    def arguments(self, launch: Launch, code: _Code) -> Iterator[Argument]:
        """Yield the kernel's arguments in its order, checked against its parameters."""
        values = [*launch.tensors.values(), *launch.sizes.values()]
        kept = values if code.kept is None else [values[i] for i in code.kept]
        sizes = [4 if isinstance(value, int) else 8 for value in kept] + [8] * code.nothings
        if sizes != code.parameters:
            raise RestortError(
                f"the kernel {launch.name} has parameters of {code.parameters} bytes, and {sizes} would be given"
            )
        for value in kept:
            yield Argument(NUMBER, value) if isinstance(value, int) else self.address(value)
        for _ in range(code.nothings):
            yield Argument(NOTHING)

    def regions(self) -> tuple[Region, ...]:
        """Return the regions, with contents except those of input and output."""
        return tuple(_region(kind, storage) for kind, storage in self._storages)


def _region(kind: str, storage: Any) -> Region:
    size = -(-storage.nbytes() // ALIGNMENT) * ALIGNMENT
    if kind in ("input", "output"):
        return Region(kind, size)
    content = torch.empty(0, dtype=torch.uint8).set_(storage)
    if not content.any():
        return Region("scratch" if kind == "scratch" else "zeroed", size)
    return Region(kind, size, content.numpy().tobytes())


@dataclass(frozen=True)
class _Code:
    """A compiled kernel.

    kept        which of the launch's pointers and numbers are arguments; None: all.
    nothings    how many addresses of scratch Triton appends, which these kernels do not use.
    parameters  bytes of each parameter, as the machine code declares them.
    """

    kernel: Kernel
    parameters: list[int]
    kept: tuple[int, ...] | None = None
    nothings: int = 0


def _compiled(launches: Sequence[Launch], capability: int, processes: int) -> list[_Code]:
    """Return the machine code of each launch; Triton compiles in separate processes, with a stand-in for its driver."""
    jobs = [job(launch, capability) for launch in launches]
    wanted = list(dict.fromkeys(one for one in jobs if one is not None))
    if any(one is None and not hasattr(launch.kernel, "compile") for one, launch in zip(jobs, launches)):
        raise RestortError("kernels are interpreted here, not compiled; unset TRITON_INTERPRET")
    workers = max(1, min(processes, len(wanted)))
    try:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            triton = pool.map(_triton, wanted)
            precompile_cuda(launches, capability)
            found = dict(zip(wanted, triton))
    except BrokenProcessPool:
        raise RestortError(
            "a process that compiled kernels was ended from outside, most likely for want of memory; free some, and "
            "try again"
        ) from None
    made = [_cuda(launch, capability) if one is None else found[one] for one, launch in zip(jobs, launches)]
    for code in made:
        if code.kernel.shared > SHARED_KIB[capability] << 10:
            raise RestortError(f"{code.kernel.name} needs {code.kernel.shared} bytes of shared memory")
    return made


def _cuda(launch: Launch, capability: int) -> _Code:
    """Compile a kernel of restort.kernels.nvrtc, launched as CudaKernel launches it."""
    cubin: bytes = launch.kernel.compile(launch.constants, capability)
    constants = launch.constants
    kernel = Kernel(
        cubin,
        launch.name,
        int(constants["SHARED"]),
        32 * int(constants["WARPS"]),
        int(constants.get("CLUSTER") or 1),
        bool(constants.get("OVERLAP")),
        CARVEOUT,
    )
    return _Code(kernel, parameters(cubin, launch.name))


def _triton(wanted: Job) -> _Code:
    """Compile a Triton kernel; runs in a process for this alone."""
    from restort.kernels.precompile_worker import compile_job

    try:
        with warnings.catch_warnings():  # Triton's own, about its settings
            warnings.simplefilter("ignore")
            made = compile_job(wanted)
    except OSError as error:
        raise RestortError(
            f"Triton cannot keep the kernel {wanted.kernel} ({error.strerror or error}: {error.filename}); set "
            "TRITON_CACHE_DIR to a folder that can be written"
        ) from None
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        raise RestortError(f"the kernel {wanted.kernel} does not compile: {reason}") from None
    about = made.metadata
    for name, plain in (
        ("num_ctas", 1),
        ("global_scratch_size", 0),
        ("profile_scratch_size", 0),
        ("launch_cooperative_grid", False),
    ):
        if getattr(about, name, plain) != plain:
            raise RestortError(f"kernel {wanted.kernel!r} needs {name}, which an AOT package does not have")
    cubin: bytes = made.asm["cubin"]
    found = parameters(cubin, about.name)
    types = list(made.src.signature.values())[: len(wanted.pointers) + len(wanted.sizes)]
    kept = tuple(i for i, type_ in enumerate(types) if type_ != "constexpr")  # the others became constants
    shared = int(about.shared)
    kernel = Kernel(
        cubin,
        about.name,
        shared,
        32 * int(about.num_warps),
        overlap=bool(getattr(about, "launch_pdl", False)),
        carveout=CARVEOUT if shared > MUCH_SHARED else -1,
    )
    return _Code(kernel, found, kept, min(2, len(found) - len(kept)))


def parameters(cubin: bytes, name: str) -> list[int]:
    """Return the bytes of each parameter of a kernel, in order, as its machine code declares them.

    Read from the section .nv.info.NAME: attribute 0x17 KPARAM_INFO, 12 bytes each, of which bytes 4 and 5 are the
    parameter's number and bits 18 and above of the last word its size; as `cuobjdump -elf` shows it.
    """
    start = struct.unpack_from("<Q", cubin, 0x28)[0]
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [SECTION.unpack_from(cubin, start + i * size) for i in range(count)]
    found: dict[int, int] = {}
    for title, _, _, _, place, length in sections:
        at = sections[names][4] + title
        if cubin[at : cubin.index(b"\0", at)] != f".nv.info.{name}".encode():
            continue
        end = place + length
        while place + 4 <= end:
            form, attribute, payload = struct.unpack_from("<BBH", cubin, place)
            if form == 4 and attribute == 0x17:
                found[struct.unpack_from("<H", cubin, place + 8)[0]] = (
                    struct.unpack_from("<I", cubin, place + 12)[0] >> 18
                )
            place += 4 + (payload if form == 4 else 0)
    if sorted(found) != list(range(len(found))) or not found:
        raise RestortError(f"the machine code of {name} does not tell its parameters")
    return [found[i] for i in range(len(found))]
