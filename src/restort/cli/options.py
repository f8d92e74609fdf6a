"""Options that several commands share, and the parsers of their values."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

# Copies of the keys of BACKENDS and of PRECISIONS: `restort --help` must not import those. A test compares them.
BACKENDS = ("onnxruntime", "openvino", "torch", "fused", "tensorrt")
PRECISIONS = ("fp32", "fp16", "bf16", "tf32", "mixed")
FORMATS = ("png", "jpg", "webp", "tif", "avif", "bmp")
"""Formats of results, for --format."""
Subparsers: TypeAlias = "argparse._SubParsersAction[Any]"


def command(
    subparsers: Subparsers, name: str, run: Callable[[argparse.Namespace], int], help: str, **more: Any
) -> argparse.ArgumentParser:
    """Add the parser of a command; `run` maps the parsed arguments to the exit status."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name, help=help, description=help[0].upper() + help[1:] + ".", allow_abbrev=False, **more
    )
    parser.set_defaults(run=run)
    return parser


class _HelpAll(argparse.Action):
    """Print the help with all options and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *given: Any) -> None:
        parser.set_defaults(help_all=True)
        parser.print_help()
        parser.exit()


def add_help_all(parser: argparse.ArgumentParser, advanced: tuple[str, ...]) -> None:
    """Add --help-all; --help leaves out the options `advanced`, named like attributes of the parsed arguments."""
    parser.add_argument(
        "--help-all", action=_HelpAll, nargs=0, dest=argparse.SUPPRESS, help="show all options and exit"
    )
    parser.set_defaults(advanced=advanced)


def add_model(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add --model, --weights and --offline."""
    group = parser.add_mutually_exclusive_group(required=required)
    group.add_argument("--model", metavar="NAME", help="a model of `restort models`")
    group.add_argument(
        "--weights",
        metavar="FILE",
        type=Path,
        help="a file of weights (.safetensors, .pth) of either network",
    )
    parser.add_argument("--offline", action="store_true", help="never download")


def add_backend(parser: argparse.ArgumentParser, *, precision: str = "auto") -> None:
    """Add --backend, --precision and --threads; `precision` is the default of --precision."""
    group = parser.add_argument_group("computing")
    group.add_argument(
        "--backend",
        choices=("auto", *BACKENDS),
        default="auto",
        help="library that runs the network (default: auto, which is fused on an NVIDIA GPU, otherwise the fastest)",
    )
    group.add_argument(
        "--precision",
        choices=("auto", *PRECISIONS),
        default=precision,
        help=f"number format to compute in (default: {precision})",
    )
    group.add_argument("--threads", metavar="N", type=positive, help="threads to use (default: all cores)")


def add_tiles(parser: argparse.ArgumentParser, *, files: bool = True) -> None:
    group = parser.add_argument_group("large pictures")
    group.add_argument(
        "--tile",
        metavar="auto|N|exact|none",
        type=tile,
        default="auto",
        help="cut into overlapping tiles of N x N pixels; auto: only where memory requires it (default); "
        "exact: the whole-image result of a Restormer, strip by strip, in little memory",
    )
    group.add_argument(
        "--overlap",
        metavar="N",
        type=not_negative,
        help="overlap of tiles in pixels (default: by measurement)",
    )
    if not files:
        return
    group.add_argument(
        "--max-pixels",
        metavar="N",
        type=pixels,
        default="default",
        help="refuse files that claim more pixels, such as 2e9; none for no limit (default: 500 million)",
    )


def add_writing(parser: argparse.ArgumentParser) -> None:
    """Add --strength, --overwrite, --retry and --quality."""
    parser.add_argument(
        "--strength",
        metavar="0..1",
        type=share,
        default=1.0,
        help="share of the result in the output; the rest is the input, for upscale enlarged bicubically (default: 1)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace outputs that exist, and make all again"
    )
    parser.add_argument(
        "--retry", action="store_true", help="try files again that were set aside because they ended a run"
    )
    parser.add_argument(
        "--quality",
        metavar="N",
        type=quality,
        help="1 to 100, of JPEG, WebP and AVIF; 100 is lossless in WebP and 8-bit AVIF (default: 95)",
    )


def add_results(parser: argparse.ArgumentParser, plot: str) -> None:
    """Add --output, --plot and --overwrite for measurements; `plot` is the help of --plot."""
    group = parser.add_argument_group("results")
    group.add_argument("-o", "--output", metavar="FILE.json", type=Path, help="record the numbers there")
    group.add_argument("--plot", metavar="FILE.svg", type=Path, help=plot)
    group.add_argument("--overwrite", action="store_true", help="replace these files if they exist")


def add_reporting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one machine-readable summary on stdout")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="print the log, and a traceback of unexpected errors"
    )


def positive(text: str) -> int:
    return _number(text, 1)


def not_negative(text: str) -> int:
    return _number(text, 0)


def count(text: str) -> int:
    """A number such as 2e9, at least 1."""
    return int(number(text, "a number such as 2e9", lambda value: 1 <= value < 1e18))


def port(text: str) -> int:
    value = _number(text, 0)
    if value > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 0 to 65535")
    return value


def tile(text: str) -> int | str | None:
    """Parse 'auto', 'exact', 'none' (as None) or a number."""
    if text in ("auto", "exact", "none"):
        return None if text == "none" else text
    return _number(text, 1, "auto, exact, none or a number of pixels")


def pixels(text: str) -> int | str | None:
    """Parse 'default', 'none' (as None) or a number such as 2e9."""
    if text in ("default", "none"):
        return None if text == "none" else text
    return int(number(text, "a number of pixels, such as 2e9, or none", lambda value: 1 <= value < 1e18))


def share(text: str) -> float:
    """A number from 0 to 1."""
    return number(text, "a number from 0 to 1", lambda value: 0 <= value <= 1)


def quality(text: str) -> int:
    number = _number(text, 1, "a number from 1 to 100")
    if number > 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not from 1 to 100")
    return number


def number(text: str, kind: str, fits: Callable[[float], bool]) -> float:
    """Parse a number that `fits`; raise ArgumentTypeError, which says that `text` is not `kind`, for others."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")  # fits nowhere
    if not fits(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {kind}")
    return value


def sides(text: str, counts: tuple[int, ...]) -> list[int]:
    """Parse 'AxB...' to numbers above 0, as many as one of `counts` says, the last two a height and a width."""
    try:
        numbers = [int(part) for part in text.lower().split("x")]
    except ValueError:
        numbers = []
    if len(numbers) not in counts or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not height x width, such as 256x384")
    return numbers


def _number(text: str, least: int, wanted: str = "a whole number") -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}") from None
    if number < least:
        raise argparse.ArgumentTypeError(f"{text!r} is less than {least}")
    return number
