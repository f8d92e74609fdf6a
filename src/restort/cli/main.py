"""The command line: parse, run one of COMMANDS, print errors. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from restort.cli import (
    bench,
    build,
    cache,
    cluster,
    compare,
    completion,
    doctor,
    evaluate,
    export,
    inspect,
    models,
    restore,
    serve,
)
from restort.errors import RestortError, UsageError
from restort.utils import interrupt
from restort.utils.text import printable, to_stderr
from restort.version import __version__

COMMANDS = (
    restore,
    cluster,
    serve,
    models,
    export,
    build,
    inspect,
    evaluate,
    compare,
    bench,
    cache,
    doctor,
    completion,
)
"""In the order of `restort --help`."""

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports an error in one sentence and suggests the nearest name."""

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help or an error; a stream that is closed does not change the exit status."""
        with contextlib.suppress(OSError, ValueError):
            super()._print_message(message, file)

    def format_help(self) -> str:
        """The help, without the options that `options.add_help_all` names unless all are asked for."""
        shown = {}
        if not self.get_default("help_all"):
            advanced = self.get_default("advanced") or ()
            shown = {action: action.help for action in self._actions if action.dest in advanced}
        for action in shown:
            action.help = argparse.SUPPRESS
        try:
            return super().format_help()
        finally:
            for action, text in shown.items():
                action.help = text

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message}; `{self.prog} --help` explains the options\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Name the nearest commands instead of all of them."""
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            self.error(f"unknown command {str(value)!r}{_nearest(str(value), action.choices)}")
        super()._check_value(action, value)

    def commands(self) -> Mapping[str, Parser]:
        """The parsers of the commands, by name."""
        found = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return dict(found[0].choices) if found else {}

    def options(self) -> list[str]:
        """The names of the options: '-o', '--output' and so on."""
        return list(self._option_string_actions)

    def reject(self, argument: str, others: Mapping[str, Parser]) -> NoReturn:
        """Report an argument that this command does not take. `others` are all commands, by name."""
        if not argument.startswith("-"):
            self.error(f"unexpected argument {argument!r}")
        option = argument.partition("=")[0]
        hint = _nearest(option, self.options())
        owners = [f"`{other.prog}`" for other in others.values() if option in other.options()]
        if owners:
            hint = f", an option of {', '.join(owners)}"
        self.error(f"unknown option {option}{hint}")


def _nearest(name: str, known: Iterable[str]) -> str:
    """', did you mean X or Y?', or nothing where no name is near."""
    names = list(known)
    near = [other for other in names if len(name) > 3 and other.startswith(name)]
    near = near or difflib.get_close_matches(name, names, n=2, cutoff=0.6)
    return f", did you mean {' or '.join(near)}?" if near else ""


def parser() -> Parser:
    """Make the parser of the whole command line; each of COMMANDS adds its own."""
    top = Parser(
        prog="restort",
        description="Restore pictures: enlarge, denoise, deblur, remove JPEG artefacts (Restormer, ELAN).",
        epilog="Exit status: 0 all done, 1 some failed, 2 wrong usage, 130 interrupted.",
        allow_abbrev=False,
    )
    top.add_argument("-V", "--version", action="version", version=f"restort {__version__}")
    subparsers = top.add_subparsers(title="commands", dest="name", metavar="COMMAND", required=True)
    for module in COMMANDS:
        module.add(subparsers)
    return top


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. Exits like argparse for --help, --version and wrong usage."""
    top = parser()
    if not arguments:
        top.print_help()
        top.exit(DONE)
    commands = top.commands()
    if arguments[0].startswith("-") and arguments[0].partition("=")[0] not in top.options():
        top.reject(arguments[0], commands)
    args, rest = top.parse_known_args(arguments)
    if rest:
        command = commands[args.name]
        command.commands().get(getattr(args, "what", ""), command).reject(rest[0], commands)
    args.parser = top  # for `restort completion`
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    try:
        args = parse(sys.argv[1:] if arguments is None else arguments)
    except SystemExit as stop:  # --help, --version and wrong usage have printed their text
        return stop.code if isinstance(stop.code, int) else USAGE
    try:
        with interrupt.handle_signals(), _logging(getattr(args, "verbose", False)):
            try:
                status = int(args.run(args))
                sys.stdout.flush()
            except UsageError as error:
                return _tell(args, error, USAGE)
            except RestortError as error:
                return _tell(args, error, FAILED)
            except BrokenPipeError:  # the reader of our output has gone
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return FAILED
            except Exception as error:
                from restort.inference.batch import error_line

                return _tell(args, RestortError(error_line(error)), FAILED)
    except KeyboardInterrupt:
        status = INTERRUPTED
        to_stderr("restort: interrupted")
    number = interrupt.received()
    return 128 + number if status == INTERRUPTED and number is not None else status


@contextlib.contextmanager
def _logging(verbose: bool) -> Iterator[None]:
    """With --verbose, print the log of the package on stderr; it also makes unexpected errors show a traceback."""
    log = logging.getLogger("restort")
    if not verbose:
        yield
        return
    handler, level = logging.StreamHandler(), log.level
    handler.setFormatter(logging.Formatter("restort: %(relativeCreated)d ms: %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def _tell(args: argparse.Namespace, error: RestortError, status: int) -> int:
    to_stderr(f"restort: {printable(error)}")
    if getattr(args, "json", False):
        summary = {"restort": __version__, "command": args.name, "status": status, "error": str(error)}
        with contextlib.suppress(OSError):
            print(json.dumps(summary, indent=2), flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
