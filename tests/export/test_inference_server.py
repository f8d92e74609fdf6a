"""A repository for Triton Inference Server: read as the server reads it, and served by a stand-in to the example."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from restort.backends.tensorrt import sidecar
from restort.weights.catalogue import find
from restort.weights.checkpoint import load_weights
from restort.weights.download import path_of

MODEL = "elan-light-x4"
EXAMPLE = Path(__file__).parents[2] / "examples/triton_client.py"
GENUINE = Path(sys.prefix) / "tritonclient/tritonclient/grpc/model_config_pb2.py"
"""The server's own message, of the wheel tritonclient; the Makefile installs it apart from everything else."""


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture
def parse() -> Any:
    """Parse config.pbtxt into the server's message; unknown fields and wrong types are errors."""
    if not GENUINE.is_file():
        pytest.skip("the wheel tritonclient is not in .venv/tritonclient (make test installs it there)")
    text_format = pytest.importorskip("google.protobuf.text_format")
    message = module(GENUINE).ModelConfig
    return lambda folder: text_format.Parse((folder / "config.pbtxt").read_text(), message())


def test_an_onnx_file(tmp_path: Path, restort: Any, parse: Any) -> None:
    told = restort(
        "export", "--model", MODEL, "--offline", "--triton", tmp_path, "--size", "64x96", "--batches", "8,1,4"
    )
    assert told.status == 0 and "tritonserver --model-repository" in told.err
    config = parse(tmp_path / MODEL)
    assert (config.name, config.backend, config.max_batch_size) == (MODEL, "onnxruntime", 8)
    assert list(config.input[0].dims) == [3, 64, 96] and list(config.output[0].dims) == [3, 256, 384]
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 8]
    assert [warmup.batch_size for warmup in config.model_warmup] == [1, 4, 8]
    session = onnxruntime.InferenceSession(str(tmp_path / MODEL / "1" / config.default_model_filename))
    (port,), (out,) = session.get_inputs(), session.get_outputs()
    assert (port.name, out.name) == (config.input[0].name, config.output[0].name)
    assert port.type == "tensor(float)" and "TYPE_FP32" in str(config.input[0])


def test_half_precision_ports(tmp_path: Path, restort: Any, parse: Any) -> None:
    told = restort(
        "export", "--model", MODEL, "--offline", "--triton", tmp_path, "--precision", "fp16", "--batches", "1"
    )
    assert told.status == 0
    config = parse(tmp_path / MODEL)
    assert "TYPE_FP16" in str(config.input[0]) and not config.HasField("dynamic_batching")


def test_an_engine(tmp_path: Path, restort: Any, parse: Any) -> None:
    digest = load_weights(path_of(find(MODEL), offline=True, notice=print)).digest
    engine = tmp_path / "x4.engine"
    engine.write_bytes(b"an engine")
    about = {
        "schema": 1,
        "bytes": 9,
        "sha256": sidecar.sha256(engine),
        "model": {"name": MODEL, "weights_sha256": digest},
        "profile": {"min": [1, 64, 64], "opt": [4, 128, 192], "max": [6, 256, 256]},
    }
    sidecar.path_of(engine).write_text(json.dumps(about))
    command = ["export", "--model", MODEL, "--offline", "--triton", tmp_path / "served", "--engine", engine]
    assert restort(*command).status == 0
    config = parse(tmp_path / "served" / MODEL)
    assert (config.backend, config.max_batch_size) == ("tensorrt", 6)
    assert list(config.input[0].dims) == [3, 128, 192]
    assert (tmp_path / "served" / MODEL / "1/model.plan").read_bytes() == b"an engine"
    for wrong, why in (
        ("--size=512x512", "takes 64x64 to 256x256"),
        ("--batches=16", "takes batches of 1 to 6"),
    ):
        told = restort(*command, "--overwrite", wrong)
        assert told.status == 2 and why in told.err
    about["model"] = {"name": "another", "weights_sha256": "0"}
    sidecar.path_of(engine).write_text(json.dumps(about))
    told = restort(*command, "--overwrite")
    assert told.status == 2 and "was built from other weights, another" in told.err


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--triton", "x", "-o", "y.onnx"], "leave out -o"),
        (["-o", "y.onnx", "--size", "64x64"], "--size is only for --triton"),
        (["--triton", "x", "--size", "63x64"], "multiples of"),
        (["--triton", "x", "--size", "64"], "is not HxW"),
        (["--triton", "x", "--format", "aot"], "not an AOT package"),
    ],
)
def test_wrong_options(
    restort: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    told = restort("export", "--model", MODEL, "--offline", *more)
    assert told.status == 2 and why in told.err
    assert not any(tmp_path.iterdir())


class Server:
    """Answers like the HTTP client of the server, by ONNX Runtime on the files of the repository."""

    def __init__(self, root: Path, config: Any) -> None:
        self.root, self.config = root, config

    def get_model_config(self, name: str) -> dict[str, Any]:
        ports = [{"data_type": "TYPE_FP32", "dims": [str(n) for n in self.config.input[0].dims]}]
        return {"input": ports}

    def infer(self, name: str, inputs: list[Any], outputs: list[Any]) -> Any:
        (given,) = inputs
        assert given.shape[1:] == list(self.config.input[0].dims) and given.kind == "FP32"
        session = onnxruntime.InferenceSession(str(self.root / name / "1/model.onnx"))
        (y,) = session.run([output.name for output in outputs], {given.name: given.data})
        return SimpleNamespace(as_numpy=lambda name: y)


class InferInput:
    def __init__(self, name: str, shape: list[int], kind: str) -> None:
        self.name, self.shape, self.kind = name, shape, kind

    def set_data_from_numpy(self, data: np.ndarray) -> None:
        assert data.dtype == np.float32 and list(data.shape) == self.shape
        self.data = data


def test_the_example_restores_as_the_command_does(
    tmp_path: Path, restort: Any, parse: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = ModuleType("tritonclient.http")
    stand_in.InferInput, stand_in.InferenceServerClient = InferInput, Server  # type: ignore[attr-defined]
    stand_in.InferRequestedOutput = lambda name: SimpleNamespace(name=name)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tritonclient", ModuleType("tritonclient"))
    monkeypatch.setitem(sys.modules, "tritonclient.http", stand_in)
    client = module(EXAMPLE)
    restort("export", "--model", MODEL, "--offline", "--triton", tmp_path, "--size", "64x64")
    # Of the very size, where padding cannot make a difference.
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    restort(
        "upscale",
        tmp_path / "in.png",
        "-o",
        tmp_path / "out.png",
        "--model",
        MODEL,
        "--backend",
        "onnxruntime",
        "--precision",
        "fp32",
    )
    server = Server(tmp_path, parse(tmp_path / MODEL))
    expected = np.asarray(Image.open(tmp_path / "out.png")).astype(int)
    assert np.abs(client.restore(server, MODEL, pixels).astype(int) - expected).max() <= 1
    assert client.restore(server, MODEL, pixels[:50, :40]).shape == (200, 160, 3)
    with pytest.raises(SystemExit, match="takes 64 x 64 at most"):
        client.restore(server, MODEL, np.zeros((65, 10, 3), np.uint8))
