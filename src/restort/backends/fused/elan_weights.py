"""An ELAN's weights in the form that its kernels read: folded and padded.

T is the storage type. Features are (N, H + 4, W + 4, CS) with two rows and columns of zeros around them, CS the
channels C padded with zeros to a multiple of 64. Each window size has D = C / 3 channels, kept in DS = D rounded up to
a multiple of 8 (16 bytes) and multiplied in DP = DS rounded up to a power of two. Weights are (inputs, outputs).

Folded: BatchNorm into the projections; sqrt(log2(e)) into the queries, so that q q^T is what exp2 takes; the colours'
range and what the network adds to the colours into head and tail.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from restort.errors import RestortError
from restort.kernels.lfe import sm80 as lfe_sm80
from restort.kernels.lfe import sm90 as lfe_sm90
from restort.kernels.upsample_tail import sm80 as upsample_tail_sm80
from restort.kernels.window_attention import sm80 as window_attention_sm80
from restort.kernels.window_attention.triton import WINDOWS
from restort.models.spec import ElanSpec
from restort.utils.integers import next_power_of_2, round_up
from restort.weights.checkpoint import Weights

Tensor = Any
Array = npt.NDArray[Any]
Pair = tuple[Tensor, Tensor]

CHUNK = 64
MAX_CHANNELS = 192
BATCH_NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class Block:
    """One LFE and one GMSA."""

    channels: int
    part: int  # DS
    w0: Tensor  # (5, CS, HP) T: the hidden channels of each group of the second shift
    b0: Tensor  # (5, HP) float32
    w1: Tensor  # (5, HP, CS) T
    b1: Tensor  # (CS,) float32
    values: Pair  # (3, CS, DP) T, (3, DP) float32
    queries: Pair | None  # alike; None in blocks that use another's
    out: Pair  # (3, DP, CS) T, (CS,) float32
    sm80: Pair | None  # all once more, in the order of sm80 of restort.kernels.lfe and .window_attention

    @property
    def local(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The weights of restort.kernels.lfe.triton."""
        return self.w0, self.b0, self.w1, self.b1

    @functools.cached_property
    def lfe_sm90(self) -> Tensor:
        """The weights of the LFE and the projections, in the order of restort.kernels.lfe.sm90."""
        return lfe_sm90.pack(self.local, self.values, self.queries, self.channels, self.part)


@dataclass(frozen=True)
class Packed:
    """All weights of a network; groups are blocks that share their scores."""

    spec: ElanSpec
    dtype: torch.dtype
    stored: int  # CS
    part: int  # DS
    offset: Tensor  # (colors,) float32: added to the picture times its range
    head: Pair  # (K, CS) T, (CS,) float32
    groups: tuple[tuple[Block, ...], ...]
    tail: Pair  # (9, CS, M) T, (M,) float32
    factor: float  # of the tail's product, before its bias
    tail_sm80: Tensor | None  # tail and factor once more, in the order of restort.kernels.upsample_tail.sm80

    def to(self, device: Any) -> Packed:
        """Return a copy on a device."""
        return Packed(**{field.name: _to(getattr(self, field.name), device) for field in fields(self)})

    @property
    def bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(t.numel() * t.element_size() for t in _tensors(self))


def _to(value: Any, device: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_to(part, device) for part in value)
    if isinstance(value, Block):
        return Block(**{field.name: _to(getattr(value, field.name), device) for field in fields(value)})
    return value


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, tuple):
        return [t for part in value for t in _tensors(part)]
    if isinstance(value, Block | Packed):
        return [t for field in fields(value) for t in _tensors(getattr(value, field.name))]
    return []


def hidden_width(group: int) -> int:
    """Return the hidden channels of a group as stored: a sum of at most two powers of two, as Triton blocks have."""
    for width in range(round_up(group, 16), 4 * group + 16, 16):
        if (width & (width - 1)).bit_count() <= 1:
            return width
    raise AssertionError(group)


def pack(weights: Weights, dtype: torch.dtype) -> Packed:
    """Fold and pad an ELAN's weights, on the CPU, in float64 before the one rounding to `dtype`.

    RestortError for windows other than 4, 8 and 16, and for channels that are not three equal parts.
    """
    spec = weights.spec
    assert isinstance(spec, ElanSpec)
    if tuple(spec.window_sizes) != WINDOWS or spec.channels % 3 or not 15 <= spec.channels <= MAX_CHANNELS:
        raise RestortError(
            f"backend 'fused' needs an ELAN with windows of 4, 8 and 16 and 15 to {MAX_CHANNELS} channels in three "
            f"equal parts, not windows of {spec.window_sizes} and {spec.channels} channels; use another backend"
        )
    return _Packer(weights, spec, dtype).pack()


