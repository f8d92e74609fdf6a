"""`restort completion`: what a shell needs to complete commands, options and file names."""

from __future__ import annotations

import argparse

from restort.cli import options

SHELLS = ("bash", "zsh", "tcsh")
_USE = (
    "bash: restort completion bash > ~/.local/share/bash-completion/completions/restort; "
    "zsh: restort completion zsh > _restort, in a folder of $fpath."
)


def add(subparsers: options.Subparsers) -> None:
    parser = options.command(
        subparsers, "completion", run, "print the completion script of a shell", epilog=_USE
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell")


def run(args: argparse.Namespace) -> int:
    """Print the script; `args.parser` is the parser of the whole command line."""
    from restort.utils.extras import need

    shtab = need("shtab", "completion in a shell")
    print(shtab.complete(args.parser, args.shell))
    return 0
