"""Which weights exist: those that ship with the package and published ones that can be fetched.

Sources: github.com/swz30/Restormer, release v1.0 (Zamir et al., CVPR 2022) and
github.com/Fried-Rice-Lab/FriedRiceLab (an ELAN-light, Zhang et al., ECCV 2022, trained there).
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from restort.errors import RestortError, UsageError
from restort.models.spec import ELAN_WINDOWS, ElanSpec, RestormerSpec, Spec, detect, parameter_shapes

Architecture = Literal["restormer", "elan"]
Task = Literal["upscale", "denoise", "deblur", "derain", "defocus"]

TASKS: tuple[Task, ...] = ("upscale", "denoise", "deblur", "derain", "defocus")
WEIGHTS_FOLDER = Path(__file__).parent / "shipped"


@dataclass(frozen=True)
class Entry:
    """One set of weights. `parameters` counts trained numbers (no fixed or running buffers).

    `bytes` is the file's size and `sha256` its checksum (hex), each None where the publisher states none;
    `source` is the address it is fetched from, or where it comes from if it is shipped.
    """

    name: str
    architecture: Architecture
    task: Task
    scale: int
    channels: int
    parameters: int
    bytes: int | None
    licence: str
    commercial_use: bool
    source: str
    sha256: str | None
    shipped: bool
    filename: str
    note: str

    @property
    def approximate_bytes(self) -> int:
        """The file's size; four bytes a parameter where it is not known."""
        return self.parameters * 4 if self.bytes is None else self.bytes


# name, task, scale, note
_SHIPPED: tuple[tuple[str, Task, int, str], ...] = (
    ("elan-light-x4", "upscale", 4, "four times the size"),
    ("elan-light-x3", "upscale", 3, "three times the size"),
    ("elan-light-x2", "upscale", 2, "twice the size"),
    ("restormer-small-denoise", "denoise", 1, "colour noise of unknown strength, sigma 0 to 50"),
    ("restormer-small-deblur", "deblur", 1, "motion blur with light noise"),
)
_SHIPPED_SOURCE = "trained by RestoRT on freely licensed photographs"

RESTORMER_RELEASE = "https://github.com/swz30/Restormer/releases/download/v1.0"
# The weights were published in March 2022 under the licence the repository then had; later changes of the
# repository's licence do not name them, so the stricter reading is the one to tell.
RESTORMER_LICENCE = "Academic Public License (non-commercial use only)"
# file (and, with hyphens, name), task, input channels, output channels, layer norm, note
_RESTORMER: tuple[tuple[str, Task, int, int, Literal["WithBias", "BiasFree"], str], ...] = (
    ("deraining", "derain", 3, 3, "WithBias", "rain streaks"),
    ("motion_deblurring", "deblur", 3, 3, "WithBias", "motion blur, trained on GoPro"),
    ("single_image_defocus_deblurring", "defocus", 3, 3, "WithBias", "defocus, from one picture"),
    (
        "dual_pixel_defocus_deblurring",
        "defocus",
        6,
        3,
        "WithBias",
        "defocus, from a camera's left and right view",
    ),
    ("real_denoising", "denoise", 3, 3, "BiasFree", "noise of real cameras, trained on SIDD"),
    ("gaussian_color_denoising_blind", "denoise", 3, 3, "BiasFree", "colour noise of unknown strength"),
    ("gaussian_color_denoising_sigma15", "denoise", 3, 3, "BiasFree", "colour noise, sigma 15"),
    ("gaussian_color_denoising_sigma25", "denoise", 3, 3, "BiasFree", "colour noise, sigma 25"),
    ("gaussian_color_denoising_sigma50", "denoise", 3, 3, "BiasFree", "colour noise, sigma 50"),
    ("gaussian_gray_denoising_blind", "denoise", 1, 1, "BiasFree", "gray noise of unknown strength"),
    ("gaussian_gray_denoising_sigma15", "denoise", 1, 1, "BiasFree", "gray noise, sigma 15"),
    ("gaussian_gray_denoising_sigma25", "denoise", 1, 1, "BiasFree", "gray noise, sigma 25"),
    ("gaussian_gray_denoising_sigma50", "denoise", 1, 1, "BiasFree", "gray noise, sigma 50"),
)

ELAN_LIGHT_X4 = ElanSpec(
    scale=4,
    blocks=24,
    channels=60,
    n_share=1,
    colors=3,
    window_sizes=ELAN_WINDOWS,
    rgb_range=255.0,
    expand=2,
)


def entries() -> tuple[Entry, ...]:
    """Every set of weights, the shipped ones first; a shipped one only if its file is in the package."""
    shipped = (_shipped(*row) for row in _SHIPPED if (WEIGHTS_FOLDER / f"{row[0]}.safetensors").is_file())
    return (*shipped, *_downloadable())


