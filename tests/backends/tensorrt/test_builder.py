"""Real engines, built by TensorRT-RTX on a machine without a GPU. They cannot be run here, only built and described.

Every shipped model and networks of the official sizes, in every precision, batch, height and width all dynamic; each
of the four compute capabilities takes its turn. `python benchmarks/build_rtx_engines.py` builds the whole table.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from restort.backends.tensorrt import library, sidecar
from restort.backends.tensorrt.builder import build
from restort.backends.tensorrt.inspector import describe
from restort.backends.tensorrt.options import BuildOptions, Built, Profile
from restort.errors import RestortError, UsageError
from restort.export.emit import emit
from restort.export.qdq import Quantization, QuantType, quantizable_layers
from restort.export.typed import typed_graph
from restort.utils.gpu import Gpu
from restort.weights.catalogue import entries
from restort.weights.checkpoint import Weights, load_weights
from restort.weights.download import path_of
from tests.export.test_graphs import elan, restormer, weights_of
from tests.fakes.fake_driver import use_gpu

HERE = sys.platform == "linux" and os.uname().machine == "x86_64"
if HERE and os.environ.get("CI"):
    import tensorrt_rtx  # noqa: F401  (CI builds engines; it must not skip them)
pytest.importorskip("tensorrt_rtx", exc_type=ImportError)

PRECISIONS = ["fp32", "fp16", "bf16", "mixed"]
TARGETS = itertools.cycle(("8.0", "8.6", "8.9", "12.0"))
SHIPPED = [entry for entry in entries() if entry.shipped]
OFFICIAL: dict[str, Any] = {
    "restormer": restormer(dim=48, num_blocks=(4, 6, 6, 8), num_refinement_blocks=4),
    "restormer-biasfree": restormer(
        dim=48, num_blocks=(4, 6, 6, 8), num_refinement_blocks=4, layer_norm="BiasFree"
    ),
    "elan-light": elan(scale=4, blocks=24),
    "elan": elan(scale=4, blocks=36, n_share=0, channels=180, window_sizes=(4, 8, 16)),
}
TINY = restormer()
SIZES = Profile((1, 64, 64), (1, 256, 256), (4, 1024, 1024))


@pytest.fixture(scope="module")
def rtx() -> library.Flavour:
    return library.find("rtx")


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on CI, wherever this runs."""
    use_gpu(monkeypatch, lambda: None)
    yield


def engine(rtx: library.Flavour, weights: Weights, precision: str, keep: tuple[str, ...] = ()) -> Built:
    graph = typed_graph(weights, precision, keep_fp32=keep)
    return build(rtx, graph, BuildOptions(SIZES, precision, (next(TARGETS),)))


def check(built: Built, precision: str) -> None:
    report = built.report
    assert len(built.plan) == report["bytes"] > 100_000 and report["gpu"] is None
    low = {"fp16": "float16", "mixed": "float16", "bf16": "bfloat16"}.get(precision)
    assert set(report["layers"]) - {"source", "float32"} == ({low} if low else set())
    assert report["flags"]["tf32"] == (precision in ("tf32", "fp16", "bf16"))
    assert report["profile"] == {"min": [1, 64, 64], "opt": [1, 256, 256], "max": [4, 1024, 1024]}
    assert [port["dtype"] for port in (*report["graph"]["inputs"], *report["graph"]["outputs"])] == [
        "float32"
    ] * 2


def shipped_cases() -> list[tuple[str, str]]:
    """Every shipped model; in every precision the first of each architecture, the others in one each."""
    found: list[tuple[str, str]] = []
    seen: set[str] = set()
    turns = itertools.cycle(PRECISIONS)
    for entry in SHIPPED:
        some = [next(turns)] if entry.architecture in seen else PRECISIONS
        seen.add(entry.architecture)
        found += [(entry.name, precision) for precision in some]
    return found


