"""TensorRT's messages: one logger for the process, and RestortErrors made of what it logs."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from restort.errors import OutOfMemory, RestortError

OUT_OF_MEMORY = "out of memory"

# Patterns of TensorRT's messages, the cause in words, and the remedy. The first match wins, so causes come before
# their consequences.
REMEDIES: tuple[tuple[str, str, str], ...] = (
    (
        r"bad_alloc|out[ _]?of[ _]?memory|insufficient (device )?memory|failed to allocate|cuda error.* 2\b",
        OUT_OF_MEMORY,
        "use smaller sizes ({sizes}), or free memory that other programs use",
    ),
    (
        r"driver version is insufficient|forward compatib|unsupported display driver|failure with error: 35\b",
        "the NVIDIA driver is absent or too old",
        "install a newer driver",
    ),
    (
        r"no cuda-capable device|cuda initialization failure|cuinit|no supported cuda|cuda error 100\b"
        r"|error code 6|getdevice",
        "no usable NVIDIA GPU",
        "build on the target machine, or for another one with --flavour rtx --compute-capability",
    ),
    (
        r"myelin",  # TensorRT's compiler for all layers but convolutions; its own messages name no cause
        "its compiler Myelin cannot compile this network",
        "build with another --precision or --level, or run the network with --backend fused",
    ),
    (
        r"unsupported sm|compute capability .*(not supported|unsupported)|sm version|gpu architecture|target gpu sm",
        "the library has no kernels for this GPU",
        "choose another --compute-capability or --flavour",
    ),
    (
        r"could not find any implementation|no valid tactic|no implementation",
        "no kernel for one of the layers in this precision",
        "choose another --precision",
    ),
    (
        r"optimization profile|profile dimension|kmin|kmax|kopt",
        "the sizes do not fit the network",
        "give --shape multiples of the network's size multiple",
    ),
    (
        r"no importer registered|unsupported op|unsupported onnx|opset|assertion failed.*importer|parse",
        "this version cannot read the graph",
        "install a newer TensorRT",
    ),
)
OPENING = (  # only for an engine that exists: a build logs the same of timing caches, and ignores them
    r"version tag|magictag|serialization.*(version|mismatch)|serialized engine|plan file|stdversion|deserializ"
    r"|different (platform|version)",
    "the engine was built by another version or for another GPU",
    "build it again with this one",
)
NOISE = (  # places in TensorRT's source, which tell the user nothing
    r"^.*?Error Code \d+: *",
    r"^(Unexpected )?Internal Error:? *",
    r"\(?\[?[\w./]+\.(cpp|h|cu):{1,2}\w*:*\d*(: ?\w+)?\]\s*",
    r"\bIn [\w:~<>()]+ at \S+",
    r"\s*\([^()]*$",
)


@dataclass(eq=False)
class CapturedMessages:
    """Messages logged while `Logger.capture` was open, as (name of the severity, text), at most `LIMIT` of them."""

    library: str
    messages: list[tuple[str, str]] = field(default_factory=list)

    LIMIT = 1000

    def errors(self) -> list[str]:
        return [text for severity, text in self.messages if "ERROR" in severity]

    def warnings(self) -> list[str]:
        return [text for severity, text in self.messages if severity == "WARNING"]

    def error(self, doing: str) -> RestortError:
        """Make an error of what failed while `doing`, such as 'building the engine': one sentence with a remedy.

        Returns OutOfMemory, which smaller tiles may cure, where an existing engine lacks memory.
        """
        texts = self.errors() or self.warnings()[-1:]
        if not texts:
            return RestortError(f"{self.library} failed while {doing}, without a message")
        for pattern, cause, remedy in (OPENING, *REMEDIES) if doing == "opening the engine" else REMEDIES:
            match = next((text for text in texts if re.search(pattern, text, re.IGNORECASE)), None)
            if match is not None:
                remedy = remedy.format(sizes="--shape" if "building" in doing else "--tile")
                tiles_help = cause == OUT_OF_MEMORY and doing in (
                    "preparing the engine",
                    "running the engine",
                )
                return (OutOfMemory if tiles_help else RestortError)(
                    f"{self.library} failed while {doing}: {cause} ({plain(match)}); {remedy}"
                )
        return RestortError(f"{self.library} failed while {doing}: {plain(texts[0])}")


def plain(text: str) -> str:
    """Reduce one of TensorRT's messages to its statement, in one line of at most 160 characters."""
    kept = " ".join(text.split())
    for pattern in NOISE:
        shorter = re.sub(pattern, "", kept)
        kept = shorter if shorter.strip(" .:)([]") else kept
    kept = kept.strip(" .:;[")
    return kept if len(kept) <= 160 else f"{kept[:157]}..."


class Logger:
    """Passes messages of the library to the captures that are open in the same thread.

    The library keeps the first ILogger that it receives, hence one for the process: `ilogger`, which goes to Builder
    and Runtime. Messages of the library's own threads, where no capture is open, go to all open captures.
    """

    def __init__(self, module: ModuleType, library: str) -> None:
        self.library = library
        self._captures: dict[int, list[CapturedMessages]] = {}  # by thread
        self._lock = threading.Lock()
        self.ilogger: Any = _ilogger(module, self._receive)

    @contextmanager
    def capture(self) -> Iterator[CapturedMessages]:
        """Collect the messages that are logged while the block runs."""
        captured, thread = CapturedMessages(self.library), threading.get_ident()
        with self._lock:
            self._captures.setdefault(thread, []).append(captured)
        try:
            yield captured
        finally:
            with self._lock:
                self._captures[thread].remove(captured)
                if not self._captures[thread]:
                    del self._captures[thread]

    def _receive(self, severity: str, text: str) -> None:
        with self._lock:
            own = self._captures.get(threading.get_ident())
            receivers = own or [captured for found in self._captures.values() for captured in found]
            for captured in receivers:
                if len(captured.messages) < CapturedMessages.LIMIT:
                    captured.messages.append((severity, text))


def _ilogger(module: Any, receive: Any) -> Any:
    class Receiver(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            # Severe messages have small numbers; most calls are less severe than a warning.
            if severity <= module.ILogger.Severity.WARNING:
                receive(severity.name, str(message))

    return Receiver()
