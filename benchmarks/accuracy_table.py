"""Accuracy of the backends against PyTorch in float32, on test sets: the table of the README, into results/.

    python benchmarks/accuracy_table.py [--limit 4] [--runs onnxruntime:fp32,openvino:bf16,...] [--output FILE]

For ELAN-light x4 on Set5 (all of it) and restormer-small-denoise on the first --limit pictures of Kodak24 with
noise of sigma 25: absolute and relative error of the network's output over all pictures, each largest, mean and
median, relative to |reference| + epsilon; and PSNR and SSIM on the set, by the conventions of `restort evaluate`.
Pictures run whole. Needs the extras `torch`, `evaluate` and, for its rows, `openvino`; test sets and the weights of
ELAN-light lie in ../shared or where --data and --elan say. Takes a minute and a half on two cores.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from restort.backends.registry import create
from restort.errors import RestortError
from restort.evaluation.evaluate import evaluate
from restort.profiling.machine import provenance
from restort.profiling.tensor_error import EPSILON, definitions, tensor_error
from restort.runner import Runner
from restort.tiling.padding import pad_to_multiple
from restort.utils.files import write_bytes
from restort.weights.catalogue import find
from restort.weights.checkpoint import Weights, load_weights
from restort.weights.download import path_of

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared"
REFERENCE = "torch:fp32"
RUNS = "onnxruntime:fp32,openvino:fp32,openvino:bf16,torch:bf16"
HEADS = [
    "",
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


class Recording:
    """A restoring function for `evaluate` that keeps what the network returned, neither clipped nor rounded."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.outputs: list[np.ndarray] = []

    def __call__(self, image: np.ndarray) -> np.ndarray:
        spec = self.runner.spec
        x = pad_to_multiple(image.transpose(2, 0, 1)[None], spec.size_multiple)
        y = self.runner(np.ascontiguousarray(x, np.float32))[0].transpose(1, 2, 0)
        y = y[: image.shape[0] * spec.scale, : image.shape[1] * spec.scale]
        self.outputs.append(y)
        return y


def run(
    weights: Weights, name: str, dataset: Path, options: dict[str, Any], runs: list[str], threads: int | None
) -> dict[str, Any]:
    """One table: a row per backend, the reference first."""
    rows: list[dict[str, Any]] = []
    reference = np.empty(0)
    settings: dict[str, Any] = {}
    for label in [REFERENCE, *(r for r in runs if r != REFERENCE)]:
        print(f"{name} on {dataset.name}: {label}", file=sys.stderr, flush=True)
        backend, _, precision = label.partition(":")
        try:
            runner = create(weights, backend, precision or "fp32", threads=threads)
            restore = Recording(runner)
            report = evaluate(restore, dataset, **options)
            runner.close()
        except RestortError as error:  # a backend that is not here must not hide the others
            if label == REFERENCE:
                raise
            rows.append({"backend": backend, "precision": precision, "error": str(error)})
            continue
        result = np.concatenate([y.reshape(-1) for y in restore.outputs])
        if label == REFERENCE:
            reference = result
        found = tensor_error(result, reference, epsilon=EPSILON, peak=1.0).to_json()
        (average,) = report.averages()
        settings = report.to_json()["settings"] | {"pictures": average.pictures, "metrics": report.metrics}
        row = {"backend": backend, "precision": runner.precision, **found, "error": None}
        row |= {"psnr_vs_reference": row.pop("psnr"), "elements": row.pop("shape")[0]}
        rows.append(
            row | {"psnr_on_set": round(average.psnr, 4), "ssim_on_set": round(average.ssim or math.nan, 5)}
        )
    return {
        "model": name,
        "weights_sha256": weights.digest,
        "dataset": dataset.name,
        "settings": settings,
        "reference": REFERENCE,
        "rows": rows,
    }


def text(table: dict[str, Any]) -> str:
    """The table in Markdown."""
    settings = table["settings"]
    noise = f", noise of sigma {settings['sigmas'][0]}" if "sigmas" in settings else ""
    pictures = f"{table['dataset']} ({settings['pictures']} pictures{noise})"
    lines = [
        f"{table['model']} on {pictures} against {table['reference']}:",
        "",
        "| " + " | ".join(HEADS) + " |",
        "| --- " + "| ---: " * (len(HEADS) - 1) + "|",
    ]
    for row in table["rows"]:
        name = f"{row['backend']} {row['precision']}"
        if row["error"] is not None:
            lines.append(f"| {name} | {row['error']} |")
            continue
        if row["absolute"] is None:
            lines.append(f"| {name} | {row['non_finite']} values are NaN or infinite |")
            continue
        cells = [row[kind][part] for kind in ("absolute", "relative") for part in ("max", "mean", "median")]
        numbers = [f"{cell:.2e}" for cell in [*cells, row["relative_l2"]]]
        lines.append(
            "| "
            + " | ".join([name, *numbers, f"{row['psnr_on_set']:.3f}", f"{row['ssim_on_set']:.4f}"])
            + " |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="accuracy of the backends against PyTorch in float32")
    parser.add_argument("--runs", default=RUNS, help=f"backend:precision,... (default: {RUNS})")
    parser.add_argument("--limit", type=int, default=4, help="pictures of Kodak24 (default: 4; 24 for all)")
    parser.add_argument("--sigma", type=float, default=25, help="of the noise, of 255 (default: 25)")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "test", help="holds set5 and kodak24")
    parser.add_argument(
        "--elan", type=Path, default=SHARED / "weights" / "elan_light_x4_friedricelab.safetensors"
    )
    parser.add_argument("--output", type=Path, default=HERE / "results" / "accuracy" / "accuracy_cpu.json")
    args = parser.parse_args()
    about = provenance()
    denoiser = load_weights(path_of(find("restormer-small-denoise"), notice=print))
    noisy = {"task": "denoise", "sigmas": (args.sigma,), "limit": args.limit}
    tables = []
    for weights, name, folder, options in (
        (load_weights(args.elan), "ELAN-light x4", "set5", {"task": "upscale", "scale": 4}),
        (denoiser, "restormer-small-denoise", "kodak24", noisy),
    ):
        tables.append(run(weights, name, args.data / folder, options, args.runs.split(","), args.threads))
        print(text(tables[-1]), "\n", flush=True)
    meanings = definitions(EPSILON)
    print(
        f"relative error: {meanings['relative']}; outputs not clipped or rounded; PSNR in dB and SSIM of the set"
    )
    result = {"epsilon": EPSILON, "definitions": meanings, "tables": tables, **about}
    data = json.dumps(result, indent=1, allow_nan=False) + "\n"
    write_bytes(args.output, data.encode(), overwrite=True)


if __name__ == "__main__":
    main()
