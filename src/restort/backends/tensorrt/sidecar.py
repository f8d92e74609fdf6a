"""`ENGINE.json` beside `ENGINE`: what an engine is, also for machines that cannot open it, and whether it is whole.

A sidecar holds, schema 1:
    schema 1, restort (version), created (UTC, ISO), seconds, bytes, sha256 (of the engine: it finds damage, and is no
    key, because builds are not reproducible), flavour, version,
    targets     ["8.6", "8.9"]: compute capabilities named to the builder (rtx); else that of the GPU built on
    gpu         {"name", "compute_capability", "driver"} of the machine built on, or null
    graph       {"sha256", "nodes", "opset", "inputs": [{"name", "dtype", "shape"}], "outputs": [...]}
    model       {"name", "architecture", "scale", "size_multiple", "weights_sha256"}, null where the graph is not
                RestoRT's
    profile     {"min": [B, H, W], "opt": [...], "max": [...]}; with "others": [[B, H, W], ...] in an engine of several
                single sizes
    precision   fp32 | tf32 | fp16 | bf16 | mixed
    keep_fp32   names of the sections in float32
    flags       settings of the builder: {"strongly_typed": true, "tf32": false, "level": 3, ...}
    layers      {"source": "engine" | "network", "float32": n, "float16": n, ...}: by type of the output; of the
                engine's inspector where the engine can be opened, else of the parsed network, whose types a strongly
                typed engine keeps; {"source": "plugin", "RestortPass": 1} with RestoRT's own kernels
    unchecked   why the types of the layers could not be verified; absent where they were
    warnings    the library's warnings
    kernels     "fused" with RestoRT's own kernels; absent with the library's
    aot         of the AOT packages in such an engine: {"sha256" (of their joined file), "compute_capability",
                "restort", "sources" (digest), "compilers", "kernels" and "launches" (numbers), "memory": {"weights",
                "context"} (bytes on the GPU), "plugin_sha256"}
Input and output of an engine are float32 NCHW, 'input' and 'output', whatever it computes in.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from restort.backends.tensorrt.options import Built
from restort.errors import RestortError
from restort.utils.files import write_bytes

SCHEMA = 1
CHUNK = 1 << 24


def path_of(engine: Path) -> Path:
    """The sidecar of `engine`."""
    return engine.with_name(f"{engine.name}.json")


def write(engine: Path, built: Built) -> None:
    """Write the engine and its sidecar, the sidecar last, so that an engine without one is unfinished.

    Temporary files are named `.NAME.*` after the engine. Raises RestortError where a file cannot be written.
    """
    text = f"{json.dumps(built.report, indent=2)}\n"
    prefix = f".{engine.name}."
    write_bytes(engine, built.plan, overwrite=True, prefix=prefix)
    write_bytes(path_of(engine), text.encode(), overwrite=True, prefix=prefix)


def read(engine: Path) -> dict[str, Any]:
    """Read the sidecar of `engine`. Raises RestortError where it is absent or cannot be read."""
    path = path_of(engine)
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise RestortError(f"no sidecar: {path}; build the engine again") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not JSON"
        raise RestortError(f"cannot read {path}: {reason}; build the engine again") from None
    schema = found.get("schema") if isinstance(found, dict) else None
    if not isinstance(schema, int) or schema < 1:
        raise RestortError(f"{path} is not the sidecar of an engine; build the engine again")
    if schema > SCHEMA:
        raise RestortError(
            f"{path} was written by a newer RestoRT; update RestoRT, or build the engine again"
        )
    return dict(found)


def problem(engine: Path) -> str | None:
    """Why the file `engine` is not the one that its sidecar describes, None where it is."""
    try:
        about = read(engine)
        size = engine.stat().st_size
        if size != about.get("bytes"):
            return f"it has {size} bytes instead of {about.get('bytes')}"
        return None if sha256(engine) == about.get("sha256") else "its content has changed"
    except RestortError as error:
        return str(error)
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"


def sha256(path: Path) -> str:
    """The SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
