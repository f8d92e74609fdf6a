"""Bars, curves, stacks and timelines as SVG, drawn by matplotlib; the same data give the same bytes."""

from __future__ import annotations

import logging
import warnings
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

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
