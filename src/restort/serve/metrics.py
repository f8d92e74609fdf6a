"""Prometheus metrics of a server, all named restort_*."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from restort.serve.batcher import Batcher, Ticket

_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)


class Metrics:
    """Counts of one server; each has a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "restort_requests", "HTTP requests", ["method", "path", "code"], registry=registry
        )
        self.pictures = Counter("restort_pictures", "pictures that ended", ["state"], registry=registry)
        self.pixels = Counter("restort_pixels", "pixels of pictures that were restored", registry=registry)
        self.batch = Histogram(
            "restort_batch_size",
            "pictures in a run of the network",
            buckets=(1, 2, 4, 8, 16),
            registry=registry,
        )
        self.stages = {
            name: Histogram(
                f"restort_{name}_seconds", f"seconds of {what}", buckets=_SECONDS, registry=registry
            )
            for name, what in (
                ("decode", "reading a picture"),
                ("network", "the network"),
                ("encode", "writing a result"),
            )
        }
        self.busy = Counter("restort_network_busy_seconds", "seconds that the network ran", registry=registry)
        self.queue = Gauge("restort_queue_pictures", "pictures that wait or run", registry=registry)
        self.queue_pixels = Gauge("restort_queue_pixels", "pixels that wait or run", registry=registry)
        self.memory = Gauge("restort_memory_bytes", "resident memory of the server", registry=registry)

    def ended(self, ticket: Ticket) -> None:
        """Count a picture that has ended."""
        self.pictures.labels(ticket.state).inc()
        if ticket.state != "done":
            return
        self.pixels.inc(ticket.pixels)
        self.batch.observe(1)
        for name, histogram in self.stages.items():
            histogram.observe(getattr(ticket.seconds, name))
        self.busy.inc(ticket.seconds.network)

    def text(self, batcher: Batcher) -> bytes:
        """The page that Prometheus reads."""
        import psutil

        self.queue.set(batcher.length)
        self.queue_pixels.set(batcher.pixels)
        self.memory.set(psutil.Process().memory_info().rss)
        return generate_latest(self.registry)