@pytest.mark.parametrize(("name", "precision"), shipped_cases())
def test_shipped_models(name: str, precision: str, rtx: library.Flavour) -> None:
    weights = load_weights(path_of(next(e for e in SHIPPED if e.name == name), notice=print))
    is_restormer = weights.spec.architecture == "restormer"
    keep = ("latent.0", "output") if is_restormer else ("body.0", "tail")
    built = engine(rtx, weights, precision, keep if precision == "mixed" else ())
    check(built, precision)
    assert built.report["model"]["weights_sha256"] == weights.digest
    assert built.report["keep_fp32"] == (list(keep) if precision == "mixed" else [])


# The whole table is in benchmarks/build_rtx_engines.py; here is what is special about each, so that all take a minute.
@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("restormer", "fp32"),  # with B, H and W all varying: other ways of writing made the builder fail
        ("restormer-biasfree", "fp16"),
        ("restormer", "bf16"),
        ("elan-light", "mixed"),
        ("elan", "fp16"),
    ],
)
def test_official_sizes(name: str, precision: str, rtx: library.Flavour) -> None:
    weights = weights_of(OFFICIAL[name])
    check(engine(rtx, weights, precision, ("body.3",) if precision == "mixed" else ()), precision)


def test_one_engine_for_several_gpus_with_progress_and_a_sidecar(
    rtx: library.Flavour, tmp_path: Path
) -> None:
    told: list[tuple[str, float | None]] = []
    options = BuildOptions(
        SIZES, "fp16", ("8.6", "12.0"), level=1, progress=lambda name, share: told.append((name, share))
    )
    built = build(rtx, typed_graph(weights_of(TINY), "fp16"), options)
    assert built.report["targets"] == ["8.6", "12.0"] and built.report["flags"]["level"] == 1
    shares = [share for _, share in told if share is not None]
    assert shares == sorted(shares) and shares[-1] > 0.5 and len(told) < 500
    path = tmp_path / "new" / "tiny.engine"
    sidecar.write(path, built)
    assert sorted(p.name for p in path.parent.iterdir()) == ["tiny.engine", "tiny.engine.json"]
    assert sidecar.read(path) == json.loads(json.dumps(built.report)) and sidecar.problem(path) is None
    about = describe(path)
    assert not about["runs_here"] and "no NVIDIA GPU found" in about["why_not"] and about["opened"] is None
    with path.open("r+b") as file:
        file.write(b"damage")
    assert "changed" in str(sidecar.problem(path)) and "changed" in describe(path)["problem"]
    path.write_bytes(b"short")
    assert "5 bytes instead of" in str(sidecar.problem(path))
    sidecar.path_of(path).write_text('{"schema": 99}')
    with pytest.raises(RestortError, match="newer RestoRT"):
        sidecar.read(path)
    sidecar.path_of(path).unlink()
    with pytest.raises(RestortError, match="no sidecar"):
        describe(path)


def test_a_build_can_be_interrupted(rtx: library.Flavour) -> None:
    def stop(name: str, share: float | None) -> None:
        raise KeyboardInterrupt

    options = BuildOptions(SIZES, "fp16", ("8.6",), progress=stop)
    with pytest.raises(KeyboardInterrupt):
        build(rtx, typed_graph(weights_of(TINY), "fp16"), options)


