"""`restort evaluate`: how good a model's results are, on pictures whose truth is known."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from restort.commands import choice, options


def add(subparsers: options.Subparsers) -> None:
    parser = options.command(subparsers, "evaluate", run, "measures PSNR and SSIM on a folder of pictures")
    options.add_model(parser, required=True)
    parser.add_argument(
        "--dataset", metavar="FOLDER", type=Path, required=True, help="pictures of known truth"
    )
    parser.add_argument(
        "--task", choices=("upscale", "denoise", "deblur"), help="what to measure (default: the model's task)"
    )
    parser.add_argument(
        "--sigma", metavar="N", type=float, nargs="+", help="strengths of the noise to remove (0 to 255)"
    )
    options.add_backend(parser)
    options.add_tiles(parser)
    options.add_reporting(parser)


def run(args: argparse.Namespace) -> int:
    from restort.measure.evaluate import evaluate

    with choice.open_model(args) as model:
        report = evaluate(model, args.dataset, args.task)
        print(json.dumps(report.to_json(), indent=2))
    return 0
