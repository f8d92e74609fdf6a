"""A Restormer's weights as its kernels read them: folded, padded, in their order of use.

T is the storage type (float16, bfloat16, or float32 for tests). Activations are (N, H, W, C) contiguous. C channels of
a level, M rows of an expansion, F hidden channels of the feed-forward network, FP = F rounded up to a multiple of 32.

Expansion (qkv: M = 3 C, in the order q, k, v, heads inside; feed-forward: M = 2 FP, first the gates, then the values,
the rows F..FP of each half all zero):
    w       (M, C) T        W' = W * (weight of the normalisation), rounded to T
    affine  (2, M) float32  [0] = sums of W' over C as rounded (zeros for BiasFree), [1] = W @ (its bias) + bias of W
    y = rstd * (x @ W'^T - mean * affine[0]) + affine[1]
with mean and rstd = 1 / sqrt(var + 1e-5) of each pixel's C raw channels (var about the mean in both kinds).

Depthwise 3x3 (same channels):
    dw      (10, M) float32  rows 0..8 the taps in the order dy * 3 + dx, row 9 the bias (zeros without)
    dw16    (10, M) T        the same rounded

Attention:
    temperature  (heads,) float32
    out_w   (C, C) float32  the output projection as published; its product with the softmax gives per image the
                            matrix `fold` (N, C, C) T, and x' = x + v @ fold[n]^T + out_b
    out_b   (C,) float32

Feed-forward:
    out_w   (FP, C) T       transposed, so that a chunk of hidden channels is one contiguous piece; rows F..FP zero
    out_b   (C,) float32

3x3 convolutions: (rows, 3, K) T with K >= 3 C: for each dy the 3 C numbers in the order (dx, channel), zeros after
them; rows of an upsampling in the order (dy, dx, channel) of the shuffle. The first one: (dim, K) float32 in the
order (channel, dy, dx), zeros after. 1x1 convolutions: (rows, columns) T. All biases float32, zeros where none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from restort.errors import RestortError
from restort.kernels.conv3x3 import first_tile
from restort.kernels.conv3x3 import tile as conv_tile
from restort.kernels.norm_expand import wide as expand_wide
from restort.kernels.stream_ffn import kernel as stream_ffn
from restort.kernels.stream_ffn import wide
from restort.kernels.stream_gram import wide as gram_wide
from restort.models.blocks import block_names
from restort.models.spec import RestormerSpec
from restort.weights.checkpoint import Weights

Tensor = Any
Array = npt.NDArray[Any]

CHANNELS = 8  # 16 bytes of 16-bit numbers: every level's channels are a multiple
HIDDEN = 32


@dataclass(frozen=True)
class Expansion:
    """Normalisation, 1x1 expansion and the depthwise 3x3 after it."""

    w: Tensor
    affine: Tensor
    dw: Tensor
    dw16: Tensor

    @functools.cached_property
    def w_wide(self) -> Tensor:
        """`w` as restort.kernels.norm_expand.wide reads it."""
        return expand_wide.pack(self.w)


@dataclass(frozen=True)
class Block:
    """One transformer block."""

    channels: int
    heads: int
    hidden: int  # FP
    true_hidden: int  # F
    qkv: Expansion
    temperature: Tensor
    attention_w: Tensor
    attention_b: Tensor
    ffn: Expansion
    ffn_w: Tensor
    ffn_b: Tensor

    @functools.cached_property
    def ffn_image(self) -> Tensor:
        """The feed-forward weights as restort.kernels.stream_ffn reads them."""
        return stream_ffn.image(self.ffn.w, self.ffn.affine, self.ffn.dw16, self.ffn_w)

    @functools.cached_property
    def ffn_wide(self) -> wide.Weights:
        """The feed-forward weights as restort.kernels.stream_ffn.wide reads them."""
        return wide.pack(self.ffn.w, self.ffn.affine, self.ffn.dw16, self.ffn_w)

    @functools.cached_property
    def qkv_wide(self) -> gram_wide.Weights:
        """The attention's expansion as restort.kernels.stream_gram.wide reads it."""
        return gram_wide.pack(self.qkv.w, self.qkv.affine, self.qkv.dw16)