def find(name: str) -> Entry:
    """The entry of that name (in any case). Raises UsageError with the nearest names."""
    known = {entry.name: entry for entry in entries()}
    entry = known.get(name.strip().lower())
    if entry is not None:
        return entry
    near = difflib.get_close_matches(name.strip().lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`restort models` lists them"
    raise UsageError(f"there is no model named {name!r}; {hint}")


def default_for(task: str, scale: int | None = None) -> Entry:
    """The weights a task uses unless others are asked for: shipped ones, else ones that anyone may use.

    Without a scale, upscaling is by 4. Weights for non-commercial use are never chosen unasked. Raises
    UsageError for an unknown task or scale, and where nothing fits.
    """
    if task not in TASKS:
        raise UsageError(f"there is no task {task!r}; the tasks are {', '.join(TASKS)}")
    wanted = (4 if task == "upscale" else 1) if scale is None else scale
    fitting = [entry for entry in entries() if entry.task == task]
    free = [entry for entry in fitting if entry.commercial_use]
    for entry in free:  # the shipped ones stand first
        if entry.scale == wanted:
            return entry
    if free:
        scales = ", ".join(f"{n}" for n in sorted({entry.scale for entry in free}))
        raise UsageError(f"no model for {task} has the scale {wanted}; there is: {scales}")
    names = ", ".join(entry.name for entry in fitting) or "none"
    raise UsageError(f"{task} has no model for every use; choose one by --model (non-commercial: {names})")


def restormer_spec(channels: int, out: int, norm: Literal["WithBias", "BiasFree"]) -> RestormerSpec:
    """The full-size Restormer of the paper (section 4): widths 48 to 384, 4-6-6-8 blocks, 4 to refine."""
    return RestormerSpec(
        in_channels=channels,
        out_channels=out,
        dim=48,
        num_blocks=(4, 6, 6, 8),
        num_refinement_blocks=4,
        heads=(1, 2, 4, 8),
        ffn_expansion=2.66,
        bias=False,
        layer_norm=norm,
        dual_pixel=channels == 6,
    )


def count_parameters(spec: Spec) -> int:
    """Trained numbers of a network: without running statistics, counters and fixed shifts."""
    fixed = ("running_mean", "running_var", "num_batches_tracked", "shift_conv.weight")
    return sum(
        math.prod(shape)
        for name, shape in parameter_shapes(spec).items()
        if not name.endswith(fixed) and not name.startswith(("sub_mean.", "add_mean."))
    )


def _restormer_name(file: str) -> str:
    return f"restormer-{file.replace('_', '-')}"


@functools.cache
def _downloadable() -> tuple[Entry, ...]:
    elan = Entry(
        name="elan-light-x4-friedricelab",
        architecture="elan",
        task="upscale",
        scale=4,
        channels=3,
        parameters=count_parameters(ELAN_LIGHT_X4),
        bytes=2_698_593,
        licence="MIT",
        commercial_use=True,
        source=(
            "https://github.com/Fried-Rice-Lab/FriedRiceLab/raw/d03aff7/"
            "modelzoo/ELAN/ELAN-light_LSR_x4_unofficial.pth"
        ),
        sha256="433400f0b3182d1c0e363edd122a070d04215283621b968367d2caac2de10493",
        shipped=False,
        filename="ELAN-light_LSR_x4_unofficial.pth",
        note="four times the size; trained by the Fried Rice Lab",
    )
    restormers = (
        Entry(
            name=_restormer_name(file),
            architecture="restormer",
            task=task,
            scale=1,
            channels=channels,
            parameters=count_parameters(restormer_spec(channels, out, norm)),
            bytes=None,
            licence=RESTORMER_LICENCE,
            commercial_use=False,
            source=f"{RESTORMER_RELEASE}/{file}.pth",
            sha256=None,
            shipped=False,
            filename=f"{file}.pth",
            note=note,
        )
        for file, task, channels, out, norm, note in _RESTORMER
    )
    return (elan, *restormers)


def _shipped(name: str, task: Task, scale: int, note: str) -> Entry:
    path = WEIGHTS_FOLDER / f"{name}.safetensors"
    stat = path.stat()
    return replace(
        _read_shipped(path, stat.st_size, stat.st_mtime_ns), name=name, task=task, scale=scale, note=note
    )


@functools.lru_cache(maxsize=32)
def _read_shipped(path: Path, size: int, changed: int) -> Entry:
    """What the file itself tells: size, checksum, network (from the header alone)."""
    from types import SimpleNamespace

    from safetensors import SafetensorError, safe_open

    from restort.weights.checkpoint import prepared

    try:
        with safe_open(path, "np") as file:
            shapes = {name: SimpleNamespace(shape=file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        spec = detect(prepared(shapes))  # a shipped file leaves out what training never changes
    except (SafetensorError, RestortError) as error:
        raise RestortError(
            f"the shipped weights {path} are damaged ({error}); install restort again"
        ) from None
    return Entry(
        name="",
        architecture="restormer" if isinstance(spec, RestormerSpec) else "elan",
        task="denoise",
        scale=spec.scale,
        channels=spec.in_channels,
        parameters=count_parameters(spec),
        bytes=size,
        licence="Apache-2.0",
        commercial_use=True,
        source=_SHIPPED_SOURCE,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        shipped=True,
        filename=path.name,
        note="",
    )
