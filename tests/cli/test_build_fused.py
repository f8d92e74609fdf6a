"""`restort build --kernels fused`, `export --format aot` and `inspect`, on a fake library and GPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from restort.backends.fused.aot_cache import AotRequest
from restort.backends.tensorrt import library, sidecar
from restort.weights.checkpoint import load_weights
from tests.fakes.empty_aot import aot_of
from tests.fakes.fake_backend import ELAN, write_weights
from tests.fakes.fake_driver import use_gpu
from tests.fakes.fake_gpu import World, playing

FUSED = ("--kernels", "fused")
SIZE = ("--shape", "1x32x48")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with playing(tmp_path, monkeypatch) as found:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(library, "find", lambda name: found.flavour)
        monkeypatch.setattr("restort.backends.tensorrt.inspector.find_gpu", lambda: None)
        yield found


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_weights(tmp_path / "small.safetensors", replace(ELAN[2], channels=30))


def test_an_engine_in_one_command(world: World, weights: Path, restort: Any) -> None:
    told = restort("build", "--weights", weights, *FUSED, *SIZE)
    assert told.status == 0 and told.out == "", told.err
    assert "small -> small-fp16-fused.tensorrt.engine: " in told.lines[-1]
    assert told.lines[-1].endswith("layers: 1 RestortPass") and world.compiled == ["1x32x48"]
    engine = Path("small-fp16-fused.tensorrt.engine")
    about = sidecar.read(engine)
    about |= {"model": {"name": "small", "architecture": "elan", "scale": 2, "size_multiple": 16}}
    about |= {
        "flavour": "tensorrt",
        "version": "8.6.0",
        "targets": ["9.0"],
        "precision": "fp16",
        "keep_fp32": [],
    }
    about |= {"gpu": None, "profile": {name: [1, 32, 48] for name in ("min", "opt", "max")}, "created": "now"}
    about["graph"] = {"inputs": [], "outputs": []}
    sidecar.path_of(engine).write_text(json.dumps(about))
    told = restort("inspect", engine)
    for line in (
        "kernels:      fused: 1 kernels in 0 launches",
        "AOT package:  compute capability 9.0, compiled by RestoRT 0.1.0, Triton 3.9.0, NVRTC 13.0",
        "memory:       1 MiB of weights, 2 MiB for each execution context",
        "precision:    fp16 storage, float32 accumulation",
        "layers:       1 RestortPass (a plugin",
    ):
        assert line in told.out, told.out
    listed = restort("cache", "list").out
    assert "aot " in listed and "1x32x48" in listed
    assert restort("cache", "clear", "aot").status == 0 and not list(world.packages[0].parent.iterdir())


def test_several_sizes(world: World, weights: Path, restort: Any) -> None:
    told = restort("build", "--weights", weights, *FUSED, *SIZE, "--shape", "1x16x64", "--shape", "1x32x48")
    assert told.status == 0 and "fp16, 1x32x48, 1x16x64, with" in told.err, told.err
    assert world.compiled == ["1x32x48", "1x16x64"] and world.builds[-1].profile.others == ((1, 16, 64),)
    for arguments, words in (
        (
            [*FUSED, *SIZE, "--shape", "1x16x16,1x32x32,1x64x64"],
            "--shape 1x16x16..1x32x32..1x64x64 is a range; give",
        ),
        (
            [*SIZE, "--shape", "1x16x64"],
            "several --shape are only for --kernels fused; give one, or MIN,OPT,MAX",
        ),
    ):
        told = restort("build", "--weights", weights, *arguments)
        assert told.status == 2 and words in told.err, told.err


def test_a_package_from_elsewhere(world: World, weights: Path, restort: Any) -> None:
    told = restort(
        "export",
        "--weights",
        weights,
        "--format",
        "aot",
        *SIZE,
        "--compute-capability",
        "9.0",
        "-o",
        "p.rtaot",
    )
    assert told.status == 0 and "small -> p.rtaot: 1 kernels" in told.err, told.err
    world.compiled.clear()
    told = restort("inspect", "p.rtaot")
    assert (
        told.status == 1
        and "p.rtaot is an AOT package, not an engine; build one of it with `restort build" in told.err
    )
    told = restort("build", "--weights", weights, *FUSED, "--aot", "p.rtaot")  # its size and precision
    assert told.status == 0 and world.packages == [Path("p.rtaot").resolve()] and not world.compiled, told.err
    assert str(world.builds[-1].profile) == "1x32x48"
    other = replace(load_weights(weights), digest="another")
    Path("other.rtaot").write_bytes(aot_of(AotRequest(other, "fp16", (1, 16, 16), 90)))
    told = restort("build", "--weights", weights, *FUSED, "--aot", "other.rtaot", "-o", "other.engine")
    assert told.status == 2 and "other.rtaot does not fit: it was made of other weights" in told.err
    told = restort("build", "--weights", weights, *FUSED, "--aot", "none.rtaot", *SIZE, "-o", "other.engine")
    assert told.status == 1 and "none.rtaot" in told.err and len(told.lines) == 1


def test_a_package_into_the_cache(world: World, weights: Path, restort: Any, tmp_path: Path) -> None:
    arguments = ("export", "--weights", weights, "--format", "aot", *SIZE, "--compute-capability", "9.0")
    told = restort(*arguments, "--json", "--quiet")
    about = json.loads(told.out)
    assert told.status == 0 and Path(about["target"]).parent == tmp_path / "cache" / "aot" and not told.err
    assert (
        about["shape"] == [1, 32, 48] and about["compute_capability"] == "9.0" and about["memory"] == 3 << 20
    )
    assert restort(*arguments).status == 0 and world.compiled == ["1x32x48"]
    assert restort("build", "--weights", weights, *FUSED, *SIZE).status == 0 and len(world.compiled) == 1


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        ([*FUSED], 2, "single sizes, not 1x16x16..1x384x640..1x1280x1280; give them with --shape BxHxW"),
        ([*FUSED, "--shape", "1x30x48"], 2, "multiples of 16"),
        ([*FUSED, *SIZE, "--precision", "mixed"], 2, "does not support mixed"),
        ([*FUSED, *SIZE, "--budget", "0.01"], 2, "which --kernels fused does not support"),
        ([*FUSED, *SIZE, "--keep-fp32", "head"], 2, "which --kernels fused does not support"),
        ([*FUSED, *SIZE, "--level", "3"], 2, "leave --level out"),
        (
            [*FUSED, *SIZE, "--version-compatible"],
            2,
            "only for TensorRT's kernels; leave it out, or --kernels",
        ),
        ([*FUSED, *SIZE, "--compute-capability", "8.6"], 2, "leave --compute-capability out"),
        ([*SIZE, "--aot", "p.rtaot"], 2, "only for --kernels fused"),
    ],
)
def test_wrong_builds_are_one_sentence(
    arguments: list[str], status: int, expected: str, world: World, weights: Path, restort: Any
) -> None:
    told = restort("build", "--weights", weights, *arguments)
    assert told.status == status and expected in told.err, told.err
    assert len([line for line in told.lines if not line.startswith("restort: building")]) == 1
    assert not Path("small-fp16-fused.tensorrt.engine").exists()


def test_graphs_have_no_kernels_of_ours(world: World, restort: Any) -> None:
    told = restort("build", "--onnx", "g.onnx", *FUSED, *SIZE)
    assert told.status == 2 and "give --model or --weights, not --onnx" in told.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--format", "aot", *SIZE],
            "no NVIDIA GPU found to compile for; name one with --compute-capability",
        ),
        (["--format", "aot"], "an AOT package is for one size; give it with --shape"),
        (["--format", "aot", "--shape", "1x16x16,1x16x16,1x32x32"], "an AOT package is for one size"),
        (["--format", "aot", "--shape", "1x30x48", "--compute-capability", "9.0"], "multiples of 16"),
        (
            ["--format", "aot", *SIZE, "--precision", "fp32"],
            "do not support fp32; choose --precision fp16 or bf16",
        ),
        (["--format", "aot", *SIZE, "--compute-capability", "8.0,9.0"], "not 8.0, 9.0; make one for each"),
        (["--format", "aot", *SIZE, "-o", "p.onnx"], "must end in .rtaot"),
        ([], "with -o FILE.onnx"),
        (["-o", "g.onnx", *SIZE], "only for --format aot"),
        (["-o", "g.onnx", "--precision", "bf16"], "in fp32 or fp16"),
    ],
)
def test_wrong_exports_are_one_sentence(
    arguments: list[str], expected: str, weights: Path, restort: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_gpu(monkeypatch, lambda: None)
    told = restort("export", "--weights", weights, *arguments)
    assert told.status == 2 and expected in told.err and len(told.lines) == 1, told.err
