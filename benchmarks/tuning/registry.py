"""OPS: every op with its places in the official networks and the constants to try in each form of its kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from harness import Record

from tuning.elan_ops import elan_allows, lfe, window_attention
from tuning.problem import Constants, Op
from tuning.restormer_convolutions import CONVOLUTIONS, conv1x1, conv3x3, conv3x3_allows
from tuning.restormer_halves import LEVELS, gdfn, half_block_allows, mdta_gram
from tuning.restormer_latent import depthwise_gram, gelu_gate, layernorm_conv1x1

SIZES = ((720, 1280), (368, 552), (256, 256))
ELAN_SIZE = (192, 320)


@dataclass(frozen=True)
class Case:
    op: str
    picture: str
    place: str
    form: str
    constants: Constants = field(hash=False)

    @property
    def variant(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.constants.items()) or "default"

    @property
    def key(self) -> Record:
        return {name: getattr(self, name) for name in ("op", "picture", "place", "form", "variant")}

    def __str__(self) -> str:
        return f"{self.op} {self.picture} {self.place} {self.form}: {self.variant}"


def named(names: str, *choices: tuple[int, ...]) -> list[Constants]:
    """Constants of those names."""
    return [dict(zip(names.split(), choice, strict=True)) for choice in choices]


def only(where: Any, variants: list[Constants]) -> list[Constants]:
    """Variants for some places: those of 'light' or 'full' networks, or of so many channels."""
    return [{**variant, "only": where} for variant in variants]


ONE_BLOCK = {"WARPS": 8, "TALL": 16, "BLOCKS": 1}
MATRIX_TILES = [
    dict(zip(("BM", "BN", "warps", "stages"), cut)) for cut in product((64, 128), (64, 128), (4, 8), (3, 4))
]
# Names of constants. Of LFE never one stage of the groups' loop: Triton 3.6 then reads beyond its shared memory on 9.0.
LFE_TRITON, LFE_SM80 = "TH TW warps stages AHEAD", "WARPS STAGES BLOCKS"
ATTENTION_TRITON, ATTENTION_SM80 = "QUADS KEYS warps AHEAD AHEAD_OUT", "WARPS BLOCKS EARLY"
# fmt: off
OPS: dict[str, Op] = {
    "gdfn": Op(tuple(LEVELS), gdfn, {
        "sm80": [{}, {"BLOCKS": 3}, ONE_BLOCK],
        "sm90": [{}, ONE_BLOCK, {"TALL": 12, "BLOCKS": 2}],
    }, half_block_allows),
    "mdta_gram": Op(tuple(LEVELS), mdta_gram, {
        "sm80": [{}, ONE_BLOCK, {"PART_K": 48}, {"CHUNK": 32}],
        "sm90": [
            {}, {"GRAM": 1}, {"GRAM": 4},
            *only((48, 96), [{"AHEAD": 1}]),
            *only((96,), [ONE_BLOCK, {**ONE_BLOCK, "AHEAD": 1}, {**ONE_BLOCK, "WARPS": 12}]),
            *only((192,), [{"WARPS": 8}, {"WARPS": 8, "AHEAD": 1}]),
            *only((48,), [{"BLOCKS": 2}, {"BLOCKS": 4}, {"TALL": 12}, {"TALL": 16, "BLOCKS": 2}]),
        ],
    }, half_block_allows),
    "conv3x3": Op(tuple(CONVOLUTIONS), conv3x3, {
        "triton": [{}, *MATRIX_TILES],
        "sm90": [{}, *{str(v): v for place in CONVOLUTIONS.values() for v in place[4] if v}.values()],
    }, conv3x3_allows),
    "conv1x1": Op(("reduce_chan_level3", "reduce_chan_level2"), conv1x1, {"triton": [{}, *MATRIX_TILES]}),
    "layernorm_conv1x1": Op(("gdfn", "mdta"), layernorm_conv1x1, {
        "triton": [{}, *named(
            "BM BN warps stages", (64, 64, 8, 2), (64, 64, 8, 3), (64, 128, 8, 2), (128, 64, 8, 2), (128, 128, 8, 2),
            (32, 64, 4, 2), (32, 64, 4, 3), (32, 128, 4, 2),
        )],
        "sm90": [{}, {"PARTS": 3}, {"COLUMNS": 128, "PARTS": 4, "DEPTH": 2}],
    }),
    "gelu_gate": Op(("latent",), gelu_gate, {
        "triton": [{}],
        "sm80": [{}, *named("TALL BLOCKS", (8, 4), (6, 5), (4, 6))],
    }),
    "depthwise_gram": Op(("latent",), depthwise_gram, {
        "triton": [{}],
        "sm80": [{}, *named("TALL WARPS BLOCKS", (8, 6, 2), (4, 3, 4), (4, 6, 4))],
    }),
    "lfe": Op(("elan-light-x4", "elan-light-x4 values", "elan-x4", "elan-x4 values"), lfe, {
        "triton": [
            {},
            *only("light", named(LFE_TRITON, (4, 16, 4, 2, 2), (4, 16, 4, 3, 2), (8, 16, 4, 2, 2), (16, 16, 8, 2, 2))),
            *only("full", named(LFE_TRITON, (8, 16, 8, 2, 2), (4, 16, 8, 2, 2), (4, 16, 4, 2, 2))),
        ],
        "sm80": [
            {},
            *only("light", named(LFE_SM80, (8, 0, 2), (4, 0, 3), (4, 0, 2), (4, 2, 4), (8, 0, 1), (2, 2, 8))),
            *only("full", named(LFE_SM80, (8, 3, 1), (8, 2, 1), (4, 3, 1), (4, 2, 1), (4, 2, 2))),
        ],
        "sm90": [
            {},
            {"CLUSTER": 1},
        ],
    }, elan_allows, elan=True),
    "window_attention": Op(
        ("elan-light-x4", "elan-light-x4 rolled", "elan-x4", "elan-x4 rolled"), window_attention, {
            "triton": [{}, *named(
                ATTENTION_TRITON, (1, 64, 4, 1, 1), (1, 64, 4, 2, 1), (1, 64, 4, 2, 2), (1, 32, 4, 1, 1),
                (1, 128, 4, 1, 1), (1, 64, 8, 1, 1), (2, 64, 8, 1, 1), (2, 64, 8, 2, 1), (2, 128, 8, 1, 1),
            )],
            "sm80": [
                {},
                *named(ATTENTION_SM80, (8, 2, 0), (8, 1, 0), (8, 1, 1), (16, 1, 0)),
                *only("light", named(ATTENTION_SM80, (8, 2, 1), (8, 3, 0), (8, 3, 1), (16, 1, 1))),
            ],
        }, elan_allows, elan=True),
}
# fmt: on


def cases(names: list[str], pictures: list[tuple[int, int]] | None) -> Iterator[Case]:
    """All of them, by picture, op, place and form."""
    for name in names:
        op = OPS[name]
        for height, width in pictures or ([ELAN_SIZE] if op.elan else SIZES):
            for place, (form, variants) in product(op.places, op.variants.items()):
                for constants in variants:
                    if op.allowed(place, form, constants):
                        chosen = {k: v for k, v in constants.items() if k != "only"}
                        yield Case(name, f"{height}x{width}", place, form, chosen)
