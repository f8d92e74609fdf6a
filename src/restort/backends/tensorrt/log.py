"""What TensorRT says: one logger for the process, and sentences made of its errors."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from restort.errors import OutOfMemory, RestortError

LACKS_MEMORY = "the memory is not enough"

# Patterns of TensorRT's messages, and what a person can do. The first that fits is taken, so causes come before
# their consequences.
REMEDIES: tuple[tuple[str, str, str], ...] = (
    (
        r"bad_alloc|out[ _]?of[ _]?memory|insufficient (device )?memory|failed to allocate|cuda error.* 2\b",
        LACKS_MEMORY,
        "take smaller sizes ({sizes}), or close what else uses the memory",
    ),
    (
        r"driver version is insufficient|forward compatib|unsupported display driver",
        "the NVIDIA driver is too old",
        "install a newer driver",
    ),
    (
        r"no cuda-capable device|cuda initialization failure|cuinit|no supported cuda|cuda error 100\b"
        r"|error code 6|getdevice",
        "no NVIDIA GPU can be used here",
        "build on the machine that has it, or with --flavour rtx --compute-capability for a later machine",
    ),
    (
        r"myelin",  # the compiler inside of TensorRT for all that is no convolution; what else it says is of no use
        "its compiler (Myelin) gave up on this network",
        "build with another --precision or --level, or run the network with --backend fused",
    ),
    (
        r"unsupported sm|compute capability .*(not supported|unsupported)|sm version|gpu architecture|target gpu sm",
        "this library has no kernels for that GPU",
        "choose another --compute-capability or --flavour",
    ),
    (
        r"could not find any implementation|no valid tactic|no implementation",
        "there is no kernel for one of its layers in that precision",
        "choose another --precision, or leave out a limit of the workspace",
    ),
    (
        r"optimization profile|profile dimension|kmin|kmax|kopt",
        "the sizes do not fit the network",
        "give sizes of --shape that are multiples of what the network asks for",
    ),
    (
        r"no importer registered|unsupported op|unsupported onnx|opset|assertion failed.*importer|parse",
        "this version cannot read the graph",
        "install a newer TensorRT",
    ),
)
OPENING = (  # of an engine that is there; a build reads timing caches, about which the same is said
    r"version tag|magictag|serialization.*(version|mismatch)|serialized engine|plan file|stdversion|deserializ"
    r"|different (platform|version)",
    "the engine was built by another version or for another GPU",
    "build it again with this one",
)
NOISE = (  # where in TensorRT's source something happened is of no use to those who read the sentence
    r"^.*?Error Code \d+: *",
    r"^(Unexpected )?Internal Error:? *",
    r"\(?\[?[\w./]+\.(cpp|h|cu):{1,2}\w*:*\d*(: ?\w+)?\]\s*",
    r"\bIn [\w:~<>()]+ at \S+",
    r"\s*\([^()]*$",
)


@dataclass(eq=False)
class Heard:
    """Messages of one stretch of work, as (severity name, text), at most `LIMIT` of them."""

    library: str
    messages: list[tuple[str, str]] = field(default_factory=list)

    LIMIT = 1000

    def errors(self) -> list[str]:
        return [text for severity, text in self.messages if "ERROR" in severity]

    def warnings(self) -> list[str]:
        return [text for severity, text in self.messages if severity == "WARNING"]

    def error(self, doing: str) -> RestortError:
        """What went wrong while `doing`, as 'building the engine', in one sentence with the likely remedy.

        OutOfMemory, which smaller tiles may cure, where an engine that is there has not memory enough.
        """
        said = self.errors() or self.warnings()[-1:]
        if not said:
            return RestortError(f"{self.library} failed while {doing} and did not say why")
        for pattern, cause, remedy in (OPENING, *REMEDIES) if doing == "opening the engine" else REMEDIES:
            match = next((text for text in said if re.search(pattern, text, re.IGNORECASE)), None)
            if match is not None:
                remedy = remedy.format(sizes="--shape" if "building" in doing else "--tile")
                lacks = cause == LACKS_MEMORY and doing in ("preparing the engine", "running the engine")
                return (OutOfMemory if lacks else RestortError)(
                    f"{self.library} failed while {doing}: {cause} ({plain(match)}); {remedy}"
                )
        return RestortError(f"{self.library} failed while {doing}: {plain(said[0])}")


def plain(text: str) -> str:
    """The gist of one of TensorRT's messages, in one line."""
    kept = " ".join(text.split())
    for pattern in NOISE:
        shorter = re.sub(pattern, "", kept)
        kept = shorter if shorter.strip(" .:)([]") else kept
    kept = kept.strip(" .:;[")
    return kept if len(kept) <= 160 else f"{kept[:157]}..."


class Log:
    """Collects what the library says, for whoever listens in the same thread.

    The library keeps the first logger it is given for good, hence one for the process. Its own worker threads,
    in which nobody listens, are heard by all.
    """

    def __init__(self, module: ModuleType, library: str) -> None:
        self.library = library
        self._listeners: dict[int, list[Heard]] = {}
        self._lock = threading.Lock()
        self.logger: Any = _logger(module, self._hear)

    @contextmanager
    def listening(self) -> Iterator[Heard]:
        """Messages from here on, while the block runs."""
        heard, thread = Heard(self.library), threading.get_ident()
        with self._lock:
            self._listeners.setdefault(thread, []).append(heard)
        try:
            yield heard
        finally:
            with self._lock:
                self._listeners[thread].remove(heard)
                if not self._listeners[thread]:
                    del self._listeners[thread]

    def _hear(self, severity: str, text: str) -> None:
        with self._lock:
            own = self._listeners.get(threading.get_ident())
            listeners = own or [heard for found in self._listeners.values() for heard in found]
            for heard in listeners:
                if len(heard.messages) < Heard.LIMIT:
                    heard.messages.append((severity, text))


def _logger(module: Any, hear: Any) -> Any:
    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            # The smaller the worse; most calls are about less than a warning.
            if severity <= module.ILogger.Severity.WARNING:
                hear(severity.name, str(message))

    return Logger()
