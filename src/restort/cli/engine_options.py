"""Values of the options of `restort build`, and the progress bar of a build."""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restort.cli import options

if TYPE_CHECKING:
    from restort.backends.tensorrt.options import Profile, Progress

KERNELS = ("tensorrt", "fused")  # restort.backends.tensorrt.options.KERNELS, which --help does not import


def shapes(text: str) -> Profile:
    """Parse BxHxW, or three of them: min, opt, max."""
    from restort.backends.tensorrt.options import Profile

    try:
        sizes = [tuple(int(n) for n in part.lower().split("x")) for part in text.split(",")]
        if len(sizes) not in (1, 3) or any(len(size) != 3 or min(size) < 1 for size in sizes):
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither BxHxW nor three of them, such as 1x64x64,1x512x512,1x1280x1280"
        ) from None
    return Profile(*(sizes * 3 if len(sizes) == 1 else sizes))  # type: ignore[arg-type]


def combined(given: list[Profile] | None) -> Profile | None:
    """The profile of all --shape; None without any. Raises UsageError where one of several is a range."""
    from restort.backends.tensorrt.options import Profile
    from restort.errors import UsageError

    if given is None or len(given) == 1:
        return given[0] if given else None
    if ranges := [profile for profile in given if not profile.is_fixed]:
        raise UsageError(f"--shape {ranges[0]} is a range; give it alone, or several single sizes BxHxW")
    first, *others = dict.fromkeys(profile.opt for profile in given)
    return Profile(first, first, first, tuple(others))


def capabilities(text: str) -> tuple[str, ...]:
    """Parse a list of compute capabilities, such as 8.6,8.9."""
    import re

    found = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if not all(re.fullmatch(r"\d{1,2}\.\d", part) for part in found):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of compute capabilities, such as 8.6,8.9")
    return found


def add_kernels(parser: argparse.ArgumentParser) -> None:
    """Add --kernels and --aot."""
    parser.add_argument(
        "--kernels",
        choices=KERNELS,
        default="tensorrt",
        help="tensorrt: TensorRT searches for the fastest (default); fused: RestoRT's, compiled for each --shape in "
        "fp16 or bf16 (TensorRT 8.6, 10 and 11)",
    )
    parser.add_argument(
        "--aot",
        metavar="FILE.rtaot",
        type=Path,
        action="append",
        help="with --kernels fused: an AOT package of `restort export --format aot`, for each --shape, for machines "
        "without PyTorch and Triton (default: from the cache folder, or compiled now)",
    )


def check_kernels(args: argparse.Namespace) -> None:
    """Raise UsageError for options that do not fit --kernels; take size and precision from --aot as defaults."""
    from restort.errors import UsageError

    if args.kernels != "fused":
        if args.aot is not None:
            raise UsageError("--aot is only for --kernels fused; add that, or leave --aot out")
        return
    if args.onnx is not None:
        raise UsageError("--kernels fused needs the network: give --model or --weights, not --onnx")
    if args.keep_fp32 is not None or args.budget is not None:
        raise UsageError(
            "--keep-fp32 and --budget are for --precision mixed, which --kernels fused does not support; leave them out"
        )
    if args.aot is not None:
        from restort.backends.fused.aot_cache import open_aot
        from restort.backends.tensorrt.options import Profile

        packages = [open_aot(path.expanduser()) for path in args.aot]
        sizes = [(n, h, w) for n, _, h, w in (package.input for package in packages)]
        args.shape = args.shape or combined([Profile.fixed(*size) for size in sizes])
        args.precision = args.precision or packages[0].text.get("precision")


def names(text: str) -> tuple[str, ...]:
    """Parse a list of names."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def budget(text: str) -> float:
    """Parse a relative error."""
    return options.number(
        text, "a relative error between 0 and 1, such as 0.001", lambda value: 0 < value < 1
    )


class Display:
    """Progress bar of a build on a terminal; a context manager that gives the function to call."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self._bar: Any = None

    def __enter__(self) -> Progress:
        import sys

        if self.quiet or not sys.stderr.isatty():
            return lambda phase, share: None
        from tqdm import tqdm

        self._bar = tqdm(
            total=100,
            file=sys.stderr,
            leave=False,
            dynamic_ncols=True,
            bar_format="{desc:32} {bar} [{elapsed}]",
        )
        return self._tell

    def _tell(self, phase: str, share: float | None) -> None:
        self._bar.set_description_str(phase[:32], refresh=False)
        self._bar.n = 100 * (share or 0)
        with suppress(OSError, ValueError):  # a closed terminal must not end the work
            self._bar.refresh()

    def __exit__(self, *about: object) -> None:
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.close()
