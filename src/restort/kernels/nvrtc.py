"""Kernels in CUDA C++: compiled by NVRTC when first used, kept on disk, launched as Triton's are: kernel[grid](...).

They are for stencils that read neighbours' values on chip, which Triton cannot express. The source of a kernel is
include/ptx.cuh, the headers that it names, then its own file; every constant of a launch becomes a #define. Constants
that each kernel has:
    WARPS   warps in a block          SHARED  bytes of dynamic shared memory of a block
    BLOCKS  blocks per SM (__launch_bounds__, which limits the registers)
    BF16    1 for bfloat16, 0 for float16
and some have
    OVERLAP 1: programmatic dependent launch (compute capability 9.0). The kernel may start before the launch before it
            has ended, and waits (griddepcontrol.wait) before it reads what that wrote.
Needs compute capability 8.0 and cuda-bindings (comes with PyTorch for CUDA), which finds NVRTC.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from restort.errors import RestortError
from restort.utils.cache_dir import cache_root, distrusted
from restort.utils.files import write_bytes

INCLUDE = Path(__file__).parent / "include"
REMEDY = "pip install cuda-bindings nvidia-cuda-nvrtc"
ARCH_SPECIFIC = {90: "a"}  # wgmma and setmaxnreg are instructions of sm_90a, not of sm_90
OPTIONS = ("--std=c++17", "--use_fast_math")


class CudaKernel:
    """A kernel's source and what has been compiled of it. Safe to use from several threads."""

    def __init__(self, name: str, path: Path, headers: tuple[str, ...] = ()) -> None:
        """`name` is the entry point in the file `path`; `headers` lie in kernels/include."""
        self.__name__ = name
        self.path = path
        self.headers = ("ptx.cuh", *headers)
        self._functions: dict[Any, Any] = {}
        self._lock = threading.Lock()

    def source(self, constants: Mapping[str, Any]) -> str:
        """Return the whole source for these constants."""
        defines = "".join(f"#define {key} {int(value)}\n" for key, value in constants.items())
        headers = "".join((INCLUDE / name).read_text() for name in self.headers)
        return defines + headers + self.path.read_text()

    def compile(self, constants: Mapping[str, Any], capability: int) -> bytes:
        """Return the cubin for a compute capability (90 for 9.0), from the disk cache if it is there. Needs no GPU.

        Where the cache cannot be written, the next process compiles it again.
        """
        text = self.source(constants)
        key = hashlib.sha256("\0".join([text, *OPTIONS, str(capability), _version()]).encode()).hexdigest()[
            :32
        ]
        kept = cache_root() / "kernels" / f"{self.__name__}-{key}.cubin"
        if kept.is_file() and distrusted(kept) is None:
            return kept.read_bytes()
        binary = _compile(text, self.__name__, capability)
        with contextlib.suppress(RestortError):
            write_bytes(kept, binary, overwrite=True, private=True)
        return binary

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        grid_3d = (*grid, 1, 1)[:3]

        def call(*arguments: Any, num_warps: int = 0, num_stages: int = 0, **constants: Any) -> None:
            import torch

            device = torch.cuda.current_device()
            stream = torch.cuda.current_stream().cuda_stream
            self._run(arguments, constants, grid_3d, device, stream)

        return call

    def _run(
        self, arguments: tuple[Any, ...], constants: dict[str, Any], grid: Any, device: int, stream: int
    ) -> None:
        driver = _driver()
        _set_context(device)
        key = (device, *constants.items())
        function = self._functions.get(key)
        if function is None:
            with self._lock:
                function = self._functions.get(key) or self._load(constants, device)
                self._functions[key] = function
        values = [
            ctypes.c_int(argument) if isinstance(argument, int) else ctypes.c_void_p(argument.data_ptr())
            for argument in arguments
        ]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        block, shared = 32 * constants["WARPS"], constants["SHARED"]
        if constants.get("OVERLAP"):
            config = _dependent_launch(grid, block, shared, stream)
            _check(
                driver.cuLaunchKernelEx(config, function, ctypes.addressof(pointers), 0),
                self.__name__,
            )
            return
        _check(
            driver.cuLaunchKernel(
                function, *grid, block, 1, 1, shared, stream, ctypes.addressof(pointers), 0
            ),
            self.__name__,
        )

    def _load(self, constants: dict[str, Any], device: int) -> Any:
        import torch

        driver = _driver()
        major, minor = torch.cuda.get_device_capability(device)
        module = _check(driver.cuModuleLoadData(self.compile(constants, major * 10 + minor)), self.__name__)
        function = _check(driver.cuModuleGetFunction(module, self.__name__.encode()), self.__name__)
        attribute = driver.CUfunction_attribute
        for name, value in (
            (attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, constants["SHARED"]),
            (attribute.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100),
        ):
            _check(driver.cuFuncSetAttribute(function, name, value), self.__name__)
        return function


