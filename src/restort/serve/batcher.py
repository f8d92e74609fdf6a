"""The core of a server: pictures wait in fair turns, are decoded ahead, computed one by one and encoded behind.

It knows pictures and models, and nothing of HTTP. One thread runs the network; pools decode and encode, as in the
pipeline of folders (restort.inference.batch), whose halves `Model.compute` and `Model.store` it uses: a result has the
bytes that the command line writes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from restort.errors import RestortError, TooLarge
from restort.imaging.decode import read, size_of
from restort.imaging.picture import Picture
from restort.inference.batch import error_line, pool_sizes
from restort.inference.results import Restored
from restort.serve.model_pool import ModelPool
from restort.serve.request import Request
from restort.utils.cpu import default_threads

State = Literal["queued", "running", "done", "failed", "cancelled", "expired"]
_log = logging.getLogger("restort")


class Busy(RestortError):
    """The queue is full; try again later."""


class _Stopped(BaseException):
    """Ends the network's work on a picture between two tiles."""


@dataclass
class Seconds:
    """Where the time of a picture went."""

    decode: float = 0.0
    network: float = 0.0
    encode: float = 0.0


class Ticket:
    """One picture on its way.

    source, target   files; the target is written under a temporary name and renamed
    request          how it is to be restored
    key              whose picture it is: the keys take turns
    deadline         time.monotonic() after which nobody waits for it any more; None for never
    size             (width, height) of the header; None where only the decoder tells
    progress         (tiles done, tiles in all)
    """

    def __init__(
        self, source: Path, target: Path, request: Request, *, key: str = "", deadline: float | None = None
    ) -> None:
        self.source, self.target, self.request, self.key, self.deadline = (
            source,
            target,
            request,
            key,
            deadline,
        )
        self.state: State = "queued"
        self.error: RestortError | None = None
        self.result: Restored | None = None
        self.model: str | None = None
        self.progress = (0, 0)
        self.size: tuple[int, int] | None = None
        self.seconds = Seconds()
        self.began = time.monotonic()
        self._cancelled = threading.Event()
        self._ended = threading.Event()
        self._listeners: list[Callable[[Ticket], None]] = []
        self._lock = threading.Lock()

    @property
    def pixels(self) -> int:
        """Pixels that it counts for in the queue; a megapixel where the header does not tell."""
        return 1_000_000 if self.size is None else self.size[0] * self.size[1]

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    def cancel(self) -> None:
        """Ask to stop: at once where it waits, between two tiles where it runs."""
        self._cancelled.set()

    def stopping(self) -> State | None:
        """The state that it must end in, or None to go on."""
        if self._cancelled.is_set():
            return "cancelled"
        return "expired" if self.deadline is not None and time.monotonic() > self.deadline else None

    def on_end(self, listener: Callable[[Ticket], None]) -> None:
        """Call `listener(ticket)` when it has ended, from any thread; at once where it has."""
        with self._lock:
            if not self._ended.is_set():
                self._listeners.append(listener)
                return
        listener(self)

    def wait(self, timeout: float | None = None) -> bool:
        return self._ended.wait(timeout)

    def end(self, state: State, error: RestortError | None = None) -> None:
        with self._lock:
            if self._ended.is_set():
                return
            self.state, self.error = state, error
            self._ended.set()
        for listener in self._listeners:
            try:
                listener(self)
            except Exception:
                _log.exception("a listener of a request failed")


@dataclass
class _Decoding:
    ticket: Ticket
    picture: Future[Picture] = field(default_factory=Future)


