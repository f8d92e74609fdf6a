"""The adapter on the real bindings of TensorRT 8.6, 10 and 11 and of TensorRT-RTX: every name, flag and argument.

The bindings of TensorRT are small wheels, which `make test` unpacks beside its other packages; the libraries they
want are not needed, because nothing is computed (tests/fakes/binding_stubs.py).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.binding_stubs import Stub, StubModule, Wrong, stand_ins

ROOT = Path(__file__).resolve().parents[3]
BINDINGS = Path(sys.prefix) / "tensorrt-bindings"
VERSIONS = ("8.6.1", "10.16.1.11", "11.4.0.106")


def rehearse(version: str, tmp_path: Path) -> dict[str, Any]:
    arguments = ["rtx"]
    if version == "rtx":
        pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    else:
        folder = BINDINGS / version
        if not folder.is_dir():
            pytest.skip(
                f"the bindings of TensorRT {version} are not in {folder}; `make test` puts them there"
            )
        if not all(map(shutil.which, ("cc", "nm", "readelf"))):
            pytest.skip("a C compiler and binutils are needed for stand-in libraries")
        stand_ins(folder, tmp_path)
        arguments = [str(folder), str(tmp_path)]
    command = [sys.executable, "-m", "tests.fakes.binding_stubs", *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("version", [*VERSIONS, "rtx"])
def test_the_adapter_asks_for_nothing_that_is_not_there(version: str, tmp_path: Path) -> None:
    found = rehearse(version, tmp_path)
    assert found["ran"] == [1, 3, 64, 64]
    can, built = found["can"], found["precisions"]
    assert set(built) == {"fp32", "tf32", "fp16", "mixed"} | ({"bf16"} if version != "8.6.1" else set())
    for precision, about in built.items():
        tf32 = precision not in ("fp32", "mixed")
        assert ("TF32" in about["set"], "TF32" in about["cleared"]) == (tf32, not tf32)
        assert about["flags"]["strongly_typed"] == (version != "8.6.1")
        assert about["timings"] == can["timing_cache"]
        lowered = version == "8.6.1" and precision in ("fp16", "mixed")
        assert ("FP16" in about["set"], "OBEY_PRECISION_CONSTRAINTS" in about["set"]) == (lowered, lowered)
        assert about["layer"] == ([["FLOAT"]] if lowered else [])  # the only layer has the type of the input
    newer = {"builds", "strongly_typed", "bfloat16", "newer_operators", "progress", "levels"}
    expected = {
        "8.6.1": {"builds", "timing_cache", "tactic_sources", "levels"},
        "10.16.1.11": newer | {"timing_cache", "tactic_sources"},
        "11.4.0.106": newer | {"timing_cache"},
        "rtx": newer | {"compute_capabilities"},
    }
    assert {name for name, has in can.items() if has} == expected[version]
    assert ("INT8" in found["int8"]) == (version == "8.6.1")  # newer ones take it from the graph
    if version in VERSIONS:
        assert found["version"] == version
        assert {"VERSION_COMPATIBLE", True} <= {*found["compatible"]}
        assert found["fused"][:2] == ["source", "RestortPass"]
        getter = "get_plugin_creator" if version == "8.6.1" else "get_creator"
        named = {"OnnxParser.parse", f"IPluginRegistry.{getter}", "IPluginRegistry.load_library"}
        assert named < set(found["fused"])


def test_stubs_notice_what_is_wrong() -> None:
    real = pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    module = StubModule(real)
    builder, config = Stub(module, real.Builder), Stub(module, real.IBuilderConfig)
    assert isinstance(builder.create_network(1), Stub)
    assert not hasattr(module.BuilderFlag, "FP16") and not hasattr(config, "int8_calibrator")
    for wrong in (
        lambda: builder.create_network("strongly"),
        lambda: builder.create_network(1, 2),
        lambda: builder.create_network(kind=1),
        lambda: config.set_flag(module.DataType.HALF),
        lambda: setattr(config, "builder_optimization_level", "high"),
        lambda: setattr(config, "no_such_property", 1),
    ):
        with pytest.raises(Wrong):
            wrong()
