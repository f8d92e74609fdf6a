"""`restort evaluate`: measure the quality of a model on pictures whose clean version is known."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from restort.cli import choice, options


def add(subparsers: options.Subparsers) -> None:
    parser = options.command(subparsers, "evaluate", run, "measure PSNR and SSIM on a folder of pictures")
    options.add_model(parser, required=True)
    parser.add_argument(
        "--dataset",
        metavar="FOLDER",
        type=Path,
        required=True,
        help="a test set; docs/guide.md describes the layouts",
    )
    parser.add_argument("-o", "--output", metavar="FILE.json", type=Path, help="record the full report there")
    group = parser.add_argument_group("what to measure")
    group.add_argument(
        "--task",
        choices=("upscale", "denoise", "deblur", "derain", "defocus"),
        help="(default: what the model is for)",
    )
    group.add_argument(
        "--sigma",
        metavar="N",
        type=float,
        nargs="+",
        help="white noise to remove, of 255 (default: 15 25 50; none with --jpeg or --poisson-gauss)",
    )
    group.add_argument(
        "--poisson-gauss",
        metavar="A,B",
        nargs="+",
        help="noise to remove of variance A x + B, x the pixel in [0, 1], such as 0.01,0.0004",
    )
    group.add_argument(
        "--eight-bit", action="store_true", help="clip and round noisy inputs to 8 bits, as a file holds them"
    )
    group.add_argument(
        "--jpeg",
        metavar="QUALITY[:4:2:0]",
        nargs="+",
        help="compress every input; chroma as 4:2:0 (default), 4:2:2 or 4:4:4",
    )
    group.add_argument(
        "--blur-kernels", metavar="FILE.mat", type=Path, help="blur kernels, for deblurring clean pictures"
    )
    group.add_argument(
        "--seed", metavar="N", type=options.not_negative, default=0, help="of the noise (default: 0)"
    )
    group.add_argument("--limit", metavar="N", type=options.positive, help="only the first N pictures")
    group.add_argument(
        "--crop", metavar="N", type=options.positive, help="only the middle N x N pixels of each"
    )
    options.add_backend(parser, precision="fp32")
    options.add_tiles(parser, files=False)
    parser.add_argument("--overwrite", action="store_true", help="replace FILE.json if it exists")
    options.add_reporting(parser)


def run(args: argparse.Namespace) -> int:
    from restort.evaluation.datasets import check_folder
    from restort.evaluation.degradations import Jpeg, PoissonGaussNoise
    from restort.evaluation.scoring import evaluate
    from restort.utils.files import check_free, write_bytes

    jpeg = [Jpeg.parse(text) for text in args.jpeg or ()]
    poisson_gauss = [PoissonGaussNoise.parse(text) for text in args.poisson_gauss or ()]
    resolved, computing = choice.resolve(args), choice.run_options(args)
    check_folder(args.dataset)
    if args.output is not None:
        check_free(args.output, args.overwrite)
    shown = not args.quiet and sys.stderr.isatty()

    def progress(done: int, total: int, name: str) -> None:
        print(
            f"\r\033[K{done}/{total} {name}",
            end="" if done < total else "\r\033[K",
            file=sys.stderr,
            flush=True,
        )

    with choice.open_model(args, resolved, computing) as model:
        report = evaluate(
            model,
            args.dataset,
            args.task,
            sigmas=args.sigma,
            poisson_gauss=poisson_gauss,
            eight_bit=args.eight_bit,
            jpeg=jpeg,
            kernels=args.blur_kernels,
            seed=args.seed,
            limit=args.limit,
            crop=args.crop,
            progress=progress if shown else None,
        )
    text = json.dumps(report.to_json(), indent=2)
    if args.output is not None:
        write_bytes(args.output, (text + "\n").encode(), overwrite=args.overwrite)
    print(text if args.json else report.table())
    return 0
