"""How a graph is written: the same network, to the liking of the tool that will run it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from restort.models.blocks import block_names
from restort.models.spec import RestormerSpec, Spec

Norm: TypeAlias = Literal["layer", "cast", "convolution", "arithmetic"]


@dataclass(frozen=True)
class Form:
    """Choices that change the nodes of a graph and not its result, beyond rounding.

    norm        a Restormer's LayerNorm: 'layer' is LayerNormalization between transposes; 'cast' the same with
                float32 input and output, for tools that would compute it in the type of its input; 'convolution'
                a centring 1x1 convolution and a norm; 'arithmetic' mean, difference, square, root and quotient.
                LayerNormalization needs a bias: without one 'layer' becomes 'convolution', and 'cast'
                'arithmetic'.
    attention   a Restormer's MDTA: 'before' divides q and k by their norms before their product; 'after' divides
                the product, which is small, so that q and k are read once, as they are; 'folded' is 'after' with
                the projection multiplied into the attention matrix of all heads; 'rows' is that with pixels as
                rows, one product for all heads, and a mask; 'parts' the same with the product summed over equal
                parts of the picture, for tools that cannot spread so long a sum over a GPU; 'unit' divides q and k
                in float32 and multiplies them in the type of the graph, as vectors of length 16; 'gram' is 'after'
                by parts, and with the norms from the product itself, of q and k together with themselves.
    gate        a Restormer's GDFN: gate and value from one convolution and a 'split', from two ('separate'), or
                'auto': two where an fp32 graph is large.
    windows     an ELAN's windows: 'gather' takes their pixels from a table by computed indices; 'shuffle' reshapes and
                transposes.
    """

    norm: Norm = "layer"
    attention: Literal["before", "after", "folded", "rows", "parts", "unit", "gram"] = "before"
    gate: Literal["auto", "split", "separate"] = "auto"
    windows: Literal["gather", "shuffle"] = "gather"


TYPED = Form(norm="cast", attention="rows", gate="split")
"""For engines that take the types of the graph as they are."""

WEAKLY_TYPED = Form(norm="arithmetic", attention="gram", gate="separate")
"""For TensorRT 8.6, whose compiler Myelin builds no Restormer: this leaves nothing to it."""


def sections(spec: Spec) -> tuple[str, ...]:
    """The parts of a network that may each have a precision, in the order they run.

    They are its blocks (`restort.models.blocks.block_names`) and what lies between them: the convolutions before,
    after and between the levels of a Restormer, the head and the tail of an ELAN.
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
