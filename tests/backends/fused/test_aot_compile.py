"""Plans of passes: made without a GPU, written, read, refused, and launched on a stand-in for the driver."""

from __future__ import annotations

import dataclasses
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels are interpreted, not compiled", allow_module_level=True)

from restort.kernels import nvrtc  # noqa: E402

if not nvrtc.available():
    pytest.skip("no NVRTC here", allow_module_level=True)

import onnx  # noqa: E402

from restort.backends.fused import aot_compile  # noqa: E402
from restort.backends.fused.aot_cache import AotRequest  # noqa: E402
from restort.backends.fused.aot_package import (  # noqa: E402
    ADDRESS,
    HEADER,
    NOTHING,
    NUMBER,
    AotPackage,
    read_aot,
    write_aot,
)
from restort.backends.tensorrt.aot_builder import aot_graph  # noqa: E402
from restort.errors import OutOfMemory, RestortError, UsageError  # noqa: E402
from restort.weights.checkpoint import Weights  # noqa: E402
from tests.fakes import triton_interpreter  # noqa: E402
from tests.fakes.small_networks import CASES, ELAN, weights_of  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module", params=list(CASES))
def made(request: pytest.FixtureRequest) -> tuple[str, Weights, bytes, AotPackage]:
    spec, shape = CASES[request.param]
    weights = weights_of(spec)
    data = aot_compile.compile_aot(weights, "fp16", shape)
    return request.param, weights, data, read_aot(data)


@pytest.mark.timeout(600)
def test_packages_are_what_they_were_compiled_from(made: tuple[str, Weights, bytes, AotPackage]) -> None:
    name, weights, data, package = made
    n, h, w = CASES[name][1]
    scale = weights.spec.scale
    assert (package.input, package.output) == ((n, 3, h, w), (n, 3, h * scale, w * scale))
    assert package.capability == 90 and package.text["weights_sha256"] == "digest"
    assert write_aot(package) == data
    request = AotRequest(weights, "fp16", (n, h, w), 90)
    assert (
        request.differs(package) is None
        and dataclasses.replace(request, capability=80).differs(package) is not None
    )
    assert [r.kind for r in package.regions][:3] == ["input", "output", "scratch"]
    assert not package.regions[2].data and all(r.size % 256 == 0 for r in package.regions)
    passed = aot_compile.plan_pass(weights, "fp16", (n, h, w), 90)
    assert [call.label for call in package.launches] == [launch.label for launch in passed.launches]
    assert [package.kernels[c.kernel].name for c in package.launches] == [
        launch.name for launch in passed.launches
    ]
    held = sum(len(region.data) for region in package.regions if region.kind == "weights")
    assert held > 2 * sum(value.size for value in weights.state.values()) * 0.9
    if name == "elan":  # by the kernels for a GPU, begun before the one before has ended
        assert [package.kernels[call.kernel].overlap for call in package.launches] == [False] + [True] * 5


def test_arguments_are_the_kernels_parameters(made: tuple[str, Weights, bytes, AotPackage]) -> None:
    package = made[3]
    reached = set()
    for call in package.launches:
        kernel = package.kernels[call.kernel]
        sizes = [4 if argument.kind == NUMBER else 8 for argument in call.arguments]
        assert sizes == aot_compile.parameters(kernel.cubin, kernel.name)
        for argument in call.arguments:
            if argument.kind == ADDRESS:
                reached.add(argument.region)
                assert 0 <= argument.value < package.regions[argument.region].size
                assert argument.value % 16 == 0
        kinds = [argument.kind for argument in call.arguments if argument.kind != NOTHING]
        assert kinds == sorted(kinds)  # addresses, then numbers
    assert reached == set(range(len(package.regions)))


def test_equal_kernels_are_kept_once(made: tuple[str, Weights, bytes, AotPackage]) -> None:
    package = made[3]
    assert len(set(package.kernels)) == len(package.kernels)
    assert {call.kernel for call in package.launches} == set(range(len(package.kernels)))
    if made[0] == "restormer":
        assert len(package.kernels) < len(package.launches)


def test_damaged_files_are_refused_in_a_sentence(made: tuple[str, Weights, bytes, AotPackage]) -> None:
    data = made[2]

    def refused(changed: bytes, words: str) -> None:
        with pytest.raises(RestortError, match=words):
            read_aot(changed)

    def summed(changed: bytearray) -> bytes:
        struct.pack_into("<I", changed, 8, zlib.crc32(changed[12:]))
        return bytes(changed)

    refused(b"", "no AOT package")
    refused(b"\x7fELF" + data, "no AOT package")
    refused(data[:40], "ends in its header")
    refused(data[:-1], "bytes")
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    refused(bytes(flipped), "damaged")
    for at, value, words in ((12, 3, "version"), (28, 1 << 30, "cannot be read"), (32, 0, "cannot|usable")):
        other = bytearray(data)
        struct.pack_into("<I", other, at, value)
        refused(summed(other), words)
    other = bytearray(data)
    struct.pack_into("<I", other, HEADER.size, 9)  # the first region's kind
    refused(summed(other), "cannot be read")


