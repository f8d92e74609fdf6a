"""`restort doctor`: report what is installed, what works, and how to get what is missing."""

from __future__ import annotations

import argparse
import json

from restort.cli import options


def add(subparsers: options.Subparsers) -> None:
    parser = options.command(
        subparsers, "doctor", run, "report what is installed, what works and what is missing"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the findings as JSON")
    form.add_argument(
        "--bug-report",
        action="store_true",
        help="print this machine in the fields of NVIDIA's form for bug reports, without names of users and folders",
    )


def run(args: argparse.Namespace) -> int:
    if args.bug_report:
        from restort.cli.bug_report import report

        print(report())
        return 0
    from restort.cli.doctor_checks import examine, text

    findings = examine()
    print(json.dumps(findings, indent=2) if args.json else text(findings))
    return 0 if findings["healthy"] else 1
