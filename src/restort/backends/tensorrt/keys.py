"""What makes an engine the one that is wanted: every fact that changes it, and its name in the cache."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from restort.utils.cache_dir import slug

Size: TypeAlias = tuple[int, int, int]  # batch, height, width of the input

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
class Profile:
    """The sizes an engine takes: (batch, height, width) at least, at most, and the one it is fastest at."""

    min: Size
    opt: Size
    max: Size

    @staticmethod
    def fixed(batch: int, height: int, width: int) -> Profile:
        """One size only, which the builder may specialise for."""
        return Profile(*[(batch, height, width)] * 3)

    @property
    def is_fixed(self) -> bool:
        return self.min == self.max

    def covers(self, size: Size) -> bool:
        return all(low <= n <= high for low, n, high in zip(self.min, size, self.max, strict=True))

    def __str__(self) -> str:
        if self.is_fixed:
            return "x".join(map(str, self.opt))
        return "..".join("x".join(map(str, size)) for size in (self.min, self.opt, self.max))


@dataclass(frozen=True)
class Key:
    """An engine's identity; two engines of equal keys may stand for each other.

    model      what messages and file names call it; no part of the identity.
    flavour    'tensorrt' or 'rtx', and `version`, exactly: neither loads the other's nor another version's engines.
    targets    compute capabilities it runs on: of the GPU it was built on, or those named to the builder.
    gpu        the name of the GPU it was built on; None for RTX, whose engines fit every GPU of their targets.
    driver     the CUDA version the driver gives, such as '13.0', where it matters: TensorRT times its kernels
               with it and compiles some through it. None for RTX, which compiles its kernels where it runs.
    graph      `graph_of(...)` of weights, `plan_of(...)` where the kernels are RestoRT's own, SHA-256 of the file of a
               graph that is not RestoRT's.
    keep_fp32  the sections of a mixed engine that stay in float32.
    flags      what else the builder was told.
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
        """All but the label, as JSON gives it back."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        del found["model"]
        return found

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        """The file's name: for people first, then the digest, which alone decides."""
        return f"{self.family}-{self.profile.max[1]}x{self.profile.max[2]}-{self.digest[:16]}.engine"

    @property
    def family(self) -> str:
        """What engines of the same model and precision have in common in their names."""
        fused = "-fused" if self.flags.get("kernels") == "fused" else ""
        return f"{slug(self.model)}-{self.precision}{fused}"

    def stands_for(self, kept: Mapping[str, Any], size: Size) -> bool:
        """Whether an engine of the key `kept` (JSON) does for `size` what one of this key would.

        Profile and build options may differ; so may the targets, as long as they hold those wanted here.
        """
        mine, other = self.to_json(), dict(kept)
        for key in ("profile", "flags"):
            mine.pop(key), other.pop(key, None)
        fits = set(mine.pop("targets")) <= set(other.pop("targets", ()))
        return fits and mine == other and profile_of(kept).covers(size)

    def differs(self, kept: Mapping[str, Any]) -> list[str]:
        """In what an engine of the key `kept` (JSON) is another one, in words, the telling facts first."""
        mine = self.to_json()
        found = []
        for key, word in _WORDS.items():
            if mine[key] != kept.get(key):
                if key in ("graph", "profile", "keep_fp32", "flags"):  # no values to show to a person
                    found.append(f"it has {word}")
                else:
                    found.append(f"its {word} is {_text(kept.get(key))}, not {_text(mine[key])}")
        return found


def profile_of(kept: Mapping[str, Any]) -> Profile:
    """The profile in a key (JSON)."""
    sizes = [tuple(int(n) for n in kept["profile"][part]) for part in ("min", "opt", "max")]
    return Profile(*sizes)  # type: ignore[arg-type]


def graph_of(digest: str, *form: object) -> str:
    """The identity of the graph that these weights and options give, without emitting it.

    The emitter is deterministic, so what goes into it says what comes out: the SHA-256 of the weights' file, the
    options in `form`, and the emitter itself, as the SHA-256 of its source, so that nobody has to remember to
    count anything up.
    """
    text = json.dumps([digest, emitter_digest(), *form])
    return hashlib.sha256(text.encode()).hexdigest()


def plan_of(digest: str, sources: str, plugin: str) -> str:
    """The identity of what an engine of RestoRT's own kernels holds, without making it.

    digest   SHA-256 of the weights' file.
    sources  of the kernels (restort.backends.fused.aot_cache.sources_digest).
    plugin   of the plugin's library or sources (restort.backends.tensorrt.plugin_library.digest).

    Precision, size and compute capability are in the key beside it.
    """
    return hashlib.sha256(json.dumps(["plan", digest, sources, plugin]).encode()).hexdigest()


@functools.cache
def emitter_digest() -> str:
    """SHA-256 of the source of restort.export."""
    import restort.export

    found = hashlib.sha256()
    for path in sorted(Path(restort.export.__file__).parent.glob("*.py")):
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
