"""How far is every backend and precision from PyTorch in float32, with trained weights on real pictures?

    python benchmarks/accuracy.py all [--limit 4] [--runs onnxruntime:fp32,openvino:bf16,...] [--output FILE]
    python benchmarks/accuracy.py models [--weights FILE ...] [--limit N] [--crop N] [--device cpu] [--output FILE]

`all` makes the tables of errors: ELAN-light x4 on Set5, restormer-small-denoise on Kodak24 with noise of sigma 25;
absolute and relative error, each largest, mean and median, and PSNR and SSIM on the set. TensorRT by default, into
results/accuracy/accuracy_tensorrt.json; of the CPU's backends (a minute and a half on two cores) by

    python benchmarks/accuracy.py all --limit 4 --runs onnxruntime:fp32,openvino:fp32,openvino:bf16,torch:bf16
        --output benchmarks/results/accuracy/accuracy_cpu.json

It needs a GPU, PyTorch and TensorRT in one Python. Where TensorRT lives in a Python of its own (8.6 in CPython 3.10,
without PyTorch), the steps by hand; --work is a folder that goes from one to the next:

    python benchmarks/accuracy.py inputs --work W         # beside the test sets: pictures, weights (28 MB)
    python benchmarks/accuracy.py mixed --work W          # PyTorch's Python: what stays in float32
    python benchmarks/accuracy.py aot --work W            # likewise: RestoRT's kernels for tensorrt:fused, into
                                                          # the RESTORT_CACHE that `run` has, too
    python benchmarks/accuracy.py run --work W --runs torch:fp32,onnxruntime:fp32         # likewise
    . D/env.sh; PYTHONPATH=src:benchmarks:$PYTHONPATH $TRT_PYTHON benchmarks/accuracy.py run --work W
    python benchmarks/accuracy.py table --work W          # needs scikit-image; writes the record

Pictures run whole, padded by reflection. One engine a network and precision takes all sizes of its set; with RestoRT's
kernels, and of a Restormer in TensorRT 8.6, each size has one. Runs that are done are not done again. `table` writes
what is there, so it can be called in between, and keeps rows of the record whose outputs are gone.

`models` compares the fused backend in fp16 and bf16 with PyTorch in float32 on the same device, for every shipped model
and every file of --weights: an upscaler on Set5 and Set14, a denoiser on Kodak24 with sigma 15, 25 and 50, a deblurrer
on photographs; into results/accuracy/accuracy_gpu.json. The reference is itself compared with float64 on the first
picture. Asked: relative L2 below 2e-3 in fp16 and 1e-2 in bf16 everywhere, PSNR of fp16 within 0.01 dB; the status says
whether. --device cpu with TRITON_INTERPRET=1 and a small --crop tries the script without a GPU.

`quantize` scores the INT8 and FP8 files of `restort export` in ONNX Runtime: ELAN-light x4 on Set5 and Set14,
restormer-small-denoise on Kodak24 with sigma 25, and the files of --weights; then it makes the known mistakes of INT8
in PyTorch, on Set5. Into results/accuracy/quantization.json, on two cores by

    python benchmarks/accuracy.py quantize --only elan
    python benchmarks/accuracy.py quantize --only denoise --limit 8 --crop 192 --output ...quantization_denoise.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from harness import RESULTS, ROOT, SHARED, Record, about, write_json
from reporting.tables import error_table

from restort.errors import RestortError
from restort.tiling.padding import pad_to_multiple
from restort.weights.checkpoint import Weights, load_weights

SHIPPED = ROOT / "src" / "restort" / "weights" / "shipped"
REFERENCE = "torch:fp32"
RUNS = "tensorrt:fp32,tensorrt:tf32,tensorrt:fp16,tensorrt:mixed,tensorrt:fused"
FUSED = "fused"  # in place of a precision of tensorrt: fp16, by RestoRT's own kernels
SETS = {"ELAN-light x4": "set5", "restormer-small-denoise": "kodak24"}
SIGMA = 25.0

Outputs = list[np.ndarray]


# The tables of errors, step by step


def slug(name: str) -> str:
    return name.lower().replace(" ", "-")


def pictures(work: Path, model: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(what the network is given, (H, W, C) on the scale of [0, 1], the clean picture, uint8)."""
    with np.load(work / f"{SETS[model]}.npz") as kept:
        for i in range(sum(name.startswith("clean") for name in kept.files)):
            clean = kept[f"clean{i}"]
            if f"degraded{i}" in kept.files:
                degraded = kept[f"degraded{i}"].astype(np.float64)
            else:  # as `restort evaluate` makes it
                noise = np.random.Generator(np.random.PCG64([0, i])).standard_normal(clean.shape)
                degraded = clean + SIGMA * noise
            yield (degraded / 255).astype(np.float32), clean


