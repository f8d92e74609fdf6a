"""python -m train.plot RUN/log.csv [...] -o curve.svg: loss and validation PSNR over the steps of one or more runs."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

SMOOTH = 20  # rows of the log in the running mean of the loss


def read_log(path: Path) -> dict[str, list[float]]:
    """Columns of a log: step, loss, and (psnr_step, psnr) where it was validated."""
    columns: dict[str, list[float]] = {"step": [], "loss": [], "psnr_step": [], "psnr": []}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            columns["step"].append(float(row["step"]))
            columns["loss"].append(float(row["loss"]))
            if row["validation_psnr"]:
                columns["psnr_step"].append(float(row["step"]))
                columns["psnr"].append(float(row["validation_psnr"]))
    return columns


def read_gains(path: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, mean gain in dB) of every named set in the validation.csv beside a log; empty where there is none."""
    gains: dict[str, list[tuple[int, float]]] = {}
    beside = path.parent / "validation.csv"
    if beside.is_file():
        with beside.open(newline="") as file:
            for row in csv.DictReader(file):
                if float(row["input"]) < 80:  # undamaged pictures have nothing to gain
                    gains.setdefault(row["set"], []).append(
                        (int(row["step"]), float(row["output"]) - float(row["input"]))
                    )
    return gains


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m train.plot", description=__doc__)
    parser.add_argument("logs", nargs="+", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()

    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "restort"  # the same log gives the same file
    import matplotlib.pyplot as plt
    import numpy as np

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for path in args.logs:
        log = read_log(path)
        name = path.parent.name
        window = min(SMOOTH, len(log["loss"]))
        smooth = np.convolve(log["loss"], np.ones(window) / window, "valid")
        left.plot(log["step"][window - 1 :], smooth, label=name)
        gains = read_gains(path)
        for kind, points in gains.items():
            right.plot(*zip(*points, strict=True), marker="o", markersize=3, label=kind)
        if not gains:
            right.plot(log["psnr_step"], log["psnr"], marker="o", markersize=3, label=name)
    sets = any(read_gains(path) for path in args.logs)
    left.set(xlabel="step", ylabel=f"training loss (mean of {SMOOTH} log rows)")
    if min(min(axis.get_ydata()) for axis in left.get_lines()) > 0:  # a negative PSNR has no logarithm
        left.set_yscale("log")
    right.set(xlabel="step", ylabel=f"{'gain' if sets else 'PSNR'} of held-out photographs, dB")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(args.output, metadata={"Date": None})


if __name__ == "__main__":
    main()
