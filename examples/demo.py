"""Restore the example photographs by the command line and show before and after: what `make demo` runs.

    python examples/demo.py [--output FOLDER] [--weights FILE]

Only what `pip install restort` brings is needed. The commands are printed, to be tried on other pictures.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from before_after import before_after

from restort.cli.main import main as restort
from restort.errors import RestortError
from restort.weights.catalogue import default_for

HERE = Path(__file__).resolve().parent
STEPS = (  # command, input, result
    ("denoise", "coffee_noisy.jpg", "coffee_clean.png"),
    ("dejpeg", "astronaut_quality30.jpg", "astronaut_clean.png"),
    ("deblur", "cat_shaken.png", "cat_sharp.png"),
    ("upscale", "osprey_small.jpg", "osprey_large.png"),
)


def available(task: str) -> bool:
    """Whether the package ships a model for the task."""
    try:
        return default_for(task).shipped
    except RestortError:
        return False


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("demo"), help="the folder for the results")
    parser.add_argument(
        "--weights", type=Path, help="weights for the upscaling, instead of the shipped model"
    )
    options = parser.parse_args()
    made = []
    for task, name, result in STEPS:
        given = ["--weights", str(options.weights)] if options.weights and task == "upscale" else []
        if not given and not available(task):
            print(f"{task}: no model for it ships with this version; skipped")
            continue
        source, target = HERE / name, options.output / result
        arguments = [task, str(source), "-o", str(target), *given, "--overwrite"]
        print("$ restort " + shlex.join(arguments), flush=True)
        status = restort(arguments)
        if status:
            return status
        picture = options.output / f"before_after_{task}.png"
        before_after(source, target, picture)
        made.append(picture)
    for picture in made:
        print(f"before (left) and after (right): {picture}")
    if not made:
        print("nothing could be restored; give a file of weights: make demo WEIGHTS=FILE", file=sys.stderr)
    return 0 if made else 1


if __name__ == "__main__":
    sys.exit(main())
