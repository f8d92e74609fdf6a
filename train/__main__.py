"""python -m train CONFIG --data FOLDER [--out RUN]: train one model, or go on where it stopped."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from train.config import read_config
from train.loop import Trainer
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
    parser.add_argument("--batch", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--start-from", help="safetensors whose parameters to begin with")
    parser.add_argument("--limit", type=int, help="use only so many photographs (for trying things out)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--plain", action="store_true", help="without compilation and fused training kernels")
    args = parser.parse_args()

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
    device = torch.device(args.device)
    task = make_task(config, args.data, device, args.limit)
    out = args.out or Path("runs") / config.name
    trainer = Trainer(config, task, out, device, fast=device.type == "cuda" and not args.plain)
    done = trainer.run(args.seconds)
    print(
        f"{config.name}: {'complete' if done else 'stopped'} at step {trainer.step} of {config.steps}, in {out}"
    )


if __name__ == "__main__":
    main()
