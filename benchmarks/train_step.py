"""How fast is a training step, and what limits it? Variants of the same step, one process, CUDA events, median.

python benchmarks/train_step.py [--out FILE.json] [--quick]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from restort.models import elan
from train.config import read_config
from train.loop import Trainer
from train.tasks import Task

PLAIN_ATTENTION = elan.window_attention
CONFIGS = Path(__file__).resolve().parents[1] / "train/configs"


def measure(name: str, batch: int, patch: int, variant: str, device: torch.device, profile: bool) -> dict:
    import shutil

    from train.fast import blocks, speed_up

    elan.window_attention = PLAIN_ATTENTION
    config = read_config(CONFIGS / f"{name}.toml", batch=batch)
    object.__setattr__(config, "patch", patch)
    scale = config.spec.scale
    x = torch.rand(batch, 3, patch, patch, device=device)
    y = torch.rand(batch, 3, patch * scale, patch * scale, device=device)
    out = Path("/tmp/train_step")
    shutil.rmtree(out, ignore_errors=True)
    trainer = Trainer(config, Task(lambda step: (x, y), []), out, device, fast=False)
    if variant == "plain-compiled":
        for block in blocks(trainer.model):
            block.compile(dynamic=False)
    elif variant.startswith("fast"):
        speed_up(trainer.model, torch.bfloat16, compiled="compiled" in variant)
    trainer.fast = variant.endswith("graph")
    torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    for _ in range(6):
        trainer.train_step()
    torch.cuda.synchronize()
    first = time.perf_counter() - begin
    times = []
    for _ in range(12):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        trainer.train_step()
        events[1].record()
        torch.cuda.synchronize()
        times.append(events[0].elapsed_time(events[1]))
    ms = statistics.median(times)
    record = {
        "workload": name, "batch": batch, "patch": patch, "variant": variant, "median_ms": round(ms, 2),
        "images_per_second": round(batch / ms * 1e3, 1), "first_steps_s": round(first, 1),
        "peak_mib": round(torch.cuda.max_memory_allocated() / 2**20),
    }  # fmt: skip
    print(json.dumps(record), flush=True)
    if profile:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as prof:
            for _ in range(3):
                trainer.train_step()
            torch.cuda.synchronize()
        print(
            prof.key_averages().table(sort_by="cuda_time_total", row_limit=22, max_name_column_width=70)[
                :7000
            ],
            flush=True,
        )
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("cases", nargs="*", help="NAME:BATCH:PATCH:VARIANT")
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    device = torch.device("cuda")
    records = []
    for case in args.cases:
        name, batch, patch, variant = case.split(":")
        try:
            records.append(measure(name, int(batch), int(patch), variant, device, args.profile))
        except Exception as error:
            print(case, "failed:", repr(error)[:1500], flush=True)
        torch.cuda.empty_cache()
    result = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"),
              "command": " ".join(sys.argv), "records": records}  # fmt: skip
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
