"""What was recorded, as Markdown tables on stdout and as charts in benchmarks/charts.

    python benchmarks/report.py [--records FILE] [--kernels FILE] [--layers FILE] [--tensorrt FILE]
                       [--accuracy FILE ...] [--charts FOLDER | --no-charts] [--device NAME] [--only 1,2,7]

--records   of bench_gpu.py; of two of the same case the later one counts
--kernels   of profile_kernels.py
--tensorrt  of bench_tensorrt.py: what could not be built, and engines that --records lacks; --layers, its timelines
--accuracy  of accuracy.py
--device    results of GPUs whose names hold this word (otherwise of the one with the most records)

Files that do not exist and tables without a record are left out, which stderr says; a missing record is a dash. Nothing
is measured here: every figure is one that was recorded, or a sum or quotient of such. Charts need matplotlib; they hold
names, units and numbers, so that one file serves every language, and the same data gives the same file.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness import DASH, RESULTS, ROOT, Record, markdown, number, versions_of
from workloads import BATCHES, LARGE, WORKLOADS, Workload, name_of

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
PUBLISHED = {  # files from elsewhere that a shipped model shares its name with: the digest of the weights
    "a890f4eb16b734abbab7cba42e3c171fe33ae7b9a4f1f59567563eec4361b608": "elan-light-x4",
}
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
REST = "..."  # what has no name of its own in a chart

COLOURS = (  # distinguishable by the colour-blind (Okabe and Ito), then lighter ones of the same
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"),
    *("#F0E442", "#7F6BB0", "#88C4B4", "#B8860B", "#A9C5E0"),
)
OF_KINDS = ("#D55E00", "#E69F00", "#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#7F6BB0", "#BBBBBB")
DARK = {"#0072B2", "#009E73", "#D55E00", "#7F6BB0"}
OURS, THEIRS, GREY = "#D55E00", "#8FA3B5", "#BBBBBB"

Bar = tuple[str, float | None, str, bool]  # name, milliseconds, what is written beside it, whether it is ours
Curve = tuple[str, list[tuple[int, float]], bool]  # name, (batch, value), whether it is ours
Part = tuple[str, float]  # kind, milliseconds
Cells = list[list[str]]


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
                say(f"left out: {count} records of {device or 'an unnamed device'}")
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


def say(line: str) -> None:
    print(line, file=sys.stderr)


def read(path: Path) -> Any:
    if path.is_file():
        return json.loads(path.read_text("utf-8"))
    say(f"left out: {path} is not there")
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


# Tables


def backends(report: Report) -> str:
    """The five workloads, milliseconds and how many times fused fp16 is faster."""
    if not report.found:
        return ""
    rows, marked = [], False
    for b in BACKENDS:
        row = [report.backend(*b)]
        for place in WORKLOADS:
            r, ours = report.of(place, b), report.one(place)
            cell = number(r.get("median_ms"))
            if r and b == BACKENDS[0]:
                cell = f"**{cell}**"
            elif r and ours:
                cell += f" ({times(r['median_ms'] / ours['median_ms'])})"
            if r.get("finite") is False:
                cell, marked = f"{cell} \\*", True
            row.append(cell)
        rows.append(row)
    parts = [
        "Milliseconds, median, batch 1; in brackets, how many times fused fp16 is faster:",
        markdown(["", *map(title, WORKLOADS)], rows),
    ]
    if marked:
        parts.append("\\* The output holds NaN or infinity.")
    ways: dict[str, list[str]] = defaultdict(list)
    for r in report.found.values():
        way = str(r.get("note", "")).partition(":")[0]
        network = title(r["workload"]).partition(",")[0]
        if r["backend"] == "torch-compile" and way.startswith("compiled ") and not r["variant"]:
            ways[way[9:]] += [] if network in ways[way[9:]] else [network]
    words = {"whole": "as a whole", "regional": "block by block"}
    if ways:
        said = "; ".join(f"{' and '.join(names)} {words.get(way, way)}" for way, names in ways.items())
        parts.append(f"torch.compile: {said}.")
    return "\n\n".join(parts)


def rooflines(report: Report) -> str:
    """Fused fp16 against its roofline."""
    rows = []
    for place in WORKLOADS:
        r = report.one(place)
        median, bound = r.get("median_ms"), r.get("roofline_ms")
        cells = [number(median), number(r.get("p95_ms")), number(bound), percent(bound, median)]
        rows.append([title(place), *cells, number(r.get("peak_mib")), str(r.get("launches", DASH))])
    head = [
        "fused fp16",
        *["ms", "p95", "roofline", "share of the roofline", "peak memory (MiB)", "launches"],
    ]
    note = (
        "The roofline lower bound counts the products, depthwise convolutions included, at the tensor cores' measured "
        "rate, and the bytes that must move at the measured memory rate (workloads.roofline)."
    )
    return f"{markdown(head, rows)}\n\n{note}" if any(report.one(p) for p in WORKLOADS) else ""


def batches(report: Report) -> str:
    """Batches at 256 x 256."""
    rows = []
    for (backend, precision), found in report.batched().items():
        by_batch = {r["batch"]: r for r in found}
        for batch in sorted({1, *BATCHES} if backend == "fused" else set(by_batch)):
            r = by_batch.get(batch, {})
            numbers = [number(v) for v in (r.get("median_ms"), pictures_s(r), r.get("peak_mib"))]
            rows.append([f"{report.backend(backend, precision)}, {batch}", *numbers])
    head = [f"{title('restormer-256x256')}; batch", "ms", "pictures a second", "MiB"]
    return markdown(head, rows) if any(rs for rs in report.batched().values()) else ""


def large(report: Report) -> str:
    """1080p and 4K."""
    rows = []
    for place in sorted(LARGE, key=lambda place: (place[0], place[1])):
        r = report.one(place)
        bound = r.get("roofline_ms")
        cells = [number(r.get("median_ms")), number(pictures_s(r)), number(bound)]
        rows.append([title(place), *cells, percent(bound, r.get("median_ms")), number(r.get("peak_mib"))])
    head = "fused fp16|ms|pictures a second|roofline|share of the roofline|peak memory (MiB)"
    return markdown(head.split("|"), rows) if any(report.one(p) for p in LARGE) else ""


def processes(report: Report) -> str:
    """The first call, with empty caches and with those of an earlier process."""
    kinds = ("first process", "second process")
    measured = [p for p in WORKLOADS if any(report.one(p, variant=kind) for kind in kinds)]
    rows = []
    for place in measured:
        for kind in kinds:
            r = report.one(place, variant=kind)
            seconds = [r[n] / 1e3 if n in r else None for n in ("create_ms", "first_call_ms")]
            values = [*seconds, r.get("prepare_s"), r.get("process_s"), r.get("call_ms_host")]
            rows.append([f"{title(place)}, {kind}", *map(number, values)])
    head = "fused fp16, seconds|creation|first call|until ready|whole process|second call (ms)"
    note = (
        "The first process begins with empty caches, the second with those that it left. Until ready: weights, "
        "kernels, CUDA graph and two calls; whole process: imports and the measurement included."
    )
    return f"{markdown(head.split('|'), rows)}\n\n{note}" if measured else ""


def kernels(report: Report) -> str:
    """Where the time of a network goes."""
    parts = []
    names = ("total_ms", "count", "roofline_ms", "gb", "tflop")
    for result in report.kernels:
        groups = by_kernel(result)
        total = sum(g["total_ms"] for g in groups)
        whole = {"name": "sum"} | {n: sum(g[n] for g in groups) for n in names}
        rows = []
        for g in [*groups, whole]:
            seconds = g["total_ms"] / 1e3 or 1.0
            cells = [str(g["count"]), number(g["total_ms"]), percent(g["total_ms"], total)]
            cells += [number(g["roofline_ms"]), percent(g["roofline_ms"], g["total_ms"])]
            name = g["name"] if g is whole else f"`{g['name']}`"
            rows.append([name, *cells, f"{g['gb'] / seconds:.0f}", f"{g['tflop'] / seconds:.1f}"])
        head = ["kernel", "count", "ms", "share", "roofline", "share of the roofline", "GB/s", "TFLOP/s"]
        caption = (
            f"{title(result['workload'])}, fused {result['precision']}: {number(result['whole_ms'])} ms:"
        )
        parts.append(f"{caption}\n\n{markdown(head, rows)}")
    note = (
        "Every launch was repeated by itself; what fits into the L2 stays there, so the sum may be below the whole. "
        "The roofline here is of each launch, by its own products and bytes; their sum is above the network's."
    )
    return "\n\n".join([*parts, note]) if parts else ""


def tensorrt(report: Report) -> str:
    """Engines, and the layers of those that tell."""
    rows: Cells = []
    for r in (r for r in report.found.values() if r["backend"] == "tensorrt"):
        timeline = len(report.layers.get(case_of(r), [])) or str(r.get("layer_summary", DASH)).split()[0]
        size = f"{r['engine_bytes'] / 1e6:.1f}" if "engine_bytes" in r else DASH
        types = r.get("engine_layers", {})
        half = DASH
        if types.get("source") == "engine":  # what a network says is not what a weakly typed engine does
            half = f"{types.get('float16', 0)} / {sum(n for n in types.values() if isinstance(n, int))}"
        cells = [number(r.get(n)) for n in ("build_s", "median_ms", "p95_ms")]
        rows.append([case_of(r), *cells, size, str(timeline), half, number(r.get("peak_mib"))])
    for failure in report.failures:
        seconds = f"{failure.get('seconds', 0):.0f}"
        late = str(failure.get("error", "")).startswith("no result within")
        cell = f"none within {seconds} s" if late else f"failed after {seconds} s"
        if case_of(failure) not in {row[0] for row in rows}:
            rows.append([case_of(failure), cell, *[DASH] * 6])
    head = "TensorRT|build (s)|ms|p95|engine (MB)|layers as they run|layers in fp16|peak memory (MiB)"
    parts = [markdown(head.split("|"), rows)] if rows else []
    parts += [layer_table(workload, engines) for workload, engines in report.timelines().items()]
    if len(parts) > 1:
        parts.append(
            "Milliseconds of layers are IProfiler's, with events around each layer and without a CUDA graph; their "
            "sum is above the median of the whole engine where layers are short."
        )
    return "\n\n".join(parts)


def layer_table(workload: str, engines: list[tuple[str, list[Record]]]) -> str:
    """The layers of a workload's engines by kind."""
    sums: list[dict[int, tuple[float, int]]] = []
    for _, layers in engines:
        found: dict[int, tuple[float, int]] = {}
        for layer in layers:
            ms, count = found.get(kind_of(layer["name"]), (0.0, 0))
            found[kind_of(layer["name"])] = ms + layer["ms"], count + 1
        sums.append(found)
    totals = [sum(ms for ms, _ in found.values()) for found in sums]
    rows = []
    for kind in sorted({k for found in sums for k in found}):
        cells = []
        for found, total in zip(sums, totals):
            ms, count = found.get(kind, (None, 0))
            cells += [number(ms), percent(ms, total), str(count)]
        rows.append([KINDS[kind][0], *cells])
    foot = ["sum"]
    for found, total in zip(sums, totals):
        foot += [number(total), "", str(sum(count for _, count in found.values()))]
    head = [title(workload)]
    for name, _ in engines:
        head += [f"{name}, ms", "share", "layers"]
    return markdown(head, [*rows, foot])


