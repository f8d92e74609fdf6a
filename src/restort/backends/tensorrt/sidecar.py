"""`ENGINE.json` beside `ENGINE`: what an engine is, for those who cannot open it, and whether it is whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restort.errors import RestortError

if TYPE_CHECKING:
    from restort.backends.tensorrt.build import Built

SCHEMA = 1
CHUNK = 1 << 24


def path_of(engine: Path) -> Path:
    """The sidecar of `engine`."""
    return engine.with_name(f"{engine.name}.json")


def write(engine: Path, built: Built) -> None:
    """Writes the plan to `engine` and its report beside it, each under a temporary name first, the sidecar last.

    Raises RestortError where they cannot be written.
    """
    sidecar = path_of(engine)
    mark = uuid.uuid4().hex
    pairs = [
        (engine.with_name(f".{engine.name}.{mark}"), engine, built.plan),
        (
            engine.with_name(f".{sidecar.name}.{mark}"),
            sidecar,
            f"{json.dumps(built.report, indent=2)}\n".encode(),
        ),
    ]
    try:
        engine.parent.mkdir(parents=True, exist_ok=True)
        for temporary, _, data in pairs:
            temporary.write_bytes(data)
        sidecar.unlink(missing_ok=True)  # of an engine that was there before
        for temporary, target, _ in pairs:
            temporary.replace(target)
    except OSError as error:
        raise RestortError(f"cannot write {engine} ({error.strerror or error})") from None
    finally:
        for temporary, _, _ in pairs:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def read(engine: Path) -> dict[str, Any]:
    """The sidecar of `engine`. Raises RestortError where there is none, or none that can be read."""
    path = path_of(engine)
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise RestortError(f"{engine} has no {path.name} beside it, so nothing is known about it") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no JSON"
        raise RestortError(f"{path} cannot be read ({reason}); build the engine again") from None
    schema = found.get("schema") if isinstance(found, dict) else None
    if not isinstance(schema, int) or schema < 1:
        raise RestortError(f"{path} does not describe an engine; build the engine again")
    if schema > SCHEMA:
        raise RestortError(
            f"{path} was written by a newer RestoRT; update this one, or build the engine again"
        )
    return dict(found)


def problem(engine: Path) -> str | None:
    """Why the file `engine` is not the one its sidecar describes, None if it is."""
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
