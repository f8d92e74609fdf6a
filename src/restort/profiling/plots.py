"""Plot measurements as SVG: errors by block, sensitivity by section, latency by size, throughput, folders."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from restort.errors import RestortError, UsageError
from restort.utils.extras import need

if TYPE_CHECKING:
    from restort.profiling.comparison import Comparison
    from restort.profiling.sensitivity import Choice

Record = dict[str, Any]


def block_errors(comparison: Comparison) -> bytes:
    """Plot relative L2, and 99th percentile and median of the relative error, block by block."""
    errors = comparison.worst_blocks()
    if not errors:
        raise UsageError("the plot shows errors by block; ask for them with --blocks")
    names = [*errors, "output"]
    found = [*errors.values(), comparison.total]
    figure, (axes,) = _figure(1, width=max(6.0, 0.22 * len(names)))
    lines: dict[str, Callable[[Any], float | None]] = {
        "relative L2": lambda e: e.relative_l2,
        "relative error, 99th percentile": lambda e: e.relative and e.relative.p99,
        "relative error, median": lambda e: e.relative and e.relative.median,
    }
    for label, value in lines.items():
        # A logarithmic axis has no zero: blocks without error are left out.
        axes.plot(range(len(names)), [value(e) or None for e in found], marker=".", label=label)
    if any((e.relative_l2 or 0) > 0 for e in found):
        axes.set_yscale("log")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_ylabel(f"error (epsilon {comparison.epsilon:g})")
    axes.set_title(f"{comparison.model}: {comparison.backend} against {comparison.against}", fontsize=10)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return _svg(figure)


def sensitivity(choice: Choice) -> bytes:
    """Plot the cost of lowering each section alone, mark sections that stay in float32, draw the budget as a line."""
    names, errors = list(choice.costs), [cost.relative_l2 for cost in choice.costs.values()]
    finite = [error for error in errors if 0 < error < float("inf")]
    top = 10 * max([*finite, choice.budget.relative_l2])
    figure, (axes,) = _figure(1, width=max(6.0, 0.22 * len(names)))
    for kept, label in ((False, f"in {choice.low}"), (True, "kept in float32")):
        places = [i for i, name in enumerate(names) if (name in choice.keep_fp32) == kept]
        # Bars of sections that overflow reach the top of the axis.
        axes.bar(places, [min(errors[i], top) for i in places], label=label)
    axes.axhline(choice.budget.relative_l2, color="grey", linestyle="--", label="budget of the whole")
    if finite:
        axes.set_yscale("log")
        axes.set_ylim(min(finite) / 3, top)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_ylabel("relative L2 error of the output")
    axes.set_title(f"{choice.model}: each section alone in {choice.low}", fontsize=10)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3, axis="y")
    return _svg(figure)


def speed(records: Sequence[Record]) -> bytes:
    """Plot latency by size (smallest batch) and throughput by batch (first size), a line for each backend.

    Panels show all workloads by name. A panel whose axis has a single value shows points.
    """
    good = [record for record in records if record.get("median_ms") is not None]
    if not good:
        raise RestortError("there is nothing to plot: no case could be measured")
    figure, (left, right) = _figure(2, width=10)
    batch = min(record["batch"] for record in good)
    first = good[0]["height"], good[0]["width"]
    by_size = [record for record in good if record["batch"] == batch]
    by_batch = [record for record in good if (record["height"], record["width"]) == first]
    sizes = sorted({(r["height"] * r["width"], f"{r['height']}x{r['width']}") for r in by_size})
    _curves(left, by_size, lambda r: r["height"] * r["width"] / 1e6, "median_ms")
    left.set(xscale="log", yscale="log")
    left.set_xticks([], minor=True)
    left.set_xticks([pixels / 1e6 for pixels, _ in sizes], [label for _, label in sizes], rotation=30)
    left.set(xlabel="height x width of the input", ylabel="median latency (ms)", title=f"batch {batch}")
    _curves(right, by_batch, lambda r: float(r["batch"]), "images_per_second")
    batches = sorted({r["batch"] for r in by_batch})
    right.set_xticks(batches, [str(b) for b in batches])
    right.set(xlabel="batch", ylabel="images per second", title=f"{first[0]}x{first[1]}")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    return _svg(figure)


def folders(records: Sequence[Record]) -> bytes:
    """Plot megapixels a second of whole folders, and the shares of the network's thread where known."""
    good = [record for record in records if record["error"] is None]
    if not good:
        raise RestortError("there is nothing to plot: no folder could be restored")
    names = [f"{r['workload']}\n{r['backend']} {r['precision']}" for r in good]
    figure, (left, right) = _figure(2, width=12)
    bars = left.barh(names, [record["megapixels_per_second"] for record in good])
    left.bar_label(bars, fmt="{:.1f}", fontsize=8)
    left.set(xlabel="megapixels of results a second", title="files in, files out")
    parts = {"network": "network", "wait_decode": "waits for decode", "wait_encode": "waits for encode"}
    begin = [0.0] * len(good)
    for part, label in parts.items():
        shares = [100 * record.get("shares", {}).get(part, 0.0) for record in good]
        right.barh(names, shares, left=begin, label=label)
        begin = [a + b for a, b in zip(begin, shares, strict=True)]
    right.set(xlabel="share of the wall time (%)", title="the network's thread", xlim=(0, 100))
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.invert_yaxis()
        axes.tick_params(axis="y", labelsize=7)
        axes.grid(alpha=0.3, axis="x")
    right.set_yticklabels([])
    return _svg(figure)


def _curves(axes: Any, records: list[Record], x: Callable[[Record], float], y: str) -> None:
    """Draw a line for each network, backend and precision."""
    several = len({record["model"] for record in records}) > 1
    names = list(dict.fromkeys(_label(record, several) for record in records))
    for name in names:
        points = sorted((x(r), r[y]) for r in records if _label(r, several) == name)
        axes.plot([p for p, _ in points], [v for _, v in points], marker="o", label=name)


def _label(record: Record, several: bool) -> str:
    name = f"{record['backend']} {record['precision']}"
    return f"{record['model']} {name}" if several else name


def _figure(panels: int, width: float) -> tuple[Any, list[Any]]:
    figures = need("matplotlib.figure", "plotting")
    figure = figures.Figure(figsize=(width, 4.5), layout="constrained")
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _svg(figure: Any) -> bytes:
    matplotlib = need("matplotlib", "plotting")
    buffer = io.BytesIO()
    # Keep text as text, and write equal bytes for equal data.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "restort"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
