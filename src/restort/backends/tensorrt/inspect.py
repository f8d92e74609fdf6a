"""What an engine really computes in, from the inspector of a library that can open it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection
from typing import Any

from restort.backends.tensorrt.flavour import Flavour
from restort.errors import RestortError

# Formats are told in words, which differ between versions: 'Row major linear FP32', 'Half', 'Float', 'BFloat16'.
KINDS = (
    (re.compile(r"\b(BF16|BFloat16)\b", re.IGNORECASE), "bfloat16"),
    (re.compile(r"\b(FP16|Half|Float16)\b", re.IGNORECASE), "float16"),
    (re.compile(r"\b(FP32|Float|Float32|TF32)\b", re.IGNORECASE), "float32"),
)


def information(flavour: Flavour, engine: Any) -> list[dict[str, Any]]:
    """The layers of an engine as its inspector tells them; [] where it tells nothing but names."""
    return told(flavour, engine)[0]


def told(flavour: Flavour, engine: Any) -> tuple[list[dict[str, Any]], str]:
    """The same, and why there are none."""
    text = engine.create_engine_inspector().get_engine_information(flavour.module.LayerInformationFormat.JSON)
    try:  # 8.6 separates the names in its metadata by control characters as they are
        layers = json.loads(text, strict=False).get("Layers", [])
    except (ValueError, AttributeError) as error:
        return [], f"its description cannot be read ({error})"
    found = [layer for layer in layers if isinstance(layer, dict)]
    return found, "" if found else "the library tells nothing but their names"


def doubt(report: dict[str, Any]) -> str:
    """What is not sure of a new engine, in a sentence; '' where its types were checked."""
    why = report.get("unchecked")
    return f"whether it computes in {report['precision']} is not sure: {why}" if why else ""


def opened(flavour: Flavour, plan: bytes) -> Any:
    """The engine of a plan. Raises RestortError where it cannot be opened here."""
    with flavour.log.listening() as heard:
        engine = flavour.module.Runtime(flavour.log.logger).deserialize_cuda_engine(plan)
        if engine is None:
            raise heard.error("opening the engine")
    return engine


def kind_of(port: Any) -> str | None:
    """The type of one input or output of a layer: 'float32', 'float16', 'bfloat16'; None for others."""
    text = str(port.get("Format/Datatype", port.get("Format", ""))) if isinstance(port, dict) else ""
    return next((name for pattern, name in KINDS if pattern.search(text)), None)


def output_types(layers: list[dict[str, Any]]) -> dict[str, int]:
    """How many layers have an output of each type."""
    kinds = (next((k for port in layer.get("Outputs", ()) if (k := kind_of(port))), None) for layer in layers)
    return dict(sorted(Counter(kind for kind in kinds if kind).items()))


def unwanted_float32(layers: list[dict[str, Any]], low: Collection[str]) -> list[str]:
    """Layers of the engine that compute one of the nodes `low` with nothing but float32 around it.

    A fused layer has the names of its nodes in its own ('conv_1 + add_2'). One that reads or writes a 16-bit value
    is not counted: inside of it the library keeps to the types of its ports.
    """
    wrong = []
    for layer in layers:
        name = str(layer.get("Name", ""))
        ports = [*layer.get("Inputs", ()), *layer.get("Outputs", ())]
        kinds = {kind for port in ports if (kind := kind_of(port))}
        if kinds == {"float32"} and any(part in low for part in re.split(r"[\s+,(){}\[\]|]+", name)):
            wrong.append(name)
    return wrong


def check(precision: str, layers: list[dict[str, Any]], low: Collection[str]) -> None:
    """RestortError that names the layers which an engine computes in float32 though `precision` was asked for."""
    wrong = unwanted_float32(layers, low)
    if wrong:
        names = ", ".join(name[:60] for name in wrong[:5])
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise RestortError(
            f"{precision} was asked for, but the builder made {len(wrong)} of {len(layers)} layers float32 ({names}"
            f"{more}); build with --precision mixed or fp32, or another --level"
        )