class Batcher:
    """Runs tickets.

    max_pixels     of one picture
    queue_pixels   of all pictures that wait or run; a picture alone is always taken
    observe        called with every ticket that has ended
    """

    def __init__(
        self,
        models: ModelPool,
        *,
        max_pixels: int = 100_000_000,
        queue_pixels: int = 1_000_000_000,
        observe: Callable[[Ticket], None] | None = None,
    ) -> None:
        self.models, self.max_pixels, self.queue_pixels = models, max_pixels, queue_pixels
        self._observe = observe
        readers, writers = pool_sizes(default_threads())
        self._depth = readers + 1
        self._reader = ThreadPoolExecutor(readers, thread_name_prefix="restort-decode")
        self._writer = ThreadPoolExecutor(writers, thread_name_prefix="restort-encode")
        self._writing = threading.BoundedSemaphore(2 * writers)  # results in memory
        self._waiting: OrderedDict[str, deque[Ticket]] = OrderedDict()
        self._open: set[Ticket] = set()
        self._condition = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="restort-network", daemon=True)
        self._thread.start()

    @property
    def closing(self) -> bool:
        """Whether `close` was called."""
        return self._closing

    @property
    def alive(self) -> bool:
        """Whether the network's thread runs."""
        return self._thread.is_alive()

    def full(self) -> bool:
        """Whether nothing more is taken now."""
        return self.pixels >= self.queue_pixels

    @property
    def pixels(self) -> int:
        """Pixels that wait or run."""
        with self._condition:
            return sum(ticket.pixels for ticket in self._open)

    @property
    def length(self) -> int:
        """Pictures that wait or run."""
        with self._condition:
            return len(self._open)

    def submit(self, ticket: Ticket) -> None:
        """Take a picture. Raises RestortError for a file that cannot be read or is too large, Busy for a full queue."""
        ticket.size = size_of(ticket.source, max_pixels=self.max_pixels)
        if ticket.request.model is not None:
            self.models.check(ticket.request.model)
        with self._condition:
            if self._closing:
                raise Busy("the server is shutting down; try again later")
            others = sum(each.pixels for each in self._open)
            if others and others + ticket.pixels > self.queue_pixels:
                raise Busy(
                    f"the queue is full ({others / 1e6:.0f} of {self.queue_pixels / 1e6:.0f} megapixels); "
                    "try again later"
                )
            self._open.add(ticket)
            self._waiting.setdefault(ticket.key, deque()).append(ticket)
            self._condition.notify()
        ticket.on_end(self._forget)

    def close(self, *, timeout: float = 30.0) -> None:
        """Stop: what waits is cancelled, what runs ends at its next tile."""
        with self._condition:
            self._closing = True
            for ticket in self._open:
                ticket.cancel()
            self._condition.notify_all()
        self._thread.join(timeout)
        self._reader.shutdown(wait=False, cancel_futures=True)
        self._writer.shutdown(wait=True)

    def _forget(self, ticket: Ticket) -> None:
        with self._condition:
            self._open.discard(ticket)
            self._condition.notify()
        if self._observe is not None:
            self._observe(ticket)

    def _next(self, wait: bool) -> Ticket | None:
        """The next ticket in fair turns: each key gives one, then goes to the end of the line."""
        with self._condition:
            while True:
                while self._waiting:
                    key, line = next(iter(self._waiting.items()))
                    ticket = line.popleft()
                    if line:
                        self._waiting.move_to_end(key)
                    else:
                        del self._waiting[key]
                    if not ticket.ended:
                        return ticket
                if not wait or self._closing:
                    return None
                self._condition.wait(1.0)
                self.models.sweep()

    def _run(self) -> None:
        ahead: deque[_Decoding] = deque()
        while True:
            while len(ahead) < self._depth:
                ticket = self._next(wait=not ahead)
                if ticket is None:
                    break
                stop = ticket.stopping()
                if stop is not None:
                    _end_early(ticket, stop)
                    continue
                step = _Decoding(ticket)
                step.picture = self._reader.submit(self._decode, ticket)
                ahead.append(step)
            if not ahead:
                return  # closing
            self._compute(ahead.popleft())

    def _decode(self, ticket: Ticket) -> Picture:
        start = time.perf_counter()
        try:
            ticket.model = ticket.request.model_for(ticket.source)
            self.models.check(ticket.model)
            picture = read(ticket.source, max_pixels=self.max_pixels, all_frames=True)
            if ticket.size is None:
                ticket.size = picture.width, picture.height
            return picture
        finally:
            ticket.seconds.decode = time.perf_counter() - start

    def _compute(self, step: _Decoding) -> None:
        ticket = step.ticket

        def tile(done: int, total: int) -> None:
            ticket.progress = done, total
            if ticket.stopping() is not None:
                raise _Stopped

        try:
            picture = step.picture.result()
            stop = ticket.stopping()
            if stop is not None:
                _end_early(ticket, stop)
                return
            ticket.state = "running"
            assert ticket.model is not None
            with self.models.borrow(ticket.model) as shared:
                request = ticket.request
                model = shared.with_options(tile=request.edge(), strength=request.strength)
                start = time.perf_counter()
                computed = model.compute(
                    ticket.source,
                    ticket.target,
                    picture,
                    max_pixels=self.max_pixels * 16,  # of the result in memory
                    quality=request.quality,
                    progress=tile,
                )
                ticket.seconds.network = time.perf_counter() - start
        except _Stopped:
            _end_early(ticket, ticket.stopping() or "cancelled")
        except Exception as error:
            ticket.end("failed", as_error(error))
        else:
            self._writing.acquire()
            self._writer.submit(self._encode, ticket, model, computed, picture.notes)

    def _encode(self, ticket: Ticket, model: object, computed: object, notes: tuple[str, ...]) -> None:
        start = time.perf_counter()
        try:
            result = model.store(computed, notes, overwrite=True, quality=ticket.request.quality)  # type: ignore[attr-defined]
        except Exception as error:
            ticket.end("failed", as_error(error))
        else:
            ticket.result = result
            ticket.seconds.encode = time.perf_counter() - start
            ticket.end("done")
        finally:
            self._writing.release()


def _end_early(ticket: Ticket, state: State) -> None:
    said = (
        "it was cancelled"
        if state == "cancelled"
        else "its time was over before it was done; ask for less or later"
    )
    ticket.end(state, RestortError(f"{ticket.source.name} was not restored: {said}"))


def as_error(error: Exception) -> RestortError:
    """Any error as one sentence for the client."""
    if isinstance(error, RestortError):
        return error
    _log.warning("a picture failed", exc_info=error)
    return TooLarge(error_line(error)) if isinstance(error, MemoryError) else RestortError(error_line(error))
