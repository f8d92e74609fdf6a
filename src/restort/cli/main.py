"""The command line: parses, calls one of COMMANDS, prints what went wrong. Nothing heavy is imported
before a command runs."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from restort.cli import bench, build, cache, compare, doctor, evaluate, export, inspect, models, restore
from restort.errors import RestortError, UsageError
from restort.version import __version__

COMMANDS = (restore, models, export, build, inspect, evaluate, compare, bench, cache, doctor)
"""In the order of `restort --help`."""

DONE, FAILED, USAGE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143


class Parser(argparse.ArgumentParser):
    """argparse's, with one sentence for an error."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message}; `{self.prog} --help` explains the options\n")


def parser() -> argparse.ArgumentParser:
    """The whole command line; each of COMMANDS adds its own."""
    top = Parser(
        prog="restort",
        description="Restores pictures: enlarges, denoises, deblurs (Restormer, ELAN).",
        epilog="Exit status: 0 all done, 1 some failed, 2 wrong usage, 130 interrupted.",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"restort {__version__}")
    subparsers = top.add_subparsers(title="commands", dest="name", metavar="COMMAND", required=True)
    for module in COMMANDS:
        module.add(subparsers)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    try:
        args = parser().parse_args(arguments)
    except SystemExit as stop:  # --help, --version and wrong usage have printed what there is to say
        return stop.code if isinstance(stop.code, int) else USAGE
    terminated: list[bool] = []
    try:
        with _terminated_like_interrupted(terminated):
            status = int(args.run(args))
            sys.stdout.flush()
    except UsageError as error:
        return _tell(args, error, USAGE)
    except RestortError as error:
        return _tell(args, error, FAILED)
    except KeyboardInterrupt:
        status = INTERRUPTED
        print("restort: interrupted", file=sys.stderr)
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        from restort.inference.batch import sentence

        return _tell(args, RestortError(sentence(error)), FAILED)
    return TERMINATED if terminated and status == INTERRUPTED else status


def _tell(args: argparse.Namespace, error: RestortError, status: int) -> int:
    from restort.utils.text import printable

    print(f"restort: {printable(error)}", file=sys.stderr)
    if getattr(args, "json", False):
        summary = {"restort": __version__, "command": args.name, "status": status, "error": str(error)}
        with contextlib.suppress(OSError):
            print(json.dumps(summary, indent=2), flush=True)
    return status


@contextlib.contextmanager
def _terminated_like_interrupted(terminated: list[bool]) -> Iterator[None]:
    """SIGTERM ends a command as cleanly as Ctrl-C does."""

    def stop(number: int, frame: Any) -> NoReturn:
        terminated.append(True)
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
