"""`restort cache`: list and clear the cache folder."""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING, Any

from restort.cli import choice, options

if TYPE_CHECKING:
    from pathlib import Path

PARTS = {
    "engines": "TensorRT engines",
    "graphs": "emitted ONNX graphs",
    "timings": "measurements of `auto`",
    "tactics": "measurements of TensorRT's builder",
    "rtx-kernels": "kernels that TensorRT-RTX compiled",
    "sensitivity": "which blocks need float32",
    "kernels": "compiled kernels of the fused backend",
    "aot": "AOT packages of the fused backend",
    "plugins": "TensorRT's plugin RestortPass",
    "weights": "downloaded weights",
}
KEPT = ("weights",)  # cleared only when named, because they must be downloaded again


def add(subparsers: options.Subparsers) -> None:
    parser = options.command(subparsers, "cache", run_list, "list or clear what is kept between runs")
    commands = parser.add_subparsers(title="commands", dest="what", metavar="list|clear", required=True)
    listing = options.command(commands, "list", run_list, "list the engines and the sizes of all parts")
    listing.add_argument("--json", action="store_true", help="print everything as JSON")
    clearing = options.command(
        commands, "clear", run_clear, "remove what can be made again; nothing that is in use or being built"
    )
    clearing.add_argument(
        "parts",
        metavar="PART",
        nargs="*",
        help=f"some of {', '.join(PARTS)} (default: all but {', '.join(KEPT)})",
    )
    clearing.add_argument(
        "--unused-for",
        metavar="DAYS",
        type=days,
        default=0.0,
        help="only what has not been used for this long",
    )
    options.add_reporting(clearing)


def run_list(args: argparse.Namespace) -> int:
    from restort.utils.cache_dir import cache_root
    from restort.utils.text import printable

    root, found = cache_root(), engines()
    parts = {name: size(root / name) for name in folders(root)}
    if args.json:
        report = {"folder": str(root), "bytes": sum(parts.values()), "parts": parts, "engines": found}
        print(json.dumps(report, indent=2))
        return 0
    if found:
        print(_table(found), end="\n\n")
    for name, bytes_ in parts.items():
        print(f"{name:12} {bytes_ / 1e6:10.1f} MB  {PARTS.get(name, '')}".rstrip())
    print(f"\n{sum(parts.values()) / 1e6:.1f} MB in {printable(root)}")
    return 0


def run_clear(args: argparse.Namespace) -> int:
    from restort.errors import UsageError
    from restort.utils.cache_dir import cache_root

    root = cache_root()
    here = folders(root)
    for name in args.parts:
        if name not in (*PARTS, *here):
            raise UsageError(
                f"unknown part {name!r} of the cache; use {', '.join(PARTS)}, or none for all but downloads"
            )
    chosen = args.parts or [name for name in here if name not in KEPT]
    removed = {}
    for name in chosen:
        before = size(root / name)
        if name == "engines":
            from restort.backends.tensorrt.cache import EngineCache

            EngineCache(root / name).clear(args.unused_for * 86400)
        else:
            _clear(root / name, args.unused_for * 86400)
        removed[name] = before - size(root / name)
    if args.json:
        print(json.dumps({"command": "cache clear", "status": 0, "removed_bytes": removed}, indent=2))
    if not args.quiet:
        text = ", ".join(f"{name} {n / 1e6:.1f} MB" for name, n in removed.items() if n)
        choice.notify(f"removed {text}" if text else "nothing to remove")
    return 0


def folders(root: Path) -> list[str]:
    """Return the folders that exist, in the order of PARTS, then others that newer versions may have made."""
    here = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    return [name for name in PARTS if name in here] + [name for name in here if name not in PARTS]


def size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*") if folder.is_dir() else ():
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # gone since
            continue
    return total


def engines() -> list[dict[str, Any]]:
    """Return the engines, the last used first."""
    from restort.backends.tensorrt.cache import EngineCache
    from restort.backends.tensorrt.engine_key import profile_of

    return [
        {
            "file": str(stored.path),
            "model": stored.about.get("label"),
            "precision": stored.key["precision"],
            "profile": str(profile_of(stored.key)),
            "library": f"{stored.key['flavour']} {stored.key['version']}",
            "gpu": stored.key["gpu"],
            "compute_capabilities": stored.key["targets"],
            "bytes": stored.bytes,
            "used": time.strftime("%Y-%m-%d %H:%M", time.localtime(stored.used)),
        }
        for stored in EngineCache().entries()
    ]


def _table(found: list[dict[str, Any]]) -> str:
    head = ("model", "precision", "sizes (batch x height x width)", "library", "for", "MB", "last used")
    rows = [head]
    for engine in found:
        target = engine["gpu"] or "compute capability " + ", ".join(engine["compute_capabilities"])
        bytes_ = f"{engine['bytes'] / 1e6:.1f}"
        names = (engine[name] for name in ("precision", "profile", "library"))
        rows.append((str(engine["model"]), *names, target, bytes_, engine["used"]))
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    )


def _clear(folder: Path, unused_s: float) -> None:
    """Remove the files that are unused for that long, and folders that become empty."""
    now = time.time()
    for path in sorted(folder.rglob("*"), reverse=True) if folder.is_dir() else ():
        try:
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            elif now - max(path.stat().st_mtime, path.stat().st_atime) >= unused_s:
                path.unlink()
        except OSError:  # in use, gone, or not empty
            continue


def days(text: str) -> float:
    return options.number(text, "a number of days", lambda value: 0 <= value < 1e6)
