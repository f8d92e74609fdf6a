"""The public API: few lines, arrays of every kind, sentences for errors."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import restort
from restort.imaging.decode import read
from restort.imaging.encode import write
from restort.imaging.picture import Picture
from tests.fakes.fake_backend import ELAN, RESTORMER, write_weights

pytestmark = pytest.mark.usefixtures("fake_backend")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_weights(tmp_path / "x2.safetensors", ELAN[2])


@pytest.mark.parametrize(
    "shape",
    [(5, 7), (5, 7, 1), (5, 7, 2), (5, 7, 3), (5, 7, 4), (1, 1, 3)],
    ids=lambda shape: "x".join(map(str, shape)),
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64, np.float16])
def test_arrays(weights: Path, shape: tuple[int, ...], dtype: type) -> None:
    random = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        if shape[2:] in ((2,), (4,)):
            pytest.skip("alpha is for integers")
        image = random.random(shape).astype(dtype)
    else:
        image = random.integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)
    if shape[2:] in ((2,), (4,)):
        image[..., -1] = np.iinfo(dtype).max
    with restort.load(weights) as model:
        result = model(image)
        assert (model.scale, model.backend, model.task) == (2, "fake", "upscale")
    assert result.dtype == image.dtype
    expected = image.repeat(2, axis=0).repeat(2, axis=1)
    assert result.shape == expected.shape
    if np.dtype(dtype).kind == "f":
        assert np.allclose(result, expected, atol=1e-3 if dtype is np.float16 else 1e-6)
    else:
        assert np.array_equal(result, expected)


def test_pictures_and_views(weights: Path) -> None:
    model = restort.load(str(weights), tile=64, overlap=16)
    image = np.random.default_rng(0).integers(0, 256, (150, 140, 3), dtype=np.uint8)
    result = model(Picture(image))
    assert isinstance(result, Picture) and result.pixels.shape == (300, 280, 3)
    turned = model(image[::-1].transpose(1, 0, 2))
    assert np.array_equal(turned, result.pixels[::-1].transpose(1, 0, 2))
    calls: list[tuple[int, int]] = []
    model(image, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1] > 1


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("1", "L"), ("L", "L"), ("LA", "LA"), ("P", "RGB"), ("RGB", "RGB"), ("RGBA", "RGBA"), ("I;16", "I;16")],
)
def test_images_of_pillow(weights: Path, mode: str, expected: str) -> None:
    gray = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8) * 5)
    image = (
        Image.fromarray(np.asarray(gray).astype(np.uint16) * 257) if mode == "I;16" else gray.convert(mode)
    )
    if "A" in mode:
        image.putalpha(255)
    image.info["icc_profile"] = b"profile"
    result = restort.restore(image, model=weights)
    assert (result.mode, result.size, result.info) == (expected, (16, 12), {"icc_profile": b"profile"})
    plain = image.convert(expected) if mode in ("1", "P") else image
    assert np.array_equal(np.asarray(result), np.asarray(plain).repeat(2, axis=0).repeat(2, axis=1))


def test_images_of_pillow_that_cannot_be_restored(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(restort.RestortError, match="mode CMYK cannot be restored; convert it to RGB"):
        restort.restore(Image.new("CMYK", (5, 5)), model=weights)
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "JPEG")
    with pytest.raises(restort.RestortError, match="cannot read the Pillow image"):
        restort.restore(Image.open(io.BytesIO(buffer.getvalue()[:1500])), model=weights)


def test_arguments_of_a_wrong_type(weights: Path, tmp_path: Path) -> None:
    write(tmp_path / "a.png", Picture(np.zeros((5, 5, 3), np.uint8)))
    arguments: Any = [
        ({"target": 3}, "target must be a path, not int"),
        ({"target": tmp_path / "b.png", "max_pixels": "many"}, "max_pixels must be a number"),
        ({"target": tmp_path / "b.png", "quality": "best"}, "quality must be a whole number"),
    ]
    for options, expected in arguments:
        with pytest.raises(restort.UsageError, match=expected):
            restort.restore(tmp_path / "a.png", model=weights, **options)


def test_restore(weights: Path, tmp_path: Path) -> None:
    image = np.full((6, 6, 3), 77, np.uint8)
    assert restort.restore(image, model=weights).shape == (12, 12, 3)
    source, target = tmp_path / "a.png", tmp_path / "b.png"
    write(source, Picture(image))
    restored = restort.restore(source, target, model=weights)
    assert restored.result_size == (12, 12) and read(target).pixels.shape == (12, 12, 3)
    with pytest.raises(restort.RestortError, match="already exists"):
        restort.restore(source, target, model=weights)
    restort.restore(source, target, model=restort.load(weights), overwrite=True)
    with pytest.raises(restort.RestortError, match="the input itself"):
        restort.restore(source, source, model=weights, overwrite=True)
    with pytest.raises(restort.UsageError, match="target"):
        restort.restore(source, model=weights)  # type: ignore[call-overload]


def test_every_wrong_request_is_a_restort_error(weights: Path, tmp_path: Path) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    for options, expected in (
        ({"backend": "abacus"}, "unknown backend 'abacus'"),
        ({"precision": "int3"}, "unknown precision 'int3'"),
        ({"tile": "big"}, "tile must be 'auto', 'exact', None or a number of pixels, not 'big'"),
        ({"overlap": 1.5}, "overlap must be a whole number or None, not 1.5"),
        ({"threads": "two"}, "threads must be a whole number or None, not 'two'"),
        ({"strength": "half"}, "strength must lie between 0 and 1, not 'half'"),
        ({"speed": 3}, "unknown option 'speed' of restore"),
        ({"quality": 90}, "of an array takes no quality"),
    ):
        with pytest.raises(restort.UsageError, match=expected):
            restort.restore(image, model=weights, **options)
    with pytest.raises(restort.UsageError, match="a model is a name or the path of a file, not int"):
        restort.load(4)  # type: ignore[arg-type]
    with pytest.raises(restort.UsageError, match="of an array takes no target"):
        restort.restore(image, tmp_path / "out.png", model=weights)  # type: ignore[call-overload]
    with restort.load(weights) as model, pytest.raises(restort.UsageError, match="tile cannot be set for a"):
        restort.restore(image, model=model, tile=128)


def test_wrong_arrays(weights: Path) -> None:
    model = restort.load(weights)
    for image, expected in (
        (np.zeros((4, 4, 4, 4), np.uint8), "is not an image"),
        (np.zeros((0, 4), np.uint8), "is not an image"),
        (np.zeros((4, 4, 5), np.uint8), "5 channels"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (np.zeros((4, 4, 3), bool), "bool"),
        (np.full((4, 4, 3), 200.0), "divide by 255"),
        (np.full((4, 4), np.nan, np.float32), "NaN"),
        ([[1, 2], [3, 4]], "list"),
    ):
        with pytest.raises(restort.RestortError, match=expected):
            model(image)  # type: ignore[call-overload]


def test_wrong_models(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(restort.UsageError, match="did you mean"):
        restort.load("restormer-real-denoisin")
    with pytest.raises(restort.RestortError, match="no such file"):
        restort.load(tmp_path / "absent.pth")
    with pytest.raises(restort.UsageError, match="too small"):
        restort.load(weights, tile=3)
    with pytest.raises(restort.UsageError, match="negative"):
        restort.load(weights, overlap=-1)


def test_list_models_and_denoise(tmp_path: Path) -> None:
    assert "restormer-deraining" in {entry.name for entry in restort.list_models()}
    model = restort.load(write_weights(tmp_path / "clean.safetensors", RESTORMER))
    image = np.random.default_rng(0).integers(0, 256, (9, 5, 3), dtype=np.uint8)
    assert np.array_equal(model(image), 255 - image)
    assert model.task is None and "clean" in repr(model)


def test_import_is_light() -> None:
    code = (
        "import sys, restort\n"
        "assert set(restort.__all__) <= set(dir(restort))\n"
        "assert not {'numpy', 'onnxruntime', 'pyvips'} & set(sys.modules)\n"
        "restort.load, restort.restore, restort.Model\n"
        "assert not {'onnx', 'onnxruntime', 'torch', 'openvino'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_core_needs_only_what_it_names() -> None:
    """Every library that the package imports is a dependency, or one of an extra that is asked for politely."""
    import ast
    import re

    root = Path(__file__).parents[2]
    project = (root / "pyproject.toml").read_text("utf-8")
    named = set(
        re.findall(r'^    "([a-z0-9-]+)', project[: project.index("[project.optional")], re.MULTILINE)
    )
    known = {"PIL": "pillow"}
    extras = {"torch", "triton", "cuda", "openvino", "skimage", "h5py", "scipy", "matplotlib"}
    extras |= {
        "pillow_heif",
        "pillow_jxl",
        "rawpy",
        "shtab",
        "fastapi",
        "starlette",
        "uvicorn",
        "prometheus_client",
        "ray",
    }
    for path in (root / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for name in {name.partition(".")[0] for name in names}:
                if name not in sys.stdlib_module_names | extras | {"restort"}:
                    assert known.get(name, name) in named | {"requests"}, f"{path} imports {name}"
