"""Score a model on a test set: PSNR and SSIM of every picture, by the conventions of the published tables.

The scored result is what an 8-bit file would hold: clipped to [0, 1] and rounded to 8 bits.

    upscale    on the luma (BT.601, 16..235), a border of `scale` pixels left out
    others     on all channels, whole picture

The published weights of ELAN and Restormer reproduce the papers' tables to 0.01 dB.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from restort.errors import RestortError, UsageError
from restort.evaluation import metrics
from restort.evaluation.blur_kernels import Centre
from restort.evaluation.datasets import Case, Dataset, open_dataset
from restort.evaluation.degradations import Jpeg, PoissonGaussNoise
from restort.evaluation.report import Report, Row
from restort.evaluation.resize import imresize

if TYPE_CHECKING:
    from restort.inference.model import Model

Float32: TypeAlias = NDArray[np.float32]
Restore: TypeAlias = Callable[[Float32], Float32]
Progress: TypeAlias = Callable[[int, int, str], None]

_EDGE = 6  # pixels left out of aligned scores: as far as a picture may be moved


def evaluate(
    model: Model | Restore,
    dataset: str | Path,
    task: str | None = None,
    *,
    scale: int | None = None,
    channels: int = 3,
    sigmas: Sequence[float] | None = None,
    poisson_gauss: Sequence[PoissonGaussNoise] = (),
    eight_bit: bool = False,
    jpeg: Sequence[Jpeg] = (),
    kernels: str | Path | None = None,
    kernel_centre: Centre = "centroid",
    noise: float = 2.55,
    seed: int = 0,
    limit: int | None = None,
    crop: int | None = None,
    ssim: bool = True,
    align: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Score `model` on the test set in the folder `dataset` (layouts: restort.evaluation.datasets).

    model      a Model, or any function from float32 (H, W, C), nominally in [0, 1] (noise is not clipped), to
               float32 (H * scale, W * scale, C). A Model knows its task, scale and channels.
    task       'upscale', 'denoise', 'deblur', 'derain' or 'defocus'; required where the model knows none.
    sigmas, poisson_gauss, eight_bit, jpeg, kernels, kernel_centre, noise, seed, limit, crop   as open_dataset takes
               them.
    ssim       False leaves SSIM out.
    align      for deblur: also scores after the best translation, which costs a second or two per picture.
    progress   called as progress(done, total, name) before each picture, and once at the end.

    Raises UsageError for options that do not fit, RestortError where files or libraries are missing.
    """
    restore: Restore
    described: dict[str, Any]
    if hasattr(model, "spec"):
        network = cast("Model", model)
        task = task or network.task
        if scale not in (None, network.scale):
            raise UsageError(f"{network.name} enlarges {network.scale} times, not {scale} times")
        scale, channels = network.scale, network.spec.in_channels
        restore, described = _restore_with(network), _describe(network)
    else:
        restore, described = model, {"name": getattr(model, "__name__", type(model).__name__)}
    if task is None:
        raise UsageError("these weights do not say what they were trained for; name the task with --task")
    if channels not in (1, 3):
        raise UsageError(f"a network of {channels} input channels cannot be evaluated on these test sets")
    data = open_dataset(
        Path(dataset),
        task,
        scale=scale or 1,
        channels=channels,
        sigmas=sigmas,
        poisson_gauss=poisson_gauss,
        eight_bit=eight_bit,
        jpeg=jpeg,
        kernels=None if kernels is None else Path(kernels),
        centre=kernel_centre,
        noise=noise,
        seed=seed,
        limit=limit,
        crop=crop,
    )
    settings = {**data.settings, "limit": limit, "crop": crop}
    report = Report(task, str(dataset), data.made, _metrics(data, ssim, align), described, settings)
    for i, case in enumerate(data.cases):
        if progress is not None:
            progress(i, len(data.cases), f"{case.name}, {case.condition}")
        report.rows.append(_score(restore, case, data, ssim, align))
    if progress is not None:
        progress(len(data.cases), len(data.cases), "")
    return report


def _restore_with(model: Model) -> Restore:
    """Return a function of the network with tiles and padding: `model(image)` would clip the noise of its input."""

    def restore(image: Float32) -> Float32:
        result = model.run(np.ascontiguousarray(image.transpose(2, 0, 1)[None]))
        return np.asarray(result[0].transpose(1, 2, 0))

    return restore


def _describe(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "weights_sha256": model.weights.digest,
        "architecture": model.spec.architecture,
        "backend": model.backend,
        "precision": model.precision,
        "tile": "none" if model.tile is None else model.tile,
    }


def _score(restore: Restore, case: Case, data: Dataset, want_ssim: bool, align: bool) -> Row:
    degraded, clean = case.load()
    start = time.perf_counter()
    output = restore(np.asarray(degraded / 255, dtype=np.float32))
    seconds = time.perf_counter() - start
    if output.shape != clean.shape:
        raise RestortError(
            f"the model made a picture of shape {output.shape} from {case.name}, whose reference is {clean.shape}"
        )
    if not np.isfinite(output).all():
        raise RestortError(f"the model returned NaN or infinity for {case.name}")
    result = np.rint(np.clip(output.astype(np.float64), 0, 1) * 255).astype(np.uint8)
    height, width = degraded.shape[:2]
    if data.task == "upscale":
        border, enlarged = data.scale, imresize(degraded, data.scale)
        return Row(
            case.name,
            case.condition,
            width,
            height,
            metrics.psnr_y(result, clean, border=border),
            metrics.ssim_y(result, clean, border=border) if want_ssim else None,
            metrics.psnr_y(enlarged, clean, border=border),
            seconds,
        )
    moved: tuple[float | None, float | None] = (None, None)
    if align and data.task == "deblur":
        moved = _aligned(result, clean), _aligned(degraded, clean)
    return Row(
        case.name,
        case.condition,
        width,
        height,
        metrics.psnr(result, clean),
        metrics.ssim(result, clean) if want_ssim else None,
        metrics.psnr(degraded, clean),
        seconds,
        *moved,
    )


def _aligned(image: NDArray[Any], clean: NDArray[Any]) -> float:
    moved, _ = metrics.align(image, clean, reach=_EDGE)
    return max(metrics.psnr(candidate, clean, border=_EDGE) for candidate in (image, moved))


def _metrics(data: Dataset, ssim: bool, align: bool) -> dict[str, str]:
    """Return the definition of every number of the report."""
    if data.task == "upscale":
        where = (
            f"on Y (ITU-R BT.601, 16..235) of 8-bit results, border of {data.scale} pixels left out, peak 255"
        )
        source = "bicubic enlargement as MATLAB imresize, 8 bit"
    else:
        where = "on all channels of 8-bit results, whole picture, peak 255"
        source = "degraded input as given to the network"
    found = {"psnr": f"PSNR in dB {where}; mean over pictures"}
    if ssim:
        found["ssim"] = f"SSIM {where}; {metrics.SSIM_NAME}"
    found["psnr_input"] = f"PSNR in dB of the {source}, measured alike"
    if align and data.task == "deblur":
        found["psnr_aligned"] = (
            f"as psnr, after the best translation (at most {_EDGE} pixels, to 1/20) onto the reference, "
            f"border of {_EDGE} pixels left out; psnr_input_aligned: the same of the input"
        )
    return found
