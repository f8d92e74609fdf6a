"""`restort upscale`, `denoise`, `dejpeg`, `deblur` and `run`: restore pictures."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restort.cli import choice, options
from restort.version import __version__

if TYPE_CHECKING:
    from restort.cli.by_damage import Group
    from restort.imaging.folder import Job
    from restort.inference.batch import Options, Summary
    from restort.inference.model import Model

_HELP = {
    "upscale": "enlarge pictures 2, 3 or 4 times",
    "denoise": "remove noise",
    "dejpeg": "remove JPEG artefacts",
    "deblur": "remove motion blur",
}
_OUTPUTS = (
    "OUTPUT is a file for one picture, or a folder that gets the tree of the input folder; without -o results lie "
    "beside their inputs: photo_%s.jpg, or the folder pictures_%s. A second run into the same folder makes only what "
    "is missing or has changed. INPUT may be a pattern such as '*.jpg', or - for standard input."
)
_ADVANCED = ("offline", "precision", "threads", "tile", "overlap", "max_pixels", "retry", "json")
"""Options that only --help-all explains."""
_ENDINGS = {"denoise": "denoised", "dejpeg": "dejpeg", "deblur": "deblurred"}


def add(subparsers: options.Subparsers) -> None:
    for task, help in _HELP.items():
        epilog = _OUTPUTS.replace("%s", _ENDINGS.get(task, "x4"))
        parser = options.command(subparsers, task, partial(run, task=task), help, epilog=epilog)
        _add_files(parser)
        if task == "upscale":
            parser.add_argument(
                "--scale",
                type=int,
                choices=(2, 3, 4),
                help="factor of enlargement (default: 4, or that of the model)",
            )
        options.add_model(parser, required=False)
        _add_rest(parser)
    parser = options.command(
        subparsers,
        "run",
        partial(run, task=None),
        "run any model on pictures",
        epilog=_OUTPUTS.replace("%s", "restored"),
    )
    _add_files(parser)
    options.add_model(parser, required=True)
    _add_rest(parser)


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", metavar="INPUT", nargs="+", type=Path, help="pictures, or folders of them")
    parser.add_argument(
        "-o", "--output", metavar="OUTPUT", help="a file, a folder, or - (default: beside the input)"
    )
    parser.add_argument(
        "--format",
        choices=options.FORMATS,
        help="format of the results in a folder or beside their inputs (default: that of the input)",
    )


def _add_rest(parser: argparse.ArgumentParser) -> None:
    options.add_backend(parser)
    options.add_tiles(parser)
    options.add_writing(parser)
    options.add_reporting(parser)
    options.add_help_all(parser, _ADVANCED)


def run(args: argparse.Namespace, task: str | None) -> int:
    from restort.imaging.folder import expand

    if "-" in (*map(str, args.inputs), args.output):
        return _piped(args, task)
    return _restore(args, task, expand(args.inputs))


def _jobs(
    args: argparse.Namespace, task: str | None, inputs: list[Path], scale: int, left_out: list[Path]
) -> tuple[list[Job], Path | None]:
    """Return the jobs and the output folder, None for single files."""
    from restort.errors import UsageError
    from restort.imaging.folder import beside, collect

    suffix = None if args.format is None else f".{args.format}"
    if args.output is None:
        ending = f"x{scale}" if scale > 1 else _ENDINGS.get(task or "", "restored")
        return beside(inputs, ending, suffix=suffix, left_out=left_out)
    jobs, output = collect(inputs, args.output, suffix=suffix, left_out=left_out), Path(args.output)
    if [job.target for job in jobs] != [output]:
        return jobs, output
    if suffix is not None and output.suffix != suffix:
        raise UsageError(f"{output} names a format of its own; leave out --format {args.format}")
    return jobs, None


def _restore(args: argparse.Namespace, task: str | None, inputs: list[Path]) -> int:
    from restort.imaging.decode import MAX_PIXELS
    from restort.imaging.encode import QUALITY
    from restort.inference.batch import Options, Summary, restore_files
    from restort.inference.preflight import preflight
    from restort.inference.progress import failure, observer
    from restort.utils.text import to_stderr

    resolved, computing = choice.resolve(args, task), choice.run_options(args)
    left_out: list[Path] = []
    scale = 1 if resolved.entry is None else resolved.entry.scale
    jobs, root = _jobs(args, task, inputs, scale, left_out)
    how = Options(
        args.overwrite,
        args.quality or QUALITY,
        MAX_PIXELS if args.max_pixels == "default" else args.max_pixels,
        args.retry,
    )
    sound, refused = preflight(jobs, how, named=inputs, alone=root is None)
    for result in refused:
        to_stderr(failure(result))
    if not sound:
        return _finish(args, how, Summary(refused, len(jobs)), [], left_out)
    summary, models = Summary(refused, len(jobs)), []
    groups = _groups(args, task, sound, root)
    with observer(len(sound), quiet=args.quiet) as seen:
        for group in groups:
            with choice.open_model(args, group.model or resolved, computing) as model:
                if not args.quiet:
                    seen.notify(f"restort: {model.name} on {model.backend}, {model.precision}")
                part = restore_files(model, group.jobs, root, how, seen, group.damage)
            models.append(model)
            summary.files += part.files
            summary.seconds += part.seconds
            summary.interrupted = part.interrupted
            if part.interrupted:
                break
    return _finish(args, how, summary, models, left_out)


def _groups(args: argparse.Namespace, task: str | None, jobs: list[Job], root: Path | None) -> list[Group]:
    """Return the files of each model: one group where the user names a model, or the task has only one."""
    from restort.cli.by_damage import Group, group

    if task != "upscale" or args.model is not None or args.weights is not None:
        return [Group(None, jobs)]
    return group(
        jobs, root, args.scale, choice.ignore_message if args.quiet else choice.notify, retry=args.retry
    )


def _piped(args: argparse.Namespace, task: str | None) -> int:
    """Restore one picture from standard input, to standard output, or both."""
    import copy
    import tempfile

    from restort.errors import RestortError, UsageError
    from restort.imaging import formats
    from restort.utils.files import write_bytes

    if len(args.inputs) != 1:
        raise UsageError("- stands for one picture; give it as the only input")
    from_pipe, to_pipe = str(args.inputs[0]) == "-", args.output in (None, "-")
    if to_pipe and args.json:
        raise UsageError("the picture and --json cannot both go to standard output; give a file with -o")
    if to_pipe and sys.stdout.isatty():
        raise UsageError(
            "a picture is not printed on a terminal; give a file with -o, or redirect the output"
        )
    with tempfile.TemporaryDirectory(prefix="restort-pipe-") as folder:
        source, inner = args.inputs[0], copy.copy(args)
        if from_pipe:
            data = sys.stdin.buffer.read()
            name = formats.sniff(data[: formats.HEAD])
            source = Path(folder, "standard-input" + (formats.READABLE[name][0] if name else ""))
            write_bytes(source, data)
        if to_pipe:
            known = formats.output_format(source)
            suffix = f".{args.format}" if args.format else source.suffix if known else ".png"
            inner.output, inner.format = str(Path(folder, "output" + suffix)), None
        status = _restore(inner, task, [source])
        made = Path(inner.output)
        if to_pipe and status == 0:
            sys.stdout.buffer.write(made.read_bytes())
            sys.stdout.buffer.flush()
        elif to_pipe and made.exists():
            raise RestortError("the result was not made whole; nothing is written to standard output")
    return status


def _finish(
    args: argparse.Namespace, how: Options, summary: Summary, models: list[Model], left_out: list[Path]
) -> int:
    """Report the run and return the exit status. There are no models where no input could be read."""
    model = models[0] if len(models) == 1 else None
    totals = summary.totals()
    status = 130 if summary.interrupted else 1 if totals["failed"] else 0
    if not args.quiet:
        if left_out:
            kinds = ", ".join(
                f"{n} {suffix}" for suffix, n in Counter(p.suffix.lower() for p in left_out).most_common()
            )
            choice.notify(
                f"left out, because these formats cannot be read: {kinds}; convert them to JPEG or PNG first"
            )
        choice.notify(_closing(totals))
    if args.json:
        report: dict[str, Any] = {
            "restort": __version__,
            "command": args.name,
            "status": status,
            "model": model and _about(model),
            "models": [_about(each) for each in models],
            "backend": models[0].backend if models else None,
            "precision": models[0].precision if models else None,
            "options": {
                "tile": "none" if args.tile is None else args.tile,
                "overlap": args.overlap,
                "strength": args.strength,
                "overwrite": how.overwrite,
                "quality": how.quality,
                "max_pixels": how.max_pixels,
                "threads": args.threads,
            },
            "files": [result.to_json() for result in summary.files],
            "left_out": [str(path) for path in left_out],
            "totals": totals,
        }
        print(json.dumps(report, indent=2))
    return status


def _about(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "architecture": model.spec.architecture,
        "task": model.task,
        "scale": model.scale,
        "sha256": model.weights.digest,
    }


def _closing(totals: dict[str, Any]) -> str:
    words = {"done": "done", "skipped": "up to date", "failed": "failed"}
    parts = [f"{totals[kind]} {word}" for kind, word in words.items() if totals[kind] or kind == "done"]
    start = "interrupted: " if totals["interrupted"] else ""
    return f"{start}{', '.join(parts)} of {totals['files']} in {totals['seconds']:.1f} s"
