"""The files of a measured choice of sections: JSON, table and plot in the cache folder."""

from __future__ import annotations

from pathlib import Path

from restort.backends.tensorrt.mixed_precision import remember
from restort.errors import RestortError
from restort.profiling.plots import sensitivity
from restort.profiling.sensitivity import Choice
from restort.utils.files import write_bytes
from restort.weights.checkpoint import Weights


def keep(weights: Weights, found: Choice) -> list[Path]:
    """Write NAME.json, from which engines are built, NAME.csv and, where matplotlib is installed, NAME.svg."""
    path = remember(weights, found.to_json())
    kept = [path, path.with_suffix(".csv")]
    write_bytes(kept[1], found.to_csv().encode(), overwrite=True)
    try:
        plot = sensitivity(found)
    except RestortError:  # matplotlib is missing, and engines do not need the plot
        return kept
    write_bytes(path.with_suffix(".svg"), plot, overwrite=True)
    return [*kept, path.with_suffix(".svg")]
