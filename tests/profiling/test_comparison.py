"""`restort compare`: its statistics, its inputs, and that blocks of different backends are the same blocks."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from restort.cli.main import main
from restort.errors import RestortError, UsageError
from restort.export.blocks import with_block_outputs
from restort.export.emit import emit
from restort.imaging.encode import write
from restort.imaging.picture import Picture
from restort.models.block_names import block_names
from restort.models.spec import parameter_shapes
from restort.profiling.comparison import compare
from restort.profiling.samples import samples, synthetic
from restort.profiling.sides import Side
from restort.profiling.synthetic import dead_leaves
from restort.profiling.tensor_error import tensor_error
from restort.runner import Runner
from restort.weights.checkpoint import Weights, load_weights
from tests.fakes.fake_backend import ELAN, RESTORMER, write_weights

TINY = {"restormer": RESTORMER, "elan": replace(ELAN[2], channels=30, blocks=4)}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESTORT_CACHE", str(cache))


@pytest.fixture(scope="module", params=sorted(TINY))
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    folder = tmp_path_factory.mktemp("weights")
    return load_weights(write_weights(folder / f"tiny-{request.param}.safetensors", TINY[request.param]))


def test_statistics_are_numpys() -> None:
    random = np.random.default_rng(0)
    b = random.standard_normal((2, 3, 5, 7)).astype(np.float32)
    a = b + 0.01 * random.standard_normal(b.shape).astype(np.float32)
    error = tensor_error(a, b, epsilon=0.02, peak=2.0)
    difference = np.abs(a.astype(float) - b)
    for spread, values in (
        (error.absolute, difference),
        (error.relative, difference / (np.abs(b.astype(float)) + 0.02)),
    ):
        assert spread is not None
        assert spread.max == values.max() and spread.mean == pytest.approx(values.mean(), rel=1e-12)
        assert spread.median == pytest.approx(np.median(values), rel=1e-12)
        assert spread.p90 == pytest.approx(np.percentile(values, 90), rel=1e-12)
        assert spread.p99 == pytest.approx(np.percentile(values, 99), rel=1e-12)
    wanted = math.sqrt((difference**2).sum() / (b.astype(float) ** 2).sum())
    assert error.relative_l2 == pytest.approx(wanted, rel=1e-12)
    assert error.psnr == pytest.approx(10 * math.log10(4 / (difference**2).mean()), rel=1e-12)
    assert error.shape == (2, 3, 5, 7) and error.epsilon == 0.02 and error.non_finite == 0


def test_a_known_perturbation() -> None:
    b = np.full((1, 1, 10, 10), 0.5, np.float32)
    a = b.copy()
    a[0, 0, 0, 0] = 0.75
    error = tensor_error(a, b, epsilon=0.5, peak=1.0)
    assert error.absolute is not None and error.relative is not None
    assert (error.absolute.max, error.absolute.mean, error.absolute.median) == (0.25, 0.0025, 0)
    assert (error.relative.max, error.relative.mean) == (0.25, 0.0025)
    assert error.relative_l2 == pytest.approx(0.25 / 5) and error.psnr == pytest.approx(
        10 * math.log10(100 / 0.0625)
    )


def test_nothing_differs_and_nothing_is_known() -> None:
    same = tensor_error(np.ones((1, 2)), np.ones((1, 2)), peak=1.0)
    assert same.psnr == math.inf and same.to_json()["psnr"] is None and same.to_json()["identical"]
    zero = tensor_error(np.zeros(3), np.zeros(3))
    assert zero.relative_l2 == 0 and zero.psnr is None
    assert tensor_error(np.ones(3), np.zeros(3)).relative_l2 is None
    bad = tensor_error(np.array([1, np.nan, np.inf]), np.zeros(3), peak=1.0)
    assert bad.non_finite == 2 and bad.absolute is None and not bad.to_json()["identical"]
    json.dumps(bad.to_json(), allow_nan=False)
    for a, b in ((np.ones(2), np.ones(3)), (np.ones(0), np.ones(0))):
        with pytest.raises(RestortError, match="cannot be compared"):
            tensor_error(a, b)


def test_the_synthetic_picture_is_like_a_photograph() -> None:
    picture = dead_leaves(96, 128)
    assert picture.shape == (3, 96, 128) and picture.dtype == np.float32
    assert picture.min() >= 0 and picture.max() <= 1 and 0.1 < picture.std() < 0.4
    np.testing.assert_array_equal(picture, dead_leaves(96, 128))
    assert not np.array_equal(picture, dead_leaves(96, 128, seed=1))
    np.testing.assert_allclose(picture * 255, np.rint(picture * 255), atol=1e-4)
    neighbours = np.corrcoef(picture[:, :, 1:].ravel(), picture[:, :, :-1].ravel())[0, 1]
    assert neighbours > 0.7  # white noise: 0
    assert dead_leaves(8, 8, 6).shape == (6, 8, 8)


def test_blocks_are_modules_of_the_published_network(weights: Weights) -> None:
    names = block_names(weights.spec)
    assert all(any(key.startswith(f"{name}.") for key in weights.state) for name in names)
    if weights.spec.architecture == "restormer":
        stages = [
            key.split(".norm1")[0] for key in parameter_shapes(weights.spec) if ".norm1.body.weight" in key
        ]
        assert list(names) == stages
    else:
        assert len(names) == weights.spec.groups  # type: ignore[union-attr]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_graph_values_are_named_after_the_blocks(weights: Weights, precision: Any) -> None:
    model = emit(weights, precision)
    made = {output for node in model.graph.node for output in node.output}
    assert set(block_names(weights.spec)) <= made
    tapped = with_block_outputs(model, weights.spec)
    assert [value.name for value in tapped.graph.output] == ["output", *block_names(weights.spec)]
    assert len(tapped.graph.node) == len(model.graph.node) and len(model.graph.output) == 1
    onnx.checker.check_model(tapped)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_every_block_agrees_with_the_reference(weights: Weights, backend: str) -> None:
    pytest.importorskip("torch")
    pytest.importorskip(backend)
    result = compare(
        weights, Side(backend), Side("torch"), samples(weights.spec, size=(2, 40, 48)), blocks=True, threads=2
    )
    [picture] = result.pictures
    assert tuple(picture.blocks) == block_names(weights.spec)
    for name, error in {**picture.blocks, "output": picture.output}.items():
        assert error.relative_l2 is not None and error.relative_l2 < 1e-4, name
        assert error.absolute is not None and error.shape[0] == 2
    assert picture.shape == (2, 3, 40, 48)
    assert picture.output.shape == (2, 3, 40 * weights.spec.scale, 48 * weights.spec.scale)


def test_lower_precision_shows_in_every_block(weights: Weights) -> None:
    pytest.importorskip("torch")
    result = compare(
        weights, Side("torch", "bf16"), Side("torch"), [synthetic(weights.spec, (1, 32, 32))], blocks=True
    )
    assert (result.backend.precision, result.against.precision) == ("bf16", "fp32")
    for error in result.pictures[0].blocks.values():
        assert error.relative_l2 is not None and 1e-5 < error.relative_l2 < 0.2


def test_a_backend_that_shows_its_own_blocks_and_one_that_shows_none(
    weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    from restort.profiling import comparison as module

    class Mute(Runner):
        name, precision, spec = "mute", "fp32", weights.spec

        def __call__(self, x: np.ndarray) -> np.ndarray:
            scale = self.spec.scale
            return x.repeat(scale, axis=2).repeat(scale, axis=3)

        def close(self) -> None:
            pass

    class Talking(Mute):
        def blocks(self, x: np.ndarray) -> dict[str, np.ndarray]:
            return dict.fromkeys(reversed(block_names(self.spec)), x)

    sample = synthetic(weights.spec, (1, 16, 16))
    monkeypatch.setattr(module, "create", lambda *args, **options: Talking())
    result = compare(weights, Side("a"), Side("b"), [sample], blocks=True)
    assert tuple(result.pictures[0].blocks) == block_names(weights.spec)
    monkeypatch.setattr(module, "create", lambda *args, **options: Mute())
    assert compare(weights, Side("a"), Side("b"), [sample]).total.psnr == math.inf
    with pytest.raises(UsageError, match="does not show its blocks"):
        compare(weights, Side("a"), Side("b"), [sample], blocks=True)


def save(path: Path, height: int, width: int, seed: int = 0) -> Path:
    pixels = np.rint(dead_leaves(height, width, seed=seed) * 255).astype(np.uint8)
    write(path, Picture(np.ascontiguousarray(pixels.transpose(1, 2, 0))))
    return path


def test_a_backend_against_itself(
    weights: Weights, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real pictures of odd sizes, all outputs, valid JSON."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    save(folder / "a.png", 21, 35)
    save(folder / "b.png", 30, 17, 1)
    side, record = "onnxruntime", tmp_path / "c.json"
    arguments = ["compare", "--weights", str(weights.path), str(folder), "--backend", side, "--against", side]
    assert main([*arguments, "--json", "-o", str(record), "--quiet"]) == 0

    def no_constants(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    printed = json.loads(capsys.readouterr().out, parse_constant=no_constants)
    assert printed == json.loads(record.read_text())
    assert [picture["name"] for picture in printed["pictures"]] == ["a.png", "b.png"]
    scale = weights.spec.scale
    assert printed["pictures"][0]["output"]["shape"] == [1, 3, 21 * scale, 35 * scale]
    for error in [picture["output"] for picture in printed["pictures"]] + [printed["all"]]:
        assert error["identical"] and error["psnr"] is None and error["relative_l2"] == 0
        assert set(error["absolute"].values()) == set(error["relative"].values()) == {0.0}
    assert printed["all"]["shape"] == [3 * scale**2 * (21 * 35 + 30 * 17)]
    assert printed["epsilon"] == 0.001 and "0.001" in printed["definitions"]["relative"]
    assert {"device", "machine", "versions", "command", "date", "weights_sha256"} <= printed.keys()
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert "a.png" in table and "all" in table and "inf" in table and "+ 0.001)" in table


def test_blocks_table_and_plot(weights: Weights, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    picture, plot = save(tmp_path / "p.png", 40, 64), tmp_path / "e.svg"
    arguments = ["compare", "--weights", str(weights.path), str(picture), "--size", "2x24x32", "--blocks"]
    sides = ["--backend", "onnxruntime:fp32", "--against", "torch"]
    assert main([*arguments, *sides, "--plot", str(plot), "--json", "--quiet"]) == 0
    [found] = json.loads(capsys.readouterr().out)["pictures"]
    assert found["shape"] == [2, 3, 24, 32]
    assert [block["name"] for block in found["blocks"]] == list(block_names(weights.spec))
    root = ElementTree.parse(plot).getroot()
    assert root.tag.endswith("svg")
    texts = {"".join(element.itertext()).strip() for element in root.iter() if element.tag.endswith("text")}
    assert {*block_names(weights.spec), "output", "relative L2"} <= texts
    assert main([*arguments, *sides]) == 0
    assert all(name in capsys.readouterr().out for name in block_names(weights.spec)[:1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "caffe", "--against", "torch"], "unknown backend 'caffe'"),
        (["--backend", "openvino:fp7", "--against", "torch"], "unknown precision 'fp7'"),
        (["--backend", "openvino,torch", "--against", "torch"], "not one backend"),
        (["--backend", "onnxruntime:bf16", "--against", "onnxruntime"], "does not support bf16"),
        (["--backend", "onnxruntime"], "--against"),
        (["--backend", "onnxruntime", "--against", "onnxruntime", "--size", "12"], "is not height x width"),
        (["--backend", "onnxruntime", "--against", "onnxruntime", "--epsilon", "0"], "above 0"),
        (["--backend", "onnxruntime", "--against", "onnxruntime", "--plot", "x.svg"], "--blocks"),
    ],
)
def test_wrong_options_get_one_sentence(
    weights: Weights, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--weights", str(weights.path), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_wrong_pictures_get_one_sentence(
    weights: Weights, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = save(tmp_path / "p.png", 20, 30)
    sides = ["--backend", "onnxruntime", "--against", "onnxruntime", "--quiet"]
    arguments = ["compare", "--weights", str(weights.path), *sides]
    assert main([*arguments, str(picture), "--size", "32x16"]) == 2
    assert "20x30 pixels" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "none.png")]) == 1
    assert "there is no such file" in capsys.readouterr().err
    taken = tmp_path / "taken.json"
    taken.write_text("")
    assert main([*arguments, "-o", str(taken)]) == 1
    assert "--overwrite" in capsys.readouterr().err