class _Packer:
    def __init__(self, weights: Weights, spec: ElanSpec, dtype: torch.dtype) -> None:
        self.spec, self.dtype = spec, dtype
        self.state = {name: np.asarray(value, dtype=np.float64) for name, value in weights.state.items()}
        self.stored = round_up(spec.channels, CHUNK)
        self.depth = spec.channels // 3
        self.part = round_up(self.depth, 8)

    def pack(self) -> Packed:
        spec = self.spec
        groups = tuple(tuple(self._block(g, i) for i in range(spec.n_share + 1)) for g in range(spec.groups))
        offset, head = self._head()
        tail, factor, tail_sm80 = self._tail(), 1 / spec.value_range, None
        if upsample_tail_sm80.supports(spec.scale, self.dtype):
            tail_sm80 = upsample_tail_sm80.pack(tail, spec.channels, spec.colors, spec.scale, factor)
        return Packed(spec, self.dtype, self.stored, self.part, offset, head, groups, tail, factor, tail_sm80)

    def _block(self, group: int, i: int) -> Block:
        lfe, gmsa = f"body.{group}.modules_lfe.lfe_{i}", f"body.{group}.modules_gmsa.gmsa_{i}"
        w0, b0 = self._conv1x1(f"{lfe}.conv0.shift_conv.conv1x1")
        w1, b1 = self._conv1x1(f"{lfe}.conv1.shift_conv.conv1x1")
        values, queries = self._projections(gmsa, i == 0)
        local = (
            self._stored(self._by_group(w0, 1), 1),
            _float(self._by_group(b0, 0)),
            self._stored(self._by_group(w1, 0), 2),
            _float(_pad(b1, 0, self.stored)),
        )
        out, channels, sm80 = self._out(f"{gmsa}.project_out"), self.spec.channels, None
        if lfe_sm80.supports(channels, w0.shape[1] // 5, self.dtype):
            sm80 = (
                lfe_sm80.pack(local, values, queries, channels, self.part),
                window_attention_sm80.pack(out, channels, self.part),
            )
        return Block(channels, self.part, *local, values=values, queries=queries, out=out, sm80=sm80)

    def _conv1x1(self, name: str) -> tuple[Array, Array]:
        """(inputs, outputs) and (outputs,)."""
        return self.state[f"{name}.weight"][:, :, 0, 0].T, self.state[f"{name}.bias"]

    def _by_group(self, array: Array, axis: int) -> Array:
        """Return the hidden channels on `axis` as (5, ...), one entry for each group of the shift, zero-padded."""
        hidden = array.shape[axis]
        size = hidden // 5
        edges = [0, size, 2 * size, 3 * size, 4 * size, hidden]
        width = hidden_width(hidden - 4 * size)
        return np.stack(
            [_pad(np.take(array, range(edges[g], edges[g + 1]), axis), axis, width) for g in range(5)]
        )

    def _projections(self, name: str, has_queries: bool) -> tuple[Pair, Pair | None]:
        """Return project_inp with its BatchNorm, as values and queries."""
        w, b = self._conv1x1(f"{name}.project_inp.0")
        gain, offset, mean, variance = (
            self.state[f"{name}.project_inp.1.{part}"]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        factor = gain / np.sqrt(variance + BATCH_NORM_EPSILON)
        w, b = w * factor, (b - mean) * factor + offset
        parts = [slice(i * self.depth, (i + 1) * self.depth) for i in range(6 if has_queries else 3)]

        def chosen(which: list[slice], scale: float) -> Pair:
            width = next_power_of_2(self.part)
            w_parts = np.stack([_pad(w[:, part], 1, width) for part in which])
            b_parts = np.stack([_pad(b[part], 0, width) for part in which])
            return self._stored(w_parts * scale, 1), _float(b_parts * scale)

        if not has_queries:
            return chosen(parts, 1.0), None
        return chosen(parts[1::2], 1.0), chosen(parts[::2], math.sqrt(math.log2(math.e)))

    def _out(self, name: str) -> Pair:
        w, b = self._conv1x1(name)
        w = np.stack([_pad(part, 0, next_power_of_2(self.part)) for part in np.split(w, 3)])
        return self._stored(w, 2), _float(_pad(b, 0, self.stored))

    def _head(self) -> tuple[Tensor, Pair]:
        """Return the head's offset and weights.

        The mixing of colours is folded into the weights. The mean cannot be: zeros are padded around the sum.
        """
        mix, mean = self.state["sub_mean.weight"][:, :, 0, 0], self.state["sub_mean.bias"]
        w = np.einsum("ockl,cd->odkl", self.state["head.0.weight"], mix).reshape(self.spec.channels, -1).T
        b = self.state["head.0.bias"]
        w = _pad(w, 0, next_power_of_2(len(w)))
        return _float(np.linalg.solve(mix, mean)), (self._stored(w, 1), _float(_pad(b, 0, self.stored)))

    def _tail(self) -> Pair:
        spec = self.spec
        mix = self.state["add_mean.weight"][:, :, 0, 0]
        w, b = self.state["tail.0.weight"], self.state["tail.0.bias"]
        w = np.einsum("dc,csikl->dsikl", mix, w.reshape(spec.colors, -1, *w.shape[1:])).reshape(w.shape)
        b = (mix @ b.reshape(spec.colors, -1) + self.state["add_mean.bias"][:, None]).reshape(-1)
        width = next_power_of_2(len(b))
        w = _pad(w.transpose(2, 3, 1, 0).reshape(9, spec.channels, -1), 2, width)
        return self._stored(w, 1), _float(_pad(b / spec.value_range, 0, width))

    def _stored(self, array: Array, axis: int) -> Tensor:
        """Return the array with the features' channels on `axis` padded, in the storage type."""
        return torch.from_numpy(np.ascontiguousarray(_pad(array, axis, self.stored))).to(self.dtype)


def _pad(array: Array, axis: int, length: int) -> Array:
    """Pad an axis with zeros at its end."""
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, length - array.shape[axis])
    return np.pad(array, widths)


def _float(array: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).float()