def accuracy(report: Report) -> str:
    """What the accuracy files hold."""
    parts, rows = [], []
    for model in (model for file in report.accuracy for model in file.get("models", [])):
        published = PUBLISHED.get(model.get("weights_sha256", ""), "")
        name = f"{published} (published weights)" if published else model["model"]
        if "error" in model:
            rows.append([name, str(model["error"]), *[DASH] * 8])
        for condition, found in model.get("conditions", {}).items():
            two = [found[p][f"relative_l2_{n}"] for p in ("fp16", "bf16") for n in ("max", "mean")]
            psnr = [found.get("psnr", {}).get(p) for p in ("fp32", "fp16", "bf16")]
            cells = [f"{v:.1e}" for v in two] + [DASH if v is None else f"{v:.3f}" for v in psnr]
            rows.append([name, condition, str(found["pictures"]), *cells])
    if rows:
        head = (
            "fused|pictures of|number|fp16, largest L2|mean L2|bf16, largest L2|mean L2|PSNR fp32|fp16|bf16"
        )
        parts.append(markdown(head.split("|"), rows))
    for table in (table for file in report.accuracy for table in file.get("tables", [])):
        parts.append(error_table(table))
    return "\n\n".join(parts)


def error_table(table: Record) -> str:
    """Errors of each backend against the reference, and its scores on the set."""
    stats = ("max", "mean", "median")
    lines = []
    for row in table["rows"]:
        name = f"{row['backend']} {row['precision']}"
        if row.get("error") or row.get("absolute") is None:
            lines.append([name, str(row.get("error") or "NaN"), *[DASH] * 8])
            continue
        errors = [row[kind][s] for kind in ("absolute", "relative") for s in stats]
        cells = [f"{v:.1e}" if v else "0" for v in [*errors, row["relative_l2"]]]
        lines.append([name, *cells, f"{row['psnr_on_set']:.3f}", f"{row['ssim_on_set']:.4f}"])
    head = [
        "abs max",
        "abs mean",
        "abs median",
        "rel max",
        "rel mean",
        "rel median",
        "rel L2",
        "PSNR",
        "SSIM",
    ]
    return markdown(
        [f"{table['model']}; {table['dataset']}, {table['settings']['pictures']} pictures", *head], lines
    )


