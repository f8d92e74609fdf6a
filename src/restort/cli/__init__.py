"""The command line, one module a command.

The module of a command has `add(subparsers)`, which adds its parser and sets `run` to a function from the parsed
arguments to the exit status. These functions import everything heavier than argparse themselves.
"""
