"""Scores of a model on photographs as people have them: camera noise, JPEG, blur, undamaged pictures.

    python benchmarks/evaluate_photos.py denoise --weights FILE [--all] [-o FILE.json] [--contact-sheets FOLDER]
    python benchmarks/evaluate_photos.py upscale --model elan-light-x4
    python benchmarks/evaluate_photos.py deblur --model restormer-small-deblur --sets motion sharp

Every input is an 8-bit file (PNG, or JPEG 4:2:0 by Pillow), restored with `Model.restore_file` into a PNG, which is
read by Pillow and compared with the truth. No code of train/ takes part: noise is NumPy's, JPEG is libjpeg's, the
camera is simulated here. Seeds are fixed. Made inputs and results are kept in --work.

Without --all the pictures of Kodak24 are middle crops and fewer, for a look within minutes; with --all they are whole.
PSNR is over all RGB values; for upscale it is on Y (BT.601) with `scale` pixels left out at the border, and "input"
is MATLAB-like bicubic enlargement. Each task has a reference model (--against); its scores are kept, too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from photos.files import middle, read
from photos.scores import Network, Reference, Row, compare, enlarged, measure, target_of
from photos.sets import INPUTS, SETS, Bench
from PIL import Image, ImageDraw, ImageFont

import restort

SHARED = next(  # beside the checkout, or further up
    (found for up in Path(__file__).resolve().parents if (found := up / "shared/data/test").is_dir()),
    Path("data"),
)


AGAINST = {
    "denoise": "restormer-small-denoise",
    "upscale": "elan-light-x{}",
    "deblur": "restormer-small-deblur",
}


def line(row: Row) -> str:
    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    output, worst = row.mean("output"), row.worst
    over = None if row.against is None or output is None else output - row.against
    met = ", ".join(f"{label} {'yes' if good else 'NO'}" for label, good in row.verdicts())
    before, after = row.mean("input_colour"), row.mean("output_colour")
    stains = "" if after is None or before is None else f" colour {before:.2f} -> {after:.2f}"
    return (
        f"{row.set:20} {number(row.mean('input'), '.2f'):>6} {number(output, '.3f'):>7} {number(row.gain, '+.3f'):>7} "
        f"{number(worst[1] if worst else None, '+.2f'):>7} {number(over, '+.3f'):>7} {len(row.pictures):4} "
        f"{row.seconds:6.1f}  {met}{stains}"
    ).rstrip()


HEAD = f"{'set':20} {'input':>6} {'output':>7} {'gain':>7} {'worst':>7} {'over':>7} {'pics':>4} {'s':>6}"


def sheet(
    path: Path, bench: Bench, row: Row, networks: list[Network], task: str, count: int, side: int
) -> None:
    """Middle crops at 100 %: input, result of each network, truth; the pictures with the least gain come first."""
    font = ImageFont.load_default(13)
    strips: list[Image.Image] = []
    samples = {sample.name: sample for sample in bench.samples(task, row.set)}
    gains = {s.name: (s.output or 0) - (s.input or 0) for s in row.pictures}
    for name in sorted(gains, key=lambda name: gains[name])[:count]:
        sample = samples[name]
        parts = [("input", enlarged(read(sample.source), networks[0].scale))]
        for network in networks:
            target = target_of(bench, network, row.set, sample)
            if target.is_file():
                parts.append((network.label, read(target)))
        truth = None if sample.truth is None else read(sample.truth)
        if truth is not None:
            parts.append(("truth", truth))
        strip = Image.new("RGB", (len(parts) * (side + 4), side + 20), (40, 40, 40))
        draw = ImageDraw.Draw(strip)
        for k, (label, image) in enumerate(parts):
            strip.paste(Image.fromarray(middle(image, side)), (k * (side + 4), 18))
            value = ""
            if truth is not None and label != "truth":
                value = f"{compare(image, truth, task, networks[0].scale):.2f} "
            prefix = f"{row.set} {name}: " if k == 0 else ""
            draw.text((k * (side + 4) + 2, 1), f"{prefix}{value}{label}"[:40], (255, 255, 255), font)
        strips.append(strip)
    picture = Image.new("RGB", (strips[0].width, sum(strip.height for strip in strips)), (40, 40, 40))
    for number, strip in enumerate(strips):
        picture.paste(strip, (0, number * strip.height))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("task", choices=tuple(SETS))
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--weights", type=Path, metavar="FILE")
    which.add_argument("--model", metavar="NAME")
    parser.add_argument("--before", metavar="NAME|FILE", help="a model that restores the input first")
    parser.add_argument(
        "--against", metavar="NAME|FILE|none", help="the reference (default: the task's shipped model)"
    )
    parser.add_argument("--sets", nargs="+", metavar="SET", help="only these; `list` names them")
    parser.add_argument("--all", action="store_true", help="whole pictures, all of them")
    parser.add_argument(
        "--data", type=Path, default=SHARED, help="the folder of the test sets (default: %(default)s)"
    )
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "restort-photos", metavar="FOLDER"
    )
    parser.add_argument("--backend", default="openvino", help="(default: %(default)s)")
    parser.add_argument("--precision", default="fp32", help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, metavar="N")
    parser.add_argument("--contact-sheets", type=Path, metavar="FOLDER", help="writes a PNG per set")
    parser.add_argument("--sheet-pictures", type=int, default=3, metavar="N", help="of each set (default: 3)")
    parser.add_argument(
        "--sheet-crop", type=int, default=256, metavar="N", help="pixels a side (default: 256)"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.json")
    return parser.parse_args(arguments)


def without_folder(word: str) -> str:
    """An absolute path as its name, so that records do not tell where this machine keeps its files."""
    return Path(word).name if Path(word).is_absolute() else word


def code_digest() -> str:
    """SHA-256 over this script and the modules of photos/."""
    here = Path(__file__)
    files = [here, *sorted((here.parent / "photos").glob("*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    sets = SETS[args.task]
    if args.sets == ["list"]:
        print("\n".join(f"{name:20} {one.note}" for name, one in sets.items()))
        return
    if unknown := set(args.sets or ()) - set(sets):
        sys.exit(f"unknown sets: {', '.join(sorted(unknown))}; known: {', '.join(sets)}")

    def load(model: str | Path) -> restort.Model:
        return restort.load(
            model,
            backend=args.backend,
            precision=args.precision,
            threads=args.threads,
            notify=lambda line: None,
        )

    before = [load(args.before)] if args.before else []
    network = Network([*before, load(args.weights or args.model)], args.work)
    if (network.scale > 1) != (args.task == "upscale"):
        sys.exit(f"{network.label} enlarges {network.scale} times: not a model for {args.task}")
    bench = Bench(args.data, args.work, args.all, network.scale)
    reference, networks = None, [network]
    if args.against != "none":
        name = args.against or AGAINST[args.task].format(network.scale)
        model = load(name)
        against = Network([model], args.work)
        if against.folder != network.folder:
            reference = Reference(bench, args.task, lambda: against, against.key)
            networks = [against, network]
    names = args.sets or [name for name, one in sets.items() if args.all or not one.only]
    model = network.models[-1]
    print(
        f"{args.task} {network.label} ({model.backend} {model.precision}), {'all' if args.all else 'quick'}"
    )
    print(HEAD, flush=True)
    rows = []
    for name in names:
        row = measure(bench, network, args.task, name)
        if reference is not None:
            row.against = reference.output(name)
        rows.append(row)
        print(line(row), flush=True)
        if args.contact_sheets:
            path = args.contact_sheets / f"{args.task}-{name}.png"
            sheet(path, bench, row, networks, args.task, args.sheet_pictures, args.sheet_crop)
    if args.output:
        record = {
            "task": args.task,
            "model": network.label,
            "weights_sha256": [one.weights.digest for one in network.models],
            "backend": model.backend,
            "precision": model.precision,
            "pictures": "all" if args.all else "quick",
            "reference": networks[0].label if reference is not None else None,
            "inputs": {"version": INPUTS, "pillow": Image.__version__, "numpy": np.__version__},
            "script_sha256": code_digest(),
            "sets": [row.to_json() for row in rows],
            "command": [without_folder(word) for word in arguments or sys.argv[1:]],
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
