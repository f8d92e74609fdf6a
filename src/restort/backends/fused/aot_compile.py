"""A forward pass at one shape compiled ahead, without a GPU, into one file that needs neither PyTorch nor Triton.

`make_plan` plans the pass as the backend would on that GPU, with memory on the CPU so that the weights are there,
compiles its kernels, and writes down every launch as the real launchers make it (restort.kernels.cuda, and Triton's
driver.c): which arguments a kernel has is taken from what Triton compiled, and compared with what the machine code
says of its own parameters. The file: restort.backends.fused.aot_package.
"""

from __future__ import annotations

import importlib
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

import restort
from restort.backends.fused.aot_cache import sources_digest
from restort.backends.fused.aot_package import (
    ADDRESS,
    ALIGNMENT,
    NOTHING,
    NUMBER,
    Argument,
    Call,
    Kernel,
    Plan,
    Region,
    read_plan,
    write_plan,
)
from restort.backends.fused.forward_pass import Pass
from restort.errors import OutOfMemory, RestortError, UsageError
from restort.kernels import cuda, sentinel
from restort.kernels.launch import Launch
from restort.kernels.machine import SHARED_KIB, planning_for
from restort.kernels.precompile import Job, job, precompile_cuda
from restort.runner import check_shape
from restort.weights.checkpoint import Weights

__all__ = ["make_plan", "parameters", "plan_pass", "read_plan"]

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
CARVEOUT = 100  # percent, as restort.kernels.cuda asks for; Triton does above MUCH_SHARED ("prefer shared")
MUCH_SHARED = 48 << 10
SECTION = struct.Struct("<IIQQQQ")


def make_plan(
    weights: Weights,
    precision: str,
    shape: tuple[int, int, int],
    capability: int = 90,
    *,
    overlap: bool = True,
    processes: int = 2,
) -> bytes:
    """The plan of a pass of `weights` in 'fp16' or 'bf16' over float32 (n, C, h, w), `shape` being (n, h, w).

    Compiled for a compute capability (90 is 9.0, an H100) by so many `processes`. It takes the memory of the pass.
    Without `overlap` every kernel begins after the one before has ended, the machine code being the same.
    Raises RestortError for a shape that the network does not take, and where a kernel cannot be compiled or launched
    in this way.
    """
    if precision not in TYPES:
        raise RestortError(f"a plan is for fp16 or bf16, not {precision}")
    made = plan_pass(weights, precision, shape, capability)
    plan = _described(made, weights, precision, capability, processes)
    if not overlap:
        plan = replace(plan, kernels=tuple(replace(kernel, overlap=False) for kernel in plan.kernels))
    return write_plan(plan)


def plan_pass(weights: Weights, precision: str, shape: tuple[int, int, int], capability: int) -> Pass:
    """The pass with its memory on the CPU, zeros where the pass writes first, as planned for the GPU."""
    n, h, w = shape
    check_shape((n, weights.spec.in_channels, h, w), weights.spec)
    if capability not in SHARED_KIB:
        known = ", ".join(f"{one / 10}" for one in sorted(SHARED_KIB))
        raise UsageError(f"compute capability {capability / 10} is not known; choose {known}")
    module: Any = importlib.import_module(f"restort.backends.fused.{weights.spec.architecture}")
    dtype = TYPES[precision]
    try:
        with planning_for(capability), _Zeros(), torch.no_grad():
            packed = module.pack(weights, dtype)
            made: Pass = module.plan(packed, weights.spec, n, h, w, dtype, torch.device("cpu"))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "allocate memory" not in str(error):
            raise
        raise OutOfMemory(
            f"the memory of this machine is not enough for the plan of {n}x{h}x{w}; choose a smaller size"
        ) from None
    if made.output.numel() > sentinel.LIMIT:  # as restort.backends.fused.instances
        raise OutOfMemory("the result has more elements than 32-bit indices reach; choose a smaller size")
    return made


class _Zeros(TorchFunctionMode):  # type: ignore[misc]
    """Memory is zeros where it would be anything, so that what a plan writes to it beforehand can be told."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (torch.zeros if func is torch.empty else func)(*args, **(kwargs or {}))


def _described(made: Pass, weights: Weights, precision: str, capability: int, processes: int) -> Plan:
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
        "restort": restort.__version__,
        "sources": sources_digest(),
        "compilers": _compilers(),
    }
    shapes = tuple(made.input.shape), tuple(made.output.shape)
    return Plan(capability, *shapes, memory.regions(), tuple(kernels), tuple(calls), text)


def _compilers() -> str:
    import triton

    return f"Triton {triton.__version__}" + (f", NVRTC {cuda._version()}" if cuda.available() else "")


class _Memory:
    """Storages of tensors as regions, in the order they are met."""

    def __init__(self, made: Pass) -> None:
        self._numbers: dict[int, int] = {}
        self._storages: list[tuple[str, Any]] = []
        for kind, tensor in (("input", made.input), ("output", made.output)):
            if tensor.dtype != torch.float32 or not tensor.is_contiguous() or tensor.storage_offset():
                raise RestortError(
                    f"the pass's {kind} is not float32 and contiguous, which a plan's has to be"
                )
            self._add(kind, tensor)
        if made.workspace.bytes:
            self._add("scratch", made.workspace.tensor(0))

    def _add(self, kind: str, tensor: Any) -> int:
        storage = tensor.untyped_storage()
        if tensor.device.type != "cpu" or storage.data_ptr() % 16:
            raise RestortError("the memory of a plan has to be on the CPU, at multiples of 16 bytes")
        number = self._numbers.setdefault(storage.data_ptr(), len(self._storages))
        if number == len(self._storages):
            self._storages.append((kind, storage))
        return number

    def address(self, tensor: Any) -> Argument:
        """Where a tensor begins; RestortError unless all of it lies in its storage."""
        number = self._add("weights", tensor)
        storage = self._storages[number][1]
        start = tensor.data_ptr() - storage.data_ptr()
        last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride()))
        if not tensor.numel() or start < 0 or start + (last + 1) * tensor.element_size() > storage.nbytes():
            raise RestortError("a tensor of the pass does not lie in its storage")
        return Argument(ADDRESS, start, number)

    def arguments(self, launch: Launch, code: _Code) -> Iterator[Argument]:
        """What the kernel is given, in its order, checked against its parameters."""
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
        """With the contents of all but the pictures."""
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
    nothings    addresses of scratch that Triton appends, of which these kernels use none.
    parameters  bytes of each parameter, as the machine code has them.
    """

    kernel: Kernel
    parameters: list[int]
    kept: tuple[int, ...] | None = None
    nothings: int = 0


def _compiled(launches: Sequence[Launch], capability: int, processes: int) -> list[_Code]:
    """The machine code of each launch; Triton works in processes of its own, to which its driver is a stand-in."""
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
    """A kernel of restort.kernels.cuda, launched as CudaKernel does it."""
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
    """A kernel of Triton, in a process for this alone."""
    from restort.kernels.precompile_child import compile_job

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
            raise RestortError(f"the kernel {wanted.kernel} needs {name}, which a plan cannot give")
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
    """Bytes of each parameter of a kernel, in their order, as its machine code has them.

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
