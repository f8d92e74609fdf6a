"""Every speed figure of the GPU, into results/speed/h100.json = {"records": [...]}.

    python benchmarks/h100.py [--seconds 540] [--only WORDS] [--output FILE] [--compile auto|whole|regional]
                              [--tensorrt FILE.json] [--again] [--list] [--smoke]

Cases run in the order of their importance (gpu_workloads.cases), those of a backend in one process, and the file is
written after each: a later run continues it, and takes none twice that succeeded. A case that fails, or takes longer
than it may, is printed, and its process replaced. Records: {workload, backend, precision, batch, height, width,
median_ms, p95_ms, peak_mib, floor_ms, device, versions, command, date} and more; times are of one call, batch
included, by CUDA's events, input and output on the device, the L2 as the call before left it.

--only      cases whose description has one of these words, such as `fused,elan-light`; `+` joins words that must all be
            there: `fused+fp16`.
--tensorrt  records made by another interpreter (TensorRT 8.6 needs CPython 3.10), to be taken over.
--smoke     tiny networks on the processor, kernels interpreted: tries the script, measures nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import queue
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from gpu_workloads import NETWORKS, Case, cases, floor_ms, smoke_cases

HERE = Path(__file__).resolve().parent
PACKAGES = ("restort", "torch", "triton", "onnxruntime", "onnxruntime-gpu", "numpy", "cuda-bindings")
WAIT = 8.0  # seconds that a process needs to start
Record = dict[str, Any]


class Failed(Exception):
    """A case that could not be measured, in one sentence."""


class Child:
    """The process of one backend."""

    def __init__(self, smoke: bool, environment: dict[str, str] | None = None) -> None:
        more = {"TRITON_INTERPRET": "1"} if smoke else {}
        more.setdefault("RESTORT_CACHE", str(Path(tempfile.gettempdir(), "restort-bench-cache")))
        path = os.pathsep.join(filter(None, [str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")]))
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "gpu_child.py"), *(["--smoke"] if smoke else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, **more, **(environment or {})},
            text=True,
        )
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def measure(self, case: Case, limit: float) -> Record:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(case.to_json()) + "\n")
            self.process.stdin.flush()
            line = self._answers.get(timeout=limit)
        except queue.Empty:
            raise Failed(f"no result within {limit:.0f} s") from None
        except OSError:
            line = ""
        if not line:
            raise Failed(f"its process ended with status {self.process.wait(timeout=10)}")
        answer: Record = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class Bench:
    """The file, the children, the time that is left."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.output = args, args.output
        self.end = time.monotonic() + args.seconds
        self.records: list[Record] = []
        if self.output.is_file() and not args.again:
            self.records = json.loads(self.output.read_text("utf-8"))["records"]
        self.children: dict[str, Child] = {}
        self.caches = tempfile.TemporaryDirectory(prefix="restort-bench-")
        self.about: Record = {
            "versions": {n: v for n in PACKAGES if (v := version(n))}
            | {"python": platform.python_version(), **driver()},
            "command": shlex.join(["python", "benchmarks/h100.py", *sys.argv[1:]]),
        }
        if args.compile != "auto":
            os.environ["GPU_COMPILE"] = args.compile

    def run(self, wanted: list[Case]) -> int:
        failures = 0
        for case in wanted:
            if key(case) in {key(record) for record in self.records}:
                continue
            left = self.end - time.monotonic()
            if left < 15:
                print(f"the time is up; {case} and what follows are left for the next run", flush=True)
                break
            before = time.monotonic()
            try:
                record = self._measure(case, min(case.limit, left))
            except Exception as error:
                failures += 1
                print(f"{case!s:62} FAILED: {error}", flush=True)
                self._drop(case)
                continue
            record |= self.about | {"date": datetime.now(timezone.utc).isoformat(timespec="seconds")}
            record["clocks"] = clocks()
            self.records.append(record)
            self.save()
            print(
                f"{case!s:62} {record['median_ms']:10.3f} ms  p95 {record['p95_ms']:9.3f}  "
                f"{record['peak_mib'] or 0:9.0f} MiB  floor {record['floor_ms']:7.3f}  share {record['share']:.2f}  "
                f"({time.monotonic() - before:.0f} s)",
                flush=True,
            )
        return failures

    def _measure(self, case: Case, limit: float) -> Record:
        if case.variant:
            return self._fresh(case, limit)
        if case.backend not in self.children:
            for backend in list(self.children):  # their memory is wanted
                self.children.pop(backend).close()
            self.children[case.backend] = Child(self.args.smoke)
        return self.children[case.backend].measure(case, limit)

    def _fresh(self, case: Case, limit: float) -> Record:
        """In a process of its own, its caches empty ('first process') or as that one left them."""
        folder = Path(self.caches.name) / case.workload
        kept = {"TRITON_CACHE_DIR": str(folder / "triton"), "RESTORT_CACHE": str(folder / "restort")}
        start = time.monotonic()
        child = Child(self.args.smoke, kept)
        try:
            record = child.measure(case, limit)
        finally:
            child.close()
        record["process_s"] = round(time.monotonic() - start, 2)
        record["note"] = (
            "prepare_s: weights made up and packed, kernels, graph, two calls; process_s: all, imports included"
        )
        return record

    def _drop(self, case: Case) -> None:
        child = self.children.pop(case.backend, None)
        if child is not None:
            child.close()

    def take_over(self, path: Path) -> None:
        """Records of TensorRT, {workload, precision, batch, height, width, median_ms, p95_ms, peak_mib, ...} each."""
        for record in json.loads(path.read_text("utf-8"))["records"]:
            network = record["workload"].rsplit("-", 1)[0]
            made = {
                "backend": "tensorrt",
                "batch": 1,
                "p95_ms": None,
                "peak_mib": None,
                "variant": "",
                **record,
            }
            floors = floor_ms(
                NETWORKS[network], made["batch"], made["height"], made["width"], made.get("device", "")
            )
            made.setdefault("floor_ms", round(floors["floor_ms"], 4))
            made.setdefault("share", round(made["floor_ms"] / made["median_ms"], 3))
            for name, value in self.about.items():
                made.setdefault(name, value)
            made.setdefault("date", datetime.now(timezone.utc).isoformat(timespec="seconds"))
            self.records = [other for other in self.records if key(other) != key(made)] + [made]
        self.save()

    def save(self) -> None:
        self.output.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.output.with_name(f".{self.output.name}.tmp")
        temporary.write_text(json.dumps({"records": self.records}, indent=1) + "\n", "utf-8")
        temporary.replace(self.output)

    def close(self) -> None:
        for child in self.children.values():
            child.close()
        self.caches.cleanup()


