"""A Restormer's weights in the form that its kernels read: folded and padded.

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
                            attention matrix A (N, C, C) T, and x' = x + v @ A[n]^T + out_b
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
from restort.kernels.conv3x3 import sm90 as conv3x3_sm90
from restort.kernels.conv3x3_first import sm80 as conv3x3_first_sm80
from restort.kernels.conv3x3_last import sm90 as conv3x3_last_sm90
from restort.kernels.gdfn import sm80 as gdfn_sm80
from restort.kernels.gdfn import sm90 as gdfn_sm90
from restort.kernels.layernorm_conv1x1 import sm90 as layernorm_conv1x1_sm90
from restort.kernels.mdta_gram import sm90 as mdta_gram_sm90
from restort.models.block_names import block_names
from restort.models.spec import RestormerSpec
from restort.utils.integers import next_power_of_2, round_up
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
    def w_sm90(self) -> Tensor:
        """`w` in the order of restort.kernels.layernorm_conv1x1.sm90."""
        return layernorm_conv1x1_sm90.pack(self.w)


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
    def ffn_sm80(self) -> Tensor:
        """The feed-forward weights in the order of restort.kernels.gdfn.sm80."""
        return gdfn_sm80.pack(self.ffn.w, self.ffn.affine, self.ffn.dw16, self.ffn_w)

    @functools.cached_property
    def ffn_sm90(self) -> gdfn_sm90.Weights:
        """The feed-forward weights in the order of restort.kernels.gdfn.sm90."""
        return gdfn_sm90.pack(self.ffn.w, self.ffn.affine, self.ffn.dw16, self.ffn_w)

    @functools.cached_property
    def qkv_sm90(self) -> mdta_gram_sm90.Weights:
        """The attention's expansion in the order of restort.kernels.mdta_gram.sm90."""
        return mdta_gram_sm90.pack(self.qkv.w, self.qkv.affine, self.qkv.dw16)


@dataclass(frozen=True)
class Packed:
    """All of a network: blocks by their names (restort.models.block_names), other layers by their published names."""

    spec: RestormerSpec
    dtype: torch.dtype
    blocks: dict[str, Block]
    layers: dict[str, tuple[Tensor, Tensor]]  # (weight, bias)

    def to(self, device: Any) -> Packed:
        """Return a copy on a device."""
        blocks = {name: _map(block, lambda t: t.to(device)) for name, block in self.blocks.items()}
        layers = {name: (w.to(device), b.to(device)) for name, (w, b) in self.layers.items()}
        return Packed(self.spec, self.dtype, blocks, layers)

    def conv_sm90(self, name: str, channels: int, macros: dict[str, int]) -> Tensor:
        """Return a convolution's weights in the order of restort.kernels.conv3x3.sm90 with these macros."""
        key = name, macros["COLUMNS"], macros["CHUNK"]
        if key not in self._conv_sm90:
            self._conv_sm90[key] = conv3x3_sm90.pack(self.layers[name][0], channels, macros)
        return self._conv_sm90[key]

    @functools.cached_property
    def _conv_sm90(self) -> dict[Any, Tensor]:
        return {}

    @functools.cached_property
    def first_sm80(self) -> Tensor:
        """The first convolution's weights in the order of restort.kernels.conv3x3_first.sm80."""
        weight, _ = self.layers["patch_embed.proj"]
        return conv3x3_first_sm80.pack(weight, self.spec.in_channels, self.dtype)

    @functools.cached_property
    def last_sm90(self) -> Tensor:
        """The last convolution's weights in the order of restort.kernels.conv3x3_last.sm90."""
        weight, _ = self.layers["output"]
        return conv3x3_last_sm90.pack(weight, 2 * self.spec.dim)

    @property
    def bytes(self) -> int:
        """Bytes of all arrays."""
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
    """Return a copy of a dataclass with its tensors changed."""
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
    """Return how many of the 3 C numbers of a row of taps one step of a 3x3 convolution multiplies."""
    return 64 if 3 * channels % 64 == 0 else 32


def pack(weights: Weights, dtype: torch.dtype) -> Packed:
    """Fold and pad a Restormer's weights, on the CPU, in float64 before the one rounding to `dtype`.

    RestortError if the channels are no multiple of 8, which the kernels' loads need.
    """
    spec = weights.spec
    assert isinstance(spec, RestormerSpec)
    if spec.dim % CHANNELS:
        raise RestortError(
            f"backend 'fused' needs a Restormer whose dim is a multiple of {CHANNELS}, not {spec.dim}; "
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
    hidden = round_up(true_hidden, HIDDEN)

    def both(array: Array) -> Array:
        """Pad gates and values to FP rows each."""
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
    """Yield every layer outside of the blocks: (name, (weight, bias))."""
    first = state["patch_embed.proj.weight"].reshape(spec.dim, -1)
    length = next_power_of_2(first.shape[1])
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
    return np.pad(flat, ((0, 0), (0, 0), (0, round_up(3 * channels, step(channels)) - 3 * channels)))


def _or_zeros(array: Array | None, length: int) -> Array:
    return np.zeros(length) if array is None else array


def _tensor(array: Array, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(dtype)
