"""The backend `fused` without a GPU: its runner in Triton's interpreter, and what is said where it cannot be used."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from restort.backends import registry
from restort.errors import RestortError
from restort.utils import gpu
from restort.utils.extras import install_command
from tests.fakes.fake_driver import Driver

HERE = Path(__file__).resolve().parent


def test_the_runner_in_the_interpreter() -> None:
    """In a process of its own: Triton reads TRITON_INTERPRET when it is imported."""
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "fused_runner_cases.py"],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def test_the_first_picture_does_not_wait_for_the_compiler_of_pytorch() -> None:
    """Planning for the estimate of memory once imported SymPy and torch._dynamo: 5 s before the first picture."""
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    program = (
        "import sys; from restort.weights.checkpoint import load_weights; from pathlib import Path; import restort\n"
        "from restort.backends.fused.runner import FusedRunner\n"
        "shipped = Path(restort.__file__).parent / 'weights/shipped/restormer-small-photo.safetensors'\n"
        "print(FusedRunner(load_weights(shipped), device='cpu').tile_memory()[1] > 100)\n"
        "print({'sympy', 'torch._dynamo'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == ["True", "set()"], done.stdout + done.stderr[-2000:]


BUILD = {"version": "2.11.0+cu130", "cuda": "13.0", "hip": None}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine where all is in order, but for what is asked for."""

    def make(
        driver: Driver | None = None,
        build: dict[str, str | None] | None = None,
        absent: tuple[str, ...] = (),
        versions: dict[str, str] | None = None,
    ) -> None:
        texts = {"torch": "2.11.0", "triton": "3.6.0"} | (versions or {})
        monkeypatch.setattr(gpu, "_driver", lambda: driver)
        monkeypatch.setattr(gpu, "torch_build", lambda: build or BUILD)
        monkeypatch.setattr(gpu, "_text", lambda name: texts[name])
        find = importlib.util.find_spec
        there = find("json")
        monkeypatch.setattr(
            gpu.importlib.util,
            "find_spec",
            lambda name: None if name in absent else there if name in texts else find(name),
        )

    return make


@pytest.mark.parametrize(
    ("given", "reason", "remedy"),
    [
        ({"absent": ("torch",)}, "PyTorch is not installed", r"pip install 'restort\[fused\]'"),
        (
            {"build": {"version": "2.13.0+cpu", "cuda": None}},
            r"without CUDA \(2.13.0\+cpu\)",
            "download.pytorch.org/whl/cu",
        ),
        ({"build": {"version": "2.9", "cuda": None, "hip": "6.4"}}, "for AMD GPUs", "whl/cu"),
        ({"versions": {"torch": "2.4.1"}}, "PyTorch 2.4.1 is too old, 2.7 is needed", "-U"),
        ({"absent": ("triton",)}, "Triton is not installed", "pip install triton"),
        ({"versions": {"triton": "3.0.0"}}, "Triton 3.0.0 is too old, 3.3 is needed", "-U"),
        ({}, "no NVIDIA driver is loaded", "--gpus all"),
        ({"driver": Driver(status=100)}, "shows no NVIDIA GPU", "CUDA_VISIBLE_DEVICES"),
        ({"driver": Driver(count=0)}, "shows no NVIDIA GPU", "nvidia-smi"),
        ({"driver": Driver(status=803)}, "different versions", "restart"),
        ({"driver": Driver(status=999)}, "CUDA error 999", "restart"),
        ({"driver": Driver(capability=(7, 5))}, "compute capability 7.5; 8.0 or newer", "--backend auto"),
        (
            {"driver": Driver(cuda=12040)},
            "for CUDA 12.4 and PyTorch is built for CUDA 13.0",
            "update the NVIDIA",
        ),
    ],
)
def test_what_is_in_the_way_is_told(
    machine: Any, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], reason: str, remedy: str
) -> None:
    machine(**given)
    found = gpu.check_available()
    assert found is not None and found == gpu.check_usable()
    pattern = (
        f"{reason}.*{remedy}"
        if "absent" not in given or "triton" in given["absent"]
        else "backend 'fused' is not"
    )
    weights: Any = None
    with pytest.raises(RestortError, match=pattern):
        registry.create(weights, "fused")
    state = {state.name: state for state in registry.status()}["fused"]
    assert not state.works and state.remedy is not None and state.precisions == ()
    if "absent" not in given or "triton" in given["absent"]:
        assert (state.reason, state.remedy) == (found.reason, found.remedy)