SECTIONS: tuple[tuple[str, Callable[[Report], str], str], ...] = (  # name, table, the option of its file
    ("Speed", backends, "records"),
    ("Against the roofline", rooflines, "records"),
    ("Batches", batches, "records"),
    ("Large pictures", large, "records"),
    ("The first call", processes, "records"),
    ("Where the time goes", kernels, "kernels"),
    ("TensorRT", tensorrt, "tensorrt"),
    ("Accuracy", accuracy, "accuracy"),
)
SCRIPTS = {
    "records": "bench_gpu",
    "kernels": "profile_kernels",
    "tensorrt": "bench_tensorrt",
    "accuracy": "accuracy",
}


def recorded(report: Report, source: str) -> str:
    """The files that a table is of, and what makes them."""
    paths = getattr(report.args, source)
    lines = []
    for path in (
        path.resolve() for path in (paths if isinstance(paths, list) else [paths]) if path.is_file()
    ):
        shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name
        lines.append(f"    python benchmarks/{SCRIPTS[source]}.py        # recorded in {shown}")
    return "\n".join(lines)


def text(report: Report, only: set[int]) -> str:
    versions = "; ".join(versions_of(report.records)) or DASH
    days = sorted({str(r["date"])[:10] for r in report.records if "date" in r})
    parts = [
        ", ".join(filter(None, [report.device, versions, " to ".join(dict.fromkeys(days[:1] + days[-1:]))]))
    ]
    for i, (name, section, source) in enumerate(SECTIONS, 1):
        made = section(report) if i in only else ""
        if made:
            parts += [f"### {i}. {name}", made, recorded(report, source)]
        elif i in only:
            say(f"left out: table {i} ({name}): there is no record for it")
    return "\n\n".join(parts) + "\n"


