"""The tables of report.py in Markdown, each a function of the Report; empty without a record."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from harness import DASH, ROOT, Record, markdown, number, versions_of
from workloads import BATCHES, LARGE, WORKLOADS

from reporting.recorded import (
    BACKENDS,
    KINDS,
    Report,
    by_kernel,
    case_of,
    kind_of,
    notify,
    percent,
    pictures_s,
    times,
    title,
)

PUBLISHED = {  # files from elsewhere that a shipped model shares its name with: the digest of the weights
    "a890f4eb16b734abbab7cba42e3c171fe33ae7b9a4f1f59567563eec4361b608": "elan-light-x4",
}


Cells = list[list[str]]


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
            lines.append(
                [
                    name,
                    str(row.get("error") or f"{row['non_finite']} values are NaN or infinite"),
                    *[DASH] * 8,
                ]
            )
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
            notify(f"left out: table {i} ({name}): there is no record for it")
    return "\n\n".join(parts) + "\n"
