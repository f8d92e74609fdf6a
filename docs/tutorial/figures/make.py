"""Draw the figures of the tutorial from the recorded results: python docs/tutorial/figures/make.py

One style for all, and no words but names that are alike in both languages (backends, precisions, layers, units); the
chapters say what is seen. The output is the same to the byte for the same records and version of matplotlib.
"""

from __future__ import annotations

import json
from itertools import accumulate
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parents[2] / "benchmarks" / "results"
BLUE, ORANGE, GREEN, GRAY = "#2a6fbb", "#d9822b", "#3a8f5c", "#8a8f98"
KINDS = {"conv": BLUE, "myelin": ORANGE, "reformat": GRAY, "other": GREEN}
STYLE = {
    "svg.hashsalt": "restort", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.alpha": 0.3, "figure.facecolor": "white",
}  # fmt: skip


def record(name: str) -> Any:
    """Return the recorded result `name`, such as 'speed/h100'."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def save(name: str, suffix: str = "svg") -> None:
    """Write the current figure as NAME.SUFFIX; png is for figures of thousands of shapes."""
    plt.tight_layout()
    metadata = {"Date": None, "Creator": None} if suffix == "svg" else {"Software": None}
    plt.savefig(HERE / f"{name}.{suffix}", metadata=metadata, dpi=110)
    plt.close()


def networks() -> None:
    """Draw the levels of the official Restormer as boxes: height by picture size, width by channels."""
    sizes = {"encoder_level1": (48, 1), "encoder_level2": (96, 2), "encoder_level3": (192, 4), "latent": (384, 8),
             "decoder_level3": (192, 4), "decoder_level2": (96, 2), "decoder_level1": (96, 1),
             "refinement": (96, 1)}  # fmt: skip
    _, axes = plt.subplots(figsize=(8, 2.8))
    axes.axis("off")
    x, anchors = 0.0, []
    for name, (channels, down) in sizes.items():
        width, height = 0.25 + channels / 384, 2.4 / down**0.6
        axes.add_patch(
            plt.Rectangle((x, -height / 2), width, height, color=ORANGE if down == 8 else BLUE, alpha=0.75)
        )
        middle = x + width / 2
        axes.text(middle, -1.45, name.replace("_", "\n"), ha="center", va="top", fontsize=7)
        size = "H x W" if down == 1 else f"H/{down} x W/{down}"
        axes.text(middle, height / 2 + 0.08, f"{channels}\n{size}", ha="center", fontsize=7)
        anchors.append((middle, height / 2))
        x += width + 0.55
    for start, end in ((0, 6), (1, 5), (2, 4)):
        axes.annotate(
            "", (anchors[end][0], -anchors[end][1]), (anchors[start][0], -anchors[start][1]),
            arrowprops={"arrowstyle": "->", "color": GRAY, "connectionstyle": "arc3,rad=0.12"},
        )  # fmt: skip
    axes.set_xlim(-0.2, x)
    axes.set_ylim(-2.2, 1.8)
    save("networks")


def baseline() -> None:
    """Eager PyTorch over the picture's size in fp16 and fp32, beside the roofline lower bound."""
    rows = [
        r
        for r in record("speed/h100")["records"]
        if r["workload"].startswith("restormer") and r["batch"] == 1
    ]
    _, axes = plt.subplots(figsize=(6, 3.2))
    for precision, colour in (("fp32", ORANGE), ("fp16", BLUE)):
        points = sorted((r["height"] * r["width"] / 1e6, r["median_ms"]) for r in rows
                        if (r["backend"], r["precision"]) == ("torch", precision))  # fmt: skip
        axes.plot(*zip(*points), "o-", color=colour, label=f"torch {precision}")
    bound = sorted(
        {(r["height"] * r["width"] / 1e6, r["roofline_ms"]) for r in rows if r["backend"] == "torch"}
    )
    axes.plot(*zip(*bound), "--", color=GRAY, label="roofline")
    axes.set(xscale="log", yscale="log", xlabel="Mpixel", ylabel="ms")
    axes.legend()
    save("baseline")


def layers() -> None:
    """Sum the times of an engine's layers, one after another: a plain export and the emitted graph."""
    _, axes = plt.subplots(figsize=(6, 3.2))
    base = "elan-light-x4-192x320 x1 fp16"
    for name, label, colour in ((f"{base} (plain)", "torch.onnx.export", ORANGE), (base, "restort build", BLUE),
                                (f"{base} (kernels fused)", "--kernels fused", GREEN)):  # fmt: skip
        times = [layer["ms"] for layer in record("speed/tensorrt86_layers")[name]]
        axes.plot(
            [0, *range(1, len(times) + 1)],
            [0, *accumulate(times)],
            color=colour,
            label=f"{label}: {len(times)}",
        )
    axes.set(xlabel="#", ylabel="ms")
    axes.legend()
    save("layers")


def kind(layer: str) -> str:
    """Return which of KINDS a layer's name says."""
    if "Reformatting" in layer:
        return "reformat"
    return "myelin" if "ForeignNode" in layer else "conv" if "conv" in layer.lower() else "other"


def timeline() -> None:
    """Draw the layers of two engines as bars in time, coloured by kind."""
    _, panels = plt.subplots(2, 1, figsize=(7, 2.8))
    for axes, name in zip(
        panels, ("elan-light-x4-192x320 x1 fp16", "restormer-720x1280 x1 fp16"), strict=True
    ):
        start = 0.0
        spans: dict[str, list[tuple[float, float]]] = {name: [] for name in KINDS}
        for layer in record("speed/tensorrt86_layers")[name]:
            spans[kind(layer["name"])].append((start, layer["ms"]))
            start += layer["ms"]
        for group, colour in KINDS.items():
            share = sum(length for _, length in spans[group]) / start
            axes.broken_barh(spans[group], (0, 1), color=colour, label=f"{group} {share:.0%}", linewidth=0)
        axes.set(yticks=[], xlim=(0, start), title=name.removesuffix(" x1 fp16"))
        axes.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.25), frameon=False)
        axes.text(1.005, 0.5, "ms", transform=axes.transAxes)
    save("timeline", "png")


def errors() -> None:
    """Relative L2 error by precision, on two test sets."""
    _, axes = plt.subplots(figsize=(6, 3.2))
    for offset, table, colour in zip(
        (-0.2, 0.2), record("accuracy/accuracy_tensorrt")["tables"], (BLUE, ORANGE)
    ):
        rows = [r for r in table["rows"] if r["relative_l2"]]
        labels = [f"{r['backend']}\n{r['precision']}" for r in rows]
        places = [place + offset for place in range(len(rows))]
        axes.bar(places, [r["relative_l2"] for r in rows], 0.38, color=colour, label=table["model"])
    axes.set(yscale="log", ylabel="relative L2", xticks=range(len(labels)))
    axes.set_xticklabels(labels, fontsize=6)
    axes.legend()
    save("errors")


def quantisation() -> None:
    """Decibels lost by each way to quantise, under its name in the record."""
    tables = [table for table in record("accuracy/quantization")["tables"] if table["table"] == "causes"]
    rows = [row for table in tables for row in table["rows"]]
    _, axes = plt.subplots(figsize=(7, 0.6 + 0.2 * len(rows)))
    axes.barh([row["name"] for row in rows], [row["loss_db"] for row in rows], color=BLUE)
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("dB")
    save("quantisation")


if __name__ == "__main__":
    with plt.rc_context(STYLE):
        for draw in (networks, baseline, layers, timeline, errors, quantisation):
            draw()
