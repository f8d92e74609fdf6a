"""Time of each stage of the pipeline for a folder."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

Stage = Literal["decode", "network", "encode", "wait_decode", "wait_encode"]


@dataclass
class Stages:
    """Seconds by stage, summed over threads: `decode` may exceed the wall time.

    decode        reading files and decoding them
    network       computing, conversion to and from the network's input included
    encode        encoding and writing files
    wait_decode   the network's thread had no picture: it waited for one, or read it itself
    wait_encode   the network's thread had a result and waited until others were written
    readers, writers   threads of decode and encode
    """

    decode: float = 0.0
    network: float = 0.0
    encode: float = 0.0
    wait_decode: float = 0.0
    wait_encode: float = 0.0
    readers: int = 1
    writers: int = 1
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @contextlib.contextmanager
    def time(self, stage: Stage) -> Iterator[None]:
        """Add the time of the block to `stage`, also where the block fails."""
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            with self._lock:
                setattr(self, stage, getattr(self, stage) + seconds)
