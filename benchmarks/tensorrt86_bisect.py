"""Which networks TensorRT 8.6 can build at all, and how fast: small ones, in many ways of writing, four at a time.

    . D/env.sh && PYTHONPATH=src:benchmarks:$PYTHONPATH $TRT_PYTHON benchmarks/tensorrt86_bisect.py [--seconds 150]
                  [--only WORDS] [--again] [--jobs 4] [--limit 40] [--output FILE] [--list] [--table] [--add TEXT]...

D and what else is needed: benchmarks/tensorrt86.py. The networks have the channels of the official ones and few blocks
('r': Restormer 1, 1, 1, 1 and 1 at 256x256; 'l' and 'e': ELAN-light and ELAN of two groups at 192x320), or all of
them ('L', 'E': the full ELANs; 'R': the official Restormer). --add 'R 368x552: attention unit, level 2' tries one more.

Each variant is a process of its own, recorded as soon as it is done: what was built, in how long, its time on the
GPU (others run beside it, so it is a hint), its difference to the float32 engine of the same network, and the first
40 errors and warnings of TensorRT, its last 40 lines of any kind, the parts it gave to its compiler Myelin
(ForeignNode) with the second when they were first named, and where the build's time went: by kind of kernel
('runners': layers, tactics, seconds) and by layer. What the file holds is not done again; --again does it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tensorrt86_cases import parsed
from tensorrt86_trail import MESSAGES, Record, Trail
from tensorrt86_variants import VARIANTS, Variant, weights_of

HERE = Path(__file__).resolve().parent
LIMIT = 40.0
FULL = 120.0  # for networks of all blocks, at least


def measure(variant: Variant, answer: Path) -> None:
    """In the child: builds, runs, writes what it found, in steps, so that what is known survives."""
    import numpy as np

    from restort.backends.tensorrt import build as building
    from restort.backends.tensorrt.build import BuildOptions, build, graph_precision
    from restort.backends.tensorrt.flavour import find
    from restort.backends.tensorrt.keys import Profile
    from restort.backends.tensorrt.runtime import Engine
    from restort.export.typed import typed_graph

    form, options = parsed(variant.form)
    record: Record = {"graph": asdict(form), "options": options}
    start = time.perf_counter()

    def tell(step: str, **found: Any) -> None:
        record.update(found, step=step, at_s=round(time.perf_counter() - start, 1))
        part = answer.with_suffix(".part")
        part.write_text(json.dumps(record))
        part.replace(answer)

    def note(precision: str, layers: list[Record], low: Any) -> None:
        tell("checking", unwanted_float32=unwanted(layers, low)[:10])

    unwanted = building.inspect.unwanted_float32
    building.inspect.check = note  # noted, and not an error: here the time counts
    flavour = find("tensorrt")
    trail = Trail(flavour, lambda: tell(record["step"], **trail.found()))
    weights = weights_of(variant.network)
    precision = graph_precision(
        flavour, variant.precision, options.get("constraints"), weights.spec.architecture
    )
    graph = typed_graph(weights, precision, newer_operators=False, form=form)
    kinds: dict[str, int] = {}
    for node in graph.graph.node:
        kinds[node.op_type] = kinds.get(node.op_type, 0) + 1
    tell("building", nodes=len(graph.graph.node), kinds=dict(sorted(kinds.items(), key=lambda i: -i[1])[:8]))
    size = (1, variant.height, variant.width)
    try:
        built = build(flavour, graph, BuildOptions(Profile.fixed(*size), variant.precision, **options))
        tell("running", build_s=built.report["seconds"], flags=built.report["flags"])
        tell("running", types=built.report["layers"], bytes=len(built.plan))
        engine = Engine(flavour, built.plan)
        x = np.random.default_rng(0).random((1, 3, *size[1:]), np.float32)
        y = engine(x)
        np.save(answer.with_suffix(".npy"), y)
        once = engine.timer(x)
        times = sorted(once() for _ in range(30))
        tell("layers", median_ms=float(f"{times[15]:.4g}"), finite=bool(np.isfinite(y).all()))
        tell("done", **timeline(engine, x))
        engine.close()
    except BaseException as error:
        tell(record["step"], error=f"{type(error).__name__}: {error}")
    tell(record["step"], **trail.found())


def timeline(engine: Any, x: Any) -> Record:
    """How many layers the engine has, how many of them by Myelin and their share of the time, the longest five, the
    milliseconds of each block ('' what is in none), and all layers, which stay in the variant's own file."""
    from tensorrt86 import layers

    found = layers(engine, x, runs=5)
    total = sum(layer["ms"] for layer in found) or 1.0
    foreign = [layer for layer in found if re.search("myelin|foreign", layer["name"], re.IGNORECASE)]
    longest = sorted(found, key=lambda layer: -layer["ms"])[:5]
    blocks: dict[str, float] = {}
    for layer in found:
        named = re.search(r"([a-z]\w*\.\d+)/", layer["name"])
        blocks[named[1] if named else ""] = blocks.get(named[1] if named else "", 0.0) + layer["ms"]
    return {
        "layers": len(found),
        "myelin": len(foreign),
        "myelin_share": round(sum(layer["ms"] for layer in foreign) / total, 3),
        "longest": [f"{layer['ms']} {layer['name'][:160]}" for layer in longest],
        "blocks_ms": {name: float(f"{ms:.4g}") for name, ms in blocks.items()},
        "timeline": [f"{layer['ms']} {layer['name'][:120]}" for layer in found],
    }


