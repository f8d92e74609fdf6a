"""The descriptor of a network: its hyper-parameters, found from parameter names and shapes alone.

Nothing here needs PyTorch. The ONNX export, the catalogue and every backend read this descriptor.

Sources: Restormer, Zamir et al., CVPR 2022, section 3 and figure 2; ELAN, Zhang et al., ECCV 2022,
section 3 and figure 2.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

from restort.errors import RestortError

LEVELS = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
ELAN_WINDOWS = (4, 8, 16)
ELAN_RGB_MEAN = (0.4488, 0.4371, 0.4040)


@dataclass(frozen=True)
class RestormerSpec:
    """Hyper-parameters of a Restormer (values in [0, 1], output as large as the input).

    heads, num_blocks   one number for each of the four levels of the encoder
    ffn_expansion       hidden channels of GDFN over channels: `hidden(channels)` is int(channels * ffn_expansion)
    """

    in_channels: int
    out_channels: int
    dim: int
    num_blocks: tuple[int, int, int, int]
    num_refinement_blocks: int
    heads: tuple[int, int, int, int]
    ffn_expansion: float
    bias: bool
    layer_norm: Literal["WithBias", "BiasFree"]
    dual_pixel: bool

    architecture: ClassVar[str] = "restormer"
    scale: ClassVar[int] = 1
    size_multiple: ClassVar[int] = 8
    value_range: ClassVar[float] = 1.0
    whole_image: ClassVar[bool] = True  # MDTA sums over all pixels: a tile gives another result

    def hidden(self, channels: int) -> int:
        """Return the hidden channels of GDFN at a level of `channels` channels."""
        return int(channels * self.ffn_expansion)


@dataclass(frozen=True)
class ElanSpec:
    """Hyper-parameters of an ELAN (values in [0, rgb_range] inside the network).

    `blocks` counts the attention blocks (`m_elan` in the paper's code); each group shares the scores of its
    first block among `n_share + 1` of them, so there are `blocks // (n_share + 1)` groups.
    """

    scale: int
    blocks: int
    channels: int
    n_share: int
    colors: int
    window_sizes: tuple[int, ...]
    rgb_range: float
    expand: int

    architecture: ClassVar[str] = "elan"
    whole_image: ClassVar[bool] = False

    @property
    def groups(self) -> int:
        """Number of groups of blocks that share scores."""
        return self.blocks // (self.n_share + 1)

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.colors

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.colors

    @property
    def size_multiple(self) -> int:
        """Number of which heights and widths are multiples: the least common multiple of the windows."""
        return math.lcm(*self.window_sizes)

    @property
    def value_range(self) -> float:
        """Largest value of the network's own range, [0, value_range]."""
        return self.rgb_range


Spec: TypeAlias = RestormerSpec | ElanSpec


def detect(state: Mapping[str, Any]) -> Spec:
    """Return the descriptor of a state dict (values need only have `.shape`).

    Raises RestortError where the names or shapes are of neither architecture, naming the first difference.
    """
    try:
        # Vision transformers have a patch_embed too: the second name tells a Restormer from them.
        if "patch_embed.proj.weight" in state and "encoder_level1.0.attn.temperature" in state:
            spec: Spec = _detect_restormer(state)
        elif "head.0.weight" in state and any(name.startswith("body.0.modules_lfe.lfe_0.") for name in state):
            spec = _detect_elan(state)
        else:
            sample = ", ".join(name[:60] for name in list(state)[:3]) or "no parameters at all"
            raise RestortError(
                f"these weights are neither a Restormer nor an ELAN (they begin with: {sample}); "
                "use a checkpoint of one of the two"
            )
    except (ValueError, IndexError, ZeroDivisionError):  # a shape with too few or empty dimensions
        raise RestortError(
            "these weights have shapes of no Restormer and no ELAN; the file is damaged"
        ) from None
    _check(state, spec)
    return spec


def _shape(state: Mapping[str, Any], name: str) -> tuple[int, ...]:
    try:
        return tuple(int(n) for n in state[name].shape)
    except KeyError:
        raise RestortError(f"the weights lack the parameter {name}; the file is incomplete") from None


def _count(state: Mapping[str, Any], prefix: str) -> int:
    """Count the children 0, 1, 2, ... under `prefix.`."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    found = {int(match.group(1)) for name in state if (match := pattern.match(name))}
    if found != set(range(len(found))):
        raise RestortError(f"the blocks under {prefix} are not numbered one by one; the file is incomplete")
    return len(found)


def _detect_restormer(state: Mapping[str, Any]) -> RestormerSpec:
    dim, in_channels = _shape(state, "patch_embed.proj.weight")[:2]
    blocks = tuple(_count(state, level) for level in LEVELS)
    if not all(blocks):
        raise RestortError("a level of this Restormer has no blocks; the file is incomplete")
    heads = tuple(_shape(state, f"{level}.0.attn.temperature")[0] for level in LEVELS)
    if any(count < 1 or (dim << i) % count for i, count in enumerate(heads)):
        raise RestortError(f"the heads {heads} do not divide the channels of this Restormer; it is damaged")
    hidden = [_shape(state, f"{level}.0.ffn.dwconv.weight")[0] // 2 for level in LEVELS]
    return RestormerSpec(
        in_channels=in_channels,
        out_channels=_shape(state, "output.weight")[0],
        dim=dim,
        num_blocks=blocks,  # type: ignore[arg-type]
        num_refinement_blocks=_count(state, "refinement"),
        heads=heads,  # type: ignore[arg-type]
        ffn_expansion=_expansion([(dim << i, width) for i, width in enumerate(hidden)]),
        bias="encoder_level1.0.attn.qkv.bias" in state,
        layer_norm="WithBias" if "encoder_level1.0.norm1.body.bias" in state else "BiasFree",
        dual_pixel="skip_conv.weight" in state,
    )


def _expansion(widths: list[tuple[int, int]]) -> float:
    """Return the factor f with the fewest decimals for which int(channels * f) is each level's hidden channels."""
    low = max(hidden / channels for channels, hidden in widths)
    candidates = [2.66, *(math.ceil(low * 10.0**digits) / 10.0**digits for digits in range(7))]
    for factor in candidates:
        if all(int(channels * factor) == hidden for channels, hidden in widths):
            return factor
    raise RestortError("the feed-forward widths of this Restormer do not follow one expansion factor")


def _detect_elan(state: Mapping[str, Any]) -> ElanSpec:
    channels, colors = _shape(state, "head.0.weight")[:2]
    groups = _count(state, "body")
    share = len({name.split(".")[3] for name in state if name.startswith("body.0.modules_lfe.")})
    tail = _shape(state, "tail.0.weight")[0]
    scale = math.isqrt(tail // colors)
    if scale not in (1, 2, 3, 4) or scale * scale * colors != tail:
        raise RestortError(f"the tail of this ELAN has {tail} channels, which is no scale from 1 to 4")
    expanded = _shape(state, "body.0.modules_lfe.lfe_0.conv0.shift_conv.conv1x1.weight")[0]
    return ElanSpec(
        scale=scale,
        blocks=groups * share,
        channels=channels,
        n_share=share - 1,
        colors=colors,
        window_sizes=ELAN_WINDOWS,
        rgb_range=_rgb_range(state),
        expand=expanded // channels,
    )


def _rgb_range(state: Mapping[str, Any]) -> float:
    """Return the range of values, from the mean colour that the network adds; 255 (published) if it is not stored."""
    mean = state.get("add_mean.bias")
    try:
        largest = float(abs(mean).max()) if mean is not None else 0.0
        unit = max(ELAN_RGB_MEAN) if len(mean) == 3 else sum(ELAN_RGB_MEAN) / 3  # type: ignore[arg-type]
        found = largest / unit  # a file in float16 gives 254.986 for 255
        return float(round(found)) if round(found) > 0 and abs(found / round(found) - 1) < 1e-3 else 255.0
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return 255.0


def _check(state: Mapping[str, Any], spec: Spec) -> None:
    """Raise RestortError for a missing parameter, an unknown one, or one of another shape."""
    expected = parameter_shapes(spec)
    for name, shape in expected.items():
        if name not in state and name.endswith("num_batches_tracked"):
            continue
        if _shape(state, name) != shape:
            raise RestortError(
                f"the parameter {name} has shape {list(_shape(state, name))} where this {spec.architecture} "
                f"needs {list(shape)}; the file is of another variant"
            )
    extra = [name for name in state if name not in expected]
    if extra:
        raise RestortError(
            f"the weights hold {len(extra)} parameters that no {spec.architecture} has, such as {extra[0]}"
        )


def parameter_shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of every parameter and buffer, in the published order."""
    return _restormer_shapes(spec) if isinstance(spec, RestormerSpec) else _elan_shapes(spec)


def _restormer_shapes(spec: RestormerSpec) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, out: int, inp: int, k: int, *, bias: bool = spec.bias) -> None:
        shapes[f"{name}.weight"] = (out, inp, k, k)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    def norm(name: str, channels: int) -> None:
        shapes[f"{name}.body.weight"] = (channels,)
        if spec.layer_norm == "WithBias":
            shapes[f"{name}.body.bias"] = (channels,)

    def stage(name: str, channels: int, blocks: int, heads: int) -> None:
        hidden = spec.hidden(channels)
        for i in range(blocks):
            block = f"{name}.{i}"
            norm(f"{block}.norm1", channels)
            shapes[f"{block}.attn.temperature"] = (heads, 1, 1)
            conv(f"{block}.attn.qkv", 3 * channels, channels, 1)
            conv(f"{block}.attn.qkv_dwconv", 3 * channels, 1, 3)
            conv(f"{block}.attn.project_out", channels, channels, 1)
            norm(f"{block}.norm2", channels)
            conv(f"{block}.ffn.project_in", 2 * hidden, channels, 1)
            conv(f"{block}.ffn.dwconv", 2 * hidden, 1, 3)
            conv(f"{block}.ffn.project_out", channels, hidden, 1)

    d, blocks, heads = spec.dim, spec.num_blocks, spec.heads
    conv("patch_embed.proj", d, spec.in_channels, 3, bias=False)
    for i in range(4):
        stage(LEVELS[i], d << i, blocks[i], heads[i])
        if i < 3:
            conv(f"down{i + 1}_{i + 2}.body.0", (d << i) // 2, d << i, 3, bias=False)
            conv(f"up{i + 2}_{i + 1}.body.0", (d << (i + 1)) * 2, d << (i + 1), 3, bias=False)
    conv("reduce_chan_level3", d * 4, d * 8, 1)
    conv("reduce_chan_level2", d * 2, d * 4, 1)
    stage("decoder_level3", d * 4, blocks[2], heads[2])
    stage("decoder_level2", d * 2, blocks[1], heads[1])
    stage("decoder_level1", d * 2, blocks[0], heads[0])
    stage("refinement", d * 2, spec.num_refinement_blocks, heads[0])
    if spec.dual_pixel:
        conv("skip_conv", d * 2, d, 1)
    conv("output", spec.out_channels, d * 2, 3)
    return shapes


def _elan_shapes(spec: ElanSpec) -> dict[str, tuple[int, ...]]:
    c, expanded, colors = spec.channels, spec.channels * spec.expand, spec.colors
    shapes: dict[str, tuple[int, ...]] = {}
    for name in ("sub_mean", "add_mean"):
        shapes |= {f"{name}.weight": (colors, colors, 1, 1), f"{name}.bias": (colors,)}
    shapes |= {"head.0.weight": (c, colors, 3, 3), "head.0.bias": (c,)}
    for group in range(spec.groups):
        for i in range(spec.n_share + 1):
            lfe = f"body.{group}.modules_lfe.lfe_{i}"
            for conv, inp, out in (("conv0", c, expanded), ("conv1", expanded, c)):
                shapes[f"{lfe}.{conv}.shift_conv.weight"] = (inp, 1, 3, 3)
                shapes[f"{lfe}.{conv}.shift_conv.conv1x1.weight"] = (out, inp, 1, 1)
                shapes[f"{lfe}.{conv}.shift_conv.conv1x1.bias"] = (out,)
            gmsa = f"body.{group}.modules_gmsa.gmsa_{i}"
            projected = 2 * c if i == 0 else c  # the first block makes q and v, the others only v
            shapes[f"{gmsa}.project_inp.0.weight"] = (projected, c, 1, 1)
            shapes[f"{gmsa}.project_inp.0.bias"] = (projected,)
            for name in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{gmsa}.project_inp.1.{name}"] = (projected,)
            shapes[f"{gmsa}.project_inp.1.num_batches_tracked"] = ()
            shapes |= {f"{gmsa}.project_out.weight": (c, c, 1, 1), f"{gmsa}.project_out.bias": (c,)}
    shapes |= {"tail.0.weight": (colors * spec.scale**2, c, 3, 3), "tail.0.bias": (colors * spec.scale**2,)}
    return shapes
