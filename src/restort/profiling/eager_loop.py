"""The peer of `restort bench --folder`: a plain loop of PyTorch and Pillow, `python -m restort.profiling.eager_loop`.

It is what a user writes without RestoRT: a DataLoader whose workers decode, the eager network on whole pictures (fp16
on a GPU, fp32 on a processor), and Pillow that writes each result before the next picture is computed.

Reads one JSON object from stdin: {"weights", "files": [[source, target], ...], "quality", "seconds"}. Answers with one
line on stdout: {"files", "megapixels", "seconds", "precision", "device"}. The first file is restored once before the
clock starts.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from restort.models.torch_network import build
from restort.utils.cpu import default_threads
from restort.utils.integers import round_up
from restort.weights.checkpoint import Weights, load_weights

WORKERS = 4
"""Processes that decode, on a machine of 8 cores or more; none on a smaller one."""


class Pictures(Dataset[tuple[str, Any]]):  # type: ignore[misc]  # torch is Any to the type checker
    """Decoded pictures (H, W, C) uint8, each with the name of its result."""

    def __init__(self, files: list[tuple[str, str]], channels: int) -> None:
        self.files, self.mode = files, "RGB" if channels == 3 else "L"

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[str, Any]:
        source, target = self.files[i]
        with Image.open(source) as opened:
            pixels = np.array(opened.convert(self.mode))
        return target, torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1))


class Loop:
    """The eager network and what stands around it in a loop."""

    def __init__(self, weights: Weights, quality: int) -> None:
        self.spec, self.quality = weights.spec, quality
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        self.model = build(weights.spec, weights.state, self.dtype).to(self.device)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def restore(self, target: str, image: Any) -> float:
        """Restore one picture, write it, and return its megapixels."""
        height, width = image.shape[:2]
        x = image.to(self.device, non_blocking=True).permute(2, 0, 1)[None].to(self.dtype) / 255
        multiple = self.spec.size_multiple
        bottom, right = round_up(height, multiple) - height, round_up(width, multiple) - width
        x = F.pad(x, (0, right, 0, bottom), "replicate")
        y = self.model(x * self.spec.value_range) / self.spec.value_range
        y = y[0, :, : height * self.spec.scale, : width * self.spec.scale]
        pixels = y.float().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = (
            {"quality": self.quality, "subsampling": 0} if target.lower().endswith((".jpg", ".jpeg")) else {}
        )
        Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(target, **options)
        return float(pixels.shape[0] * pixels.shape[1] / 1e6)


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Restore the files of `task` until its seconds are over."""
    torch.set_num_threads(default_threads())
    weights = load_weights(Path(task["weights"]))
    loop = Loop(weights, task["quality"])
    files = [(source, target) for source, target in task["files"]]
    pictures = Pictures(files, weights.spec.in_channels)
    loop.restore(*pictures[0])
    workers = WORKERS if default_threads() >= 2 * WORKERS else 0
    loader: Any = DataLoader(
        pictures, batch_size=None, num_workers=workers, pin_memory=loop.device.type == "cuda"
    )
    return _timed(loop, iter(loader), task["seconds"])


def _timed(loop: Loop, pictures: Iterator[tuple[str, Any]], seconds: float) -> dict[str, Any]:
    start, done, megapixels = time.perf_counter(), 0, 0.0
    for target, image in pictures:
        megapixels += loop.restore(target, image)
        done += 1
        if time.perf_counter() - start > seconds:
            break
    taken = time.perf_counter() - start
    precision = "fp16" if loop.dtype == torch.float16 else "fp32"
    device = torch.cuda.get_device_name(loop.device) if loop.device.type == "cuda" else None
    return {
        "files": done,
        "megapixels": megapixels,
        "seconds": taken,
        "precision": precision,
        "device": device,
    }


def main() -> int:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print where they like; the answer must stay alone
    answer = run(json.load(sys.stdin))
    print(json.dumps(answer), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
