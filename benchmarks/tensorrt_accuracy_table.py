"""The table of tensorrt_accuracy.py: scores of the outputs in its folder, into the record and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from accuracy_table import text
from tensorrt_accuracy_sets import REFERENCE, SETS, SIGMA, pictures, slug

from restort.evaluation import metrics
from restort.profiling.machine import provenance
from restort.profiling.tensor_error import EPSILON, definitions, tensor_error
from restort.utils.files import write_bytes
from restort.weights.checkpoint import Weights, load_weights

Row = dict[str, Any]
Outputs = list[np.ndarray]


def table(work: Path, output: Path, runs: Sequence[str]) -> None:
    """Scores what is in `work`, a row for each of `runs` and network; the record is written after each row.

    Rows that `output` has of the same weights and settings stay where `work` has no outputs for them.
    """
    found = json.loads(output.read_text()) if output.is_file() else {}
    before = {(t["model"], t["weights_sha256"]): t for t in found.get("tables", [])}
    tables: list[Row] = []
    for model, dataset in SETS.items():
        weights = load_weights(work / f"{slug(model)}.safetensors")
        clean = [picture for _, picture in pictures(work, model)]
        settings: Row = {"pictures": len(clean)} | ({} if weights.spec.scale > 1 else {"sigmas": [SIGMA]})
        kept = before.get((model, weights.digest), {"settings": None, "rows": []})
        rows = kept["rows"] if kept["settings"] == settings else []
        old = {label_of(row): row for row in rows if row["error"] is None}
        made_rows: list[Row] = []
        about = {"model": model, "weights_sha256": weights.digest, "dataset": dataset, "settings": settings}
        tables.append({**about, "reference": REFERENCE, "rows": made_rows})
        folder = work / slug(model)
        reference = flat(outputs(folder, REFERENCE, len(clean)))
        for label in dict.fromkeys([REFERENCE, "onnxruntime:fp32", *runs, *old]):
            made = outputs(folder, label, len(clean))
            row = old.get(label)
            if made and reference is not None:
                row = scored(made, reference, clean, weights)
            made_rows.append(described(folder, label, row))
            save(output, tables)
        print(text(tables[-1]), "\n", flush=True)
    meaning = definitions(EPSILON)["relative"]
    print(f"relative error: {meaning}; outputs not clipped or rounded; PSNR in dB and SSIM of the set")


def label_of(row: Row) -> str:
    return f"{row['backend']}:{row['precision']}"


def outputs(folder: Path, label: str, count: int) -> Outputs:
    """The outputs of a run, in the order of the pictures; none where it has not been done."""
    place = folder / label.replace(":", "-")
    paths = [place / f"{i}.npy" for i in range(count)]
    whole = (place / "done.json").is_file() and all(path.is_file() for path in paths)
    return [np.load(path) for path in paths] if whole else []


def flat(found: Outputs) -> np.ndarray | None:
    return np.concatenate([y.reshape(-1) for y in found]) if found else None


def scored(made: Outputs, reference: np.ndarray, clean: Outputs, weights: Weights) -> Row:
    border = weights.spec.scale if weights.spec.scale > 1 else 0
    measures: dict[str, Callable[..., float]] = {
        "psnr_on_set": metrics.psnr_y if border else metrics.psnr,
        "ssim_on_set": metrics.ssim_y if border else metrics.ssim,
    }
    mine = flat(made)
    assert mine is not None
    found: Row = tensor_error(mine, reference, epsilon=EPSILON, peak=1.0).to_json()
    found |= {"psnr_vs_reference": found.pop("psnr"), "elements": found.pop("shape")[0]}
    eight = [np.rint(np.clip(y.astype(np.float64), 0, 1) * 255).astype(np.uint8) for y in made]
    with ThreadPoolExecutor() as pool:
        for name, measure in measures.items():
            scores = pool.map(lambda y, truth, m=measure: m(y, truth, border=border), eight, clean)
            found[name] = round(float(np.mean(list(scores))), 5 if "ssim" in name else 4)
    return found


def described(folder: Path, label: str, row: Row | None) -> Row:
    """The row with the name of its run, how it was run, and why there is none."""
    backend, _, precision = label.partition(":")
    place = folder / label.replace(":", "-")
    named: Row = {"backend": backend, "precision": precision}
    if row is None:
        failed, done = place / "error.json", (place / "done.json").is_file()
        why = f"there is nothing to compare with: run {REFERENCE}" if done else "has not been run"
        return named | {"error": json.loads(failed.read_text())["error"] if failed.is_file() else why}
    if "about" in row:  # of the record
        return row
    return named | row | {"error": None, "about": json.loads((place / "done.json").read_text())}


def save(output: Path, tables: list[Row]) -> None:
    record = {
        "epsilon": EPSILON,
        "definitions": definitions(EPSILON),
        "tables": tables,
        "scored": provenance(),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(output, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode(), overwrite=True)