def test_inconsistent_packages_are_refused(made: tuple[str, Weights, bytes, AotPackage]) -> None:
    package = made[3]
    call = package.launches[0]
    for part, value, words in (
        ("value", package.regions[call.arguments[0].region].size, "points"),
        ("region", len(package.regions), "names region"),
        ("kind", 7, "kind 7"),
    ):
        arguments = (dataclasses.replace(call.arguments[0], **{part: value}), *call.arguments[1:])
        calls = (dataclasses.replace(call, arguments=arguments), *package.launches[1:])
        with pytest.raises(RestortError, match=words):
            write_aot(dataclasses.replace(package, launches=calls))


def test_what_cannot_be_compiled() -> None:
    weights = weights_of(ELAN)
    with pytest.raises(RestortError, match="fp16 or bf16"):
        aot_compile.compile_aot(weights, "fp32", (1, 32, 32))
    with pytest.raises(RestortError, match="multiples of 16"):
        aot_compile.compile_aot(weights, "fp16", (1, 32, 40))
    with pytest.raises(UsageError, match=r"capability 9\.1 is not known; choose 8\.0, "):
        aot_compile.compile_aot(weights, "fp16", (1, 32, 32), 91)
    with pytest.raises(OutOfMemory, match=r"out of memory .*1x16000000x16000000; choose a smaller"):
        aot_compile.compile_aot(weights, "fp16", (1, 16_000_000, 16_000_000))


def test_a_result_of_too_many_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aot_compile.finite_check, "LIMIT", 3 * 16 * 16 * ELAN.scale**2)
    aot_compile.plan_pass(weights_of(ELAN), "fp16", (1, 16, 16), 90)
    with pytest.raises(OutOfMemory, match="32-bit indices"):
        aot_compile.plan_pass(weights_of(ELAN), "fp16", (1, 16, 32), 90)


def test_a_cache_of_triton_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(RestortError, match=r"Triton cannot keep the kernel .*set TRITON_CACHE_DIR"):
        aot_compile.compile_aot(weights_of(ELAN), "fp16", (1, 16, 16))


def _ended(job: object) -> None:
    os._exit(9)


def test_a_process_that_is_ended_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aot_compile, "_triton", _ended)
    with pytest.raises(RestortError, match="most likely for want of memory; free some, and try again"):
        aot_compile.compile_aot(weights_of(ELAN), "fp16", (1, 16, 16))


