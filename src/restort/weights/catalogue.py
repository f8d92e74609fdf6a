"""Which weights exist: those that ship with the package and published ones that can be fetched.

Sources: github.com/swz30/Restormer, release v1.0 (Zamir et al., CVPR 2022) and
github.com/Fried-Rice-Lab/FriedRiceLab (an ELAN-light, Zhang et al., ECCV 2022, trained there).
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from restort.errors import RestortError, UsageError
from restort.models.spec import ELAN_WINDOWS, ElanSpec, RestormerSpec, Spec, detect, parameter_shapes
from restort.utils.extras import reinstall_command

Architecture = Literal["restormer", "elan"]
Task = Literal["upscale", "denoise", "dejpeg", "deblur", "derain", "defocus"]

TASKS: tuple[Task, ...] = ("upscale", "denoise", "dejpeg", "deblur", "derain", "defocus")
WEIGHTS_FOLDER = Path(__file__).parent / "shipped"


@dataclass(frozen=True)
class Entry:
    """One set of weights.

    tasks        what the weights were trained for, the main task first.
    default_for  tasks whose command runs these weights unless others are named.
    for_damaged  whether the weights are for pictures that were compressed with loss, are noisy or blurred.
    parameters   number of trained values, without fixed and running buffers.
    bytes        size of the file; None where the publisher states none.
    sha256       checksum of the file (hex); None where the publisher states none.
    source       URL to download from; the origin in words where the file is shipped.
    """

    name: str
    architecture: Architecture
    tasks: tuple[Task, ...]
    default_for: tuple[Task, ...]
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
    for_damaged: bool = False

    @property
    def task(self) -> Task:
        """The main task."""
        return self.tasks[0]

    @property
    def approximate_bytes(self) -> int:
        """Size of the file; four bytes a parameter where the publisher states none."""
        return self.parameters * 4 if self.bytes is None else self.bytes


# Notes of shipped files whose metadata has none.
_NOTES = {
    "elan-light-x4": "four times the size",
    "elan-light-x3": "three times the size",
    "elan-light-x2": "twice the size",
    "restormer-small-denoise": "colour noise of unknown strength, sigma 0 to 50",
    "restormer-small-deblur": "motion blur with light noise",
}
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
    """Return every set of weights: the files in WEIGHTS_FOLDER by task, defaults first, then the downloads."""
    shipped = sorted(map(_shipped, WEIGHTS_FOLDER.glob("*.safetensors")), key=_order)
    return (*shipped, *_downloadable())


def _order(entry: Entry) -> tuple[int, bool, int, str]:
    """Sort key of shipped entries: main task, defaults first, larger scales first, name."""
    return TASKS.index(entry.task), entry.task not in entry.default_for, -entry.scale, entry.name


def find(name: str) -> Entry:
    """Return the entry with that name, in any case. Raises UsageError with the nearest names."""
    known = {entry.name: entry for entry in entries()}
    entry = known.get(name.strip().lower())
    if entry is not None:
        return entry
    near = difflib.get_close_matches(name.strip().lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`restort models` lists them"
    raise UsageError(f"there is no model named {name!r}; {hint}")


def default_for(task: str, scale: int | None = None) -> Entry:
    """Return the weights a task runs unless others are named.

    An entry that lists the task in `default_for` comes first, then one whose main task it is, then any that serves
    it; within each of these, shipped entries come first. Weights for non-commercial use are never a default.

    scale   times as large; None means 4 for upscale, 1 for the other tasks

    Raises UsageError for an unknown task or scale, and where no entry fits.
    """
    if task not in TASKS:
        raise UsageError(f"unknown task {task!r}; use one of {', '.join(TASKS)}")
    wanted = (4 if task == "upscale" else 1) if scale is None else scale
    serving = [entry for entry in entries() if task in entry.tasks]
    free = [entry for entry in serving if entry.commercial_use]
    fitting = [entry for entry in free if entry.scale == wanted]
    if fitting:
        return min(
            fitting, key=lambda entry: (task not in entry.default_for, entry.for_damaged, entry.task != task)
        )
    if free:
        scales = ", ".join(f"{n}" for n in sorted({entry.scale for entry in free}))
        raise UsageError(f"no model for {task} has scale {wanted}; use one of the scales {scales}")
    if serving:
        names = ", ".join(entry.name for entry in serving)
        raise UsageError(
            f"no shipped model serves {task}; choose one by --model (non-commercial use only: {names})"
        )
    raise UsageError(f"no model serves {task}; give a file of weights by --weights")


def default_for_damaged(task: str, scale: int) -> Entry | None:
    """Return the shipped weights that a task runs on damaged pictures unless others are named; None without such."""
    fitting = (entry for entry in entries() if task in entry.tasks and entry.scale == scale)
    return next((entry for entry in fitting if entry.for_damaged and entry.commercial_use), None)


def parse_tasks(metadata: Mapping[str, str], scale: int) -> tuple[Task, ...]:
    """Return the tasks that the metadata of a file of weights declares, the main one first.

    metadata   keys `tasks` ("denoise,dejpeg") or `task` ("denoise"); a file without either that enlarges is for
               upscale. Names that are not in TASKS are left out.
    """
    return _listed(metadata.get("tasks") or metadata.get("task") or ("upscale" if scale > 1 else ""))


def _listed(text: str) -> tuple[Task, ...]:
    """Return the names of TASKS in a comma-separated list, in its order."""
    names = dict.fromkeys(part.strip() for part in text.split(","))
    known = {task: task for task in TASKS}
    return tuple(known[name] for name in names if name in known)


def restormer_spec(channels: int, out: int, norm: Literal["WithBias", "BiasFree"]) -> RestormerSpec:
    """Return the full-size Restormer of the paper (section 4): widths 48 to 384, 4-6-6-8 blocks, 4 to refine."""
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
    """Count the trained values of a network: no running statistics, counters or fixed shifts."""
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
        tasks=("upscale",),
        default_for=(),
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
            tasks=(task,),
            default_for=(),
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


def _shipped(path: Path) -> Entry:
    """Return the entry of one file in WEIGHTS_FOLDER."""
    stat = path.stat()
    return _read_shipped(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=32)
def _read_shipped(path: Path, size: int, changed: int) -> Entry:
    """Describe a shipped file by its metadata, the shapes in its header and its checksum.

    Metadata keys: `tasks` (or `task`), `default_for` (comma-separated tasks), `input` ("damaged", or absent) and
    `note`. `changed` (time in ns) is only a part of the cache's key.
    """
    from types import SimpleNamespace

    from safetensors import SafetensorError, safe_open

    from restort.weights.checkpoint import prepared

    try:
        with safe_open(path, "np") as file:
            shapes = {name: SimpleNamespace(shape=file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            metadata: dict[str, str] = file.metadata() or {}
        spec = detect(prepared(shapes))  # a shipped file leaves out what training never changes
    except (SafetensorError, RestortError) as error:
        raise RestortError(
            f"shipped weights are damaged ({error}): {path}; restore them with: {reinstall_command()}"
        ) from None
    tasks = parse_tasks(metadata, spec.scale)
    if not tasks:
        raise RestortError(
            f"shipped weights name no task in their metadata: {path}; restore them with: {reinstall_command()}"
        )
    return Entry(
        name=path.stem,
        architecture="restormer" if isinstance(spec, RestormerSpec) else "elan",
        tasks=tasks,
        default_for=_listed(metadata.get("default_for", "")),
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
        note=metadata.get("note") or _NOTES.get(path.stem, ""),
        for_damaged=metadata.get("input") == "damaged",
    )