def test_a_usable_gpu(machine: Any) -> None:
    machine(driver=Driver())
    assert gpu.check_available() is None
    assert gpu.query_gpu() == gpu.Gpu("NVIDIA H100", (9, 0), (13, 0))


def test_the_build_is_read_from_the_file() -> None:
    torch = pytest.importorskip("torch")
    assert gpu.torch_build() == {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
    }


def test_checking_imports_neither_library() -> None:
    code = (
        "import sys; from restort.backends.registry import check_available; check_available('fused'); "
        "print({'torch', 'triton'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


class Fake:
    name, device, closed = "fused", "NVIDIA H100", False

    def __init__(self, precision: str) -> None:
        self.precision = precision
        self.warn: Any = None


def test_auto_takes_the_gpu(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(driver=Driver())
    made: list[str] = []

    def make(name: str, precision: str, weights: Any, threads: Any) -> Any:
        made.append(f"{name}/{precision}")
        if "fused" not in name:
            raise RestortError("no processor today")
        return Fake(precision)

    monkeypatch.setattr(registry, "make", make)
    said: list[str] = []
    warn = said.append
    weights: Any = None
    runner: Any = registry.create(weights, notify=said.append, warn=warn)
    assert (
        made == ["fused/fp16"] and said == ["auto selected fused/fp16 on NVIDIA H100"] and runner.warn is warn
    )
    assert registry.create(weights, precision="bf16").precision == "bf16"
    assert registry.create(weights, "fused").precision == "fp16"


def test_auto_goes_on_without_a_gpu_that_fails(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(driver=Driver())
    monkeypatch.setattr(registry, "installed", lambda name: name in ("onnxruntime", "fused"))

    def make(name: str, precision: str, weights: Any, threads: Any) -> Any:
        if name == "fused":
            raise RestortError("install gcc")
        return Fake(f"{name} {precision}")

    monkeypatch.setattr(registry, "make", make)
    monkeypatch.setattr("restort.backends.autotune.choose", lambda weights, pairs, **more: Fake(pairs[0][0]))
    said: list[str] = []
    weights: Any = None
    assert registry.create(weights, notify=said.append).precision == "onnxruntime"
    assert said == ["auto cannot use the GPU: install gcc"]
    with pytest.raises(RestortError, match="install gcc"):
        registry.create(weights, "fused")


@pytest.mark.parametrize("has_tensorrt", [False, True])
def test_fp16_without_a_gpu_says_what_it_needs(
    machine: Any, monkeypatch: pytest.MonkeyPatch, has_tensorrt: bool
) -> None:
    machine()
    here = ("onnxruntime", "fused", "tensorrt")[: 3 if has_tensorrt else 2]
    monkeypatch.setattr(registry, "installed", lambda name: name in here)
    weights: Any = None
    with pytest.raises(
        RestortError, match=r"supports fp16; .*backend 'fused' cannot be used: no NVIDIA driver is loaded"
    ) as error:
        registry.create(weights, precision="fp16")
    assert (install_command("rtx") in str(error.value)) is not has_tensorrt
    assert (
        "backend 'tensorrt' cannot be used: no NVIDIA driver is loaded" in str(error.value)
    ) is has_tensorrt


def test_exact_strips_run_where_they_are_fastest(machine: Any) -> None:
    from restort.errors import UsageError
    from restort.inference.exact import resolve_backend
    from tests.fakes.fake_backend import RESTORMER

    machine()
    assert resolve_backend(RESTORMER, "auto", "auto", None) == ("torch", "fp32")
    machine(driver=Driver())
    assert resolve_backend(RESTORMER, "auto", "auto", None) == ("fused", "fp32")
    assert resolve_backend(RESTORMER, "fused", "fp16", None) == ("fused", "fp16")
    with pytest.raises(UsageError, match=r"backend 'torch' does not support fp16 \(supported: fp32\)"):
        resolve_backend(RESTORMER, "torch", "fp16", None)
    with pytest.raises(UsageError, match="use --backend torch or fused"):
        resolve_backend(RESTORMER, "openvino", "auto", None)


def test_kernels_are_loaded_when_first_used_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_MODULE_LOADING", raising=False)
    gpu.load_lazily()
    assert os.environ["CUDA_MODULE_LOADING"] == "LAZY"
    monkeypatch.setenv("CUDA_MODULE_LOADING", "EAGER")
    gpu.load_lazily()
    assert os.environ["CUDA_MODULE_LOADING"] == "EAGER"