def key(item: Any) -> tuple[Any, ...]:
    if isinstance(item, Case):
        return item.key
    return tuple(item.get(n, "") for n in ("workload", "backend", "precision", "batch", "variant"))


def version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _smi(fields: str) -> list[str]:
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [part.strip() for part in done.stdout.splitlines()[0].split(",")] if done.stdout.strip() else []


def driver() -> dict[str, str]:
    found = _smi("driver_version")
    return {"driver": found[0]} if found else {}


def clocks() -> Record:
    """Just after a case: MHz of the multiprocessors and the memory, watts, degrees."""
    names = ("sm_mhz", "memory_mhz", "watts", "celsius")
    return dict(zip(names, _smi("clocks.sm,clocks.mem,power.draw,temperature.gpu")))


def matches(case: Case, only: str | None) -> bool:
    return only is None or any(all(word in str(case) for word in part.split("+")) for part in only.split(","))


def table(records: list[Record]) -> str:
    """The five workloads, every backend against fused fp16."""
    lines = []
    ours = {r["workload"]: r for r in records if key(r)[1:] == ("fused", "fp16", 1, "")}
    for r in records:
        mine = ours.get(r["workload"])
        if mine and r["batch"] == 1 and not r.get("variant") and r["median_ms"]:
            lines.append(
                f"{r['workload']:26} {r['backend'] + ' ' + r['precision']:22} {r['median_ms']:9.3f} ms  "
                f"{r['median_ms'] / mine['median_ms']:6.2f} x fused"
            )
    return "\n".join(sorted(lines))


def main() -> int:
    parser = argparse.ArgumentParser(description="speed on a GPU")
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--only")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--compile", choices=("auto", "whole", "regional"), default="auto")
    parser.add_argument("--tensorrt", type=Path)
    parser.add_argument("--again", action="store_true", help="forget what the file holds")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    if args.output is None:
        args.output = (
            Path(tempfile.gettempdir(), "smoke.json")
            if args.smoke
            else HERE / "results" / "speed" / "h100.json"
        )
    wanted = [case for case in (smoke_cases() if args.smoke else cases()) if matches(case, args.only)]
    if args.list:
        print("\n".join(map(str, wanted)))
        return 0
    bench = Bench(args)
    try:
        if args.tensorrt is not None:
            bench.take_over(args.tensorrt)
        failures = bench.run(wanted)
    finally:
        bench.close()
    print(table(bench.records))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
