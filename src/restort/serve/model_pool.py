"""The models of a server: loaded when first wanted, unloaded when they were idle long enough."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from restort.errors import UsageError
from restort.inference.model import Model, assemble
from restort.inference.resolve import RunOptions, resolve_model
from restort.weights.catalogue import Entry, entries, find

Load = Callable[[str, RunOptions], Model]


def load_by_name(name: str, options: RunOptions, offline: bool = False) -> Model:
    """Load a model of the catalogue."""
    resolved = resolve_model(name)
    quiet: Callable[[str], None] = lambda line: None  # noqa: E731
    weights = resolved.load(offline=offline, notice=quiet, notify=quiet, progress=False)
    return assemble(weights, resolved, options, notify=None)


class _Kept:
    def __init__(self) -> None:
        self.lock = threading.Lock()  # held while the model is made or closed
        self.model: Model | None = None
        self.users, self.last = 0, 0.0


class ModelPool:
    """Models by name, shared by all requests; several threads may borrow at once.

    options        how they run; tile and strength are those of each request
    names          the only models that may be asked for; None for all that are shipped
    unload_after   seconds without a request after which a model is closed; None for never
    """

    def __init__(
        self,
        options: RunOptions,
        *,
        names: Sequence[str] | None = None,
        unload_after: float | None = None,
        load: Load = load_by_name,
    ) -> None:
        self.options, self._load, self._unload_after = options, load, unload_after
        self._names = None if names is None else tuple(find(name).name for name in names)
        self._kept: dict[str, _Kept] = {}
        self._lock = threading.Lock()

    def entries(self) -> list[Entry]:
        """Return what may be asked for."""
        return [e for e in entries() if (e.shipped if self._names is None else e.name in self._names)]

    def check(self, name: str) -> None:
        """Raise UsageError for a model that this server does not run."""
        known = [entry.name for entry in self.entries()]
        if name not in known:
            raise UsageError(f"this server does not run the model {name}; it runs {', '.join(known)}")

    @contextlib.contextmanager
    def borrow(self, name: str) -> Iterator[Model]:
        """Lend a model, loaded if need be. Raises RestortError where that fails."""
        self.check(name)
        with self._lock:
            kept = self._kept.setdefault(name, _Kept())
            kept.users += 1
        try:
            with kept.lock:
                if kept.model is None:
                    kept.model = self._load(name, replace(self.options, tile="auto", strength=1.0))
                model = kept.model
            yield model
        finally:
            with self._lock:
                kept.users -= 1
                kept.last = time.monotonic()

    def loaded(self) -> list[str]:
        """Return the names of the models in memory."""
        return [name for name, kept in list(self._kept.items()) if kept.model is not None]

    def sweep(self) -> None:
        """Close models that were idle for `unload_after` seconds."""
        if self._unload_after is None:
            return
        with self._lock:
            idle = time.monotonic() - self._unload_after
            old = [k for k in self._kept.values() if k.model is not None and not k.users and k.last <= idle]
            for kept in old:
                model, kept.model = kept.model, None
                assert model is not None
                model.close()

    def close(self) -> None:
        with self._lock:
            for kept in self._kept.values():
                if kept.model is not None:
                    kept.model.close()
            self._kept.clear()
