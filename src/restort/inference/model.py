"""`restort.load` and `Model`: weights on a backend, with tiles for large pictures.

model = load("elan-light-x4")
enlarged = model(image)                        # arrays in, arrays out
model.restore_file("small.jpg", "large.png")   # files, with profile, EXIF and alpha
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from restort.errors import OutOfMemory, RestortError, UsageError
from restort.imaging.animation_encode import encode_animation, holds_frames
from restort.imaging.blend import blended_bands
from restort.imaging.decode import MAX_PIXELS, read
from restort.imaging.encode import QUALITY, check_fits, check_output, write
from restort.imaging.formats import NAMES
from restort.imaging.limits import check_memory
from restort.imaging.picture import Bands, Picture
from restort.imaging.row_reader import RowPicture, UnitRows
from restort.inference.animated import RestoredFrames
from restort.inference.exact import resolve_backend, run_exact, stream_exact
from restort.inference.pillow_images import is_pillow, pillow_through
from restort.inference.resolve import ResolvedModel, RunOptions, declared_tasks, resolve_model
from restort.inference.results import Computed, Restored
from restort.inference.streaming import open_streamed, restore_rows
from restort.tiling.halving import LEAST_EDGE, Halving
from restort.tiling.tiles import Network, TileLayout, TileOption, run_tiled, stream_tiled, tile_layout
from restort.utils.array_types import Rows
from restort.utils.files import check_free, publish, write_bytes
from restort.utils.integers import cdiv, round_up
from restort.utils.text import to_stderr

if TYPE_CHECKING:
    from types import TracebackType

    from PIL.Image import Image

    from restort.models.spec import Spec
    from restort.runner import Notify, Runner
    from restort.weights.catalogue import Entry
    from restort.weights.checkpoint import Weights

Array = npt.NDArray[Any]
TileProgress = Callable[[int, int], None]

PIXELS_VERSION = 5
"""Part of `Model.recipe`. Increase it whenever a release makes other pixels of the same input, weights and options, so
that folders are made again."""

_log = logging.getLogger("restort")


class Model:
    """A network on a backend. `load` makes one; `close` or a context manager frees it.

    Several threads may call one model.
    """

    def __init__(
        self,
        weights: Weights,
        runner: Runner,
        *,
        name: str,
        entry: Entry | None = None,
        asked: tuple[str, str] | None = None,
        tile: TileOption = "auto",
        overlap: int | None = None,
        strength: float = 1.0,
        float32: Callable[[], Runner | None] | None = None,
    ) -> None:
        """Make a model.

        asked     backend and precision that the user asked for, 'auto' included
        float32   makes the runner for 16-bit pictures under precision 'auto'; it returns None where that would take
                  minutes
        """
        self.weights = weights
        self.name = name
        self.entry = entry
        self.tile = tile
        self.overlap = overlap
        self._runner = runner
        self._asked = asked or (runner.name, runner.precision)
        self.strength = strength
        self._make_float32 = float32 if self._asked[1] == "auto" and runner.precision != "fp32" else None
        self._float32: list[Runner] = []  # none or one; shared with the copies of `with_options`
        self._lock = threading.Lock()  # held while the float32 runner is made

    def with_options(self, *, tile: TileOption = "auto", strength: float = 1.0) -> Model:
        """Return the same model with another tile and strength. It shares what is loaded: close only the original.

        Raises UsageError for options that `load` refuses.
        """
        options = RunOptions(*self._asked, tile, self.overlap, strength)
        tile_layout(4096, 4096, self.spec, tile, self.overlap, 1 << 30)
        if options.tile == "exact":
            resolve_backend(self.spec, self.backend, self.precision, self.overlap)
        other = copy.copy(self)
        other.tile, other.strength = tile, strength
        return other

    @property
    def spec(self) -> Spec:
        """Architecture and hyper-parameters."""
        return self.weights.spec

    @property
    def scale(self) -> int:
        """Output height divided by input height; the same holds for widths."""
        return self.spec.scale

    @property
    def tasks(self) -> tuple[str, ...]:
        """What the weights were trained for, the main task first; empty where it is unknown."""
        return declared_tasks(self.weights) if self.entry is None else self.entry.tasks

    @property
    def task(self) -> str | None:
        """The main task; None where it is unknown."""
        return next(iter(self.tasks), None)

    @property
    def device(self) -> str | None:
        """Name of the GPU that computes; None on the processor."""
        return self._runner.device

    @property
    def backend(self) -> str:
        """Name of the backend."""
        return self._runner.name

    @property
    def precision(self) -> str:
        """Precision of the backend."""
        return self._runner.precision

    def recipe(self, quality: int = QUALITY) -> dict[str, str | int | float]:
        """Return everything besides the input that determines the pixels of an output file.

        It holds 'auto', not the backend that auto selected: another selection later gives results as good and must not
        restart a whole folder.
        """
        recipe: dict[str, str | int | float] = {
            "pixels": PIXELS_VERSION,
            "weights": self.weights.digest,
            "backend": self._asked[0],
            "precision": self._asked[1],
            "tile": "none" if self.tile is None else self.tile,
            "overlap": "auto" if self.overlap is None else self.overlap,
            "quality": quality,
        }
        if self.strength != 1:
            recipe["strength"] = self.strength
        return recipe

    def timer(self, x: Array) -> Callable[[], float] | None:
        """Return the clock of the backend's device for the network alone on x (restort.runner.Runner.timer)."""
        return self._runner.timer(x)

    def tile_layout(self, height: int, width: int, batch: int = 1) -> TileLayout:
        """Return how a picture of this size is cut."""
        return self._layout(self._runner, height, width, batch)

    def _layout(self, runner: Runner, height: int, width: int, batch: int) -> TileLayout:
        memory = runner.tile_memory() if self.tile == "auto" else None
        room, each = memory or (None, None)
        return tile_layout(
            height, width, self.spec, self.tile, self.overlap, room, batch=batch, pixel_bytes=each
        )

    def _runner_for(self, bits: int) -> Runner:
        """Return the runner for a picture of `bits` bits a channel.

        bf16 and fp16 keep 8 and 11 bits of a number: enough for 8-bit pictures, but visible as steps in the shades of
        16-bit ones. Precision 'auto' therefore computes those in fp32.
        """
        if bits <= 8 or self._make_float32 is None:
            return self._runner
        with self._lock:
            if not self._float32:
                self._float32.append(self._make_float32() or self._runner)
            return self._float32[0]

    def _network(self, runner: Runner) -> Network:
        """Return the network for tiles: the runner, or one that halves tiles which are too large for its memory."""
        if self.tile is None:
            return runner
        return Halving(runner, self.spec, self.overlap, runner.warn)

    @overload
    def __call__(self, image: Array, *, progress: TileProgress | None = None) -> Array: ...

    @overload
    def __call__(self, image: Picture, *, progress: TileProgress | None = None) -> Picture: ...

    @overload
    def __call__(self, image: Image, *, progress: TileProgress | None = None) -> Image: ...

    def __call__(
        self, image: Array | Picture | Image, *, progress: TileProgress | None = None
    ) -> Array | Picture | Image:
        """Restore an image. The result has its kind, type and channels and is `scale` times as high and wide.

        image   a Picture; a PIL.Image (gray, RGB or a palette, with or without alpha); or an array (H, W) or
                (H, W, C), uint8, uint16 or floating-point in [0, 1], in sRGB order red, green, blue. C is 1 or 3;
                for integers also 2 or 4 (alpha last, kept or enlarged); or whatever the network takes (6 for
                dual-pixel weights, whose result has 3). Values of the result are clipped to the range of the type.

        Raises RestortError for other arrays, NaN or infinity, and floats far outside of [0, 1].
        """
        if isinstance(image, Picture):
            return self.restore_picture(image, progress=progress)
        if is_pillow(image):
            return pillow_through(self, image, progress)
        if not isinstance(image, np.ndarray):
            raise RestortError(
                f"an image of type {type(image).__name__} cannot be restored; give a NumPy array, a PIL.Image or a path"
            )
        from restort.inference.arrays import array_through

        return array_through(self, image, progress)

    def restore_picture(self, picture: Picture, *, progress: TileProgress | None = None) -> Picture:
        """Restore a picture with its metadata and alpha; one row of tiles is in memory at a time.

        Alpha that varies goes through an enlarging network as a gray picture of its own, which takes as long again;
        `progress` counts its tiles too. At scale 1 alpha stays as it is.
        """
        return self._restored(picture, progress, self._runner_for(picture.bits))[0]

    def _restored(
        self, picture: Picture, progress: TileProgress | None, runner: Runner
    ) -> tuple[Picture, str]:
        if self._fits_device(picture, runner):
            try:
                pixels = runner.restore_pixels(picture.pixels)
            except MemoryError:
                pixels = None  # in tiles, below
            if pixels is not None:
                if progress is not None:
                    progress(1, 1)
                return dataclasses.replace(picture, pixels=pixels), "whole"
        x = picture.to_unit(self.spec.in_channels)
        if self.tile == "exact":
            with closing(stream_exact(runner, x, progress)) as bands:
                return picture.from_bands(self._blended(bands, x), self.scale), "exact"
        alpha = picture.alpha_to_unit(self.spec.in_channels, self.scale)
        cut: TileLayout | None = self._layout(runner, picture.height, picture.width, len(x))
        network = self._network(runner)
        while True:
            assert cut is not None
            try:
                result = self._in_tiles(picture, x, alpha, cut, network, progress)
                return result, "whole" if cut.whole else f"{cut.tile_shape[1]}x{cut.tile_shape[0]}"
            except MemoryError as error:
                smaller = self._smaller(cut, error, runner)
                if smaller is None:
                    raise self._too_large(error, picture.height, picture.width) from None
            cut = smaller  # outside the handler, which keeps the arrays of the failed attempt alive

    def _fits_device(self, picture: Picture, runner: Runner) -> bool:
        """Return whether the device may take the integer pixels: only the network changes them, and in one piece."""
        if self.tile == "exact" or self.strength != 1 or picture.alpha is not None:
            return False
        if not picture.channels == self.spec.in_channels == self.spec.out_channels:
            return False
        return self._layout(runner, picture.height, picture.width, 1).whole

    def _in_tiles(
        self,
        picture: Picture,
        x: npt.NDArray[np.float32],
        alpha: npt.NDArray[np.float32] | None,
        cut: TileLayout,
        network: Network,
        progress: TileProgress | None,
    ) -> Picture:
        total = cut.count * (1 if alpha is None else 2)

        def through(planes: npt.NDArray[np.float32], before: int) -> Bands:
            counted = None if progress is None else lambda done, _: progress(before + done, total)
            return self._blended(stream_tiled(network, planes, cut, counted), planes)

        return picture.from_bands(
            through(x, 0), self.scale, None if alpha is None else through(alpha, cut.count)
        )

    def _smaller(self, cut: TileLayout, error: MemoryError, runner: Runner) -> TileLayout | None:
        """Return a layout with tiles of half the edge after the arrays around the network did not fit; None if useless.

        Out of memory within the network is `Halving`'s to handle.
        """
        multiple = self.spec.size_multiple
        edge = round_up(cdiv(max(cut.tile_shape), 2), multiple)
        if self.tile != "auto" or isinstance(error, OutOfMemory) or edge < LEAST_EDGE:
            return None
        runner.shrink()
        runner.warn(f"out of memory beside the network; beginning again with tiles of {edge}x{edge}")
        overlap = None if self.overlap is None else min(self.overlap, edge // 2 // multiple * multiple)
        return tile_layout(cut.rows.size, cut.columns.size, self.spec, edge, overlap)

    def _blended(self, bands: Bands, x: npt.NDArray[np.float32] | Rows) -> Bands:
        return bands if self.strength == 1 else blended_bands(bands, x, self.scale, self.strength)

    def restore_file(
        self,
        source: str | Path,
        target: str | Path,
        *,
        overwrite: bool = False,
        quality: int = QUALITY,
        max_pixels: int | None = MAX_PIXELS,
        picture: Picture | None = None,
        progress: TileProgress | None = None,
    ) -> Restored:
        """Read `source`, restore it and write `target` in the format of its suffix.

        overwrite      replace an existing `target`; `source` itself is never replaced
        quality        1 to 100, of JPEG, WebP and AVIF
        max_pixels     refuse a file whose header claims more; None for no limit
        picture        the content of `source`, where it has been read already
        progress       called as progress(done, total) after each tile

        Raises RestortError with one sentence, and leaves nothing half-written.
        """
        source, target = as_path(source, "source"), as_path(target, "target")
        if max_pixels is not None and not isinstance(max_pixels, (int, float)):
            raise UsageError(f"max_pixels must be a number or None, not {max_pixels!r}")
        if picture is None:
            self._check_target(source, target)
            check_free(target, overwrite)
        opened = picture or self.open(source, target, max_pixels=max_pixels)
        computed = self.compute(
            source, target, opened, max_pixels=max_pixels, quality=quality, progress=progress
        )
        return self.store(computed, opened.notes, overwrite=overwrite, quality=quality)

    def open(
        self, source: Path, target: Path, *, max_pixels: int | None = MAX_PIXELS
    ) -> Picture | RowPicture:
        """Read `source`, or, where it or its result is too large for that, open it for `compute` to read by rows."""
        rows = None if self.tile is None else open_streamed(source, target, self.scale, max_pixels)
        return rows or read(source, max_pixels=max_pixels, all_frames=True)

    def _check_target(self, source: Path, target: Path) -> None:
        check_output(target)
        if same_file(source, target):
            raise UsageError(
                f"{target} is the input itself, and inputs are never overwritten; give another output"
            )

    def compute(
        self,
        source: Path,
        target: Path,
        picture: Picture | RowPicture,
        *,
        max_pixels: int | None = MAX_PIXELS,
        quality: int = QUALITY,
        progress: TileProgress | None = None,
    ) -> Computed:
        """Do the first half of `restore_file`: restore the content of `source`, for `store` to write to `target`.

        quality   of the frames of an animation, which are encoded here, so that not all are in memory at once

        Raises RestortError, before computing where the target is not one that can be written.
        """
        self._check_target(source, target)
        if isinstance(picture, RowPicture):
            return self._by_rows(source, target, picture, quality, progress)
        size = picture.width * self.scale, picture.height * self.scale
        check_fits(target, *size)
        if max_pixels is not None:  # the result and its encoder's copy
            channels = picture.channels + (picture.alpha is not None)
            needed = 2 * size[0] * size[1] * channels * picture.pixels.itemsize
            check_memory(f"cannot restore {source}: the result's {size[0]} x {size[1]} pixels", needed)
        runner = self._runner_for(picture.bits)
        animation, notes, encoded = picture.animation, tuple[str, ...](), None
        picture = dataclasses.replace(picture, animation=None)
        if animation is not None and holds_frames(target):
            frames = RestoredFrames(picture, animation, progress, partial(self._restored, runner=runner))
            encoded, notes = encode_animation(target, frames, animation.delays, animation.plays, quality)
            result, tile = frames.last
        else:
            if animation is not None:
                kind = NAMES[check_output(target)]
                notes = (
                    f"only the first of {len(animation)} frames was restored: {kind} cannot hold them; "
                    "use .png or .webp",
                )
            result, tile = self._restored(picture, progress, runner)
        before = picture.width, picture.height
        about = Restored(source, target, before, size, tile, notes, runner.name, runner.precision)
        return Computed(result, about, encoded)

    def _by_rows(
        self, source: Path, target: Path, picture: RowPicture, quality: int, progress: TileProgress | None
    ) -> Computed:
        head = picture.head
        runner = self._runner_for(head.bits)
        x = UnitRows(picture, self.spec.in_channels)
        cut = None if self.tile == "exact" else self._layout(runner, head.height, head.width, x.shape[0])

        def through(counted: TileProgress) -> Bands:
            if cut is None:
                bands: Bands = stream_exact(runner, x, counted)
            else:
                bands = stream_tiled(self._network(runner), x, cut, counted)
            return self._blended(bands, UnitRows(picture, self.spec.in_channels))

        result, written, notes = restore_rows(picture, target, self.scale, quality, through, progress)
        tile = (
            "exact" if cut is None else "whole" if cut.whole else f"{cut.tile_shape[1]}x{cut.tile_shape[0]}"
        )
        sizes = (head.width, head.height), (result.width, result.height)
        about = Restored(source, target, *sizes, tile, notes, runner.name, runner.precision)
        return Computed(result, about, written=written)

    def store(
        self,
        computed: Computed,
        notes: tuple[str, ...],
        *,
        overwrite: bool = False,
        quality: int = QUALITY,
    ) -> Restored:
        """Do the second half of `restore_file`: encode and write. Any thread may call it.

        notes   on reading; notes on computing and writing are appended
        """
        about, lost = computed.about, tuple[str, ...]()
        if computed.written is not None:
            publish(computed.written, about.target, overwrite)
        elif computed.encoded is None:
            lost = write(about.target, computed.picture, overwrite=overwrite, quality=quality)
        else:
            write_bytes(about.target, computed.encoded, overwrite=overwrite)
        return dataclasses.replace(about, notes=(*notes, *about.notes, *lost))

    def run(
        self, x: npt.NDArray[np.float32], progress: TileProgress | None = None, *, bits: int = 8
    ) -> npt.NDArray[np.float32]:
        """Run the network alone on (N, C, H, W) float32 in [0, 1], with tiles and padding; no clipping, no blending.

        bits   depth of the picture; above 8, precision 'auto' computes in fp32
        """
        runner = self._runner_for(bits)
        if self.tile == "exact":
            return run_exact(runner, x, progress)
        cut = self._layout(runner, x.shape[2], x.shape[3], x.shape[0])
        try:
            return run_tiled(self._network(runner), x, cut, progress)
        except MemoryError as error:
            raise self._too_large(error, x.shape[2], x.shape[3]) from None

    def _too_large(self, error: MemoryError, height: int, width: int) -> RestortError:
        if isinstance(error, OutOfMemory) and self.tile is not None:
            return error  # even small tiles did not fit
        return RestortError(
            f"not enough memory for a picture of {width} x {height} pixels; use smaller tiles (--tile)"
        )

    def close(self) -> None:
        """Free the memory of the backends."""
        self._runner.close()
        with self._lock:
            for runner in self._float32:
                runner.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<restort.Model {self.name} on {self.backend} {self.precision}>"


def load(
    model: str | Path,
    *,
    backend: str = "auto",
    precision: str = "auto",
    tile: TileOption = "auto",
    overlap: int | None = None,
    strength: float = 1.0,
    threads: int | None = None,
    offline: bool = False,
    notify: Notify | None = None,
) -> Model:
    """Load a model by its name in the catalogue, or from a file of weights (.safetensors, .pth).

    backend     'fused' or 'tensorrt' (NVIDIA GPUs), 'onnxruntime', 'openvino', 'torch', or 'auto': fused where a GPU
                can be used, otherwise the fastest one that is installed, by measurement
    precision   'fp32', 'fp16', 'bf16', tensorrt's 'tf32' and 'mixed', or 'auto', which computes 16-bit pictures in fp32
    tile        'auto' (by free memory), the edge of the tiles in pixels of the input, None for the whole picture at
                once, or 'exact': the whole-image result of a Restormer in bounded memory, strip by strip
    overlap     smallest overlap of tiles in pixels; None for the measured default
    strength    share of the result in the output, 0 to 1; the rest is the input (enlarged bicubically)
    threads     of the processor; None for all cores
    offline     never download
    notify      receives sentences on what was chosen; without it only licences are printed, on stderr

    Raises UsageError for an unknown name or option, RestortError where the weights or the backend fail.
    """
    options = RunOptions(backend, precision, tile, overlap, strength, threads)
    resolved = resolve_model(model)
    weights = resolved.load(offline=offline, notice=notify or _to_stderr, notify=notify or _log.info)
    return assemble(weights, resolved, options, notify=notify)


def assemble(
    weights: Weights, resolved: ResolvedModel, options: RunOptions, *, notify: Notify | None = None
) -> Model:
    """Make a Model of weights that have been read."""
    from restort.backends.registry import create

    edge = options.tile if isinstance(options.tile, int) else 1024
    # A wrong tile or overlap raises here, before a runner is made.
    tile_layout(4 * edge, 4 * edge, weights.spec, options.tile, options.overlap, 1 << 30)
    used = options.backend, options.precision
    if options.tile == "exact":
        used = resolve_backend(weights.spec, *used, options.overlap)
    if options.strength != 1 and weights.spec.in_channels not in (1, 3):
        raise UsageError(
            f"a strength of {options.strength:g} blends with the input, which dual-pixel weights have two of; "
            "leave it at 1"
        )
    tell, warn = notify or _log.info, notify or _log.warning
    runner = create(weights, *used, threads=options.threads, notify=tell, warn=warn)
    return Model(
        weights,
        runner,
        name=resolved.name,
        entry=resolved.entry,
        asked=(options.backend, options.precision),
        tile=options.tile,
        overlap=options.overlap,
        strength=options.strength,
        float32=partial(_float32_runner, weights, runner, options, tell, warn),
    )


def _float32_runner(
    weights: Weights, chosen: Runner, options: RunOptions, notify: Notify, warn: Notify
) -> Runner | None:
    """Make a runner in fp32 for 16-bit pictures, beside the one that 'auto' chose; None where it would take minutes."""
    from restort.backends.registry import create

    backend = options.backend
    if chosen.name == "tensorrt":
        from restort.backends.tensorrt.availability import is_ready

        if not is_ready(weights, "fp32"):
            warn(
                f"16-bit pictures are computed in {chosen.precision}, which shows as steps in smooth shades; "
                "use --precision fp32, whose engine takes minutes to build"
            )
            return None
        backend = "tensorrt"
    notify("16-bit pictures are computed in fp32")
    return create(weights, backend, "fp32", threads=options.threads, notify=notify, warn=warn)


def as_path(path: str | Path, what: str) -> Path:
    """Return `path` as a Path; UsageError for other types. `what` names the argument."""
    if not isinstance(path, (str, Path)):
        raise UsageError(f"{what} must be a path, not {type(path).__name__}")
    return Path(path)


def same_file(a: Path, b: Path) -> bool:
    """Return whether two paths lead to the same file, links included."""
    try:
        return a.samefile(b)
    except OSError:
        return a.absolute() == b.absolute()


def _to_stderr(line: str) -> None:
    to_stderr(f"restort: {line}")
