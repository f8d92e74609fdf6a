"""benchmarks/tensorrt86_bisect.py without a GPU: its texts, its processes, its table."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    yield importlib.import_module("tensorrt86_bisect")
    kinds = ("", "_bisect", "_cases", "_trail", "_variants")
    for name in ("gpu_workloads", *(f"tensorrt86{kind}" for kind in kinds), "random_weights"):
        sys.modules.pop(name, None)


def test_variants_are_words(script: Any) -> None:
    variants = [script.Variant.of(text) for text in script.VARIANTS]
    assert len(set(variants)) == len(variants) and variants[0].precision == "fp32"
    more = script.Variant.of("R 720x1280: fp16, attention unit, static 0, level 2")
    assert str(more) == "R 720x1280 fp16: attention unit, static 0, level 2"
    form, options = script.parsed(more.form)
    assert form.attention == "unit" and options == {"static": 0, "level": 2}
    with pytest.raises(ValueError, match="no field of Form"):
        script.Variant.of("r: speed 2")
    assert script.weights_of("r").spec.num_blocks == (1, 1, 1, 1)
    assert script.weights_of("l").spec.blocks == 4


def test_each_variant_has_a_process_and_a_record(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import json, sys, time\n"
        "variant, answer = json.loads(sys.argv[2]), sys.argv[4]\n"
        "record = {'step': 'building'}\n"
        "if 'level 0' not in variant['form']: record.update(median_ms=2.0, build_s=1.0)\n"
        "json.dump(record, open(answer, 'w'))\n"
        "if variant['form'] == 'level 1': print('broken'); sys.exit(3)\n"
        "if variant['form'] == 'level 2': time.sleep(60)\n"
    )
    monkeypatch.setattr(script, "__file__", str(program))
    output = tmp_path / "found.json"
    folder = output.with_suffix("")
    folder.mkdir()
    variants = [
        script.Variant.of(f"r: {form}") for form in ("fp32, gate split", "gate auto", "level 1", "level 2")
    ]
    for number, variant in enumerate(variants[:2]):
        np.save(script.answer_of(folder, str(variant)).with_suffix(".npy"), np.full(4, 1.0 + 0.1 * number))
    args = argparse.Namespace(output=output, seconds=60.0, limit=2.0, jobs=4, again=False)
    script.run(variants, args)
    found = {record["case"]: record for record in json.loads(output.read_text())}
    assert found["r 256x256 fp16: gate auto"]["rel_l2"] == pytest.approx(0.1)
    assert "status 3: broken" in found["r 256x256 fp16: level 1"]["error"]
    assert "no result within 2 s" in found["r 256x256 fp16: level 2"]["error"]
    assert "FAILED building" in capsys.readouterr().out
    before = output.read_text()
    script.run(variants, args)
    assert output.read_text() == before


def test_what_the_library_said_survives(script: Any) -> None:
    class ILogger:
        pass

    heard: list[str] = []
    before = SimpleNamespace(log=lambda severity, message: heard.append(message))
    flavour = SimpleNamespace(module=SimpleNamespace(ILogger=ILogger), log=SimpleNamespace(logger=before))
    trail = script.Trail(flavour, lambda: None)
    kinds = {name: SimpleNamespace(name=name) for name in ("VERBOSE", "WARNING", "ERROR")}
    flavour.log.logger.log(kinds["VERBOSE"], "Timing {ForeignNode[a...b]} (Myelin)")
    flavour.log.logger.log(kinds["WARNING"], "careful")
    flavour.log.logger.log(kinds["ERROR"], "1: Myelin (Myelin error from unknown graph)")
    found = trail.found()
    assert [text.split(" ", 1)[1] for text in found["messages"]] == [
        "ERROR: 1: Myelin (Myelin error from unknown graph)",
        "WARNING: careful",
    ]
    assert list(found["foreign"]) == ["ForeignNode[a...b]"] and len(found["last"]) == len(heard) == 3
    assert asdict(script.Variant.of("e: "))["network"] == "e"
    for line in (
        "--------------- Timing Runner: conv_1 + PWN(add_2, mul_3) (CaskConvolution[0x80000009])",
        "Tactic: 0x01 Time: 0.5",
        "Tactic: 0x02 Time: 0.4",
        "Fastest Tactic: 0x02 Time: 0.4",
        "Tactic: of nothing",
        "--------------- Timing Runner: PWN(erf_4) (PointWiseV2[0x80000028])",
        "--------------- Timing Runner: conv_5 (CaskConvolution[0x80000009])",
    ):
        flavour.log.logger.log(kinds["VERBOSE"], line)
    found = trail.found()
    assert {kind: numbers[:2] for kind, numbers in found["runners"].items()} == {
        "CaskConvolution": [2, 2],
        "PointWiseV2": [1, 0],
    }
    assert set(found["slowest"]) == {"conv_1 + PWN(add_2, mul_3)", "PWN(erf_4)"}
