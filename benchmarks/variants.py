"""What the scripts *_variants.py share: compiling ahead, running a launch for its results, a table that is kept."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from restort.kernels.precompile import default_processes, missing, note, precompile, precompile_cuda


def compile_ahead(launches: Sequence[Any], capability: int) -> None:
    """All kernels of `launches`, by processes and threads, without a GPU."""
    started = time.time()
    lacking = missing(launches, capability)
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(precompile, list(lacking.values()))
        precompile_cuda(launches, capability)
        print(f"{made.result()} of {len(lacking)} Triton kernels; {default_processes()} processes;", end=" ")
    note(list(lacking))
    print(f"compiled in {time.time() - started:.1f} s", flush=True)


def run_twice(launch: Any, results: Sequence[Any]) -> tuple[list[Any], bool]:
    """What a run leaves in `results`, which hold NaN before, and whether a second one leaves the same bits."""
    seen = []
    for _ in range(2):
        for result in results:
            result.fill_(float("nan"))
        launch()
        seen.append([result.clone() for result in results])
    return seen[0], all(map(torch.equal, *seen))


class Table:
    """Rows that are printed and, with `path`, written beside `about` as they come."""

    def __init__(self, path: Path | None, **about: Any) -> None:
        self.path, self.about, self.rows = path, about, list[dict[str, Any]]()

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        if self.path is not None:
            found = {**self.about, "records": self.rows}
            self.path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
