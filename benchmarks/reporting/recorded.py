"""What was recorded on one GPU, and the names that tables and charts give it."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from harness import DASH, Record, number
from workloads import Workload, name_of

Backend = tuple[str, str, str]  # backend, precision, variant
BACKENDS: tuple[Backend, ...] = (
    ("fused", "fp16", ""),
    ("fused", "bf16", ""),
    ("torch", "fp32", ""),
    ("torch", "fp16", ""),
    ("torch-compile", "fp16", ""),
    ("onnxruntime-cuda", "fp32", ""),
    ("onnxruntime-cuda", "fp16", ""),
    ("tensorrt", "fp16", ""),
    ("tensorrt", "fp16", "kernels fused"),
)
NAMES = {  # in words, and the packages whose version it holds
    "fused": ("fused", ()),
    "torch": ("PyTorch {}", ("torch",)),
    "torch-compile": ("torch.compile", ()),
    "onnxruntime-cuda": ("ONNX Runtime {} CUDA", ("onnxruntime-gpu", "onnxruntime")),
    "tensorrt": ("TensorRT {}", ("tensorrt",)),
}
TITLES = {"restormer": "Restormer", "elan-x4": "ELAN x4", "elan-light-x4": "ELAN-light x4"}


KINDS = (  # of a TensorRT layer: the kind, and what its name begins with (the first two) or contains
    ("Reformat", "reformatting"),
    ("Myelin", "{foreignnode|__myl|myelin"),
    ("Conv", "conv"),
    ("MatMul", "matmul|gemm|fully"),
    ("Softmax, Norm, Reduce", "softmax|reduce|normalization"),
    ("Gather, Slice, Concat", "gather|slice|concat|copy|pad|split|roll"),
    ("Reshape, Transpose", "shuffle|reshape|transpose|depthtospace|spacetodepth"),
    ("Elementwise, Cast", "pwn|add|mul|sub|div|relu|gelu|erf|cast|sqrt|pow|constant"),
    ("...", ""),
)


class Report:
    """What was recorded on one GPU."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        mine = read(args.records).get("records", [])
        theirs = read(args.tensorrt)
        records = [{"batch": 1, "variant": "", **r} for r in [*theirs.get("records", []), *mine]]
        records.sort(key=lambda r: str(r.get("date", "")))
        kernels = read(args.kernels).get("records", [])
        devices = Counter(r.get("device", "") for r in records or kernels)
        named = [device for device in devices if args.device is None or args.device in device]
        self.device = max(named, key=lambda device: devices[device], default="")
        for device, count in devices.items():
            if device != self.device:
                notify(f"left out: {count} records of {device or 'an unnamed device'}")
        self.records = [r for r in records if r.get("device", "") == self.device]
        self.found = {key_of(r): r for r in self.records if r.get("median_ms")}
        self.kernels = [r for r in kernels if r.get("device", self.device) == self.device]
        engines = [{case_of(r) for r in rs if r["backend"] == "tensorrt"} for rs in (records, self.records)]
        others = engines[0] - engines[1]  # of another GPU: timelines do not say whose they are
        self.layers = {c: found for c, found in read(args.layers).items() if c not in others and found}
        self.failures = theirs.get("failures", [])
        self.accuracy = [read(path) for path in args.accuracy]

    def one(
        self,
        place: Workload,
        backend: str = "fused",
        precision: str = "fp16",
        batch: int = 1,
        variant: str = "",
    ) -> Record:
        """{} where there is none."""
        return self.found.get((name_of(place), backend, precision, batch, variant), {})

    def of(self, place: Workload, backend: Backend) -> Record:
        """The record of one picture."""
        return self.one(place, backend[0], backend[1], variant=backend[2])

    def backend(self, backend: str, precision: str, variant: str = "") -> str:
        name, packages = NAMES.get(backend, (backend, ()))
        held = [r.get("versions", {}) for r in self.records if r["backend"] == backend]
        found = next((v[p] for v in reversed(held) for p in packages if p in v), "")
        short = ".".join(found.split("+")[0].split(".")[:2]) or ("8.6" if backend == "tensorrt" else "")
        more = ", RestoRT" if variant == "kernels fused" else ""
        return " ".join(f"{name.format(short)}{more} {precision}".split())

    def batched(self) -> dict[tuple[str, str], list[Record]]:
        """Records at 256 x 256 by batch: fused fp16, and what else was measured with more than one picture."""
        found: dict[tuple[str, str], list[Record]] = {("fused", "fp16"): []}
        every = [r for r in self.found.values() if r["workload"] == "restormer-256x256" and not r["variant"]]
        for r in sorted(every, key=lambda r: r["batch"]):
            found.setdefault((r["backend"], r["precision"]), []).append(r)
        return {k: rs for k, rs in found.items() if k == ("fused", "fp16") or any(r["batch"] > 1 for r in rs)}

    def timelines(self) -> dict[str, list[tuple[str, list[Record]]]]:
        """By workload, (name, layers) of the plain export's engine if there is one, and of RestoRT's."""
        found: dict[str, list[tuple[str, list[Record]]]] = {}
        for case, layers in self.layers.items():
            workload, _, kind = case.partition(" ")
            if kind == "x1 fp16 (plain)":
                found.setdefault(workload, []).insert(0, ("torch.onnx.export", layers))
            elif kind == "x1 fp16":
                found.setdefault(workload, []).append(("restort export", layers))
        return found


