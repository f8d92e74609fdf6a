"""How far is every shipped or given model on the fused backend from PyTorch in float32? `accuracy.py models`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import RESULTS, ROOT, about, relative_l2, write_json

from restort.errors import RestortError
from restort.tiling.padding import pad_to_multiple
from restort.weights.checkpoint import Weights, load_weights

SHIPPED = ROOT / "src" / "restort" / "weights" / "shipped"
LIMITS = {"fp16": 2e-3, "bf16": 1e-2}
PSNR_DB = 0.01
SIGMAS = (15, 25, 50)

Picture = tuple[str, str, np.ndarray, "np.ndarray | None"]  # condition, name, (H, W, C) in [0, 255], truth


def read_picture(path: Path, channels: int) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"), np.float64)
    return pixels if channels == 3 else pixels[:, :, None]


def middle(image: np.ndarray, crop: int | None, factor: int = 1) -> np.ndarray:
    if crop is None:
        return image
    sides = [min(n // factor, crop) for n in image.shape[:2]]
    top, left = ((n // factor - side) // 2 * factor for n, side in zip(image.shape[:2], sides))
    return image[top : top + sides[0] * factor, left : left + sides[1] * factor]


def pictures_of(
    task: str, weights: Weights, data: Path, crop: int | None, limit: int | None
) -> Iterator[Picture]:
    """What a model of that task is measured on."""
    from restort.evaluation.resize import imresize

    channels, scale = weights.spec.in_channels, weights.spec.scale
    if task == "upscale":
        for folder in (data / "set5", data / "set14"):
            for path in sorted((folder / "HR").glob("*.png"))[:limit]:
                high = read_picture(path, channels)
                high = high[: high.shape[0] // scale * scale, : high.shape[1] // scale * scale]
                small = folder / "LR_bicubic" / f"X{scale}" / f"{path.stem}x{scale}.png"
                made = small if small.is_file() else small.with_name(path.name)
                low = (
                    read_picture(made, channels)
                    if made.is_file()
                    else imresize(high.astype(np.uint8), 1 / scale)
                )
                high = high[: low.shape[0] * scale, : low.shape[1] * scale]
                yield folder.name, path.stem, middle(low, crop), middle(high, crop, scale)
    elif task == "denoise":
        for sigma in SIGMAS:
            for i, path in enumerate(sorted((data / "kodak24").glob("*.png"))[:limit]):
                clean = middle(read_picture(path, channels), crop)
                noise = np.random.Generator(np.random.PCG64([0, i])).standard_normal(clean.shape)
                yield f"kodak24 sigma {sigma}", path.stem, clean + sigma * noise, clean
    else:
        places = [*sorted((data / "real_blur").glob("*.*")), *sorted((data / "kodak24").glob("*.png"))]
        for path in [p for p in places if p.suffix.lower() in (".png", ".jpg")][: limit or 12]:
            yield "photographs", path.stem, middle(read_picture(path, channels), crop), None


def task_of(weights: Weights) -> str:
    return "upscale" if weights.spec.scale > 1 else weights.metadata.get("task", "denoise")


def score(task: str, y: np.ndarray, truth: np.ndarray, scale: int) -> float:
    """PSNR in dB of (H, W, C) in [0, 1]."""
    from restort.evaluation.metrics import psnr, psnr_y

    eight = np.rint(np.clip(y, 0, 1) * 255)
    return psnr_y(eight, truth, border=scale) if task == "upscale" else psnr(eight, truth)


def float64(weights: Weights, device: Any, x: np.ndarray) -> np.ndarray:
    """The network in float64, on the same device."""
    import torch

    from restort.backends.fused.networks import PlainNetwork

    network = PlainNetwork(weights, device, torch.float64)
    scale = weights.spec.value_range
    with torch.no_grad():
        y = network.model(torch.from_numpy(x).to(device).double() * scale) / scale
    return np.asarray(y.cpu().numpy())


def compare_model(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The fused backend against float32 on every picture of the model's task."""
    import torch

    from restort.backends.fused.networks import PlainNetwork
    from restort.backends.fused.runner import FusedRunner

    weights = load_weights(path)
    spec, task = weights.spec, task_of(weights)
    device = torch.device(args.device)
    reference = PlainNetwork(weights, device)
    runners = {p: FusedRunner(weights, p, device="cpu" if args.device == "cpu" else None) for p in LIMITS}
    warned: list[str] = []
    for runner in runners.values():
        runner.warn = warned.append
    rows: list[dict[str, Any]] = []
    check: float | None = None
    for condition, name, image, truth in pictures_of(task, weights, args.data, args.crop, args.limit):
        unit = (image.transpose(2, 0, 1)[None] / 255).astype(np.float32)
        x = np.ascontiguousarray(pad_to_multiple(unit, spec.size_multiple))
        height, width = image.shape[0] * spec.scale, image.shape[1] * spec.scale
        want = reference.run(x)[0]
        if check is None:
            check = relative_l2(want, float64(weights, device, x))
        row: dict[str, Any] = {"condition": condition, "name": name, "shape": list(x.shape)}
        results = {"fp32": want} | {p: runner(x) for p, runner in runners.items()}
        for precision, y in results.items():
            seen = y[0, :, :height, :width].transpose(1, 2, 0)
            if precision != "fp32":
                row[f"relative_l2_{precision}"] = relative_l2(y, want)
            if truth is not None:
                row[f"psnr_{precision}"] = score(task, seen, truth, spec.scale)
        rows.append(row)
    for runner in runners.values():
        runner.close()
    return summary(path.stem, weights, task, rows, check, warned)