# Charts


def charts(report: Report) -> dict[str, bytes]:
    """File names and their SVG; none where there is nothing to draw."""
    made = {
        "speed": speed_chart(report),
        "batches": batch_chart(report),
        "kernels": kernel_chart(report),
        "tensorrt_layers": layer_chart(report),
    }
    return {f"{name}.svg": data for name, data in made.items() if data is not None}


def speed_chart(report: Report) -> bytes | None:
    shown = [b for b in BACKENDS if any(report.of(place, b) for place in WORKLOADS)]
    panels = []
    for place in WORKLOADS:
        bars: list[Bar] = []
        for b in shown:
            r, ours = report.of(place, b), report.one(place)
            label = number(r.get("median_ms"))
            if r and ours and b != BACKENDS[0]:
                label += f" ({times(r['median_ms'] / ours['median_ms'])})"
            label += " NaN" if r.get("finite") is False else ""
            bars.append(
                (report.backend(*b), r.get("median_ms"), label, "fused" in (b[0], b[2].partition(" ")[2]))
            )
        panels.append((title(place), bars))
    return draw_bars(panels, "ms", report.device) if shown else None


def batch_chart(report: Report) -> bytes | None:
    quantities: tuple[tuple[str, Callable[[Record], float | None]], ...] = (
        ("images/s", pictures_s),
        ("MiB", lambda r: r.get("peak_mib")),
    )
    curves = []
    for quantity, of in quantities:
        lines: list[Curve] = []
        for (backend, precision), rs in report.batched().items():
            points = [(r["batch"], value) for r in rs if (value := of(r)) is not None]
            if points:
                lines.append((report.backend(backend, precision), points, backend == "fused"))
        if any(len(points) > 1 for _, points, _ in lines):
            curves.append((f"{title('restormer-256x256')}: {quantity}", lines))
    return draw_curves(curves, "N") if curves else None