def notify(line: str) -> None:
    print(line, file=sys.stderr)


def read(path: Path) -> Any:
    if path.is_file():
        return json.loads(path.read_text("utf-8"))
    notify(f"left out: {path} is not there")
    return {}


def key_of(r: Record) -> tuple[Any, ...]:
    return r["workload"], r["backend"], r["precision"], r["batch"], r["variant"]


def case_of(r: Record) -> str:
    """As bench_tensorrt.py names it."""
    variant = f" ({r['variant']})" if r.get("variant") else ""
    return f"{r['workload']} x{r['batch']} {r['precision']}{variant}"


def title(workload: str | Workload) -> str:
    """'elan-x4-192x320' in words."""
    name = workload if isinstance(workload, str) else name_of(workload)
    network, _, size = name.rpartition("-")
    return f"{TITLES.get(network, network)}, {size.replace('x', ' x ')}"


def times(value: float) -> str:
    return f"{number(value)}x"


def percent(part: float | None, whole: float | None) -> str:
    return DASH if part is None or not whole else f"{100 * part / whole:.1f} %"


def pictures_s(r: Record) -> float | None:
    return 1e3 * r.get("batch", 1) / r["median_ms"] if r else None


def kind_of(layer: str) -> int:
    """The place in KINDS: a fused layer, 'conv_3 + relu_4', is of its first part that has a kind."""
    name = layer.lower()
    for i, (_, words) in enumerate(KINDS[:2]):
        if name.startswith(tuple(words.split("|"))):
            return i
    for part in name.split(" + "):
        last = "pwn" if part.startswith("pwn(") else part.rsplit("/", 1)[-1]  # without the modules it lies in
        for i, (_, words) in enumerate(KINDS[2:-1], 2):
            if any(word in last for word in words.split("|")):
                return i
    return len(KINDS) - 1


def by_kernel(result: Record) -> list[Record]:
    """Launches summed by kernel, the longest first; rates are of all bytes and operations together."""
    names = ("total_ms", "count", "roofline_ms", "gb", "tflop")
    groups: dict[str, Record] = {}
    for step in result["steps"]:
        into = groups.setdefault(step["kernel"], {"name": step["kernel"]} | dict.fromkeys(names, 0))
        seconds = step["ms"] * step["count"] / 1e3
        rates = step["gb_per_s"] * seconds, step["tflops"] * seconds
        for name, value in zip(names, (step["total_ms"], step["count"], step["roofline_ms"], *rates)):
            into[name] += value
    return sorted(groups.values(), key=lambda group: -group["total_ms"])
