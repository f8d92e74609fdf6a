"""The environment in the fields of NVIDIA's form."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any

import pytest

from restort.cli import bug_report
from restort.utils.gpu import Gpu
from tests.fakes.fake_driver import use_gpu

FIELDS = (
    "**TensorRT Version**",
    "**NVIDIA GPU**",
    "**NVIDIA Driver Version**",
    "**CUDA Version**",
    "**CUDNN Version**",
    "Operating System",
    "Python Version (if applicable)",
    "Tensorflow Version (if applicable)",
    "PyTorch Version (if applicable)",
    "Baremetal or Container (if so, version)",
)


def fields(text: str) -> dict[str, str]:
    found = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    assert [name for name in found if name in FIELDS] == list(FIELDS), text
    return found


def test_a_machine_with_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, restort: Any) -> None:
    monkeypatch.setattr(bug_report, "query_gpu", lambda: Gpu("NVIDIA H100", (9, 0), (13, 0)))
    monkeypatch.setattr(bug_report, "DRIVER", tmp_path / "version")
    for text in (
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023\n",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (x@y)\n",
    ):
        (tmp_path / "version").write_text(text)
        told = restort("doctor", "--bug-report")
        assert told.status == 0 and told.err == "" and told.out.startswith("## Environment\n\n**TensorRT")
        found = fields(told.out)
        assert found["**NVIDIA GPU**"] == "NVIDIA H100, compute capability 9.0"
        assert found["**NVIDIA Driver Version**"] == re.findall(r"5\d\d\.\S+", text)[0]
        assert found["**CUDA Version**"].startswith("13.0 (of the driver)")
        assert platform.python_version() in found["Python Version (if applicable)"]
        assert "onnxruntime " in found["ONNX, ONNX Runtime, CUDA Python"]


def test_a_machine_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_gpu(monkeypatch, lambda: None)
    monkeypatch.setattr(
        bug_report, "query_gpu", lambda: bug_report.Unavailable("no NVIDIA driver is loaded", "x")
    )
    monkeypatch.setattr(bug_report, "DRIVER", tmp_path / "absent")
    monkeypatch.setattr(bug_report, "torch_build", dict)
    monkeypatch.setattr(bug_report, "CONTAINERS", {str(tmp_path): "Docker"})
    text = bug_report.report()
    found = fields(text)
    assert found["**NVIDIA GPU**"] == "none (no NVIDIA driver is loaded)"
    assert found["**NVIDIA Driver Version**"] == "unknown (see nvidia-smi)"
    assert found["PyTorch Version (if applicable)"] == "not installed"
    assert found["Baremetal or Container (if so, version)"] == "Container (Docker)"
    assert str(Path.home()) not in text


def test_one_form_at_a_time(restort: Any) -> None:
    told = restort("doctor", "--bug-report", "--json")
    assert told.status == 2 and "not allowed with" in told.err
