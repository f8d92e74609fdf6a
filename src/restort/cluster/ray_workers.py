"""Workers as actors of Ray: each holds one GPU, or the cores of a machine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from restort.cluster.shards import Died, Event, Finished, Setup, Shard, Started
from restort.cluster.worker import Worker
from restort.errors import RestortError, UsageError
from restort.utils.extras import install_command
from restort.utils.integers import cdiv

DEFAULT_PORT = 6379
_STORE_BYTES = 80 << 20  # of a local Ray: pictures never go through it


def connect(address: str, workers: int | None) -> tuple[int, int, int]:
    """Join the cluster at `address`, or start Ray here for 'local'.

    Returns (number of workers, GPUs of each, CPUs of each). `workers` None stands for one a GPU, or one a machine where
    there is no GPU. Raises RestortError where Ray is missing or does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports to its makers otherwise
    try:
        import ray
    except ImportError:
        raise RestortError(
            f"Ray is not installed; install it on every machine with: {install_command('cluster')}"
        ) from None
    options: dict[str, Any] = {"address": address, "logging_level": "error", "log_to_driver": False}
    if address == "local":
        options |= {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
        options |= {"num_cpus": max(workers or 1, os.cpu_count() or 1)}
    elif address != "auto" and ":" not in address:
        options["address"] = f"{address}:{DEFAULT_PORT}"
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        first = " ".join(str(error).split()) or type(error).__name__
        raise RestortError(
            f"no Ray cluster answers at --address {address}: {first[:200]}; start one with `ray start --head`, or use "
            "--address local"
        ) from None
    return layout([node["Resources"] for node in ray.nodes() if node["Alive"]], workers)


def layout(machines: Sequence[Mapping[str, float]], workers: int | None) -> tuple[int, int, int]:
    """Return what `connect` returns for machines with these numbers of 'GPU' and 'CPU'.

    The CPUs of a worker are such that every machine has room for its share of the workers.
    """
    gpus = sum(int(machine.get("GPU", 0)) for machine in machines)
    if gpus:
        if workers is not None and workers > gpus:
            raise UsageError(f"--workers {workers} is more than the {gpus} GPUs of the cluster")
        shares = (machine.get("CPU", 0) // machine["GPU"] for machine in machines if machine.get("GPU"))
        return workers or gpus, 1, max(1, int(min(shares)))
    cores = [int(machine["CPU"]) for machine in machines if machine.get("CPU", 0) >= 1]
    if not cores:
        raise RestortError(
            "the Ray cluster has neither GPUs nor CPUs; start its machines without --num-cpus=0"
        )
    count = workers or len(cores)
    return count, 0, max(1, min(cores) // cdiv(count, len(cores)))


class RayWorkers:
    """Actors, one shard at a time each; a context manager that ends them and leaves the cluster."""

    def __init__(self, setup: Setup, gpus: int, cpus: int) -> None:
        import ray

        self._ray = ray
        self._setup = setup
        self._actor = ray.remote(
            num_cpus=cpus,
            num_gpus=gpus,
            max_restarts=0,
            scheduling_strategy="SPREAD",
        )(Worker)
        self._actors: dict[int, Any] = {}
        self._open: dict[Any, int] = {}  # what is waited for, in the order of the calls -> worker
        self._starting: set[Any] = set()

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(self, *error: object) -> None:
        closing = [actor.close.remote() for actor in self._actors.values()] if error[0] is None else []
        self._ray.wait(closing, num_returns=len(closing), timeout=10) if closing else None
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._ray.shutdown()

    def hire(self) -> int:
        worker = max(self._actors, default=0) + 1
        actor = self._actors[worker] = self._actor.remote(self._setup)
        call = actor.start.remote()
        self._open[call] = worker
        self._starting.add(call)
        return worker

    def give(self, worker: int, shard: Shard) -> None:
        self._open[self._actors[worker].restore.remote(shard)] = worker

    def wait(self, seconds: float) -> list[Event]:
        first, _ = self._ray.wait(list(self._open), num_returns=1, timeout=seconds)
        if not first:
            return []
        ready, _ = self._ray.wait(list(self._open), num_returns=len(self._open), timeout=0)
        events: list[Event] = []
        dead: dict[int, str] = {}
        for call in [call for call in self._open if call in set(ready)]:
            worker = self._open.pop(call)
            try:
                value = self._ray.get(call)
            except self._ray.exceptions.RayActorError as error:
                dead[worker] = _reason(error)
                continue
            except self._ray.exceptions.RayTaskError as error:
                cause = error.cause if isinstance(error.cause, Exception) else error
                raise (
                    cause
                    if isinstance(cause, RestortError)
                    else RestortError(f"a worker failed: {type(cause).__name__}: {cause}")
                ) from None
            if call in self._starting:
                self._starting.discard(call)
                events.append(Started(worker, *value))
            else:
                events.append(Finished(worker, tuple(value[0]), value[1]))
        for worker, why in dead.items():
            self._open = {call: other for call, other in self._open.items() if other != worker}
            events.append(Died(worker, why))
        return events


def _reason(error: Exception) -> str:
    """The first sentence of Ray's account that says something."""
    text = str(error)
    for sign in ("out of memory", "OOM", "node", "SIGKILL", "exit code", "connection error"):
        if sign.lower() in text.lower():
            line = next(line for line in text.splitlines() if sign.lower() in line.lower())
            return " ".join(line.split())[:160]
    return type(error).__name__
