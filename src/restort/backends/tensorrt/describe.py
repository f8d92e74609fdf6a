"""What an engine is: from its sidecar, and from the engine itself where a library and GPU here can open it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from restort.backends.fused.aot_package import MAGIC
from restort.backends.tensorrt import inspect, sidecar
from restort.backends.tensorrt.build_plan import ready
from restort.backends.tensorrt.flavour import TITLES, Flavour, find, installed
from restort.backends.tensorrt.gpu import gpu
from restort.backends.tensorrt.network import type_names
from restort.errors import RestortError


def describe(engine: Path) -> dict[str, Any]:
    """The sidecar's content with `file`, `problem` (None or why the engine is not the one described), `runs_here`
    (bool), `why_not` (None or a sentence) and `opened` (None, or what the engine itself says).

    Raises RestortError where there is no such file, or neither a sidecar nor a way to open it.
    """
    if not engine.is_file():
        raise RestortError(f"there is no engine {engine}; name a file that `restort build` wrote")
    with contextlib.suppress(OSError), engine.open("rb") as file:
        if file.read(len(MAGIC)) == MAGIC:
            raise RestortError(
                f"{engine} is a plan, not an engine; build one of it with `restort build --kernels fused --plan`"
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
            ready(flavour, about)
            opened = look(flavour, engine.read_bytes())
        except RestortError as error:
            why_not = str(error)
    if missing is not None and opened is None:
        raise missing
    here = {"file": str(engine), "problem": problem, "runs_here": why_not is None, "why_not": why_not}
    return here | {"opened": opened, "bytes": engine.stat().st_size} | about


def _why_not(about: dict[str, Any]) -> str | None:
    """Why an engine of this sidecar cannot be opened here, as far as that can be told without trying."""
    here = gpu()
    if here is None:
        return "this machine has no NVIDIA GPU"
    if not about:
        return None
    name, version = about.get("flavour", ""), about.get("version", "")
    title = TITLES.get(name, name)
    if name not in installed():
        return f"{title} is not installed"
    if (found := find(name).version) != version:
        return f"it needs {title} {version}, and {found} is installed"
    if here.compute_capability not in about.get("targets", ()):
        return f"the GPU here, {here.name}, has compute capability {here.compute_capability}"
    if name == "tensorrt" and (built := about.get("gpu")) and built.get("name") != here.name:
        return f"it was built for a {built.get('name')}, and here is a {here.name}"
    return None


def look(flavour: Flavour, plan: bytes) -> dict[str, Any]:
    """What the engine says of itself: its ports with their profiles, memory, and layers by type.

    Raises RestortError where it cannot be opened.
    """
    engine = inspect.opened(flavour, plan)
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
    layers = inspect.information(flavour, engine)
    return {
        "flavour": flavour.name,
        "version": flavour.version,
        "ports": ports,
        "layers": engine.num_layers,
        "layers_by_type": inspect.output_types(layers),
        "device_memory_bytes": memory,
    }