def _dependent_launch(grid: tuple[int, int, int], block: int, shared: int, stream: int) -> Any:
    """The configuration of a programmatic dependent launch, which may begin before the one before it has ended."""
    driver = _driver()
    config, attribute = driver.CUlaunchConfig(), driver.CUlaunchAttribute()
    config.gridDimX, config.gridDimY, config.gridDimZ = grid
    config.blockDimX, config.blockDimY, config.blockDimZ = block, 1, 1
    config.sharedMemBytes, config.hStream = shared, stream
    value = driver.CUlaunchAttributeValue()
    value.programmaticStreamSerializationAllowed = 1
    attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    attribute.value = value
    config.attrs, config.numAttrs = [attribute], 1
    return config


def _compile(text: str, name: str, capability: int) -> bytes:
    nvrtc = _nvrtc()
    program = _check(nvrtc.nvrtcCreateProgram(text.encode(), f"{name}.cu".encode(), 0, [], []), name)
    options = [*OPTIONS, f"--gpu-architecture=sm_{capability}{ARCH_SPECIFIC.get(capability, '')}"]
    (code,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    if int(code) != 0:
        log = b" " * _check(nvrtc.nvrtcGetProgramLogSize(program), name)
        nvrtc.nvrtcGetProgramLog(program, log)
        reason = " ".join(log.decode(errors="replace").split())[:400]
        raise RestortError(f"CUDA kernel {name!r} does not compile for sm_{capability}: {reason}")
    binary: bytes = b" " * _check(nvrtc.nvrtcGetCUBINSize(program), name)
    _check(nvrtc.nvrtcGetCUBIN(program, binary), name)
    nvrtc.nvrtcDestroyProgram(program)
    return binary


def _check(result: tuple[Any, ...], name: str) -> Any:
    """Return a driver call's value, without its error code. RestortError unless the code is success."""
    code, *values = result
    if int(code) != 0:
        raise RestortError(
            f"CUDA kernel {name!r} failed: {getattr(code, 'name', code)}; use another backend (--backend)"
        )
    return values[0] if values else None


def _set_context(device: int) -> None:
    """Make the device's primary context, which PyTorch uses, current in this thread if none is."""
    driver = _driver()
    if not int(_check(driver.cuCtxGetCurrent(), "context")):
        _check(driver.cuCtxSetCurrent(_check(driver.cuDevicePrimaryCtxRetain(device), "context")), "context")


@functools.cache
def available() -> bool:
    """Return whether NVRTC can be loaded, so that kernels can be compiled here."""
    try:
        _nvrtc()
        return True
    except RestortError:
        return False


@functools.cache
def _driver() -> Any:
    return _import_binding("driver")


@functools.cache
def _nvrtc() -> Any:
    return _import_binding("nvrtc")


@functools.cache
def _version() -> str:
    code, *numbers = _nvrtc().nvrtcVersion()
    _check((code,), "NVRTC")
    return ".".join(map(str, numbers))


def _import_binding(name: str) -> Any:
    import importlib

    try:
        module = importlib.import_module(f"cuda.bindings.{name}")
        if name == "nvrtc":
            module.nvrtcVersion()  # loads the library
        return module
    except (ImportError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise RestortError(f"CUDA kernels need cuda-bindings ({reason}); install it with: {REMEDY}") from None
