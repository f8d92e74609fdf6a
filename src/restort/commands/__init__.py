"""The commands, in the order of `restort --help`. A module here has `add(subparsers)`, which describes its
command and sets `run` to a function from the parsed arguments to the exit status. Imports of anything
heavier than argparse stand inside those functions."""

from restort.commands import bench, compare, doctor, evaluate, export, models, restore

COMMANDS = (restore, models, export, evaluate, compare, bench, doctor)
