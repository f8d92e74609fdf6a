"""The commands, in the order of `restort --help`. A module here has `add(subparsers)`, which describes its
command and sets `run` to a function from the parsed arguments to the exit status. Imports of anything
heavier than argparse stand inside those functions."""

from restort.commands import bench, build, cache, compare, doctor, evaluate, export, inspect, models, restore

COMMANDS = (restore, models, export, build, inspect, evaluate, compare, bench, cache, doctor)
