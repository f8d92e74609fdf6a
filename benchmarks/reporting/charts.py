"""The charts of report.py: which records each one shows, and as what."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from harness import Record, number
from workloads import WORKLOADS

from reporting.drawing import Bar, Curve, draw_bars, draw_curves, draw_stacks, draw_timelines
from reporting.recorded import BACKENDS, KINDS, Report, by_kernel, kind_of, pictures_s, times, title

REST = "..."  # what has no name of its own in a chart


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
