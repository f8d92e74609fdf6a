"""How fast is a training step, and what limits it? Into results/training/train_step_h200.json.

    python benchmarks/bench_training.py [--only WORDS] [--profile] [--list] [--output FILE] [CASE ...]

One process, CUDA events, median of 12 steps after 6. Variants: plain, plain-compiled, fast (1x1 convolutions as matrix
products and Triton kernels), fast-compiled, fast-compiled-graph. --profile prints where the GPU's time goes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from harness import RESULTS, ROOT, Record, Records, common_arguments, cuda_events, matching, median, run_cases

sys.path.insert(0, str(ROOT))

NETWORKS = {
    "elan-light-x4": (32, 64),
    "restormer-small-denoise": (64, 128),
}  # batch and patch of its configuration
VARIANTS = ("plain", "plain-compiled", "fast", "fast-compiled", "fast-compiled-graph")
WARM, STEPS = 6, 12


@dataclass(frozen=True)
class Case:
    workload: str
    batch: int
    patch: int
    variant: str

    @property
    def key(self) -> Record:
        return {name: getattr(self, name) for name in ("workload", "batch", "patch", "variant")}

    def __str__(self) -> str:
        return f"{self.workload}:{self.batch}:{self.patch}:{self.variant}"


def case(text: str) -> Case:
    name, batch, patch, variant = text.split(":")
    return Case(name, int(batch), int(patch), variant)


def measure(case: Case, profile: bool) -> Record:
    import torch

    from restort.models import elan
    from train.config import read_config
    from train.fast import blocks, speed_up
    from train.loop import Trainer
    from train.tasks import Task

    device, attention = torch.device("cuda"), elan.window_attention
    config = read_config(ROOT / "train" / "configs" / f"{case.workload}.toml", batch=case.batch)
    object.__setattr__(config, "patch", case.patch)
    x = torch.rand(case.batch, 3, case.patch, case.patch, device=device)
    side = case.patch * config.spec.scale
    y = torch.rand(case.batch, 3, side, side, device=device)
    try:
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(config, Task(lambda step: (x, y), []), Path(folder), device, fast=False)
            if case.variant == "plain-compiled":
                for block in blocks(trainer.model):
                    block.compile(dynamic=False)
            elif case.variant.startswith("fast"):
                speed_up(trainer.model, torch.bfloat16, compiled="compiled" in case.variant)
            trainer.fast = case.variant.endswith("graph")
            torch.cuda.reset_peak_memory_stats()
            begin = time.perf_counter()
            for _ in range(WARM):
                trainer.train_step()
            torch.cuda.synchronize()
            first = time.perf_counter() - begin
            ms = median([cuda_events(trainer.train_step) for _ in range(STEPS)])
            if profile:
                print_profile(trainer)
    finally:
        elan.window_attention = attention  # speed_up replaces it
        torch.cuda.empty_cache()
    return {
        "median_ms": round(ms, 2),
        "images_per_second": round(case.batch / ms * 1e3, 1),
        "first_steps_s": round(first, 1),
        "peak_mib": round(torch.cuda.max_memory_allocated() / 2**20),
        "device": torch.cuda.get_device_name(),
    }


def print_profile(trainer: object) -> None:
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        for _ in range(3):
            trainer.train_step()  # type: ignore[attr-defined]
        torch.cuda.synchronize()
    table = found.key_averages().table(sort_by="cuda_time_total", row_limit=22, max_name_column_width=70)
    print(table[:7000], flush=True)


def describe(record: Record) -> str:
    return (
        f"{record['median_ms']:8.2f} ms  {record['images_per_second']:8.1f} crops/s  {record['peak_mib']} MiB"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common_arguments(parser, RESULTS / "training" / "train_step_h200.json")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("cases", nargs="*", type=case, metavar="NAME:BATCH:PATCH:VARIANT")
    args = parser.parse_args()
    usual = [Case(name, *size, variant) for name, size in NETWORKS.items() for variant in VARIANTS]
    wanted = args.cases or matching(usual, args.only)
    if args.list:
        print("\n".join(map(str, wanted)))
        return 0
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    records = Records(args.output)
    again = wanted if args.profile else matching(wanted, args.again) if args.again else ()
    failed = run_cases(
        wanted,
        records,
        lambda one, left: measure(one, args.profile),
        describe,
        seconds=args.seconds,
        again=again,
    )
    return min(1, failed)


if __name__ == "__main__":
    sys.exit(main())
