"""`restort inspect`: describe a TensorRT engine and say where it runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from restort.cli import options


def add(subparsers: options.Subparsers) -> None:
    parser = options.command(
        subparsers, "inspect", run, "describe a TensorRT engine and say where it runs; needs no GPU"
    )
    parser.add_argument("engine", metavar="ENGINE", type=Path, help="an engine of `restort build`")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> int:
    from restort.backends.tensorrt.inspector import describe

    found = describe(args.engine.expanduser())
    print(json.dumps(found, indent=2) if args.json else text(found))
    return 0 if found["problem"] is None else 1


def text(found: dict[str, Any]) -> str:
    """Format a description for the user, one fact a line."""
    lines = [("engine", f"{found['file']}, {found['bytes'] / 1e6:.1f} MB")]
    if "schema" in found:
        lines += _from_sidecar(found)
    if found["opened"]:
        lines += _from_engine(found["opened"])
    if found["problem"]:
        lines.append(("problem", found["problem"]))
    lines.append(("here", "runs" if found["runs_here"] else f"does not run: {found['why_not']}"))
    return "\n".join(f"{name + ':':13} {value}" for name, value in lines)


def _from_sidecar(found: dict[str, Any]) -> list[tuple[str, str]]:
    from restort.backends.tensorrt.library import TITLES

    model, profile, flags = found["model"], found["profile"], found["flags"]
    title = TITLES.get(found["flavour"], found["flavour"])
    gpu = found["gpu"]
    targets = ", ".join(found["targets"]) or "unknown"
    runs = f"{title} {found['version']}, compute capability {targets}"
    if found["flavour"] == "tensorrt" and gpu:
        runs += f" ({gpu['name']})"
    lines = []
    if model:
        scale = f", x{model['scale']}" if model["scale"] > 1 else ""
        lines.append(("model", f"{model['name']} ({model['architecture']}{scale})"))
    lines += [("runs with", runs), ("precision", _precision(found))]
    if found.get("kernels") == "fused":
        lines += _from_package(found)
    layers = [f"{n} {kind}" for kind, n in found["layers"].items() if kind != "source"]
    if found["layers"].get("source") == "plugin":
        of = ""
    elif found["layers"].get("source") == "engine":
        of = "the engine"
    elif found.get("flags", {}).get("strongly_typed", True):
        of = "the network, strongly typed"
    else:
        of = f"the network, not verified: {found.get('unchecked', 'the engine was not opened')}"
    by = f"by type of output, of {of}" if of else "a plugin, loaded with the engine"
    lines.append(("layers", f"{', '.join(layers)} ({by})"))
    ports = () if found["opened"] else (*found["graph"]["inputs"], *found["graph"]["outputs"])
    for port in ports:
        lines.append((port["name"], f"{port['dtype']} {' x '.join(map(str, port['shape']))}"))
    sizes = [f"{name} {'x'.join(map(str, profile[name]))}" for name in ("min", "opt", "max")]
    sizes += [f"also {'x'.join(map(str, size))}" for size in profile.get("others", ())]
    lines.append(("profile", f"{', '.join(sizes)} (BxHxW)"))
    level = "" if flags.get("level") is None else f", level {flags['level']}"
    where = f" on {gpu['name']}" if gpu else " on a machine without a GPU"
    lines.append(("built", f"{found['created']} in {found['seconds']:.1f} s{level}{where}"))
    return lines


def _from_package(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines on RestoRT's own kernels."""
    package = found["aot"]
    makers = ", ".join(filter(None, (f"RestoRT {package['restort']}", package["compilers"])))
    sizes = {name: f"{size / 2**20:.0f} MiB" for name, size in package["memory"].items()}
    return [
        ("kernels", f"fused: {package['kernels']} kernels in {package['launches']} launches"),
        ("AOT package", f"compute capability {package['compute_capability']}, compiled by {makers}"),
        ("memory", f"{sizes['weights']} of weights, {sizes['context']} for each execution context"),
    ]


def _precision(found: dict[str, Any]) -> str:
    if found.get("kernels") == "fused":
        return f"{found['precision']} storage, float32 accumulation"
    kept = found["keep_fp32"]
    more = f", {len(kept)} sections in float32: {', '.join(kept)}" if kept else ""
    return f"{found['precision']}{more}; TF32 {'on' if found['flags'].get('tf32') else 'off'}"


def _from_engine(opened: dict[str, Any]) -> list[tuple[str, str]]:
    lines = []
    for port in opened["ports"]:
        shape = " x ".join("any" if n < 0 else str(n) for n in port["shape"])
        profiles = "; ".join(
            ", ".join("x".join(map(str, shape)) for shape in sizes) for sizes in port.get("profiles", ())
        )
        lines.append(
            (port["name"], f"{port['dtype']} {shape}" + (f" (min, opt, max {profiles})" if profiles else ""))
        )
    kinds = ", ".join(f"{n} {kind}" for kind, n in opened["layers_by_type"].items())
    memory = opened["device_memory_bytes"]
    lines.append(("opened", f"{opened['layers']} layers" + (f": {kinds}" if kinds else "")))
    if memory:
        lines.append(("memory", f"{memory / 2**20:.0f} MiB at the largest size"))
    return lines
