"""Pictures that go by rows: equal to the bit to those in memory, with their metadata, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import restort
from restort.errors import RestortError
from restort.imaging import colour
from restort.imaging.decode import open_rows, read
from restort.imaging.encode import write
from restort.imaging.folder import collect
from restort.imaging.picture import Picture
from restort.imaging.row_reader import RowPicture, RowReader
from restort.imaging.row_sink import RowSink
from restort.imaging.vips import to_vips, vips
from restort.inference import streaming
from restort.inference.batch import Options, restore_files
from restort.inference.progress import Lines
from tests.fakes import fake_backend
from tests.fakes.fake_backend import ELAN, RESTORMER, write_weights

HEIGHT, WIDTH = 203, 150


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("restort.backends.registry.create", fake_backend.create)


@pytest.fixture
def by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "STREAM_PIXELS", 1)


def picture(channels: int = 3, dtype: Any = np.uint8, alpha: Any = None, **metadata: Any) -> Picture:
    random = np.random.default_rng(channels)
    pixels = random.integers(0, np.iinfo(dtype).max + 1, (HEIGHT, WIDTH, channels)).astype(dtype)
    return Picture(pixels, alpha, **metadata)


def both(
    weights: Path, source: Path, suffix: str, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[Picture, Picture, Any, Any]:
    """Restore in memory and by rows: both results as they are read again, and what was reported."""
    folder = source.parent
    with restort.load(weights, **({"tile": 64} | options)) as model:
        about = model.restore_file(source, folder / f"memory{suffix}")
        monkeypatch.setattr(streaming, "STREAM_PIXELS", 1)
        assert isinstance(model.open(source, folder / f"rows{suffix}"), RowPicture)
        streamed = model.restore_file(source, folder / f"rows{suffix}")
    return read(folder / f"memory{suffix}"), read(folder / f"rows{suffix}"), about, streamed


def check_equal(memory: Picture, rows: Picture, about: Any, streamed: Any) -> None:
    np.testing.assert_array_equal(rows.pixels, memory.pixels)
    assert rows.pixels.dtype == memory.pixels.dtype
    assert (rows.alpha is None) == (memory.alpha is None)
    if memory.alpha is not None:
        np.testing.assert_array_equal(rows.alpha, memory.alpha)
    for name in ("icc", "exif", "xmp", "iptc", "text", "comments", "notes"):
        assert getattr(rows, name) == getattr(memory, name), name
    assert rows.resolution == pytest.approx(memory.resolution)
    for name in ("size", "result_size", "tile", "notes", "backend", "precision"):
        assert getattr(streamed, name) == getattr(about, name), name


def exif_block() -> bytes:
    """An EXIF block as libvips writes it: a description, and the pixel dimensions."""
    pyvips = vips()
    image = to_vips(picture().pixels).copy()
    image.set_type(pyvips.GValue.gstr_type, "exif-ifd0-ImageDescription", "stream")
    data = image.jpegsave_buffer()
    found: bytes = pyvips.Image.new_from_buffer(data, "").get("exif-data")
    return found


@pytest.mark.parametrize("network", ["restormer", "elan"])
@pytest.mark.parametrize(("source", "target"), [(".tif", ".tif"), (".png", ".jpg"), (".jpg", ".png")])
def test_the_result_and_its_metadata_equal_those_in_memory(
    network: str, source: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = write_weights(tmp_path / "w.safetensors", RESTORMER if network == "restormer" else ELAN[2])
    full = picture(
        icc=colour.srgb_profile(), exif=exif_block(), xmp=b"<x:xmpmeta/>", iptc=b"\x1c\x02\x05\0\3abc",
        resolution=(10.0, 12.0), text=((b"tEXt", b"Title\0t"),), comments=(b"a comment",),
    )  # fmt: skip
    write(tmp_path / f"in{source}", full)
    check_equal(*both(weights, tmp_path / f"in{source}", target, monkeypatch))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("strength", [1.0, 0.3])
@pytest.mark.parametrize("network", ["restormer", "elan"])
def test_depths_channels_and_strengths(
    network: str, strength: float, channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = write_weights(tmp_path / "w.safetensors", RESTORMER if network == "restormer" else ELAN[3])
    write(tmp_path / "in.tif", picture(channels, np.uint16))
    check_equal(*both(weights, tmp_path / "in.tif", ".tif", monkeypatch, strength=strength))
    (tmp_path / "memory.jpg").unlink(missing_ok=True)
    check_equal(*both_jpeg(weights, tmp_path, monkeypatch))


def both_jpeg(weights: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    """16 bit to JPEG, which are rounded, with a note."""
    monkeypatch.setattr(streaming, "STREAM_PIXELS", 1 << 60)
    found = both(weights, folder / "in.tif", ".jpg", monkeypatch)
    assert "16 bit was rounded" in found[3].notes[0]
    return found


@pytest.mark.parametrize("kind", ["opaque", "flat", "varies"])
def test_alpha_that_takes_no_part(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alpha = np.full((HEIGHT, WIDTH), 255 if kind == "opaque" else 9, np.uint8)
    if kind == "varies":
        alpha += np.arange(WIDTH, dtype=np.uint8)
    weights = write_weights(tmp_path / "w.safetensors", RESTORMER if kind == "varies" else ELAN[2])
    write(tmp_path / "in.png", picture(alpha=alpha))
    check_equal(*both(weights, tmp_path / "in.png", ".tif", monkeypatch))
    monkeypatch.setattr(streaming, "STREAM_PIXELS", 1 << 60)
    check_equal(*both(weights, tmp_path / "in.png", ".jpg", monkeypatch))  # over white


def test_pictures_whose_transparency_matters_stay_in_memory(tmp_path: Path, by_rows: None) -> None:
    alpha = np.zeros((HEIGHT, WIDTH), np.uint8)
    alpha[5:] = 200
    write(tmp_path / "in.png", picture(alpha=alpha))
    weights = write_weights(tmp_path / "w.safetensors", RESTORMER)
    with restort.load(weights, tile=64) as model:
        assert isinstance(model.open(tmp_path / "in.png", tmp_path / "out.png"), Picture)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations(orientation: int, tmp_path: Path) -> None:
    image = to_vips(picture().pixels).copy()
    image.set_type(vips().GValue.gint_type, "orientation", orientation)
    image.jpegsave(str(tmp_path / "in.jpg"))
    rows = open_rows(tmp_path / "in.jpg", lambda *size: True)
    whole = read(tmp_path / "in.jpg")
    assert rows is not None and rows.head.pixels.shape == whole.pixels.shape
    reader = RowReader(rows)
    parts = [reader.take(np.arange(top, min(top + 40, whole.height))) for top in range(0, whole.height, 40)]
    np.testing.assert_array_equal(np.concatenate(parts), whole.pixels)
    assert rows.head.exif == whole.exif and rows.head.xmp == whole.xmp


def test_rows_in_any_order(tmp_path: Path) -> None:
    whole = picture()
    write(tmp_path / "in.png", whole)
    rows = open_rows(tmp_path / "in.png", lambda *size: True)
    assert rows is not None
    reader = RowReader(rows)
    ahead = [*range(60), HEIGHT - 2, HEIGHT - 1]
    for index in (ahead, range(50, 90), range(50, 52), range(120, 130), range(10), range(HEIGHT), [7, 7, 3]):
        np.testing.assert_array_equal(reader.take(np.array(list(index))), whole.pixels[list(index)])


def test_exact_goes_by_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.undo()
    weights = write_weights(tmp_path / "w.safetensors", RESTORMER)
    write(tmp_path / "in.png", picture(dtype=np.uint16))
    monkeypatch.setattr("restort.inference.exact.available_memory", lambda: 0)  # maps in files
    said: list[str] = []
    with restort.load(weights, tile="exact", backend="torch", notify=said.append) as model:
        model.restore_file(tmp_path / "in.png", tmp_path / "memory.png")
        monkeypatch.setattr(streaming, "STREAM_PIXELS", 1)
        about = model.restore_file(tmp_path / "in.png", tmp_path / "rows.png")
    np.testing.assert_array_equal(read(tmp_path / "rows.png").pixels, read(tmp_path / "memory.png").pixels)
    assert about.tile == "exact"
    assert any("--tile exact keeps up to" in line for line in said)


def test_exact_says_before_it_starts_that_the_disk_is_too_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_rows: None
) -> None:
    pytest.importorskip("torch")
    from restort.backends.strips import feature_maps

    monkeypatch.undo()
    monkeypatch.setattr("restort.inference.exact.available_memory", lambda: 0)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(feature_maps.shutil, "disk_usage", lambda folder: usage)
    weights = write_weights(tmp_path / "w.safetensors", RESTORMER)
    write(tmp_path / "in.png", picture())
    steps: list[int] = []
    with (
        restort.load(weights, tile="exact", backend="torch") as model,
        pytest.raises(RestortError, match="not enough space for the temporary files"),
    ):
        model.restore_file(
            tmp_path / "in.png", tmp_path / "out.png", progress=lambda done, total: steps.append(done)
        )
    assert not steps


def test_a_large_tiff_is_tiled_with_a_pyramid_that_is_no_further_page(tmp_path: Path) -> None:
    head = picture(resolution=(1.0, 2.0), exif=exif_block())
    large = Picture(np.tile(head.pixels, (4, 6, 1)), exif=head.exif)
    with RowSink(tmp_path / "out.tif", large) as sink:
        for top in range(0, large.height, 100):
            sink.write(large.pixels[top : top + 100])
        sink.finish()
        sink.temporary.rename(tmp_path / "out.tif")
    image = vips().Image.new_from_file(str(tmp_path / "out.tif"))
    assert image.get("n-pages") > 1 and image.get("tile-width") == 256
    back = read(tmp_path / "out.tif")
    assert not back.notes and back.exif is not None
    np.testing.assert_array_equal(back.pixels, large.pixels)


def test_a_folder_with_a_damaged_and_a_large_picture(tmp_path: Path, by_rows: None) -> None:
    weights = write_weights(tmp_path / "w.safetensors", RESTORMER)
    for name in ("a", "b", "c"):
        write(tmp_path / f"in/{name}.png", picture())
    data = (tmp_path / "in/b.png").read_bytes()
    (tmp_path / "in/b.png").write_bytes(data[: len(data) // 2])
    for expected in (["done", "failed", "done"], ["skipped", "failed", "skipped"]):
        with restort.load(weights, tile=64) as model:
            jobs = collect([tmp_path / "in"], tmp_path / "out")
            seen = Lines(3, quiet=True)
            summary = restore_files(model, jobs, tmp_path / "out", Options(), seen)
        assert [result.status for result in summary.files] == expected
        assert "damaged or cut short" in (summary.files[1].message or "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".restort", "a.png", "c.png"]
    np.testing.assert_array_equal(read(tmp_path / "out/a.png").pixels, 255 - picture().pixels)


def test_an_interruption_leaves_nothing(tmp_path: Path, by_rows: None) -> None:
    weights = write_weights(tmp_path / "w.safetensors", RESTORMER)
    write(tmp_path / "in.png", picture())

    def stop(done: int, total: int) -> None:
        assert list(tmp_path.glob("out/.restort-*.part"))
        if done == 6:
            raise KeyboardInterrupt

    with restort.load(weights, tile=64) as model, pytest.raises(KeyboardInterrupt):
        model.restore_file(tmp_path / "in.png", tmp_path / "out/r.tif", progress=stop)
    assert not list((tmp_path / "out").iterdir())


def test_an_existing_target_is_kept(tmp_path: Path, by_rows: None) -> None:
    weights = write_weights(tmp_path / "w.safetensors", RESTORMER)
    write(tmp_path / "in.png", picture())
    (tmp_path / "out.png").write_bytes(b"mine")
    with restort.load(weights, tile=64) as model:
        with pytest.raises(RestortError, match="already exists"):
            model.restore_file(tmp_path / "in.png", tmp_path / "out.png")
        assert (tmp_path / "out.png").read_bytes() == b"mine"
        model.restore_file(tmp_path / "in.png", tmp_path / "out.png", overwrite=True)
    assert read(tmp_path / "out.png").width == WIDTH
    assert not list(tmp_path.glob(".restort-*"))


@pytest.mark.skipif(not os.environ.get("RESTORT_LARGE"), reason="takes minutes; set RESTORT_LARGE=1")
@pytest.mark.timeout(1800)
def test_30000_by_20000_below_2_gib(tmp_path: Path) -> None:
    """Peak memory of the command line with a stand-in network, which inverts; prints seconds and MiB."""
    resource = pytest.importorskip("resource")
    large_tiff(tmp_path / "in.tif", 30_000, 20_000)
    weights = write_weights(tmp_path / "w.safetensors", RESTORMER)
    options = ["--weights", weights, "--tile", "512", "--max-pixels", "none"]
    command = [sys.executable, fake_backend.__file__, "run", tmp_path / "in.tif", "-o", tmp_path / "out.tif"]
    start = time.perf_counter()
    subprocess.run([*map(str, (*command, *options))], check=True, cwd=Path(__file__).parents[2])
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"{time.perf_counter() - start:.1f} s, {peak:.0f} MiB")
    assert peak < 2048
    corner = vips().Image.new_from_file(str(tmp_path / "out.tif")).crop(29_000, 19_000, 1000, 1000)
    original = vips().Image.new_from_file(str(tmp_path / "in.tif")).crop(29_000, 19_000, 1000, 1000)
    np.testing.assert_array_equal(corner.numpy(), 255 - original.numpy())


@pytest.mark.skipif(not os.environ.get("RESTORT_LARGE"), reason="takes minutes; set RESTORT_LARGE=1")
def test_6000_by_4000_equals_the_result_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large_tiff(tmp_path / "in.tif", 6000, 4000)
    weights = write_weights(tmp_path / "w.safetensors", RESTORMER)
    check_equal(*both(weights, tmp_path / "in.tif", ".tif", monkeypatch, tile=512))


def large_tiff(path: Path, width: int, height: int) -> None:
    """Write a tiled TIFF of noise over gradients, without holding it."""
    pyvips = vips()
    noise = pyvips.Image.gaussnoise(width, height, sigma=8, mean=0)
    place = pyvips.Image.xyz(width, height)
    bands = [(place[0] * 0.01 + noise), (place[1] * 0.02 + noise), ((place[0] + place[1]) * 0.004 - noise)]
    image = bands[0].bandjoin(bands[1:]).cast("uchar").copy(interpretation="srgb")
    image.tiffsave(str(path), tile=True, tile_width=256, tile_height=256, compression="deflate", bigtiff=True)
