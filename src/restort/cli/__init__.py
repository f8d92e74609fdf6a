"""The command line. A module here that is a command has `add(subparsers)`, which describes the command and sets `run`
to a function from the parsed arguments to the exit status. Imports of anything heavier than argparse stand inside
those functions."""
