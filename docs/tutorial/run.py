"""Run the commands of the tutorial's chapters and compare their output, or write it into them.

    python docs/tutorial/run.py docs/tutorial/zh/01-networks.md            # status 1 where an output differs
    python docs/tutorial/run.py --write docs/tutorial/zh/01-networks.md    # put this machine's outputs in place

A command is a fenced block of Python or sh below the comment `<!-- run -->`; the next block of text is its output. The
Python blocks of a chapter share their names, as the cells of a notebook do; sh blocks run in the same folder, an empty
one. `<!-- run: MODULE -->` skips a block where that Python module is missing. Outputs agree *in form* where they are
equal but for their numbers, spaces and rules, because times and last digits differ from machine to machine.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(
    r"<!-- run(?:: (?P<needs>\w+))? -->\n```(?P<language>python|sh)\n(?P<code>.*?)```\n\n```text\n(?P<output>.*?)```\n",
    re.DOTALL,
)
NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?([eE][-+]?\d+)?")


@dataclass(frozen=True)
class Command:
    """A command of a chapter: its code, its recorded output, and the Python module without which it is skipped."""

    language: str
    code: str
    output: str
    needs: str | None


def commands(text: str) -> list[Command]:
    """Return the commands of a chapter in their order."""
    return [Command(m["language"], m["code"], m["output"], m["needs"]) for m in BLOCK.finditer(text)]


def form(output: str) -> list[str]:
    """Return the lines of an output without its numbers, and with single spaces."""
    lines = (" ".join(NUMBER.sub("0", line).replace("-", " ").split()) for line in output.splitlines())
    return [line for line in lines if line]


def execute(chapter: list[Command], folder: Path) -> list[str | None]:
    """Run the commands in `folder`; return their outputs, None for one that is skipped."""
    names: dict[str, object] = {"__name__": "__main__"}
    outputs: list[str | None] = []
    os.chdir(folder)
    # `restort` is this interpreter's, and messages for people at a terminal (stderr) are no part of an output.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in chapter:
        if command.needs and importlib.util.find_spec(command.needs) is None:
            outputs.append(None)
        elif command.language == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(command.code, "chapter", "exec"), names)
            outputs.append(printed.getvalue())
        else:
            done = subprocess.run(
                ["sh", "-e", "-c", command.code], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
            )
            if done.returncode:
                raise SystemExit(f"a command ended with status {done.returncode}:\n{command.code}")
            outputs.append(done.stdout)
    return outputs


def write(path: Path, outputs: list[str | None]) -> None:
    """Put `outputs` into the chapter at `path`; None leaves one as it is."""
    remaining = iter(outputs)

    def replace(match: re.Match[str]) -> str:
        output = next(remaining)
        if output is None:
            return match[0]
        kept = "\n".join(line.rstrip() for line in output.rstrip().splitlines())
        start, end = (at - match.start() for at in match.span("output"))
        return f"{match[0][:start]}{kept}\n{match[0][end:]}"

    path.write_text(BLOCK.sub(replace, path.read_text(encoding="utf-8")), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the commands of chapters and compare their outputs.")
    parser.add_argument(
        "chapter", type=Path, nargs="+", help="chapters with the same commands (two languages)"
    )
    parser.add_argument("--write", action="store_true", help="put the outputs into the chapters")
    options = parser.parse_args()
    paths: list[Path] = [path.resolve() for path in options.chapter]
    chapter = commands(paths[0].read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        outputs = execute(chapter, Path(folder))
        os.chdir("/")
    if options.write:
        for path in paths:
            write(path, outputs)
        return 0
    status = 0
    for command, output in zip(chapter, outputs):
        if output is not None and form(output) != form(command.output):
            print(
                f"{paths[0]}: another output of\n{command.code}\nrecorded:\n{command.output}\nnow:\n{output}"
            )
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
