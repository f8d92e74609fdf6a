"""What the options of `restort build` may be, and what a person sees while it works."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from restort.backends.tensorrt.keys import Profile
    from restort.backends.tensorrt.progress import Progress

KERNELS = ("tensorrt", "fused")  # as in restort.backends.tensorrt.build, which is not imported for --help


def shapes(text: str) -> Profile:
    """BxHxW, or three of them: min, opt, max."""
    from restort.backends.tensorrt.keys import Profile

    try:
        sizes = [tuple(int(n) for n in part.lower().split("x")) for part in text.split(",")]
        if len(sizes) not in (1, 3) or any(len(size) != 3 or min(size) < 1 for size in sizes):
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not BxHxW or three of them with commas between, such as 1x64x64,1x512x512,1x1280x1280"
        ) from None
    return Profile(*(sizes * 3 if len(sizes) == 1 else sizes))  # type: ignore[arg-type]


def capabilities(text: str) -> tuple[str, ...]:
    import re

    found = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if not all(re.fullmatch(r"\d{1,2}\.\d", part) for part in found):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of compute capabilities; give some, such as 8.6,8.9"
        )
    return found


def add_kernels(parser: argparse.ArgumentParser) -> None:
    """--kernels and --plan of `restort build`."""
    parser.add_argument(
        "--kernels",
        choices=KERNELS,
        default="tensorrt",
        help="tensorrt: the library's own, searched for (default); fused: RestoRT's, compiled ahead for one --shape in "
        "fp16 or bf16 (TensorRT 8.6)",
    )
    parser.add_argument(
        "--plan",
        metavar="FILE.plan",
        type=Path,
        help="with --kernels fused: a plan of `restort export --format plan`, where PyTorch and Triton are not here "
        "(default: of the cache folder, or made now)",
    )


def check_kernels(args: argparse.Namespace) -> None:
    """UsageError for options that do not go with --kernels; size and precision of --plan where they are not given."""
    from restort.errors import UsageError

    if args.kernels != "fused":
        if args.plan is not None:
            raise UsageError("--plan is a pass of RestoRT's own kernels; use it with --kernels fused")
        return
    if args.onnx is not None:
        raise UsageError("--kernels fused needs the network: give --model or --weights, not --onnx")
    if args.keep_fp32 is not None or args.budget is not None:
        raise UsageError("--keep-fp32 and --budget are for --precision mixed, which --kernels fused has not")
    if args.plan is not None:
        from restort.backends.fused.aot_cache import opened
        from restort.backends.tensorrt.keys import Profile

        plan = opened(args.plan.expanduser())
        n, _, h, w = plan.input
        args.shape = args.shape or Profile.fixed(n, h, w)
        args.precision = args.precision or plan.text.get("precision")


def names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def budget(text: str) -> float:
    try:
        number = float(text)
        if 0 < number < 1:
            return number
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(
        f"{text!r} is no relative error between 0 and 1; give one, such as 0.001"
    )


class Display:
    """Progress of a build on a terminal; a context manager that gives the function to tell."""

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
        self._bar.refresh()

    def __exit__(self, *about: object) -> None:
        if self._bar is not None:
            self._bar.close()
