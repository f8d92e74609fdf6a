"""What an engine's inspector says, read as the versions write it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from restort.backends.tensorrt import inspector
from restort.errors import RestortError

FLAVOUR: Any = SimpleNamespace(module=SimpleNamespace(LayerInformationFormat=SimpleNamespace(JSON=1)))
LAYER = '{"Name": "conv_1 + add_2", "Metadata": "%s", "Outputs": [{"Name": "y", "Format/Datatype": "%s"}]}'


def engine(text: str) -> Any:
    found = SimpleNamespace(get_engine_information=lambda form: text)
    return SimpleNamespace(create_engine_inspector=lambda: found)


@pytest.mark.parametrize("between", [" ", "\x1e", "\\u001e", "\n"])
def test_names_of_metadata_are_kept_apart_by_anything(between: str) -> None:
    metadata = f"[ONNX Layer: conv_1]{between}[ONNX Layer: add_2]"
    text = '{"Layers": [' + LAYER % (metadata, "Half") + ', "reformat"], "Bindings": ["x"]}'
    layers, why = inspector.inspect_layers(FLAVOUR, engine(text))
    assert not why and len(layers) == 1 and inspector.output_types(layers) == {"float16": 1}
    inspector.check_precision("fp16", layers, {"conv_1"})


def test_float32_layers_of_an_fp16_engine_are_named() -> None:
    layers, _ = inspector.inspect_layers(
        FLAVOUR, engine('{"Layers": [' + LAYER % ("", "Row major linear FP32") + "]}")
    )
    with pytest.raises(
        RestortError, match=r"precision fp16 requested, but the builder made 1 of 1 layers float32"
    ):
        inspector.check_precision("fp16", layers, {"conv_1"})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"Layers": [{"Name": ', "cannot be read"),
        ("[]", "cannot be read"),
        ("", "cannot be read"),
        ('{"Layers": ["conv_1", "add_2"]}', "only the names"),
        ("{}", "only the names"),
    ],
)
def test_why_nothing_is_known_is_said(text: str, why: str) -> None:
    layers, said = inspector.inspect_layers(FLAVOUR, engine(text))
    assert layers == [] and why in said
