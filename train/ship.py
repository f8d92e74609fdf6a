"""python -m train.ship CONFIG RUN/ema.safetensors [-o FILE]: the file that the package ships, from trained weights.

Parameters are stored as float16, the running statistics of BatchNorm as float32 (a variance may exceed what float16
holds). Buffers that every ELAN shares are left out: the reader puts them back exactly. An ELAN trained on values in
[0, r] is rescaled to the published [0, 255], which is the same function: the first convolution by r / 255, the last by
255 / r.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from restort.models.spec import ElanSpec
from restort.utils.files import write_bytes
from train.config import Config, read_config

LIMIT = 12 * 2**20  # of a shipped file; all of them together stay below 45 MB
FIXED = ("sub_mean.", "add_mean.")
SHIPPED_RANGE = 255.0  # values inside of a shipped ELAN, as published ones have them


def rescale(state: dict[str, Tensor], spec: ElanSpec, target: float = SHIPPED_RANGE) -> dict[str, Tensor]:
    """Rescale an ELAN to values in [0, target] instead of [0, spec.rgb_range].

    Only the two ends change: between them everything stays as it is, biases and statistics included.
    """
    ratio = target / spec.rgb_range
    return state | {
        "head.0.weight": state["head.0.weight"] / ratio,
        "tail.0.weight": state["tail.0.weight"] * ratio,
        "tail.0.bias": state["tail.0.bias"] * ratio,
        "sub_mean.bias": state["sub_mean.bias"] * ratio,
        "add_mean.bias": state["add_mean.bias"] * ratio,
    }


def shipped_form(state: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """What the file holds."""
    if isinstance(config.spec, ElanSpec):
        state = rescale(state, config.spec)
    kept: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.startswith(FIXED) or name.endswith((".shift_conv.weight", ".num_batches_tracked")):
            continue
        kept[name] = value.float() if ".running_" in name else value.half()
        if not torch.isfinite(kept[name]).all():
            raise ValueError(f"{name} does not fit into float16")
    return {name: value.contiguous() for name, value in kept.items()}


def rounded(value: Tensor, bits: int) -> Tensor:
    """Float16 numbers rounded to `bits` significant bits of 11: zeros at the end make a wheel smaller."""
    drop = 11 - bits
    if drop <= 0 or value.dtype != torch.float16:
        return value
    pattern = value.view(torch.int16).int() & 0xFFFF
    sign, magnitude = pattern & 0x8000, pattern & 0x7FFF
    magnitude = ((magnitude + (1 << drop - 1)) >> drop) << drop
    pattern = sign | magnitude.clamp(max=(0x7BFF >> drop) << drop)
    return torch.where(pattern > 0x7FFF, pattern - 0x10000, pattern).short().view(torch.float16)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m train.ship", description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("weights", type=Path, help="ema.safetensors of a run")
    parser.add_argument("-o", "--output", type=Path, help="default: where the package looks for it")
    parser.add_argument("--tasks", help="comma-separated, the main one first (default: that of the config)")
    parser.add_argument(
        "--default-for", default="", help="comma-separated tasks that run this model by default"
    )
    parser.add_argument(
        "--input",
        choices=("damaged",),
        help="damaged: for pictures that are compressed with loss, noisy or blurred",
    )
    parser.add_argument(
        "--significant-bits",
        type=int,
        default=11,
        help="of each float16, at most 11 (default); fewer compress better",
    )
    parser.add_argument("--note", default="", help="a few words for `restort models`")
    args = parser.parse_args()
    config = read_config(args.config)
    folder = Path(__file__).resolve().parents[1] / "src/restort/weights/shipped"
    target = args.output or folder / f"{config.name}.safetensors"
    spec = replace(config.spec, rgb_range=SHIPPED_RANGE) if isinstance(config.spec, ElanSpec) else config.spec
    metadata = {
        "model": config.name,
        "tasks": args.tasks or config.task,
        "default_for": args.default_for,
        "note": args.note,
        "scale": str(spec.scale),
        "licence": "Apache-2.0",
        "source": "trained by RestoRT; see the model card beside this file",
    }
    if args.input:
        metadata["input"] = args.input
    state = shipped_form(load_file(args.weights), config)
    data = save({name: rounded(value, args.significant_bits) for name, value in state.items()}, metadata)
    if len(data) >= LIMIT:
        raise SystemExit(
            f"{config.name} takes {len(data)} bytes, more than the {LIMIT} that a shipped file may have"
        )
    write_bytes(target, data, overwrite=True)
    print(f"{target}: {len(data) / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
