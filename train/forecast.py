"""python -m train.forecast RUN/log.csv [...]: how far more training would carry, by a fitted curve.

The curve is a - b * t^(-c), the usual law of diminishing returns, through the validated steps of one run from a tenth
of it on. The end of a cosine schedule lifts the last points, and a longer run has a cosine of its own, so this is an
estimate of what the same recipe would give, not a promise; `a` is what it tends to.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from train.plot import read_log

FACTORS = (2, 4, 10)
LEAST = 5  # validated steps that a fit needs


@dataclass(frozen=True)
class Curve:
    """PSNR(t) = limit - drop * (t / unit) ** -power, t in steps; `residual` is the RMS of the fit in dB."""

    limit: float
    drop: float
    power: float
    unit: float
    residual: float

    def at(self, step: float) -> float:
        return float(self.limit - self.drop * (step / self.unit) ** -self.power)


def fit(steps: list[float], psnr: list[float]) -> Curve:
    """The curve nearest to the points in the least squares; ValueError where there are fewer than LEAST."""
    t, y = np.array(steps), np.array(psnr)
    keep = t >= t.max() / 10 if len(t) else slice(0)
    t, y = t[keep], y[keep]
    if len(t) < LEAST:
        raise ValueError(f"a fit needs {LEAST} validated steps, not {len(t)}")
    unit = float(t.max())
    best: Curve | None = None
    for power in np.geomspace(0.05, 3, 60):  # linear in the other two
        design = np.stack([np.ones_like(t), -((t / unit) ** -power)], 1)
        (limit, drop), *_ = np.linalg.lstsq(design, y, rcond=None)
        residual = float(np.sqrt(np.mean((design @ [limit, drop] - y) ** 2)))
        if best is None or residual < best.residual:
            best = Curve(float(limit), float(drop), float(power), unit, residual)
    assert best is not None
    return best


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m train.forecast", description=__doc__)
    parser.add_argument("logs", nargs="+", type=Path)
    for path in parser.parse_args().logs:
        log = read_log(path)
        name, last = path.parent.name, max(log["psnr_step"], default=0)
        try:
            curve = fit(log["psnr_step"], log["psnr"])
        except ValueError as error:
            print(f"{name}: {error}")
            continue
        more = ", ".join(f"{f}x: {curve.at(last * f) - curve.at(last):+.2f} dB" for f in FACTORS)
        print(
            f"{name}: {log['psnr'][-1]:.2f} dB after {last:.0f} steps; {more}; "
            f"limit {curve.limit - curve.at(last):+.2f} dB "
            f"(power {curve.power:.2f}, fit within {curve.residual:.3f} dB)"
        )


if __name__ == "__main__":
    main()