def test_compiling_is_silent(tmp_path: Path) -> None:
    """Also what Triton warns of, once in every process that compiles."""
    code = (
        "from tests.fakes.small_networks import ELAN, weights_of\n"
        "from restort.backends.fused.aot_compile import compile_aot\n"
        "if __name__ == '__main__':\n"
        "    compile_aot(weights_of(ELAN), 'fp16', (1, 16, 16))\n"
    )
    (tmp_path / "make.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, str(tmp_path / "make.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_graphs_are_one_node(made: tuple[str, Weights, bytes, AotPackage], tmp_path: Path) -> None:
    name, weights, data, package = made
    model = aot_graph(weights, data)
    (node,) = model.graph.node
    assert (node.op_type, node.domain, node.attribute[0].name) == ("RestortPass", "", "plan")
    assert onnx.helper.get_attribute_value(node.attribute[0]) == data
    shape = [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
    assert tuple(shape) == package.output
    assert (model.opset_import[0].version, model.ir_version) == (17, 8)
    assert {p.key: p.value for p in model.metadata_props}["restort.architecture"] == name
    with pytest.raises(onnx.checker.ValidationError, match="RestortPass"):
        onnx.checker.check_model(model)
    known = onnx.ModelProto()
    known.CopyFrom(model)
    known.graph.node[0].op_type = "Identity"
    del known.graph.node[0].attribute[:]
    onnx.checker.check_model(known)
    file = tmp_path / "pass.rtaot"
    file.write_bytes(data)
    named = onnx.helper.get_attribute_value(aot_graph(weights, file).graph.node[0].attribute[0])
    assert named == f"file:{file.resolve()}".encode()
    with pytest.raises(RestortError, match="other weights"):
        aot_graph(dataclasses.replace(weights, digest="another"), data)


def _built(folder: Path, source: str, name: str, *options: str) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ here")
    headers = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    plugin = ROOT / "src" / "restort" / "backends" / "tensorrt" / "csrc"
    made = folder / name
    command = [compiler, "-std=c++17", "-O1", "-w", f"-I{headers}", f"-I{plugin}", *options]
    done = subprocess.run(
        [*command, "-o", str(made), str(ROOT / "tests" / "emulator" / source), "-ldl"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[:3000]
    return made


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "LD_LIBRARY_PATH": str(folder), "FAKE_CUDA_LOG": str(folder / "log")}


def test_the_plugin_launches_what_the_plan_says(
    made: tuple[str, Weights, bytes, AotPackage], tmp_path: Path
) -> None:
    """By aot_gpu.hpp, on a libcuda that notes what is launched with as many parameters as the machine code has."""
    package = made[3]
    _built(tmp_path, "libcuda.cpp", "libcuda.so.1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1")
    program = _built(tmp_path, "aot_main.cpp", "aot_main")
    (tmp_path / "plan").write_bytes(made[2])
    command = [str(program), str(tmp_path / "plan")]
    done = subprocess.run(command, env=_environment(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = []
    for said in done.stdout.split("pass\n")[:-1]:
        lines = [line.split() for line in said.splitlines()]
        places = {int(line[1]): int(line[2]) for line in lines if line[0] == "region"}
        places |= {0: int(lines[0][1]), 1: int(lines[1][1])}
        for call in package.launches:
            kernel = package.kernels[call.kernel]
            values = [
                f"8:{places[a.region] + a.value}" if a.kind == ADDRESS
                else f"{4 if a.kind == NUMBER else 8}:{a.value}"
                for a in call.arguments
            ]  # fmt: skip
            shape = *call.grid, kernel.threads, kernel.shared, int(kernel.overlap)
            expected.append(" ".join(["launch", kernel.name, *map(str, shape), *values]))
    log = (tmp_path / "log").read_text().splitlines()
    assert [line for line in log if line.startswith("launch")] == expected
    elsewhere = {**_environment(tmp_path), "FAKE_CUDA_MAJOR": "8"}
    done = subprocess.run(command, env=elsewhere, capture_output=True, text=True)
    assert done.returncode == 1 and "compute capability 90, and the GPU has 80" in done.stderr


def test_the_check_of_a_plan_runs(made: tuple[str, Weights, bytes, AotPackage], tmp_path: Path) -> None:
    """On the same stand-in, whose kernels write nothing: that is what it has to say."""
    _built(tmp_path, "libcuda.cpp", "libcuda.so.1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1")
    (tmp_path / "plan").write_bytes(made[2])
    script = ROOT / "benchmarks" / "check_aot.py"
    done = subprocess.run(
        [sys.executable, str(script), "run", str(tmp_path / "plan"), "--repeat", "2", "--launches"],
        env=_environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    failures = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert failures == ["FAILED: the output is not finite, or not all written"], done.stdout
    assert "as a CUDA graph" in done.stdout and last_label(made[3]) in done.stdout


def last_label(package: AotPackage) -> str:
    return f"{len(package.launches) - 1} {package.launches[-1].label}"


REPLAY = """
import sys
from dataclasses import replace
from pathlib import Path
import numpy as np
import torch
from tests.fakes import triton_interpreter
from tests.emulator import emulate
from tests.fakes.small_networks import CASES, weights_of
from restort.backends.fused.aot_compile import plan_pass
from restort.backends.fused.aot_package import ADDRESS, NUMBER, read_aot

triton_interpreter.widen_products()
torch.set_num_threads(1)
package = read_aot(Path(sys.argv[1]).read_bytes())
spec, shape = CASES[sys.argv[2]]
weights = weights_of(spec)
made = plan_pass(weights, "fp16", shape, 90)

def run(launch):
    emulate(launch) if hasattr(launch.kernel, "path") else launch()

x = torch.rand(package.input)
made.input.copy_(x)
for launch in made.launches:
    run(launch)

memory = []
for region in package.regions:
    bytes_ = torch.zeros(region.size + 256, dtype=torch.uint8)
    bytes_ = bytes_[-bytes_.data_ptr() % 256 :][: region.size]
    bytes_[: len(region.data)] = torch.frombuffer(bytearray(region.data or b"0"), dtype=torch.uint8)[: len(region.data)]
    memory.append(bytes_)
    if region.kind == "scratch":
        bytes_.fill_(255)  # NaN: nothing may be read there before it is written
memory[0].view(torch.float32)[: x.numel()] = x.flatten()
assert len(package.launches) == len(made.launches)
for call, launch in zip(package.launches, made.launches):
    addresses = [a for a in call.arguments if a.kind == ADDRESS]
    numbers = [a.value for a in call.arguments if a.kind == NUMBER]
    assert len(addresses) == len(launch.tensors) and len(numbers) == len(launch.sizes)
    tensors = {
        name: torch.as_strided(memory[a.region][a.value :].view(t.dtype), t.shape, t.stride())
        if (len(memory[a.region]) - a.value) % t.element_size() == 0 else None
        for (name, t), a in zip(launch.tensors.items(), addresses)
    }
    grid = call.grid[: len(launch.grid)]
    run(replace(launch, tensors=tensors, sizes=dict(zip(launch.sizes, numbers)), grid=grid))
found = memory[1].view(torch.float32)[: made.output.numel()].view(made.output.shape)
assert made.output.std() > 0 and made.output.isfinite().all()
assert torch.equal(found, made.output), (found - made.output).abs().max()
print("equal")
"""


def test_a_plan_replayed_from_its_file_is_the_pass(
    made: tuple[str, Weights, bytes, AotPackage], tmp_path: Path
) -> None:
    """Every launch on memory made of the file alone: in Triton's interpreter, and the emulator for CUDA C++."""
    (tmp_path / "plan").write_bytes(made[2])
    assert triton_interpreter.run(REPLAY, str(tmp_path / "plan"), made[0]) == "equal"