class Job:
    """One variant in its process."""

    def __init__(self, variant: Variant, answer: Path, limit: float) -> None:
        self.variant, self.answer, self.limit = variant, answer, limit
        self.start = time.monotonic()
        answer.unlink(missing_ok=True)
        self.errors = answer.with_suffix(".log").open("w+b")
        command = [sys.executable, __file__, "--child", json.dumps(asdict(variant)), "--answer", str(answer)]
        self.process = subprocess.Popen(command, stdout=self.errors, stderr=self.errors)

    def done(self) -> Record | None:
        """The record, once the process has ended or its time is up."""
        seconds = time.monotonic() - self.start
        status = self.process.poll()
        late = status is None and seconds > self.limit
        if status is None and not late:
            return None
        if late:
            self.process.kill()
            self.process.wait()
        with self.errors:
            self.errors.seek(0)
            lines = self.errors.read().decode("utf-8", "replace").strip().splitlines()
        try:
            record: Record = json.loads(self.answer.read_text())
        except (OSError, ValueError):
            record = {"step": "starting"}
        record.pop("timeline", None)
        if late:
            record["error"] = f"no result within {self.limit:.0f} s"
        elif status and "error" not in record:
            record["error"] = f"ended with status {status}: {' '.join(lines[-1:])[:300]}"
        if "error" in record:
            record.setdefault("log", lines[:MESSAGES])
        return {"case": str(self.variant), "seconds": round(seconds, 1), **record}


def run(variants: list[Variant], args: argparse.Namespace) -> int:
    kept: list[Record] = json.loads(args.output.read_text()) if args.output.is_file() else []
    known = set() if args.again else {record["case"] for record in kept}
    waiting = [variant for variant in dict.fromkeys(variants) if str(variant) not in known]
    folder = args.output.with_suffix("")  # outputs and logs
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + args.seconds
    jobs: list[Job] = []
    try:
        while jobs or (waiting and end - time.monotonic() > 10):
            while waiting and len(jobs) < args.jobs and end - time.monotonic() > 10:
                variant = waiting.pop(0)
                limit = max(args.limit, FULL) if variant.network.isupper() else args.limit
                limit = min(limit, end - time.monotonic())
                jobs.append(Job(variant, answer_of(folder, str(variant)), limit))
            time.sleep(0.1)
            for job in list(jobs):
                record = job.done()
                if record is not None:
                    jobs.remove(job)
                    kept = [other for other in kept if other["case"] != record["case"]] + [record]
                    compare(kept, folder)
                    args.output.write_text(json.dumps(kept, indent=1) + "\n")
                    print(line(record), flush=True)
    finally:
        for job in jobs:
            job.process.kill()
    print(table(kept))
    if waiting:
        print(f"{len(waiting)} variants are left; call again")
    return 0


def answer_of(folder: Path, case: str) -> Path:
    return folder / (re.sub(r"[^A-Za-z0-9]+", "-", case).strip("-") + ".json")


def compare(records: list[Record], folder: Path) -> None:
    """The relative L2 difference of each output to that of the float32 engine of the same network and size."""
    import numpy as np

    def output(record: Record) -> Any:
        path = answer_of(folder, record["case"]).with_suffix(".npy")
        return np.load(path) if path.is_file() and "median_ms" in record else None

    exact = {r["case"].split(" fp32:")[0]: output(r) for r in records if " fp32:" in r["case"]}
    for record in records:
        y = exact.get(" ".join(record["case"].split(" ")[:2]))
        z = output(record) if y is not None and "rel_l2" not in record else None
        if z is not None and y is not None:
            record["rel_l2"] = float(f"{np.linalg.norm(z - y) / np.linalg.norm(y):.2e}")


def line(record: Record) -> str:
    """One row of the table."""
    cells = [f"{record['case']:<74}", f"{record['seconds']:5.0f} s"]
    for name, form in (
        ("build_s", "{:5.1f}"),
        ("median_ms", "{:7.3f}"),
        ("rel_l2", "{:8.1e}"),
        ("layers", "{:4d}"),
    ):
        cells.append(form.format(record[name]) if name in record else "-")
    if "myelin" in record:
        cells.append(f"{record['myelin']} Myelin, {100 * record['myelin_share']:.0f} %")
    if "error" in record:
        said = next((text for text in record.get("messages", []) if "ERROR" in text), "")
        cells.append(f"FAILED {record['step']}: {record['error'][:110]} | {said[:110]}")
    return "  ".join(cells)


def table(records: list[Record]) -> str:
    head = f"\n{'network, size, precision: form':<74}  total  build  ms  L2 to float32  layers"
    return "\n".join([head, *map(line, sorted(records, key=lambda record: str(record["case"])))])


def main() -> int:
    parser = argparse.ArgumentParser(description="what TensorRT 8.6 can build")
    parser.add_argument("--seconds", type=float, default=150, help="end all after so long")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for one variant")
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--only", help="variants whose name holds one of these (a semicolon between)")
    parser.add_argument(
        "--add", action="append", default=[], help="one more, as 'R 720x1280: level 2'; goes first"
    )
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "tensorrt86_bisect.json")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--table", action="store_true", help="what the file holds")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        measure(Variant(**json.loads(args.child)), args.answer)
        sys.stdout.flush()
        os._exit(0)  # a library that failed may not find its way out
    if args.table:
        print(table(json.loads(args.output.read_text())))
        return 0
    variants = list(map(Variant.of, VARIANTS))
    if args.only is not None:
        words = args.only.split(";")
        variants = [variant for variant in variants if any(word in str(variant) for word in words)]
    variants = [*map(Variant.of, args.add), *variants]
    if args.list:
        print("\n".join(map(str, variants)))
        return 0
    return run(variants, args)


if __name__ == "__main__":
    sys.exit(main())
