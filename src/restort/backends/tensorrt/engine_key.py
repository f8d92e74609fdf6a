"""The identity of an engine: every fact that changes it, and its name in the cache."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from restort.backends.tensorrt.options import Profile, Size
from restort.utils.cache_dir import slug

_WORDS = {
    "flavour": "library",
    "version": "version of the library",
    "targets": "compute capability",
    "gpu": "GPU",
    "driver": "CUDA version of the driver",
    "graph": "another graph",
    "profile": "another profile",
    "precision": "precision",
    "keep_fp32": "another choice of blocks in float32",
    "flags": "other build options",
}


@dataclass(frozen=True)
class EngineKey:
    """The identity of an engine; engines of equal keys are interchangeable.

    model       the name in messages and file names; no part of the identity.
    flavour     'tensorrt' or 'rtx'. Neither loads engines of the other, or of another `version`.
    targets     compute capabilities that it runs on: of the GPU it was built on, or those named to the builder.
    gpu         name of the GPU it was built on; None for RTX, whose engines run on every GPU of their targets.
    driver      CUDA version of the driver, such as '13.0': TensorRT times its kernels with it and compiles some
                through it. None for RTX, which compiles its kernels where it runs.
    graph       `graph_digest(...)` of weights; `aot_digest(...)` with RestoRT's own kernels; SHA-256 of the file of a
                graph that is not RestoRT's.
    keep_fp32   the sections of a mixed engine in float32.
    flags       other settings of the builder.
    """

    model: str
    flavour: str
    version: str
    targets: tuple[str, ...]
    gpu: str | None
    driver: str | None
    graph: str
    profile: Profile
    precision: str
    keep_fp32: tuple[str, ...] = ()
    flags: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """All fields but `model`, as JSON reads them back."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self) | {"profile": self.profile.to_json()}))
        del found["model"]
        return found

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        """The name of the file: readable facts, then the digest, which alone identifies the engine."""
        more = f"+{len(self.profile.others)}" if self.profile.others else ""
        return f"{self.family}-{self.profile.max[1]}x{self.profile.max[2]}{more}-{self.digest[:16]}.engine"

    @property
    def family(self) -> str:
        """The beginning of the names of all engines of this model and precision."""
        fused = "-fused" if self.flags.get("kernels") == "fused" else ""
        return f"{slug(self.model)}-{self.precision}{fused}"

    def stands_for(self, kept: Mapping[str, Any], size: Size) -> bool:
        """Return whether an engine of the key `kept` (JSON) can replace one of this key for inputs of `size`.

        Profile and builder settings may differ, targets may be a superset, and a version-compatible engine may be of
        an older version.
        """
        mine, other = self.to_json(), dict(kept)
        if not runs_with(kept, other.pop("version", ""), mine.pop("version")):
            return False
        for key in ("profile", "flags"):
            mine.pop(key), other.pop(key, None)
        fits = set(mine.pop("targets")) <= set(other.pop("targets", ()))
        return fits and mine == other and profile_of(kept).covers(size)

    def differs(self, kept: Mapping[str, Any]) -> list[str]:
        """Say how the key `kept` (JSON) differs from this one, the most telling facts first."""
        mine = self.to_json()
        found = []
        for key, word in _WORDS.items():
            if mine[key] != kept.get(key):
                if key in ("graph", "profile", "keep_fp32", "flags"):  # their values mean nothing to the user
                    found.append(f"it has {word}")
                else:
                    found.append(f"its {word} is {_text(kept.get(key))}, not {_text(mine[key])}")
        return found


def is_version_compatible(about: Mapping[str, Any]) -> bool:
    """Return whether the engine of a key or sidecar (JSON) runs in newer versions of its library, too."""
    return bool((about.get("flags") or {}).get("version_compatible"))


def runs_with(about: Mapping[str, Any], built: str, installed: str) -> bool:
    """Return whether the engine of a key or sidecar (JSON), built by version `built`, runs in the installed version."""
    if built == installed or not is_version_compatible(about):
        return built == installed
    numbers = [[int(part) for part in re.findall(r"\d+", version)] for version in (built, installed)]
    return numbers[0] <= numbers[1]


def profile_of(kept: Mapping[str, Any]) -> Profile:
    """The profile in a key (JSON)."""

    def size(numbers: Any) -> Size:
        batch, height, width = (int(n) for n in numbers)
        return batch, height, width

    profile = kept["profile"]
    low, best, high = (size(profile[part]) for part in ("min", "opt", "max"))
    return Profile(low, best, high, tuple(map(size, profile.get("others", ()))))


def graph_digest(weights_digest: str, *options: object) -> str:
    """Identify the graph that weights and options of the emitter give, without emitting it.

    The emitter is deterministic, so its inputs identify the result: the SHA-256 of the weights' file, the `options`,
    and the SHA-256 of the emitter's own source.
    """
    text = json.dumps([weights_digest, emitter_digest(), *options])
    return hashlib.sha256(text.encode()).hexdigest()


def aot_digest(weights_digest: str, sources: str, plugin: str) -> str:
    """Identify the content of an engine of RestoRT's own kernels, without compiling it.

    sources     digest of the kernels' sources (restort.backends.fused.sources).
    plugin      digest of the plugin (restort.backends.tensorrt.plugin.digest).

    Precision, size and compute capability are in the key beside it.
    """
    return hashlib.sha256(json.dumps(["aot", weights_digest, sources, plugin]).encode()).hexdigest()


@functools.cache
def emitter_digest() -> str:
    """The SHA-256 of the source of restort.export."""
    import restort.export

    found = hashlib.sha256()
    for path in sorted(Path(restort.export.__file__).parent.glob("*.py")):
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
