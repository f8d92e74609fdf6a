"""Recorded GPU results as Markdown tables, on stdout, and as charts.

    python benchmarks/gpu_report.py [--lang en|zh] [--records FILE] [--steps FILE] [--layers FILE] [--tensorrt FILE]
                       [--accuracy FILE ...] [--charts FOLDER | --no-charts] [--device NAME] [--only 1,2,7]

--records   of benchmarks/h100.py; of two of the same case the later one counts
--steps     of benchmarks/steps.py; without it, the steps that records hold
--layers    of benchmarks/tensorrt86.py, the timelines of its engines
--tensorrt  likewise, its records: what could not be built, and engines that --records lacks
--accuracy  of benchmarks/accuracy_gpu.py, tensorrt_accuracy.py or accuracy_table.py
--device    results of GPUs whose names hold this word (otherwise of the one with the most records)

Files that do not exist and tables without a record are left out, which stderr tells; a missing record is a dash.
Nothing is measured here: every figure is one that was recorded, or a sum or quotient of such. Charts need matplotlib.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from gpu_charts import DASH, Record, charts, number
from gpu_tables import SECTIONS, TITLES, case_of

RESULTS = Path(__file__).resolve().parent / "results"
ROOT = RESULTS.parents[1]
ACCURACY = {
    "accuracy_tensorrt": "tensorrt_accuracy",
    "accuracy_cpu": "accuracy_table",
}  # what makes files of other names
NAMES = {  # in words, and the packages whose version it holds
    "fused": ("fused", ()),
    "torch": ("eager PyTorch {}", ("torch",)),
    "torch-compile": ("torch.compile", ()),
    "onnxruntime-cuda": ("ONNX Runtime {} CUDA", ("onnxruntime-gpu", "onnxruntime")),
    "tensorrt": ("TensorRT {}", ("tensorrt",)),
}
Place = tuple[str, int, int]  # network, height, width


class Report:
    """What was recorded on one GPU, and one language."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.chinese, self.args = args.lang == "zh", args
        mine = _read(args.records, {"records": []})["records"]
        theirs = _read(args.tensorrt, {"records": []})
        records = [{"batch": 1, "variant": "", **r} for r in [*theirs["records"], *mine]]
        records.sort(key=lambda r: str(r.get("date", "")))
        steps = _read(args.steps, {"results": [r for r in records if "steps" in r]})["results"]
        devices = Counter(r.get("device", "") for r in records or steps)
        named = [d for d in devices if args.device is None or args.device in d]
        self.device = max(named, key=lambda d: devices[d], default="")
        for device, count in devices.items():
            if device != self.device:
                _say(f"left out: {count} records of {device or 'an unnamed device'}")
        self.records = [r for r in records if r.get("device", "") == self.device]
        self.found: dict[tuple[Any, ...], Record] = {_key(r): r for r in self.records if r.get("median_ms")}
        self.steps = [r for r in steps if r.get("device", self.device) == self.device]
        engines = [{case_of(r) for r in rs if r["backend"] == "tensorrt"} for rs in (records, self.records)]
        others = engines[0] - engines[1]  # of another GPU: timelines do not say whose they are
        layers = _read(args.layers, {})
        self.layers = {case: found for case, found in layers.items() if case not in others and found}
        self.failures = theirs.get("failures", [])
        self.accuracy = [_read(path, {}) for path in args.accuracy]

    def one(
        self, place: Place, backend: str = "fused", precision: str = "fp16", batch: int = 1, variant: str = ""
    ) -> Record:
        """{} where there is none."""
        network, height, width = place
        return self.found.get((f"{network}-{height}x{width}", backend, precision, batch, variant), {})

    def of(self, place: Place, backend: tuple[str, str, str]) -> Record:
        """The record of one picture for one of gpu_charts.BACKENDS."""
        return self.one(place, backend[0], backend[1], variant=backend[2])

    def say(self, english: str, chinese: str) -> str:
        return chinese if self.chinese else english

    def title(self, workload: str | Place) -> str:
        """'elan-x4-192x320' in words."""
        if not isinstance(workload, str):
            return self.title(f"{workload[0]}-{workload[1]}x{workload[2]}")
        network, _, size = workload.rpartition("-")
        size = size.replace("x", " x ")
        return f"{TITLES.get(network, network)}{self.say(', ', '，')}{size}"

    def backend(self, backend: str, precision: str, variant: str = "") -> str:
        name, packages = NAMES.get(backend, (backend, ()))
        versions = [v for r in self.records if r["backend"] == backend for v in [r.get("versions", {})]]
        found = next((v[p] for v in reversed(versions) for p in packages if p in v), "")
        short = ".".join(found.split("+")[0].split(".")[:2]) or ("8.6" if backend == "tensorrt" else "")
        more = self.say(", RestoRT's kernels", "，RestoRT 的内核") if variant == "kernels fused" else ""
        return " ".join(f"{name.format(short)} {precision.replace('fp32', 'float32')}".split()) + more

    def times(self, value: float) -> str:
        return self.say(f"{number(value)}x", f"{number(value)} 倍")

    def batched(self) -> dict[tuple[str, str], list[Record]]:
        """Records at 256 x 256 by batch: fused fp16, and what else was measured with more than one picture."""
        found: dict[tuple[str, str], list[Record]] = {("fused", "fp16"): []}
        every = [r for r in self.found.values() if r["workload"] == "restormer-256x256" and not r["variant"]]
        for r in sorted(every, key=lambda r: r["batch"]):
            found.setdefault((r["backend"], r["precision"]), []).append(r)
        return {k: rs for k, rs in found.items() if k == ("fused", "fp16") or any(r["batch"] > 1 for r in rs)}

    def before_and_after(self) -> dict[str, list[tuple[str, list[Record]]]]:
        """By workload, (name, layers) of the plain engine in fp16, one picture, if there is one, and of the usual."""
        found: dict[str, list[tuple[str, list[Record]]]] = {}
        for case, layers in self.layers.items():
            workload, _, kind = case.partition(" ")
            plain = self.layers.get(f"{workload} x1 fp16 (plain)")
            if kind == "x1 fp16 (plain)":
                found.setdefault(workload, []).insert(0, (self.say("before", "之前"), layers))
            elif kind == "x1 fp16":
                name = self.say("after", "之后") if plain else self.backend("tensorrt", "fp16")
                found.setdefault(workload, []).append((name, layers))
        return found


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _read(path: Path, otherwise: Any) -> Any:
    if path.is_file():
        found: Any = json.loads(path.read_text("utf-8"))
        return found
    _say(f"left out: {path} is not there")
    return otherwise


