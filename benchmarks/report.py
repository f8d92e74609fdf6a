"""What was recorded, as Markdown tables on stdout and as charts in benchmarks/charts.

    python benchmarks/report.py [--records FILE] [--kernels FILE] [--layers FILE] [--tensorrt FILE]
                       [--accuracy FILE ...] [--charts FOLDER | --no-charts] [--device NAME] [--only 1,2,7]

--records   of bench_gpu.py; of two of the same case the later one counts
--kernels   of profile_kernels.py
--tensorrt  of bench_tensorrt.py: what could not be built, and engines that --records lacks; --layers, its timelines
--accuracy  of accuracy.py
--device    results of GPUs whose names hold this word (otherwise of the one with the most records)

Files that do not exist and tables without a record are left out, which stderr says; a missing record is a dash. Nothing
is measured here: every figure is one that was recorded, or a sum or quotient of such. Charts need matplotlib; they hold
names, units and numbers, so that one file serves every language, and the same data gives the same file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness import RESULTS
from reporting.charts import charts
from reporting.recorded import Report, notify
from reporting.tables import text


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    speed = RESULTS / "speed"
    parser.add_argument("--records", type=Path, default=speed / "h100.json")
    parser.add_argument("--kernels", type=Path, default=speed / "h100_kernels.json")
    parser.add_argument("--layers", type=Path, default=speed / "tensorrt86_layers.json")
    parser.add_argument("--tensorrt", type=Path, default=speed / "tensorrt86.json")
    files = [RESULTS / "accuracy" / f"accuracy_{name}.json" for name in ("gpu", "tensorrt")]
    parser.add_argument("--accuracy", type=Path, nargs="*", default=files)
    parser.add_argument("--charts", type=Path, default=RESULTS.parent / "charts", help="a folder")
    parser.add_argument("--no-charts", action="store_true")
    parser.add_argument("--device", help="a word of the GPU's name")
    parser.add_argument("--only", default="1,2,3,4,5,6,7,8", help="tables, such as 1,2,7")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = options(arguments)
    report = Report(args)
    sys.stdout.write(text(report, {int(i) for i in args.only.split(",")}))
    for name, data in ({} if args.no_charts else charts(report)).items():
        args.charts.mkdir(parents=True, exist_ok=True)
        (args.charts / name).write_bytes(data)
        notify(f"drawn: {args.charts / name}")


if __name__ == "__main__":
    main()
