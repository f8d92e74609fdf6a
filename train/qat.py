"""Quantisation-aware training: a trained network whose 1x1 convolutions round as its INT8 or FP8 graph will.

The network begins with shipped weights, calibrated and equalised as `restort export` does it, and every step sees the
rounding (restort.profiling.fake_quantization). Ranges of inputs stay what they are; scales of weights follow the
weights. The file of the run holds the ranges in its metadata, from which `restort export --precision` takes them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from restort.export.qdq import QuantType
from restort.models import restormer
from restort.models.spec import Spec
from restort.models.torch_network import build
from restort.profiling.calibration import TRAINED_KIND, TRAINED_RANGES, calibrated
from restort.profiling.fake_quantization import quantize_layers
from restort.weights.checkpoint import load_weights

LEARNING_RATE = 1e-5  # of fine-tuning, where none is given
CARRIED = ("model", "scale", "task", "tasks", "licence", "source")  # metadata of the weights that stay true


@dataclass(frozen=True)
class Quantized:
    """A network to train, in float32 with fake quantisation, and the metadata of its file."""

    model: nn.Module
    spec: Spec
    metadata: dict[str, str]


class FoldedNorm(nn.BatchNorm2d):  # type: ignore[misc]
    """A BatchNorm that went into the convolution before it: the identity, with numbers that say so."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def quantized(path: Path, kind: QuantType, pictures: Sequence[Path]) -> Quantized:
    """The network of the file `path`, calibrated on `pictures`, with rounding of type `kind`."""
    found = calibrated(load_weights(path), kind, pictures)
    weights, ranges = found.weights, found.quantization.ranges
    model = build(weights.spec, weights.state)
    fold_norms(model)
    quantize_layers(model, ranges, kind)
    metadata = {key: weights.metadata[key] for key in CARRIED if key in weights.metadata}
    metadata |= {TRAINED_KIND: kind, TRAINED_RANGES: json.dumps(dict(ranges))}
    return Quantized(model, weights.spec, metadata)


@torch.no_grad()  # type: ignore[untyped-decorator]
def fold_norms(model: nn.Module) -> None:
    """Move into convolutions what the graph moves there, in place: the layers must see the inputs of the graph's.

    That is every BatchNorm, and the scale of a LayerNorm without a bias. Names and shapes of the state stay.
    """
    for part in model.modules():
        if isinstance(part, nn.Sequential) and len(part) == 2 and isinstance(part[1], nn.BatchNorm2d):
            conv, norm = part
            folded = nn.utils.fusion.fuse_conv_bn_eval(conv, norm.eval())
            conv.weight.copy_(folded.weight)
            conv.bias.copy_(folded.bias)
            norm.__class__ = FoldedNorm
            norm.requires_grad_(False)
            for values, number in (
                (norm.weight, 1.0),
                (norm.bias, 0.0),
                (norm.running_mean, 0.0),
                (norm.running_var, 1.0 - norm.eps),
            ):
                values.fill_(number)
        if isinstance(part, restormer.Block):
            for norm, conv in ((part.norm1, part.attn.qkv), (part.norm2, part.ffn.project_in)):
                if norm.body.bias is None:
                    conv.weight.mul_(norm.body.weight.view(1, -1, 1, 1))
                    norm.body.weight.fill_(1.0)
                    norm.body.weight.requires_grad_(False)
