"""What an engine is and computes in: from the library's engine inspector, and from the sidecar where it cannot open."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from restort.backends.fused.aot_package import MAGIC
from restort.backends.tensorrt import plugin, sidecar
from restort.backends.tensorrt.engine_key import is_version_compatible, runs_with
from restort.backends.tensorrt.library import TITLES, Flavour, create_runtime, find, installed
from restort.backends.tensorrt.network import type_names
from restort.errors import RestortError
from restort.utils.gpu import find_gpu

# The inspector writes formats as words that differ between versions: 'Row major linear FP32', 'Half', 'BFloat16'.
KINDS = (
    (re.compile(r"\b(BF16|BFloat16)\b", re.IGNORECASE), "bfloat16"),
    (re.compile(r"\b(FP16|Half|Float16)\b", re.IGNORECASE), "float16"),
    (re.compile(r"\b(FP32|Float|Float32|TF32)\b", re.IGNORECASE), "float32"),
)


def deserialize(flavour: Flavour, plan: bytes, host_code: bool = False) -> Any:
    """Open a serialized engine; with `host_code`, also a version-compatible one, which brings a runtime of its own.

    Raises RestortError where that fails here.
    """
    runtime = create_runtime(flavour, host_code)
    with flavour.logger.capture() as captured:
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise captured.error("opening the engine")
    return engine


def inspect_layers(flavour: Flavour, engine: Any) -> tuple[list[dict[str, Any]], str]:
    """Return the layers of an engine by its inspector; where it gives none, [] and why."""
    text = engine.create_engine_inspector().get_engine_information(flavour.module.LayerInformationFormat.JSON)
    try:  # TensorRT 8.6 leaves control characters between names of metadata unescaped
        layers = json.loads(text, strict=False).get("Layers", [])
    except (ValueError, AttributeError) as error:
        return [], f"the engine inspector's answer cannot be read ({error})"
    found = [layer for layer in layers if isinstance(layer, dict)]
    return found, "" if found else "the engine inspector gives only the names of layers"


def unverified_note(report: dict[str, Any]) -> str:
    """A sentence on a new engine whose precision could not be verified; '' where it was."""
    why = report.get("unchecked")
    return f"could not verify that the engine computes in {report['precision']}: {why}" if why else ""


def kind_of(port: Any) -> str | None:
    """The type of an input or output of a layer: 'float32', 'float16', 'bfloat16'; None for others."""
    text = str(port.get("Format/Datatype", port.get("Format", ""))) if isinstance(port, dict) else ""
    return next((name for pattern, name in KINDS if pattern.search(text)), None)


def output_types(layers: list[dict[str, Any]]) -> dict[str, int]:
    """Count the layers by the type of their output."""
    kinds = (next((k for port in layer.get("Outputs", ()) if (k := kind_of(port))), None) for layer in layers)
    return dict(sorted(Counter(kind for kind in kinds if kind).items()))


def unwanted_float32(layers: list[dict[str, Any]], low: Collection[str]) -> list[str]:
    """Layers of the engine that compute a node of `low`, and whose inputs and outputs are all float32.

    The name of a fused layer holds the names of its nodes ('conv_1 + add_2'). A layer with a 16-bit input or output is
    not counted: inside of it the library keeps to the types of its ports.
    """
    wrong = []
    for layer in layers:
        name = str(layer.get("Name", ""))
        ports = [*layer.get("Inputs", ()), *layer.get("Outputs", ())]
        kinds = {kind for port in ports if (kind := kind_of(port))}
        if kinds == {"float32"} and any(part in low for part in re.split(r"[\s+,(){}\[\]|]+", name)):
            wrong.append(name)
    return wrong


def check_precision(precision: str, layers: list[dict[str, Any]], low: Collection[str]) -> None:
    """Raise RestortError that names the layers which compute a node of `low` in float32."""
    wrong = unwanted_float32(layers, low)
    if wrong:
        names = ", ".join(name[:60] for name in wrong[:5])
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise RestortError(
            f"precision {precision} requested, but the builder made {len(wrong)} of {len(layers)} layers float32: "
            f"{names}{more}; build with --precision mixed or fp32, or another --level"
        )


def describe(engine: Path) -> dict[str, Any]:
    """Describe an engine file: the sidecar's content, and

    file        the path
    problem     None, or why the file is not the engine that the sidecar describes
    runs_here   whether it runs on this machine
    why_not     None, or why it does not
    opened      None, or what `summary` gives of the engine

    Raises RestortError where the file does not exist, or has no sidecar and cannot be opened.
    """
    if not engine.is_file():
        raise RestortError(f"no engine: {engine}; name a file that `restort build` wrote")
    with contextlib.suppress(OSError), engine.open("rb") as file:
        if file.read(len(MAGIC)) == MAGIC:
            raise RestortError(
                f"{engine} is an AOT package, not an engine; build one of it with `restort build --kernels fused --aot`"
            )
    about: dict[str, Any] = {}
    missing: RestortError | None = None
    try:
        about = sidecar.read(engine)
    except RestortError as error:
        missing = error
    problem = str(missing) if missing else sidecar.problem(engine)
    why_not = problem if about and problem else _why_not(about)
    opened = None
    if why_not is None:
        try:
            flavour = find(about.get("flavour", "auto"))
            plugin.load_for(flavour, about)
            opened = summary(flavour, engine.read_bytes(), is_version_compatible(about))
        except RestortError as error:
            why_not = str(error)
    if missing is not None and opened is None:
        raise missing
    here = {"file": str(engine), "problem": problem, "runs_here": why_not is None, "why_not": why_not}
    return here | {"opened": opened, "bytes": engine.stat().st_size} | about


def _why_not(about: dict[str, Any]) -> str | None:
    """Why an engine of this sidecar does not run here, as far as that is known without opening it."""
    gpu = find_gpu()
    if gpu is None:
        return "no NVIDIA GPU found"
    if not about:
        return None
    name, version = about.get("flavour", ""), about.get("version", "")
    title = TITLES.get(name, name)
    if name not in installed():
        return f"{title} is not installed"
    found = find(name).version
    if not runs_with(about, version, found):
        newer = " or newer" if is_version_compatible(about) else ""
        return f"it needs {title} {version}{newer}, and {found} is installed"
    if gpu.compute_capability not in about.get("targets", ()):
        return f"{gpu.name} has compute capability {gpu.compute_capability}"
    if name == "tensorrt" and (built := about.get("gpu")) and built.get("name") != gpu.name:
        return f"it was built for {built.get('name')}, and this machine has {gpu.name}"
    return None


def summary(flavour: Flavour, plan: bytes, host_code: bool = False) -> dict[str, Any]:
    """Open an engine (see `deserialize`) and return its ports with their profiles, its memory, and its layers by type.

    Raises RestortError where it cannot be opened.
    """
    engine = deserialize(flavour, plan, host_code)
    kinds = type_names(flavour.module)
    ports = []
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        is_input = engine.get_tensor_mode(name) == flavour.module.TensorIOMode.INPUT
        kind = engine.get_tensor_dtype(name)
        port = {
            "name": name,
            "input": is_input,
            "dtype": kinds.get(kind, str(kind)),
            "shape": list(engine.get_tensor_shape(name)),
        }
        if is_input:
            port["profiles"] = [
                [list(shape) for shape in engine.get_tensor_profile_shape(name, profile)]
                for profile in range(engine.num_optimization_profiles)
            ]
        ports.append(port)
    memory = getattr(engine, "device_memory_size_v2", None) or getattr(engine, "device_memory_size", None)
    return {
        "flavour": flavour.name,
        "version": flavour.version,
        "ports": ports,
        "layers": engine.num_layers,
        "layers_by_type": output_types(inspect_layers(flavour, engine)[0]),
        "device_memory_bytes": memory,
    }