def _key(r: Record) -> tuple[Any, ...]:
    return r["workload"], r["backend"], r["precision"], r["batch"], r["variant"]


def about(report: Report) -> str:
    """The GPU, versions and days of what was recorded."""
    names = {"driver": "driver", "torch": "PyTorch", "triton": "Triton", "onnxruntime-gpu": "ONNX Runtime"}
    names |= {"tensorrt": "TensorRT", "restort": "RestoRT"}
    versions: dict[str, set[str]] = defaultdict(set)
    for r in report.records:
        for name in names.keys() & r.get("versions", {}).keys():
            versions[name].add(r["versions"][name])
    parts = [report.device, *(f"{names[n]} {' / '.join(sorted(versions[n]))}" for n in names if versions[n])]
    days = sorted({str(r["date"])[:10] for r in report.records if "date" in r})
    return ", ".join([*filter(None, parts), " – ".join(dict.fromkeys([days[0], days[-1]])) if days else DASH])


def recorded(report: Report, source: str) -> str:
    """The files that a table is of, and what makes them."""
    scripts = {"records": ["h100"], "steps": ["steps"], "tensorrt": ["tensorrt86"]}
    paths = getattr(report.args, source)
    lines = []
    for path in paths if isinstance(paths, list) else [paths]:
        if path.is_file():
            words = report.say("recorded in", "记录在")
            (script,) = scripts.get(source) or [ACCURACY.get(path.stem, path.stem)]
            name = path.resolve()
            shown = name.relative_to(ROOT) if name.is_relative_to(ROOT) else name.name
            lines.append(f"    python benchmarks/{script}.py        # {words} {shown}")
    return "\n".join(lines)


def text(report: Report, only: set[int]) -> str:
    parts = [about(report)]
    for i, (english, chinese, section, source) in enumerate(SECTIONS, 1):
        if i not in only:
            continue
        made = section(report)
        if made:
            parts += [f"### {i}. {report.say(english, chinese)}", made, recorded(report, source)]
        else:
            _say(f"left out: table {i} ({english}): there is no record for it")
    return "\n\n".join(parts) + "\n"


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="tables and charts of GPU results")
    parser.add_argument("--records", type=Path, default=RESULTS / "speed" / "h100.json")
    parser.add_argument("--steps", type=Path, default=RESULTS / "speed" / "h100_steps.json")
    parser.add_argument("--layers", type=Path, default=RESULTS / "speed" / "tensorrt86_layers.json")
    parser.add_argument("--tensorrt", type=Path, default=RESULTS / "speed" / "tensorrt86.json")
    files = [RESULTS / "accuracy" / f"accuracy_{name}.json" for name in ("gpu", "tensorrt")]
    parser.add_argument("--accuracy", type=Path, nargs="*", default=files)
    parser.add_argument("--charts", type=Path, default=RESULTS.parent / "charts", help="a folder")
    parser.add_argument("--no-charts", action="store_true")
    parser.add_argument("--lang", choices=("en", "zh"), default="en")
    parser.add_argument("--device", help="a word of the GPU's name")
    parser.add_argument("--only", default="1,2,3,4,5,6,7,8", help="tables, such as 1,2,7")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = options(arguments)
    report = Report(args)
    sys.stdout.write(text(report, {int(i) for i in args.only.split(",")}))
    for name, data in ({} if args.no_charts else charts(report)).items():
        args.charts.mkdir(parents=True, exist_ok=True)
        (args.charts / name).write_bytes(data)
        _say(f"drawn: {args.charts / name}")


if __name__ == "__main__":
    main()
