"""python -m train CONFIG --data FOLDER [--out RUN]: train one model, or go on where it stopped."""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import torch

from restort.weights.catalogue import WEIGHTS_FOLDER
from train.config import read_config
from train.data import photographs
from train.loop import Trainer
from train.qat import LEARNING_RATE, quantized
from train.tasks import make_task


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    parser.add_argument("config", type=Path, help="a TOML file of train/configs")
    parser.add_argument("--data", type=Path, required=True, help="folder of training photographs")
    parser.add_argument(
        "--out", type=Path, help="folder of the run (default: runs/NAME); an interrupted run continues"
    )
    parser.add_argument("--seconds", type=float, help="stop and save after so many seconds of training")
    parser.add_argument("--steps", type=int, help="change the number of steps, and with it the schedule")
    parser.add_argument(
        "--fit",
        type=float,
        metavar="SECONDS",
        help="as many steps as fit into so many seconds, measured at the start",
    )
    parser.add_argument(
        "--after",
        type=Path,
        metavar="FILE",
        help="compile, then wait for FILE (the `done` of another run) and train",
    )
    parser.add_argument(
        "--not-after", type=float, metavar="TIME", help="with --fit: end by this time (seconds since 1970)"
    )
    parser.add_argument("--batch", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--start-from", help="safetensors whose parameters to begin with")
    parser.add_argument(
        "--qat",
        nargs="?",
        const="int8",
        choices=("int8", "fp8"),
        help="fine-tune the shipped weights of the configuration's name, or --start-from, as a quantised network",
    )
    parser.add_argument("--limit", type=int, help="use only so many photographs (for trying things out)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--plain", action="store_true", help="without compilation and fused training kernels")
    parser.add_argument("--eager-batches", action="store_true", help="make batches without a CUDA graph")
    args = parser.parse_args()
    start = time.perf_counter()

    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    config = read_config(
        args.config,
        steps=args.steps,
        batch=args.batch,
        learning_rate=args.learning_rate,
        start_from=args.start_from,
    )
    trained = None
    if args.qat:
        file = Path(args.start_from) if args.start_from else WEIGHTS_FOLDER / f"{config.name}.safetensors"
        trained = quantized(file, args.qat, photographs(args.data, config.exclude)[0])
        rate = args.learning_rate or LEARNING_RATE
        last = min(config.final_learning_rate, rate)
        config = dataclasses.replace(config, spec=trained.spec, learning_rate=rate, final_learning_rate=last)
    device = torch.device(args.device)
    task = make_task(config, args.data, device, args.limit)
    if args.eager_batches:
        task.make = None
    out = args.out or Path("runs") / (f"{config.name}-{args.qat}" if args.qat else config.name)
    fast = device.type == "cuda" and not args.plain
    trainer = Trainer(config, task, out, device, fast=fast, fitted=args.fit is not None, quantized=trained)
    (out / "done").unlink(missing_ok=True)
    if fast:
        trainer.warm_up()
        print(f"{config.name}: compiled after {time.perf_counter() - start:.0f} s", flush=True)
    while args.after and not args.after.is_file():
        time.sleep(0.2)
    if args.fit is not None:
        left = args.fit if args.not_after is None else min(args.fit, args.not_after - time.time())
        trainer.fit(max(5.0, left))
        config = trainer.config
        print(f"{config.name}: {config.steps} steps fit into {left:.0f} s", flush=True)
    try:
        done = trainer.run(args.seconds)
    finally:
        (out / "done").touch()
    print(
        f"{config.name}: {'complete' if done else 'stopped'} at step {trainer.step} of {config.steps}, in {out}"
    )


if __name__ == "__main__":
    main()
