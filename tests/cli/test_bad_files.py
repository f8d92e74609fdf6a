"""Bad weights, bad pictures, missing permissions and a full disk: status 1 and one sentence that names the file."""

from __future__ import annotations

import os
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from restort.cli.main import main
from restort.imaging.decode import read
from restort.imaging.encode import write
from restort.imaging.picture import Picture
from tests.fakes.command_line import FAKE, Answer

pytestmark = pytest.mark.usefixtures("fake_backend")


# --- bad weights: status 1 -------------------------------------------------------------------------------


def test_bad_weights(restort: Any, weights: Path, photo: Path, tmp_path: Path) -> None:
    bad = {
        "garbage.pth": os.urandom(5000),
        "empty.safetensors": b"",
        "short.safetensors": weights.read_bytes()[:3000],
        "text.pt": b"not weights at all",
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        told = restort("upscale", photo, "-o", tmp_path / "out.png", "--weights", tmp_path / name)
        assert told.status == 1 and len(told.lines) == 1 and name in told.err
        told = restort("export", "-o", tmp_path / "out.onnx", "--weights", tmp_path / name)
        assert told.status == 1 and len(told.lines) == 1 and name in told.err
    for path in (tmp_path / "absent.pth", tmp_path):
        told = restort("upscale", photo, "-o", tmp_path / "out.png", "--weights", path)
        assert told.status == 1 and len(told.lines) == 1 and str(path) in told.err
    told = restort(
        "upscale", photo, "-o", tmp_path / "out.png", "--model", "elan-light-x4-friedricelab", "--offline"
    )
    assert told.status == 1 and "not in the cache" in told.err


# --- bad pictures: status 1, told by name -----------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def test_bad_pictures(restort: Any, weights: Path, photo: Path, tmp_path: Path) -> None:
    write(tmp_path / "whole.jpg", read(photo))
    bad = {
        "empty.png": (b"", "the file is empty"),
        "cut.jpg": ((tmp_path / "whole.jpg").read_bytes()[:500], "damaged or cut short"),
        "text.png": (b"dear diary, " * 20, "not a picture"),
        "huge.png": (png_header(100_000, 100_000), "--max-pixels"),
    }
    for name, (content, expected) in bad.items():
        (tmp_path / name).write_bytes(content)
        told = restort(
            "upscale", tmp_path / name, "-o", tmp_path / "out.png", "--weights", weights, "--quiet"
        )
        assert told.status == 1 and len(told.lines) == 1, told.err
        assert expected in told.err and name in told.err
    told = restort(
        "upscale", tmp_path / "gone.png", "-o", tmp_path / "out.png", "--weights", weights, "--quiet"
    )
    assert told.status == 1 and len(told.lines) == 1 and "no such file" in told.err
    assert not (tmp_path / "out.png").exists()
    told = restort("upscale", photo, "-o", tmp_path / "o.png", "--weights", weights, "--max-pixels", "100")
    assert told.status == 1 and "--max-pixels" in told.err


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 4000), (4000, 3), (1, 40)])
def test_odd_sizes(restort: Any, weights: Path, tmp_path: Path, height: int, width: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (height, width, 3), dtype=np.uint16)
    write(tmp_path / "odd.png", Picture(pixels))
    for tile in ("auto", "none", "256"):
        out = tmp_path / f"{tile}.png"
        assert (
            restort("upscale", tmp_path / "odd.png", "-o", out, "--weights", weights, "--tile", tile).status
            == 0
        )
        assert np.array_equal(read(out).pixels, pixels.repeat(4, axis=0).repeat(4, axis=1))


@pytest.fixture
def anyones() -> Iterator[Path]:
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="restort-test-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="permissions of this system are of another kind")
def test_no_permission(weights: Path, photo: Path, anyones: Path) -> None:
    secret, open_one = anyones / "secret.png", anyones / "open.png"
    for path in (secret, open_one):
        path.write_bytes(photo.read_bytes())
    secret.chmod(0)
    model = anyones / "x4.safetensors"
    model.write_bytes(weights.read_bytes())
    for path in (open_one, model):
        path.chmod(0o644)
    (anyones / "out").mkdir()
    (anyones / "out").chmod(0o777)
    (anyones / "closed").mkdir(0o555)
    root = os.geteuid() == 0
    environment = (
        os.environ | ({"FAKE_USER": "65534"} if root else {}) | {"RESTORT_CACHE": str(anyones / "cache")}
    )

    def call(source: Path, target: Path) -> Answer:
        command = [*FAKE, "upscale", str(source), "-o", str(target), "--weights", str(model), "--quiet"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        return Answer(done.returncode, done.stdout, done.stderr)

    assert call(open_one, anyones / "out").status == 0
    for source, target in (
        (secret, anyones / "out" / "b.png"),
        (secret, anyones / "out"),
        (open_one, anyones / "closed" / "b.png"),
        (open_one, anyones / "closed"),
    ):
        told = call(source, target)
        assert told.status == 1 and len(told.lines) == 1 and "permission" in told.err, told.err


def test_full_disk(weights: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for it; small files still succeed."""
    resource = pytest.importorskip("resource")
    photos = tmp_path / "in"
    photos.mkdir()
    random = np.random.default_rng(0)
    for name, size in (("a.png", 8), ("b.png", 64), ("c.png", 8)):
        write(photos / name, Picture(random.integers(0, 256, (size, size, 3), dtype=np.uint8)))
    done = subprocess.run(
        [*FAKE, "upscale", str(photos), "-o", str(tmp_path / "out"), "--weights", str(weights), "--quiet"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000)),
        timeout=60,
    )
    told = Answer(done.returncode, done.stdout, done.stderr)
    assert told.status == 1 and len(told.lines) == 1 and "disk is full" in told.err and "b.png" in told.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".restort", "a.png", "c.png"]
    assert (
        main(["upscale", str(photos), "-o", str(tmp_path / "out"), "--weights", str(weights), "--quiet"]) == 0
    )
