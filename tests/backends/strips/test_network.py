"""`--tile exact`: Restormer by strips against the network on the whole picture."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import restort  # noqa: E402
from restort.backends.strips import feature_maps  # noqa: E402
from restort.backends.strips.feature_maps import FileMap  # noqa: E402
from restort.backends.strips.network import StripNetwork, cut_levels, stored_bytes  # noqa: E402
from restort.backends.strips.workers import Workers  # noqa: E402
from restort.backends.torch_cpu import TorchRunner  # noqa: E402
from restort.cli.main import main  # noqa: E402
from restort.imaging.decode import read  # noqa: E402
from restort.imaging.encode import write  # noqa: E402
from restort.imaging.picture import Picture  # noqa: E402
from restort.models.spec import RestormerSpec, parameter_shapes  # noqa: E402
from restort.models.torch_network import build  # noqa: E402
from restort.weights.checkpoint import load_weights  # noqa: E402
from tests.fakes.fake_backend import ELAN, RESTORMER, write_weights  # noqa: E402

SHIPPED = Path(restort.__file__).parent / "weights" / "shipped" / "restormer-small-denoise.safetensors"
LARGE = 1 << 40
VARIANTS = {
    "bias free": RESTORMER,
    "with bias": replace(RESTORMER, layer_norm="WithBias", bias=True, num_blocks=(2, 1, 1, 1)),
    "convolutions with bias": replace(RESTORMER, bias=True),
    "gray": replace(RESTORMER, in_channels=1, out_channels=1, layer_norm="WithBias"),
    "dual pixel": replace(RESTORMER, in_channels=6, dual_pixel=True, bias=True),
    "odd widths": replace(RESTORMER, ffn_expansion=2.66, heads=(1, 1, 2, 4), num_refinement_blocks=2),
}


def state_of(spec: RestormerSpec) -> dict[str, Any]:
    """Weights large enough that attention and gates matter."""
    random = np.random.default_rng(1)
    return {
        name: random.standard_normal(shape)
        * (1.5 if len(shape) == 4 else 0.5)
        / np.sqrt(max(np.prod(shape[1:]), 1))
        + (1.0 if name.endswith(("body.weight", "temperature")) else 0.0)
        for name, shape in parameter_shapes(spec).items()
    }


def picture(spec: RestormerSpec, n: int, height: int, width: int) -> np.ndarray:
    """Not the same everywhere: a strip must not do for another."""
    random = np.random.default_rng(height * 1000 + width)
    ramp = np.linspace(0, 1, height)[:, None] * np.linspace(1, 0.2, width)
    return (ramp * random.random((n, spec.in_channels, height, width))).astype(np.float32)


def whole(model: Any, x: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(x).to(model.output.weight.dtype)).numpy()


def by_strips(network: StripNetwork, x: np.ndarray, **options: Any) -> np.ndarray:
    options = {"memory_bytes": LARGE, "folder": Path(), **options}
    result = []
    for top, band in network.stream(x, **options):
        assert top == sum(rows.shape[2] for rows in result)
        result.append(band)
    return np.concatenate(result, axis=2)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape and a.dtype == b.dtype
    return float(np.linalg.norm((a - b).astype(np.float64)) / np.linalg.norm(b.astype(np.float64)))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {name: build(spec, state_of(spec), torch.float64) for name, spec in VARIANTS.items()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """For temporary files; nothing may be left there, nor open."""
    made = tmp_path / "temporary"
    made.mkdir()
    monkeypatch.setenv("TMPDIR", str(made))
    monkeypatch.setattr("tempfile.tempdir", None)
    yield made
    assert list(made.iterdir()) == []
    if Path("/proc/self/fd").is_dir():
        links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_link(fd)]
        assert not [link for link in links if str(made) in link]


def _is_link(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("n", [1, 2])
def test_every_variant_in_double_precision(models: dict[str, Any], name: str, n: int) -> None:
    x = picture(VARIANTS[name], n, 56, 40)
    result = by_strips(StripNetwork(models[name]), x, rows=10, cell_bytes=1 << 15)
    assert distance(result, whole(models[name], x)) < 1e-12


@given(
    st.integers(1, 25),
    st.integers(1, 25),
    st.one_of(st.none(), st.integers(1, 12), st.integers(13, 200)),
    st.integers(10, 20),
)
@settings(max_examples=15, deadline=None, derandomize=True)
def test_every_size_and_cut(models: dict[str, Any], h: int, w: int, rows: int | None, bits: int) -> None:
    if rows is not None and rows < 8 and h * w > 60:
        h, w = min(h, 6), min(w, 10)  # hundreds of strips take long and show no more
    x = picture(VARIANTS["with bias"], 1, 8 * h, 8 * w)
    cell_bytes = max(1 << bits, x[0, 0].size * 8)
    result = by_strips(StripNetwork(models["with bias"]), x, rows=rows, cell_bytes=cell_bytes)
    assert distance(result, whole(models["with bias"], x)) < 1e-12


@pytest.mark.parametrize(
    ("height", "width", "rows"), [(8, 8, None), (104, 200, 7), (200, 96, 64), (16, 168, 1)]
)
def test_float32_is_as_near_as_rounding_allows(height: int, width: int, rows: int | None) -> None:
    spec = VARIANTS["bias free"]
    x = picture(spec, 1, height, width)
    model = build(spec, state_of(spec))
    truth = whole(build(spec, state_of(spec), torch.float64), x).astype(np.float32)
    rounding = distance(whole(model, x), truth)  # these weights magnify it
    assert (
        distance(by_strips(StripNetwork(model), x, rows=rows, cell_bytes=1 << 16), truth)
        < 5 * rounding + 1e-6
    )


def test_the_shipped_model_on_a_photograph(shared: Path) -> None:
    if not SHIPPED.is_file():
        pytest.skip("the shipped weights are not here")
    pixels = read(shared / "data/test/kodak24/kodim13.png").pixels[100:268, 200:456]
    noisy = Picture(
        np.clip(pixels + np.random.default_rng(0).normal(0, 25, pixels.shape), 0, 255).astype(np.uint8)
    )
    x = noisy.to_unit(3)
    weights = load_weights(SHIPPED)
    model = build(weights.spec, weights.state)
    result, expected = by_strips(StripNetwork(model), x, rows=50, cell_bytes=1 << 19), whole(model, x)
    assert distance(result, expected) < 1e-5
    assert np.abs(result - expected).max() < 1e-4


def test_files_in_place_of_memory(models: dict[str, Any], folder: Path) -> None:
    x = picture(RESTORMER, 2, 64, 40)
    network = StripNetwork(models["bias free"])
    result = by_strips(network, x, memory_bytes=0, folder=folder, rows=9)
    assert np.array_equal(result, by_strips(network, x, rows=9))


def test_files_go_when_the_run_is_left_or_fails(
    models: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = picture(RESTORMER, 1, 64, 40)
    network = StripNetwork(models["bias free"])
    options = {"memory_bytes": 0, "folder": folder, "rows": 8}
    bands = network.stream(x, **options)
    next(bands)
    bands.close()  # type: ignore[attr-defined]

    def interrupted(done: int, total: int) -> None:
        if done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        by_strips(network, x, progress=interrupted, **options)
    monkeypatch.setattr(FileMap, "write", lambda self, a, rows: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        by_strips(network, x, **options)


def test_a_full_disk_is_one_sentence(
    models: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = picture(RESTORMER, 1, 16, 16)
    network = StripNetwork(models["bias free"])
    usage = feature_maps.shutil.disk_usage(folder)
    monkeypatch.setattr(feature_maps.shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(restort.RestortError, match="TMPDIR"):
        by_strips(network, x, memory_bytes=0, folder=folder)
    monkeypatch.undo()
    with pytest.raises(restort.RestortError, match="TMPDIR"):
        by_strips(network, x, memory_bytes=0, folder=folder / "not there")


def test_cuts_cover_every_row_and_column_and_keep_to_the_memory() -> None:
    spec = load_spec()
    for height, width, n, threads in (
        (8000, 12000, 1, 2),
        (8, 8, 1, 64),
        (640, 100_000, 2, 3),
        (4096, 8, 1, 1),
    ):
        for level, cut in enumerate(cut_levels(spec, n, height, width, 4 << 20, threads)):
            for pieces, size in ((cut.strips(), height >> level), (cut.cells(), width >> level)):
                assert [a for a, _ in pieces] == [0, *(b for _, b in pieces[:-1])]
                assert pieces[-1][1] == size and all(a < b for a, b in pieces)
            assert 4 * n * cut.rows * cut.width * (spec.dim << max(level, 1)) <= 256 << 20
    assert stored_bytes(spec, 1, 8000, 12000) == 84 * 96_000_000 * 4


def load_spec() -> RestormerSpec:
    return replace(RESTORMER, dim=24, num_blocks=(1, 2, 3, 4), ffn_expansion=2.67)


def test_progress_runs_to_its_total(models: dict[str, Any]) -> None:
    seen: list[tuple[int, int]] = []
    x = picture(RESTORMER, 1, 72, 40)
    by_strips(
        StripNetwork(models["bias free"]), x, rows=7, progress=lambda done, total: seen.append((done, total))
    )
    assert [done for done, _ in seen] == list(range(1, seen[0][1] + 1))
    assert len({total for _, total in seen}) == 1


def test_workers_keep_the_order_and_compute_alone() -> None:
    torch.set_num_threads(3)
    found: list[int] = []
    with Workers(3) as workers:
        assert torch.get_num_threads() == 1
        alone = workers.map(lambda i: (i, torch.get_num_threads()), [(i,) for i in range(20)])
        assert alone == [(i, 1) for i in range(20)]
        other = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        other.start()
        other.join()
        with pytest.raises(ZeroDivisionError):
            workers.map(lambda i: 1 // i, [(1,), (0,)])
    assert torch.get_num_threads() == 3 and found == [3]  # nobody else is slowed down
    torch.set_num_threads(1)


# ---- through the package


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_weights(tmp_path / "tiny.safetensors", RESTORMER)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (61, 45, 3), dtype=np.uint8)
    write(path, Picture(pixels), overwrite=True)
    return path


def test_python(weights: Path, photo: Path) -> None:
    image = read(photo).pixels
    seen: list[tuple[int, int]] = []
    with (
        restort.load(weights, tile="exact", threads=1) as exact,
        restort.load(weights, backend="torch", precision="fp32", tile=None) as plain,
    ):
        assert (exact.backend, exact.precision) == ("torch", "fp32")
        assert exact.recipe()["tile"] == "exact" and exact.recipe()["backend"] == "auto"
        result = exact(image, progress=lambda done, total: seen.append((done, total)))
        expected = plain(image)
        assert np.abs(result.astype(int) - expected).max() <= 1
        assert (result != expected).mean() < 0.01
        x = (image / 255).astype(np.float32)
        assert np.abs(exact(x) - plain(x)).max() < 1e-5
        assert np.array_equal(exact(image[..., 0]), exact(image[..., 0].copy()))
    assert seen[-1][0] == seen[-1][1]
    with pytest.raises(restort.RestortError, match="closed"):
        exact(image)


def test_command_line(
    weights: Path,
    photo: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("restort.inference.exact.available_memory", lambda: 0)  # by files, then
    output = photo.parent / "out"
    arguments = [
        "run",
        str(photo),
        "-o",
        str(output),
        "--weights",
        str(weights),
        "--json",
        "--quiet",
        "--tile",
    ]
    assert main([*arguments, "exact"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["backend"] == "torch" and report["options"]["tile"] == "exact"
    assert report["files"][0]["tile"] == "exact" and report["files"][0]["result_size"] == [45, 61]
    assert main([*arguments, "exact"]) == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["status"] == "skipped"
    assert main([*arguments, "none", "--backend", "torch"]) == 0  # another option: made again
    assert json.loads(capsys.readouterr().out)["files"][0]["status"] == "done"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--backend", "onnxruntime"], "--backend torch"),
        (["--backend", "openvino"], "--backend torch"),
        (["--precision", "bf16"], "fp32"),
        (["--overlap", "16"], "leave --overlap out"),
    ],
)
def test_what_does_not_go_together(
    weights: Path, photo: Path, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    command = ["run", str(photo), "-o", str(photo.parent / "out.png"), "--weights", str(weights)]
    assert main([*command, "--tile", "exact", *options]) == 2
    errors = capsys.readouterr().err
    assert sentence in errors and errors.count("\n") == 1


def test_an_elan_needs_no_exact(tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elan = write_weights(tmp_path / "elan.safetensors", ELAN[2])
    assert (
        main(
            ["upscale", str(photo), "-o", str(tmp_path / "x.png"), "--weights", str(elan), "--tile", "exact"]
        )
        == 2
    )
    assert "use --tile auto or none" in capsys.readouterr().err
    runner = TorchRunner(load_weights(elan))
    with pytest.raises(restort.UsageError, match="Restormer"):
        runner.exact(np.zeros((1, 3, 16, 16), np.float32), memory_bytes=LARGE, folder=tmp_path)
