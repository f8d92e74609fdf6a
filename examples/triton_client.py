"""Restore a picture through NVIDIA's Triton Inference Server, from a repository of `restort export --triton`.

    pip install 'tritonclient[http]' pillow
    python examples/triton_client.py small.jpg -o large.png --model elan-light-x4

The picture must fit into the size of the model's configuration. It is padded by reflection and its result cut; colour
profile, metadata and alpha are left out (`restort upscale` keeps them).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

TYPES = {"TYPE_FP32": ("FP32", np.float32), "TYPE_FP16": ("FP16", np.float16)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--url", default="localhost:8000")
    args = parser.parse_args()
    client = InferenceServerClient(args.url)
    pixels = np.asarray(Image.open(args.picture).convert("RGB"))
    Image.fromarray(restore(client, args.model, pixels)).save(args.output)


def restore(client: Any, model: str, pixels: np.ndarray) -> np.ndarray:
    """Restore `pixels`, uint8 [H, W, 3]."""
    port = client.get_model_config(model)["input"][0]
    kind, dtype = TYPES[port["data_type"]]
    height, width = (int(edge) for edge in port["dims"][1:])
    high, wide = pixels.shape[:2]
    if high > height or wide > width:
        raise SystemExit(f"the picture is {high} x {wide}, but {model} takes {height} x {width} at most")
    x = pixels.astype(np.float32).transpose(2, 0, 1)[None] / 255
    x = np.pad(x, ((0, 0), (0, 0), (0, height - high), (0, width - wide)), mode="reflect").astype(dtype)
    given = InferInput("input", list(x.shape), kind)
    given.set_data_from_numpy(x)
    answer = client.infer(model, [given], outputs=[InferRequestedOutput("output")])
    y = answer.as_numpy("output")[0].astype(np.float32)
    scale = y.shape[1] // height
    y = y[:, : high * scale, : wide * scale].transpose(1, 2, 0)
    return np.rint(np.clip(y, 0, 1) * 255).astype(np.uint8)


if __name__ == "__main__":
    main()