def kernel_chart(report: Report) -> bytes | None:
    rows = []
    for result in report.kernels:
        groups = by_kernel(result)
        total = sum(g["total_ms"] for g in groups)
        parts: dict[str, float] = defaultdict(float)
        for g in groups:
            parts[g["name"].strip("_") if g["total_ms"] > 0.02 * total else REST] += g["total_ms"]
        name = title(result["workload"]) + (
            f", {result['precision']}" if result["precision"] != "fp16" else ""
        )
        rows.append((name, f"{number(total)} ms", list(parts.items())))
    return draw_stacks(rows, REST, "%") if rows else None


def layer_chart(report: Report) -> bytes | None:
    kinds = [name for name, _ in KINDS]
    panels = [
        (title(w), [(n, [(kinds[kind_of(x["name"])], x["ms"]) for x in layers]) for n, layers in engines])
        for w, engines in report.timelines().items()
    ]
    return draw_timelines(panels, kinds, "ms (IProfiler)", "{:.1f} ms, n = {}") if panels else None


def _figure(width: float, height: float) -> Any:
    from restort.utils.extras import need

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    figure = need("matplotlib.figure", "plotting").Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1)  # a viewer's text may be wider than it was measured here
    return figure


def _saved(figure: Any) -> bytes:
    with warnings.catch_warnings():  # the viewer has the glyphs that the font measured with here lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        from restort.profiling.plots import _svg

        return _svg(figure)


def _plain(axes: Any, grid: str = "x") -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(alpha=0.3, axis=grid)


def draw_bars(panels: Sequence[tuple[str, list[Bar]]], unit: str, note: str) -> bytes:
    """A panel a workload, each with a scale of its own from zero; a bar a backend, a dash where there is none."""
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = _figure(11.5, 0.9 + rows * (0.7 + 0.28 * len(panels[0][1])))
    grid = figure.subplots(rows, columns, squeeze=False)
    for i, axes in enumerate(grid.flat):
        if i >= len(panels):
            axes.set_axis_off()
            axes.text(0.02, 0.95, note, va="top", fontsize=9, transform=axes.transAxes)
            continue
        title, found = panels[i]
        most = max([value for _, value, _, _ in found if value] or [1.0])
        for y, (_, value, label, ours) in enumerate(found):
            axes.barh(y, value or 0, color=OURS if ours else THEIRS, height=0.7)
            axes.text((value or 0) + 0.02 * most, y, label, va="center", fontsize=8)
        axes.set_yticks(
            range(len(found)), [name for name, *_ in found] if i % columns == 0 else [], fontsize=9
        )
        axes.set(ylim=(len(found) - 0.4, -0.6), xlim=(0, 1.45 * most), xlabel=unit)
        axes.set_title(title, fontsize=10, fontweight="bold")
        axes.tick_params(axis="y", length=0)
        axes.locator_params(axis="x", nbins=5)
        _plain(axes)
    if len(panels) == rows * columns:
        figure.supxlabel(note, fontsize=9)
    return _saved(figure)


def draw_curves(panels: Sequence[tuple[str, list[Curve]]], batch: str) -> bytes:
    """A panel a quantity, over the batch."""
    figure = _figure(10, 3.8)
    for axes, (title, found) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        theirs = iter(COLOURS)
        batches: set[int] = set()
        for name, points, ours in found:
            x, y = zip(*points)
            batches |= set(x)
            colour = OURS if ours else next(theirs)
            axes.plot(
                x, y, marker="o", color=colour, label=name, linestyle="-" if ours else "--", zorder=2 + ours
            )
            if ours:
                for place, value in points:
                    axes.annotate(
                        f"{value:,.0f}",
                        (place, value),
                        xytext=(0, 6),
                        textcoords="offset points",
                        ha="center",
                        fontsize=8,
                        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5},
                    )
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(batches), [str(b) for b in sorted(batches)])
        axes.set_xlabel(batch)
        axes.set_title(title, fontsize=10, fontweight="bold")
        axes.set_ylim(0, 1.3 * max(value for _, points, _ in found for _, value in points))
        axes.margins(x=0.08)
        axes.legend(fontsize=8, loc="upper left")
        _plain(axes, "both")
    return _saved(figure)


