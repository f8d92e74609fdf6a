"""Accuracy of TensorRT in every precision against PyTorch in float32, on test sets: the table of the README.

In the form that reports on the ports of 2022 asked for: absolute and relative error, each largest, mean and median,
and PSNR and SSIM on the set; ELAN-light x4 on Set5, restormer-small-denoise on Kodak24 with noise of sigma 25.

On a machine with a GPU, PyTorch and TensorRT in one Python, one command:

    python benchmarks/tensorrt_accuracy.py all [--limit 4]

Where TensorRT lives in a Python of its own (8.6 in CPython 3.10, without PyTorch), the steps by hand; --work is a
folder that goes from one to the next:

    python benchmarks/tensorrt_accuracy.py inputs --work W         # beside the test sets: pictures, weights (28 MB)
    python benchmarks/tensorrt_accuracy.py mixed --work W          # PyTorch's Python: what stays in float32
    python benchmarks/tensorrt_accuracy.py run --work W --runs torch:fp32,onnxruntime:fp32         # likewise
    . D/env.sh; PYTHONPATH=src:benchmarks:$PYTHONPATH $TRT_PYTHON benchmarks/tensorrt_accuracy.py run --work W
    python benchmarks/tensorrt_accuracy.py table --work W        # needs scikit-image; writes the record

Engines of RestoRT's own kernels (fp16) are the run tensorrt:fused; their plans are made before, in PyTorch's Python and
into the RESTORT_CACHE that the run has, too, and RESTORT_PLUGIN names the plugin's library, or it is compiled:

    python benchmarks/tensorrt_accuracy.py plans --work W [--capability 90]
    ... tensorrt_accuracy.py run --work W --runs tensorrt:fused        # one of the runs that `run` does by itself, too

Pictures run whole, padded by reflection. One engine a network and precision takes all sizes of its set; with RestoRT's
kernels, and of a Restormer in TensorRT 8.6, each size has one. Runs that are done are not done
again. `table` writes what is there, so it can be called in between, and keeps rows of the record whose outputs are not
there any more.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tensorrt_accuracy_sets import REFERENCE, SETS, SIGMA, pictures, slug

from restort.errors import RestortError
from restort.tiling.padding import pad_to_multiple
from restort.weights.checkpoint import Weights, load_weights

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared"
OUTPUT = HERE / "results" / "accuracy" / "accuracy_tensorrt.json"
RUNS = "tensorrt:fp32,tensorrt:tf32,tensorrt:fp16,tensorrt:mixed,tensorrt:fused"
FUSED = "fused"  # in place of a precision: fp16, by RestoRT's own kernels


def make_inputs(args: argparse.Namespace) -> None:
    """W/SET.npz (clean and degraded pictures) and W/MODEL.safetensors."""
    from restort.evaluation.datasets import open_dataset

    shipped = HERE.parent / "src" / "restort" / "weights" / "shipped"
    files = {
        "ELAN-light x4": args.elan,
        "restormer-small-denoise": shipped / "restormer-small-denoise.safetensors",
    }
    options: dict[str, dict[str, Any]] = {
        "set5": {"task": "upscale", "scale": 4},
        "kodak24": {"task": "denoise", "sigmas": (SIGMA,), "limit": args.limit},
    }
    args.work.mkdir(parents=True, exist_ok=True)
    for model, dataset in SETS.items():
        shutil.copyfile(files[model], args.work / f"{slug(model)}.safetensors")
        kept: dict[str, np.ndarray] = {}
        for i, case in enumerate(open_dataset(args.data / dataset, **options[dataset]).cases):
            degraded, clean = case.load()
            kept[f"clean{i}"] = clean
            if dataset == "set5":  # noise is made again where it is wanted: it does not compress
                kept[f"degraded{i}"] = degraded
        np.savez_compressed(args.work / f"{dataset}.npz", **kept)  # type: ignore[arg-type]  numpy's stubs


def choose_mixed(args: argparse.Namespace) -> None:
    """W/MODEL.mixed.json: which sections stay in float32, measured on parts of the set's first pictures."""
    from restort.profiling.pairs import Pair
    from restort.profiling.sensitivity import Budget, Search

    for model in SETS:
        target = args.work / f"{slug(model)}.mixed.json"
        if target.is_file():
            continue
        weights = load_weights(args.work / f"{slug(model)}.safetensors")
        step, scale = weights.spec.size_multiple, weights.spec.scale
        pairs = []
        for image, clean in islice(pictures(args.work, model), 2):
            h, w = (min(192, side) // step * step for side in image.shape[:2])
            x, y = image[:h, :w], clean[: h * scale, : w * scale] / np.float32(255)
            pairs.append(
                Pair(
                    SETS[model],
                    np.ascontiguousarray(x.transpose(2, 0, 1)[None]),
                    np.ascontiguousarray(y.transpose(2, 0, 1)[None]),
                )
            )
        found = Search(weights, pairs).choose(Budget(args.budget), say)
        say(f"{model}: {found.sentence()}")
        target.write_text(json.dumps(found.to_json(), indent=1) + "\n")


def make_plans(args: argparse.Namespace) -> None:
    """The plans of all sizes of the sets, into the cache folder."""
    from restort.backends.fused.aot_cache import PlanCache, Wanted

    for model in SETS:
        weights = load_weights(args.work / f"{slug(model)}.safetensors")
        shapes = {padded(image, weights).shape for image, _ in pictures(args.work, model)}
        for n, _, h, w in sorted(shapes):
            say(str(PlanCache().provide(Wanted(weights, "fp16", (n, h, w), args.capability), say)))


def padded(image: np.ndarray, weights: Weights) -> np.ndarray:
    """(1, C, H, W) of the size that the network takes."""
    x = pad_to_multiple(image.transpose(2, 0, 1)[None], weights.spec.size_multiple)
    return np.ascontiguousarray(x, np.float32)


def run(args: argparse.Namespace) -> None:
    """W/MODEL/BACKEND-PRECISION/N.npy: outputs, neither clipped nor rounded, cropped to the picture."""
    for model in SETS:
        if args.only not in slug(model):
            continue
        weights = load_weights(args.work / f"{slug(model)}.safetensors")
        inputs = [image for image, _ in pictures(args.work, model)]
        for label in args.runs.split(","):
            folder = args.work / slug(model) / label.replace(":", "-")
            if (folder / "done.json").is_file():
                continue
            say(f"{model} on {SETS[model]}: {label}")
            folder.mkdir(parents=True, exist_ok=True)
            done = folder / "done.json"
            try:
                about = one_run(args, model, weights, label, inputs, folder)
            except RestortError as error:  # one that is not here must not hide the others
                say(f"  {error}")
                (folder / "error.json").write_text(json.dumps({"error": str(error)}))
                continue
            done.write_text(json.dumps(about))


def one_run(
    args: argparse.Namespace,
    model: str,
    weights: Weights,
    label: str,
    inputs: list[np.ndarray],
    folder: Path,
) -> dict[str, Any]:
    backend, _, precision = label.partition(":")
    arrays = [padded(image, weights) for image in inputs]
    if backend == "tensorrt":
        runner = tensorrt(args, model, weights, precision, [x.shape[2:] for x in arrays])
    else:
        from restort.backends.registry import create

        runner = create(weights, backend, precision)
    scale = weights.spec.scale
    for i, (image, x) in enumerate(zip(inputs, arrays)):
        y = runner(x)[0].transpose(1, 2, 0)
        np.save(folder / f"{i}.npy", y[: image.shape[0] * scale, : image.shape[1] * scale])
    from restort.evaluation.report import versions
    from restort.profiling.machine import command
    from restort.utils.cpu import processor_name

    about: dict[str, Any] = {
        "device": getattr(runner, "device", processor_name()),
        "versions": versions(),
        "command": command(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    if backend == "tensorrt":
        about["library"] = runner.flavour.title
        about["engines"] = [
            {
                name: stored.about.get(name)
                for name in (
                    "precision",
                    "keep_fp32",
                    "layers",
                    "seconds",
                    "flags",
                    "kernels",
                    "aot",
                    "profile",
                )
                if name in stored.about
            }
            for stored in runner._provider(runner.precision).cache.entries()
            if stored.about.get("label") == runner._provider(runner.precision).model
            and stored.key["precision"] == runner.precision
            and (stored.about.get("kernels") == FUSED) == (precision == FUSED)
        ]
    runner.close()
    return about


def tensorrt(
    args: argparse.Namespace, model: str, weights: Weights, precision: str, sizes: list[tuple[int, ...]]
) -> Any:
    """A runner whose engine takes all sizes of the set, or with an engine for each of them."""
    from restort.backends.tensorrt import mixed_precision
    from restort.backends.tensorrt.builder import wants_fixed_size
    from restort.backends.tensorrt.library import find
    from restort.backends.tensorrt.options import Profile
    from restort.backends.tensorrt.runner import FLAVOUR, TensorrtRunner

    if precision == FUSED:
        runner = TensorrtRunner(weights, "fp16", options={"kernels": FUSED})
        runner.say = runner.warn = say
        return runner
    if precision == "mixed":
        mixed_precision.remember(weights, json.loads((args.work / f"{slug(model)}.mixed.json").read_text()))
    least, most = ((1, *(pick(side) for side in zip(*sizes))) for pick in (min, max))
    options = {} if args.level is None else {"level": args.level}
    by_size = wants_fixed_size(find(os.environ.get(FLAVOUR) or "auto"), weights.spec.architecture)
    profile = None if by_size else Profile(least, most, most)  # type: ignore[arg-type]
    runner = TensorrtRunner(weights, precision, profile=profile, options=options)
    runner.say = runner.warn = say
    return runner


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="accuracy of TensorRT against PyTorch")
    parser.add_argument("step", choices=("all", "inputs", "mixed", "plans", "run", "table"))
    parser.add_argument("--work", type=Path, default=Path("tensorrt-accuracy"), help="a folder for the steps")
    parser.add_argument("--runs", help=f"backend:precision,... (default: {RUNS})")
    parser.add_argument("--only", default="", help="run: only the model whose name holds this, such as elan")
    parser.add_argument("--limit", type=int, help="pictures of Kodak24 (default: all)")
    parser.add_argument("--budget", type=float, default=2e-4, help="relative L2 of mixed (default: 2e-4)")
    parser.add_argument("--level", type=int, help="of the builder")
    parser.add_argument(
        "--capability", type=int, default=90, help="of the GPU that plans are for (default: 90)"
    )
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "test", help="holds set5 and kodak24")
    parser.add_argument(
        "--elan", type=Path, default=SHARED / "weights" / "elan_light_x4_friedricelab.safetensors"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    everything = args.step == "all"
    runs = args.runs or RUNS
    if args.step in ("inputs", "all"):
        make_inputs(args)
    if args.step in ("mixed", "all"):
        choose_mixed(args)
    if args.step == "plans":
        make_plans(args)
    if args.step in ("run", "all"):
        args.runs = f"{REFERENCE},onnxruntime:fp32,{runs}" if everything else runs
        run(args)
    if args.step in ("table", "all"):
        from tensorrt_accuracy_table import table

        table(args.work, args.output, runs.split(","))


if __name__ == "__main__":
    main()