@dataclass(frozen=True)
class Packed:
    """All of a network: blocks by their names (restort.models.blocks), other layers by their published names."""

    spec: RestormerSpec
    dtype: torch.dtype
    blocks: dict[str, Block]
    layers: dict[str, tuple[Tensor, Tensor]]  # (weight, bias)

    def to(self, device: Any) -> Packed:
        """The same on a device."""
        blocks = {name: _map(block, lambda t: t.to(device)) for name, block in self.blocks.items()}
        layers = {name: (w.to(device), b.to(device)) for name, (w, b) in self.layers.items()}
        return Packed(self.spec, self.dtype, blocks, layers)

    def tiled(self, mode: int, name: str, channels: int, how: dict[str, int]) -> Tensor:
        """The weights of a 3x3 convolution of so many channels as restort.kernels.conv3x3.tile reads them."""
        key = name, how.get("COLUMNS"), how.get("CHUNK")
        if key not in self._tiled:
            self._tiled[key] = conv_tile.pack(mode, self.layers[name][0], channels, how)
        return self._tiled[key]

    @functools.cached_property
    def first_tiled(self) -> Tensor:
        """The weights of the first one as restort.kernels.conv3x3.first_tile reads them."""
        weight, _ = self.layers["patch_embed.proj"]
        return first_tile.pack(weight, self.spec.in_channels, self.dtype)

    @functools.cached_property
    def _tiled(self) -> dict[Any, Tensor]:
        return {}

    @property
    def bytes(self) -> int:
        """Memory of all its arrays."""
        count = 0

        def add(tensor: Tensor) -> Tensor:
            nonlocal count
            count += tensor.numel() * tensor.element_size()
            return tensor

        for block in self.blocks.values():
            _map(block, add)
        for pair in self.layers.values():
            for tensor in pair:
                add(tensor)
        return count


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A dataclass with its tensors changed."""
    changed = {}
    for field in fields(value):
        part = getattr(value, field.name)
        if isinstance(part, torch.Tensor):
            part = change(part)
        elif isinstance(part, Expansion):
            part = _map(part, change)
        changed[field.name] = part
    return type(value)(**changed)


def step(channels: int) -> int:
    """How many of the 3 C numbers of a row of taps one step of a 3x3 convolution multiplies."""
    return 64 if 3 * channels % 64 == 0 else 32


def up(number: int, multiple: int) -> int:
    """The next multiple."""
    return -(-number // multiple) * multiple


def pack(weights: Weights, dtype: torch.dtype) -> Packed:
    """Folds and pads a Restormer's weights, on the CPU, in float64 before the one rounding to `dtype`.

    RestortError for a network whose channels are no multiple of 8, which the kernels' loads need.
    """
    spec = weights.spec
    assert isinstance(spec, RestormerSpec)
    if spec.dim % CHANNELS:
        raise RestortError(
            f"the fused backend runs Restormers whose dim is a multiple of {CHANNELS}, and this one has {spec.dim}; "
            "use another backend"
        )
    state = {name: np.asarray(value, dtype=np.float64) for name, value in weights.state.items()}
    blocks = {name: _block(state, name, spec, dtype) for name in block_names(spec)}
    return Packed(spec, dtype, blocks, dict(_layers(state, spec, dtype)))


def _block(state: dict[str, Array], name: str, spec: RestormerSpec, dtype: torch.dtype) -> Block:
    def get(part: str) -> Array | None:
        return state.get(f"{name}.{part}")

    attention = state[f"{name}.attn.project_out.weight"][:, :, 0, 0]
    channels = attention.shape[0]
    projected = state[f"{name}.ffn.project_out.weight"][:, :, 0, 0]
    true_hidden = projected.shape[1]
    hidden = up(true_hidden, HIDDEN)

    def both(array: Array) -> Array:
        """Gates and values, each padded to FP rows."""
        halves = [np.pad(half, ((0, hidden - true_hidden), (0, 0))) for half in np.split(array, 2)]
        return np.concatenate(halves)

    def expansion(norm: str, conv: str, depthwise: str, arrange: Callable[[Array], Array]) -> Expansion:
        w = state[f"{name}.{conv}.weight"][:, :, 0, 0]
        rows = w.shape[0]
        shift = _or_zeros(get(f"{conv}.bias"), rows)
        centred = get(f"{norm}.body.bias")
        if centred is not None:
            shift = shift + w @ centred
        stored = _tensor(arrange(w * state[f"{name}.{norm}.body.weight"]), dtype)
        sums = stored.double().sum(1).numpy() if centred is not None else np.zeros(len(stored))
        affine = np.stack([sums, arrange(shift[:, None])[:, 0]])
        taps = state[f"{name}.{depthwise}.weight"].reshape(rows, 9)
        bias = _or_zeros(get(f"{depthwise}.bias"), rows)
        dw = arrange(np.concatenate([taps, bias[:, None]], 1)).T
        return Expansion(
            stored, _tensor(affine, torch.float32), _tensor(dw, torch.float32), _tensor(dw, dtype)
        )

    return Block(
        channels=channels,
        heads=state[f"{name}.attn.temperature"].size,
        hidden=hidden,
        true_hidden=true_hidden,
        qkv=expansion("norm1", "attn.qkv", "attn.qkv_dwconv", lambda array: array),
        temperature=_tensor(state[f"{name}.attn.temperature"].reshape(-1), torch.float32),
        attention_w=_tensor(attention, torch.float32),
        attention_b=_tensor(_or_zeros(get("attn.project_out.bias"), channels), torch.float32),
        ffn=expansion("norm2", "ffn.project_in", "ffn.dwconv", both),
        ffn_w=_tensor(np.pad(projected.T, ((0, hidden - true_hidden), (0, 0))), dtype),
        ffn_b=_tensor(_or_zeros(get("ffn.project_out.bias"), channels), torch.float32),
    )


def _layers(state: dict[str, Array], spec: RestormerSpec, dtype: torch.dtype) -> Any:
    """Every layer outside of the blocks: (name, (weight, bias))."""
    first = state["patch_embed.proj.weight"].reshape(spec.dim, -1)
    length = max(16, 1 << (first.shape[1] - 1).bit_length())
    first = np.pad(first, ((0, 0), (0, length - first.shape[1])))
    yield "patch_embed.proj", (_tensor(first, torch.float32), torch.zeros(spec.dim))
    for name in ("down1_2", "down2_3", "down3_4", "up4_3", "up3_2", "up2_1", "output"):
        key = name if name == "output" else f"{name}.body.0"
        w = state[f"{key}.weight"]
        if name.startswith("up"):
            w = w.reshape(-1, 4, *w.shape[1:]).swapaxes(0, 1).reshape(w.shape)
        bias = _or_zeros(state.get(f"{key}.bias"), len(w))
        yield name, (_tensor(_taps(w), dtype), _tensor(bias, torch.float32))
    for name in ("reduce_chan_level3", "reduce_chan_level2", "skip_conv"):
        if f"{name}.weight" in state:
            w = state[f"{name}.weight"][:, :, 0, 0]
            bias = _or_zeros(state.get(f"{name}.bias"), len(w))
            yield name, (_tensor(w, dtype), _tensor(bias, torch.float32))


def _taps(w: Array) -> Array:
    """(rows, C, 3, 3) -> (rows, 3, K)."""
    rows, channels = w.shape[:2]
    flat = w.transpose(0, 2, 3, 1).reshape(rows, 3, 3 * channels)
    return np.pad(flat, ((0, 0), (0, 0), (0, up(3 * channels, step(channels)) - 3 * channels)))


def _or_zeros(array: Array | None, length: int) -> Array:
    return np.zeros(length) if array is None else array


def _tensor(array: Array, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(dtype)
