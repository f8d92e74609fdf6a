"""How a graph is written: one network, in the nodes that suit the tool which runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from restort.models.block_names import block_names
from restort.models.spec import RestormerSpec, Spec

ENGINE_PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "mixed")
"""What a TensorRT engine computes in. 'tf32' is a setting of the builder on an 'fp32' graph; 'mixed' is float16 with
some sections in float32."""

Norm: TypeAlias = Literal["layer", "cast", "convolution", "arithmetic"]


@dataclass(frozen=True)
class Form:
    """Choices that change the nodes of a graph but not its result, beyond rounding.

    norm        LayerNorm of a Restormer. 'layer': LayerNormalization between transposes. 'cast': LayerNormalization
                with float32 input and output, for tools that would compute it in the type of its input.
                'convolution': a centring 1x1 convolution and a norm. 'arithmetic': mean, difference, square, root
                and quotient. LayerNormalization needs a bias; without one 'layer' becomes 'convolution', and 'cast'
                becomes 'arithmetic'.
    attention   MDTA of a Restormer (restort.export.mdta). 'before': q and k are divided by their norms before their
                product. 'rows': pixels are rows, one product serves all heads, a mask separates them. 'gram': one
                product of q and k, stacked, with themselves, which also gives the norms.
    gate        GDFN of a Restormer. 'split': gate and value come from one convolution and a Split. 'separate': from two
                convolutions. 'auto': two where an fp32 graph is large.
    """

    norm: Norm = "layer"
    attention: Literal["before", "rows", "gram"] = "before"
    gate: Literal["auto", "split", "separate"] = "auto"


TYPED = Form(norm="cast", attention="rows", gate="split")
"""For strongly typed engines (TensorRT 10, 11, RTX), which take the types of the graph as they are."""

WEAKLY_TYPED = Form(norm="arithmetic", attention="gram", gate="separate")
"""For TensorRT 8.6, whose compiler Myelin fails on every Restormer: no node of this form is left to Myelin."""


def sections(spec: Spec) -> tuple[str, ...]:
    """The parts of a network that can each have a precision, in the order they run.

    They are its blocks (`restort.models.block_names.block_names`) and what lies between the blocks: the convolutions
    before, after and between the levels of a Restormer; the head and the tail of an ELAN.
    """
    blocks = block_names(spec)
    if not isinstance(spec, RestormerSpec):
        return ("head", *blocks, "tail")
    before = {"encoder_level2.0": "down1_2", "encoder_level3.0": "down2_3", "latent.0": "down3_4"}
    before |= {f"decoder_level{level}.0": f"up{level + 1}_{level}" for level in (3, 2, 1)}
    names = ["patch_embed"]
    for block in blocks:
        names += [before[block], block] if block in before else [block]
    return (*names, "output")