def make_inputs(args: argparse.Namespace) -> None:
    """W/SET.npz (clean and degraded pictures) and W/MODEL.safetensors."""
    from restort.evaluation.datasets import open_dataset

    files = {
        "ELAN-light x4": args.elan,
        "restormer-small-denoise": SHIPPED / "restormer-small-denoise.safetensors",
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
        np.savez_compressed(args.work / f"{dataset}.npz", **kept)


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
        found = Search(weights, pairs).choose(Budget(args.budget), notify)
        notify(f"{model}: {found.summary()}")
        target.write_text(json.dumps(found.to_json(), indent=1) + "\n")


def compile_sizes(args: argparse.Namespace) -> None:
    """Compile RestoRT's kernels ahead for all sizes of the sets, into the cache folder."""
    from restort.backends.fused.aot_cache import AotCache, AotRequest

    for model in SETS:
        weights = load_weights(args.work / f"{slug(model)}.safetensors")
        shapes = {padded(image, weights).shape for image, _ in pictures(args.work, model)}
        for n, _, h, w in sorted(shapes):
            notify(str(AotCache().provide(AotRequest(weights, "fp16", (n, h, w), args.capability), notify)))


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
            notify(f"{model} on {SETS[model]}: {label}")
            folder.mkdir(parents=True, exist_ok=True)
            done = folder / "done.json"
            try:
                made = one_run(args, model, weights, label, inputs, folder)
            except RestortError as error:  # one that is not here must not hide the others
                notify(f"  {error}")
                (folder / "error.json").write_text(json.dumps({"error": str(error)}))
                continue
            done.write_text(json.dumps(made))


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
    from restort.utils.cpu import processor_name

    found = {"device": getattr(runner, "device", processor_name()), **about()}
    if backend == "tensorrt":
        found["library"] = runner.flavour.title
        found["engines"] = [
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
    return found


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
        runner.notify = runner.warn = notify
        return runner
    if precision == "mixed":
        mixed_precision.remember(weights, json.loads((args.work / f"{slug(model)}.mixed.json").read_text()))
    least, most = ((1, *(extreme(side) for side in zip(*sizes))) for extreme in (min, max))
    options = {} if args.level is None else {"level": args.level}
    by_size = wants_fixed_size(find(os.environ.get(FLAVOUR) or "auto"), weights.spec.architecture)
    profile = None if by_size else Profile(least, most, most)  # type: ignore[arg-type]
    runner = TensorrtRunner(weights, precision, profile=profile, options=options)
    runner.notify = runner.warn = notify
    return runner


def notify(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def table(work: Path, output: Path, runs: Sequence[str]) -> None:
    """Scores what is in `work`, a row for each of `runs` and network; the record is written after each row.

    Rows that `output` has of the same weights and settings stay where `work` has no outputs for them.
    """
    from restort.profiling.tensor_error import EPSILON, definitions

    found = json.loads(output.read_text()) if output.is_file() else {}
    before = {(t["model"], t["weights_sha256"]): t for t in found.get("tables", [])}
    tables: list[Record] = []
    for model, dataset in SETS.items():
        weights = load_weights(work / f"{slug(model)}.safetensors")
        clean = [picture for _, picture in pictures(work, model)]
        settings: Record = {"pictures": len(clean)} | ({} if weights.spec.scale > 1 else {"sigmas": [SIGMA]})
        kept = before.get((model, weights.digest), {"settings": None, "rows": []})
        rows = kept["rows"] if kept["settings"] == settings else []
        old = {label_of(row): row for row in rows if row["error"] is None}
        made_rows: list[Record] = []
        named = {"model": model, "weights_sha256": weights.digest, "dataset": dataset, "settings": settings}
        tables.append({**named, "reference": REFERENCE, "rows": made_rows})
        folder = work / slug(model)
        reference = flat(outputs(folder, REFERENCE, len(clean)))
        for label in dict.fromkeys([REFERENCE, "onnxruntime:fp32", *runs, *old]):
            made = outputs(folder, label, len(clean))
            row = old.get(label)
            if made and reference is not None:
                row = scored(made, reference, clean, weights)
            made_rows.append(described(folder, label, row))
            save(output, tables)
        print(f"{error_table(tables[-1])}\n", flush=True)
    meaning = definitions(EPSILON)["relative"]
    print(f"relative error: {meaning}; outputs not clipped or rounded; PSNR in dB and SSIM of the set")


def label_of(row: Record) -> str:
    return f"{row['backend']}:{row['precision']}"


def outputs(folder: Path, label: str, count: int) -> Outputs:
    """The outputs of a run, in the order of the pictures; none where it has not been done."""
    place = folder / label.replace(":", "-")
    paths = [place / f"{i}.npy" for i in range(count)]
    whole = (place / "done.json").is_file() and all(path.is_file() for path in paths)
    return [np.load(path) for path in paths] if whole else []


def flat(found: Outputs) -> np.ndarray | None:
    return np.concatenate([y.reshape(-1) for y in found]) if found else None


def scored(made: Outputs, reference: np.ndarray, clean: Outputs, weights: Weights) -> Record:
    from restort.evaluation import metrics
    from restort.profiling.tensor_error import EPSILON, tensor_error

    border = weights.spec.scale if weights.spec.scale > 1 else 0
    measures: dict[str, Callable[..., float]] = {
        "psnr_on_set": metrics.psnr_y if border else metrics.psnr,
        "ssim_on_set": metrics.ssim_y if border else metrics.ssim,
    }
    mine = flat(made)
    assert mine is not None
    found: Record = tensor_error(mine, reference, epsilon=EPSILON, peak=1.0).to_json()
    found |= {"psnr_vs_reference": found.pop("psnr"), "elements": found.pop("shape")[0]}
    eight = [np.rint(np.clip(y.astype(np.float64), 0, 1) * 255).astype(np.uint8) for y in made]
    with ThreadPoolExecutor() as pool:
        for name, measure in measures.items():
            scores = pool.map(lambda y, truth, m=measure: m(y, truth, border=border), eight, clean)
            found[name] = round(float(np.mean(list(scores))), 5 if "ssim" in name else 4)
    return found


def described(folder: Path, label: str, row: Record | None) -> Record:
    """The row with the name of its run, how it was run, and why there is none."""
    backend, _, precision = label.partition(":")
    place = folder / label.replace(":", "-")
    named: Record = {"backend": backend, "precision": precision}
    if row is None:
        failed, done = place / "error.json", (place / "done.json").is_file()
        why = f"there is nothing to compare with: run {REFERENCE}" if done else "has not been run"
        return named | {"error": json.loads(failed.read_text())["error"] if failed.is_file() else why}
    if "about" in row:  # of the record
        return row
    return named | row | {"error": None, "about": json.loads((place / "done.json").read_text())}


def save(output: Path, tables: list[Record]) -> None:
    from restort.profiling.tensor_error import EPSILON, definitions

    record = {
        "epsilon": EPSILON,
        "definitions": definitions(EPSILON),
        "tables": tables,
        "scored": about(),
    }
    write_json(output, record)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "step", choices=("all", "inputs", "mixed", "aot", "run", "table", "models", "quantize")
    )
    parser.add_argument("--work", type=Path, default=Path("accuracy-work"), help="a folder for the steps")
    parser.add_argument("--runs", help=f"backend:precision,... (default: {RUNS})")
    parser.add_argument(
        "--only", default="", help="run, quantize: only the model whose name holds this, such as elan"
    )
    parser.add_argument("--limit", type=int, help="pictures of Kodak24, or of each set of `models`")
    parser.add_argument("--budget", type=float, default=2e-4, help="relative L2 of mixed (default: 2e-4)")
    parser.add_argument("--level", type=int, help="of TensorRT's builder")
    parser.add_argument("--capability", type=int, default=90, help="of the GPU that `aot` compiles for")
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "test", help="holds the test sets")
    parser.add_argument(
        "--elan", type=Path, default=SHARED / "weights" / "elan_light_x4_friedricelab.safetensors"
    )
    parser.add_argument("--weights", type=Path, nargs="*", default=[], help="models, quantize: more files")
    parser.add_argument("--no-shipped", action="store_true", help="models: only the files of --weights")
    parser.add_argument("--crop", type=int, help="models: only the middle, so many pixels of the input")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="of `models`")
    parser.add_argument(
        "--calibration", type=Path, help="quantize: a folder of pictures (default: training set)"
    )
    parser.add_argument("--output", type=Path, help="the record")
    args = parser.parse_args()
    if args.step == "models":
        from model_errors import compare_models

        return compare_models(args)
    if args.step == "quantize":
        from quantization_errors import quantize

        return quantize(args)
    output = args.output or RESULTS / "accuracy" / "accuracy_tensorrt.json"
    everything = args.step == "all"
    runs = args.runs or RUNS
    if args.step in ("inputs", "all"):
        make_inputs(args)
    if args.step in ("mixed", "all") and (not everything or "mixed" in runs):
        choose_mixed(args)
    if args.step == "aot":
        compile_sizes(args)
    if args.step in ("run", "all"):
        args.runs = f"{REFERENCE},onnxruntime:fp32,{runs}" if everything else runs
        run(args)
    if args.step in ("table", "all"):
        table(args.work, output, runs.split(","))
    return 0


if __name__ == "__main__":
    sys.exit(main())