def _legend(figure: Any, colours: dict[str, str], columns: int = 4) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=name) for name, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def draw_stacks(rows: Sequence[tuple[str, str, list[Part]]], rest: str, unit: str) -> bytes:
    """A bar a row, parts as shares of the whole: (name, what is written at the end, parts)."""
    total: dict[str, float] = defaultdict(float)
    for _, _, parts in rows:
        for kind, ms in parts:
            total[kind] += ms / (sum(p for _, p in parts) or 1.0)
    order = sorted(total.keys() - {rest}, key=lambda k: (-total[k], k))
    colours = dict(zip(order, COLOURS))
    if len(total) > len(colours):
        colours[rest] = GREY
    figure = _figure(10, 1.5 + 0.42 * len(rows) + 0.22 * -(-len(colours) // 4))
    axes = figure.subplots()
    for y, (_, end, parts) in enumerate(rows):
        left, whole = 0.0, sum(ms for _, ms in parts) or 1.0
        for kind in colours:
            ms = sum(ms for name, ms in parts if name == kind or (kind == rest and name not in colours))
            share = 100 * ms / whole
            if not share:
                continue
            axes.barh(y, share, left=left, color=colours[kind], height=0.7, edgecolor="white", linewidth=0.5)
            if share >= 4:
                axes.text(
                    left + share / 2,
                    y,
                    f"{share:.0f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if colours[kind] in DARK else "black",
                )
            left += share
        axes.text(101, y, end, va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlim=(0, 112), xlabel=unit)
    axes.set_xticks(range(0, 101, 20))
    axes.tick_params(axis="y", length=0)
    _plain(axes)
    _legend(figure, colours)
    return _saved(figure)


def draw_timelines(
    groups: Sequence[tuple[str, list[tuple[str, list[Part]]]]], kinds: Sequence[str], unit: str, end: str
) -> bytes:
    """A panel a network, a bar an engine: its layers one after another as they run, coloured by kind."""
    seen = {kind for _, engines in groups for _, parts in engines for kind, _ in parts}
    colours = {kind: colour for kind, colour in zip(kinds, OF_KINDS) if kind in seen}
    heights = [0.6 + 0.45 * len(engines) for _, engines in groups]
    figure = _figure(10, 0.9 + sum(heights) + 0.22 * -(-len(colours) // 4))
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, engines) in zip(panels, groups):
        longest = max([sum(ms for _, ms in parts) for _, parts in engines] or [1.0]) or 1.0
        for y, (_, parts) in enumerate(engines):
            spans: list[tuple[float, float]] = []
            faces: list[str] = []
            left = 0.0
            for kind, ms in parts:
                unseen = ms < longest / 2000
                if faces and (unseen or faces[-1] == colours[kind]):  # one piece for neighbours of a kind
                    spans[-1] = (spans[-1][0], spans[-1][1] + ms)
                else:
                    spans.append((left, ms))
                    faces.append(colours[kind])
                left += ms
            axes.broken_barh(spans, (y - 0.35, 0.7), facecolors=faces, linewidth=0)
            axes.text(left + 0.01 * longest, y, end.format(left, len(parts)), va="center", fontsize=9)
        axes.set_yticks(range(len(engines)), [name for name, _ in engines])
        axes.set(ylim=(len(engines) - 0.4, -0.6), xlim=(0, 1.2 * longest))
        axes.set_title(title, fontsize=10, fontweight="bold", loc="left")
        axes.tick_params(axis="y", length=0)
        _plain(axes)
    panels[-1].set_xlabel(unit)
    _legend(figure, colours)
    return _saved(figure)


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    speed = RESULTS / "speed"
    parser.add_argument("--records", type=Path, default=speed / "h100.json")
    parser.add_argument("--kernels", type=Path, default=speed / "h100_kernels.json")
    parser.add_argument("--layers", type=Path, default=speed / "tensorrt86_layers.json")
    parser.add_argument("--tensorrt", type=Path, default=speed / "tensorrt86.json")
    files = [RESULTS / "accuracy" / f"accuracy_{name}.json" for name in ("gpu", "tensorrt")]
    parser.add_argument("--accuracy", type=Path, nargs="*", default=files)
    parser.add_argument("--charts", type=Path, default=RESULTS.parent / "charts", help="a folder")
    parser.add_argument("--no-charts", action="store_true")
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
        say(f"drawn: {args.charts / name}")


if __name__ == "__main__":
    main()