def test_wrong_requests_are_one_sentence(rtx: library.Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = weights_of(TINY)
    graph = typed_graph(weights, "fp16")
    right = BuildOptions(SIZES, "fp16", ("8.6",))
    for changes, words in (
        ({"precision": "int8"}, "unknown precision of an engine: 'int8'"),
        (
            {"compute_capabilities": ("9.0",)},
            r"does not build for compute capability 9\.0; choose from .*8\.6",
        ),
        ({"compute_capabilities": ()}, "no NVIDIA GPU found.*--compute-capability"),
        ({"level": 6}, "from 0 to 5"),
        ({"profile": Profile((1, 60, 64), (1, 64, 64), (1, 64, 64))}, "multiples of 8"),
        ({"profile": Profile((2, 64, 64), (1, 64, 64), (1, 64, 64))}, "no size may be larger"),
    ):
        with pytest.raises(UsageError, match=words):
            build(rtx, graph, replace(right, **changes))  # type: ignore[arg-type]
    with pytest.raises(
        RestortError, match=r"bf16 requested, but 60 of 60 .*float16: conv_\d+, encoder_level1"
    ):
        build(rtx, graph, replace(right, precision="bf16"))
    use_gpu(monkeypatch, lambda: Gpu("NVIDIA H100", (9, 0), (13, 0)))
    with pytest.raises(UsageError, match=r"does not support NVIDIA H100 .*--flavour tensorrt"):
        build(rtx, graph, replace(right, compute_capabilities=()))


def foreign(kind: str = "Relu", fixed: bool = False) -> onnx.ModelProto:
    """A graph that is not RestoRT's."""
    helper, size = onnx.helper, [1, 3, 32, 48] if fixed else ["n", 3, "h", "w"]
    ports = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, size) for name in ("picture", "result")
    ]
    weight = onnx.numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "weight")
    nodes = [
        helper.make_node("Conv", ["picture", "weight"], ["hidden"], name="conv"),
        helper.make_node(kind, ["hidden"], ["result"], name="last"),
    ]
    graph = helper.make_graph(nodes, "foreign", ports[:1], ports[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_graphs_of_others(rtx: library.Flavour) -> None:
    options = BuildOptions(SIZES, "fp32", ("8.6",))
    built = build(rtx, foreign().SerializeToString(), options)
    assert built.report["model"] is None and built.report["graph"]["inputs"][0]["name"] == "picture"
    with pytest.raises(UsageError, match="whose input is 1x32x48"):
        build(rtx, foreign(fixed=True), options)
    unknown = foreign("NoSuchOperation")
    with pytest.raises(RestortError):
        build(rtx, unknown, options)
    two = foreign()
    two.graph.output.append(onnx.helper.make_tensor_value_info("hidden", onnx.TensorProto.FLOAT, None))
    with pytest.raises(RestortError, match="1 inputs and 2 outputs"):
        build(rtx, two, options)


def test_a_16_bit_export_gets_float32_ports(rtx: library.Flavour) -> None:
    built = build(rtx, emit(weights_of(TINY), "fp16"), BuildOptions(SIZES, "fp16", ("8.6",)))
    assert built.report["graph"]["inputs"][0] == {
        "name": "input",
        "dtype": "float32",
        "shape": ["N", 3, "H", "W"],
    }


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_quantised_graphs(rtx: library.Flavour, kind: QuantType) -> None:
    weights = weights_of(elan())
    quantization = Quantization(kind, dict.fromkeys(quantizable_layers(weights.spec), 100.0))
    built = build(
        rtx, emit(weights, "fp16", quantization=quantization), BuildOptions(SIZES, "fp16", ("8.9",))
    )
    assert built.report["flags"]["quantization"] == kind and len(built.plan) > 100_000


def test_what_tensorrt_8_6_does_not_read_of_quantised_graphs_is_told(rtx: library.Flavour) -> None:
    weights = weights_of(elan())
    ranges = dict.fromkeys(quantizable_layers(weights.spec), 100.0)
    options = BuildOptions(SIZES, "fp32", ("8.9",))
    older = replace(rtx, capabilities=replace(rtx.capabilities, newer_operators=False))
    kinds: tuple[tuple[QuantType, str], ...] = (
        ("fp8", "does not support FP8"),
        ("int8", "no opset newer than 17"),
    )
    for kind, expected in kinds:
        with pytest.raises(UsageError, match=f"{expected}.*export .* --precision int8 --opset 17"):
            build(older, emit(weights, quantization=Quantization(kind, ranges)), options)