def summary(
    name: str, weights: Weights, task: str, rows: list[dict[str, Any]], check: float | None, warned: list[str]
) -> dict[str, Any]:
    conditions: dict[str, Any] = {}
    good = bool(rows) and not warned
    for condition in dict.fromkeys(row["condition"] for row in rows):
        those = [row for row in rows if row["condition"] == condition]
        found: dict[str, Any] = {"pictures": len(those)}
        for precision, limit in LIMITS.items():
            errors = [row[f"relative_l2_{precision}"] for row in those]
            found[precision] = {"relative_l2_max": max(errors), "relative_l2_mean": float(np.mean(errors))}
            good &= max(errors) < limit
        if "psnr_fp32" in those[0]:
            scores = {p: float(np.mean([row[f"psnr_{p}"] for row in those])) for p in ("fp32", *LIMITS)}
            found["psnr"] = {p: round(value, 4) for p, value in scores.items()}
            good &= abs(scores["fp16"] - scores["fp32"]) <= PSNR_DB
        conditions[condition] = found
    return {
        "model": name,
        "architecture": weights.spec.architecture,
        "task": task,
        "weights_sha256": weights.digest,
        "float32_against_float64": check,
        "good": good,
        "warned": warned,
        "conditions": conditions,
        "pictures": rows,
    }


def model_text(result: dict[str, Any]) -> str:
    check = result["float32_against_float64"]
    lines = [
        f"{result['model']} ({'good' if result['good'] else 'NOT GOOD'}); float32 against float64 {check or 0:.1e}"
    ]
    for condition, found in result["conditions"].items():
        errors = "  ".join(
            f"{p} L2 max {found[p]['relative_l2_max']:.2e} mean {found[p]['relative_l2_mean']:.2e}"
            for p in LIMITS
        )
        scores = (
            "  PSNR " + " ".join(f"{p} {v:.4f}" for p, v in found["psnr"].items()) if "psnr" in found else ""
        )
        lines.append(f"  {condition:18} {found['pictures']:3} pictures  {errors}{scores}")
    return "\n".join([*lines, *(f"  warned: {line}" for line in result["warned"])])


def compare_models(args: argparse.Namespace) -> int:
    import torch

    torch.set_grad_enabled(False)
    files = [*args.weights, *([] if args.no_shipped else sorted(SHIPPED.glob("*.safetensors")))]
    if not args.weights and args.elan.is_file():
        files.append(args.elan)
    results = []
    for path in files:
        try:
            results.append(compare_model(path, args))
            print(model_text(results[-1]), flush=True)
        except (RestortError, OSError, RuntimeError) as error:
            print(f"{path.stem}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            results.append({"model": path.stem, "good": False, "error": str(error)[:500]})
    device = torch.cuda.get_device_name() if args.device == "cuda" else "CPU, interpreted"
    found = {"models": results, "limits": LIMITS | {"psnr_db": PSNR_DB}, "device": device, **about()}
    write_json(args.output or RESULTS / "accuracy" / "accuracy_gpu.json", found)
    return 0 if all(result["good"] for result in results) else 1
