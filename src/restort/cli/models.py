"""`restort models`: list the models."""

from __future__ import annotations

import argparse
import dataclasses
import json

from restort.cli import options


def add(subparsers: options.Subparsers) -> None:
    parser = options.command(subparsers, "models", run, "list the models, shipped and downloadable")
    parser.add_argument("--json", action="store_true", help="print everything about them as JSON")


def run(args: argparse.Namespace) -> int:
    from restort.utils.cache_dir import cache_root
    from restort.utils.text import printable
    from restort.weights.catalogue import entries

    folder = cache_root() / "weights"
    found = entries()
    here = {
        entry.name: "shipped"
        if entry.shipped
        else "cached"
        if (folder / entry.filename).is_file()
        else "download"
        for entry in found
    }
    if args.json:
        print(
            json.dumps(
                [
                    dataclasses.asdict(entry) | {"task": entry.task, "where": here[entry.name]}
                    for entry in found
                ],
                indent=2,
            )
        )
        return 0
    head = ("name", "task", "scale", "parameters", "size", "where", "licence")
    rows = [
        (
            entry.name,
            "+".join(entry.tasks),
            f"x{entry.scale}",
            f"{entry.parameters / 1e6:.2f} M",
            f"{entry.approximate_bytes / 1e6:.1f} MB",
            here[entry.name],
            entry.licence,
        )
        for entry in found
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    print(f"\nDownloads are kept in {printable(folder)}. Sources and checksums: restort models --json")
    return 0
