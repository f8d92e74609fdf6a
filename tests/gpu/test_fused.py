"""The backend `fused` on a real GPU: against PyTorch, from several threads and streams, and when memory runs out.

Skipped where there is none. Needs no picture library.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
if not torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("there is no NVIDIA GPU here", allow_module_level=True)

import restort  # noqa: E402
from restort.backends import registry  # noqa: E402
from restort.backends.fused.networks import TYPES, PlainNetwork, full_float32  # noqa: E402
from restort.backends.fused.runner import FusedRunner  # noqa: E402
from restort.errors import OutOfMemory  # noqa: E402
from restort.inference.model import Model  # noqa: E402
from restort.models.block_names import block_channels  # noqa: E402
from restort.models.spec import ElanSpec, Spec  # noqa: E402
from restort.tiling.halving import Halving  # noqa: E402
from restort.weights.checkpoint import Weights, load_weights  # noqa: E402
from tests.fakes.fake_backend import RESTORMER  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from workloads import random_state  # noqa: E402

SHIPPED = Path(restort.__file__).parent / "weights" / "shipped" / "restormer-small-denoise.safetensors"
SMALL = replace(RESTORMER, dim=16, num_blocks=(1, 2, 1, 1), ffn_expansion=2.66)
SPECS: dict[str, Spec] = {
    "restormer": replace(SMALL, layer_norm="WithBias"),
    "restormer-biasfree-gray": replace(SMALL, in_channels=1, out_channels=1),
    "restormer-dual-pixel": replace(SMALL, in_channels=6, dual_pixel=True, bias=True, layer_norm="WithBias"),
    "restormer-48": replace(SMALL, dim=48, layer_norm="WithBias"),
    "elan-light": ElanSpec(4, 4, 60, 1, 3, (4, 8, 16), 255.0, 2),
    "elan": ElanSpec(2, 4, 180, 1, 3, (4, 8, 16), 255.0, 2),
    "elan-x3": ElanSpec(3, 2, 60, 0, 3, (4, 8, 16), 255.0, 2),
}
LIMITS = {"fp16": 2e-3, "bf16": 1.5e-2}


def weights_of(name: str) -> Weights:
    if name == "shipped":
        return load_weights(SHIPPED)
    return Weights(random_state(SPECS[name]), SPECS[name], {}, name, Path(name))


def picture(spec: Spec, n: int, h: int, w: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    rows, columns = np.linspace(0, 1, h)[:, None], np.linspace(0, 1, w)
    smooth = 0.5 + 0.3 * np.sin(9 * rows + 5 * columns)
    return np.clip(smooth + 0.1 * random.random((n, spec.in_channels, h, w)), 0, 1).astype(np.float32)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm((a - b).astype(np.float64)) / np.linalg.norm(b.astype(np.float64)))


def eager_blocks(weights: Weights, precision: str, device: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    """Every block's output by PyTorch's own operations in this type."""
    found: dict[str, np.ndarray] = {}
    model = PlainNetwork(weights, device, TYPES[precision]).model

    def keep(name: str) -> Any:
        return lambda module, inputs, output: found.update({name: output.float().cpu().numpy()})

    for name in block_channels(weights.spec):
        model.get_submodule(name).register_forward_hook(keep(name))
    with torch.no_grad():
        model((torch.from_numpy(x) * weights.spec.value_range).to(device, TYPES[precision]))
    return found


@pytest.fixture
def device() -> Iterator[Any]:
    yield torch.device("cuda:0")
    torch.cuda.empty_cache()


@pytest.mark.parametrize("name", ["shipped", *SPECS])
@pytest.mark.parametrize("precision", LIMITS)
def test_agrees_with_pytorch(name: str, precision: str, device: Any) -> None:
    weights = weights_of(name)
    runner = FusedRunner(weights, precision)
    runner.warn = pytest.fail
    reference = PlainNetwork(weights, device)
    multiple = weights.spec.size_multiple
    for n, h, w in [
        (1, 256, 256),
        (2, 5 * multiple, 7 * multiple),
        (1, multiple, 33 * multiple),
        (1, 368, 560),
    ]:
        x = picture(weights.spec, n, h, w)
        y, want = runner(x), reference.run(x)[0]
        assert y.dtype == np.float32 and y.flags.c_contiguous
        assert distance(y, want) < LIMITS[precision], (n, h, w)
        np.testing.assert_array_equal(runner(x), y)  # deterministic
    blocks, others = runner.blocks(x), reference.blocks(x)
    assert list(blocks) == list(others) == list(block_channels(weights.spec))
    rounded = eager_blocks(weights, precision, device, x)
    for block in blocks:
        # What PyTorch loses in the same type: a residual network's last block can be smaller than what it adds up.
        usual = distance(rounded[block], others[block]) if np.isfinite(rounded[block]).all() else 0.0
        assert distance(blocks[block], others[block]) < max(3 * LIMITS[precision], 1.5 * usual), block
    runner.close()


@pytest.mark.parametrize("name", ["shipped", "elan-light"])
def test_a_fused_module_takes_the_place_of_another(name: str, device: Any) -> None:
    weights = weights_of(name)
    model = PlainNetwork(weights, device).model
    fused = restort.torch.fuse(model)
    multiple, scale = weights.spec.size_multiple, weights.spec.scale
    x = torch.from_numpy(picture(weights.spec, 1, 37, 50)).to(device) * weights.spec.value_range
    with torch.no_grad(), full_float32:
        expected = model(torch.nn.functional.pad(x, (0, -50 % multiple, 0, -37 % multiple), mode="reflect"))
        expected = expected[..., : 37 * scale, : 50 * scale]
        assert distance(fused(x).cpu().numpy(), expected.cpu().numpy()) < LIMITS["fp16"]
        compiled = torch.compile(lambda x: fused(x) + 1, fullgraph=True)
        assert torch.allclose(compiled(x), fused(x) + 1)
        assert fused(x.half()).dtype == torch.float16


def test_threads_and_streams(device: Any) -> None:
    weights = weights_of("elan-light")
    runner = FusedRunner(weights, "fp16", shapes=2)
    inputs = [picture(weights.spec, 1, 16 * (1 + i % 4), 64, seed=i) for i in range(40)]
    alone = [runner(x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(runner, inputs))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)

    def on_a_stream(i: int) -> np.ndarray:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            x = torch.from_numpy(inputs[i]).to(device, non_blocking=True)
            y = runner.run_tensor(x * 1.0, check=bool(i % 2))
            return np.asarray((y * 1.0).cpu().numpy())

    with ThreadPoolExecutor(8) as pool:
        streamed = list(pool.map(on_a_stream, range(len(inputs))))
    for a, b in zip(alone, streamed, strict=True):
        np.testing.assert_array_equal(a, b)


def test_other_work_goes_on_during_a_capture(device: Any) -> None:
    runner = FusedRunner(weights_of("elan-light"), "fp16")
    stop = threading.Event()
    done: list[float] = []

    def busy() -> None:
        while not stop.is_set():
            done.append(float((torch.ones(1000 + len(done), device=device) * 2).sum()))

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for width in range(64, 64 + 16 * 10, 16):
            runner(picture(runner.spec, 1, 64, width))
    finally:
        stop.set()
        thread.join()
    assert done


def test_overflow_is_computed_again() -> None:
    weights = weights_of("restormer")
    state = {name: value.copy() for name, value in weights.state.items()}
    state["patch_embed.proj.weight"] *= 3e5  # past float16
    told: list[str] = []
    runner = FusedRunner(replace(weights, state=state), "fp16")
    runner.warn = told.append
    x = picture(weights.spec, 1, 64, 64)
    for _ in range(2):
        assert np.isfinite(runner(x)).all()
    assert len(told) == 1 and "recomputed in bf16" in told[0]
    assert runner.run_tensor(torch.from_numpy(x).cuda()).isfinite().all()


def test_memory_that_runs_out() -> None:
    weights = weights_of("restormer-48")
    runner = FusedRunner(weights, "fp16")
    small, large = picture(weights.spec, 1, 128, 128), picture(weights.spec, 1, 2048, 2048)
    want = runner(small)
    _, total = torch.cuda.mem_get_info()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total + 0.6e9 / total)
    try:
        with pytest.raises(OutOfMemory, match="for an array of shape"):
            runner(large)
        np.testing.assert_array_equal(runner(small), want)
        told: list[str] = []
        y = Halving(runner, weights.spec, tell=told.append)(large)
        assert y.shape == large.shape and np.isfinite(y).all() and "1024x1024" in told[0]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_exact_strips(tmp_path: Path) -> None:
    weights = load_weights(SHIPPED)
    x = picture(weights.spec, 1, 264, 392)
    plain = FusedRunner(weights, "fp32")
    want = plain(x)
    for precision, near in (("fp32", 1e-5), ("fp16", 1e-3)):
        runner = FusedRunner(weights, precision)
        bands = [band for _, band in runner.exact(x, memory_bytes=1 << 30, folder=tmp_path)]
        assert distance(np.concatenate(bands, axis=2), want) < near


def test_auto_and_the_clock() -> None:
    said: list[str] = []
    runner: Any = registry.create(weights_of("elan-light"), notify=said.append)
    assert (runner.name, runner.precision) == (
        "fused",
        "fp16",
    ) and "auto selected fused/fp16 on NVIDIA" in said[0]
    once = runner.timer(picture(runner.spec, 1, 64, 64))
    assert 0 < min(once() for _ in range(5)) < 50
    assert runner.device_peak_bytes() > 0 and runner.device.startswith("NVIDIA")
    free, per_pixel = runner.tile_memory()
    assert free > 1 << 30 and 100 < per_pixel < 20000


def test_a_second_process_is_ready_soon() -> None:
    code = (
        "import time; start = time.time()\n"
        "from pathlib import Path; import numpy as np\n"
        "from restort.backends.fused.runner import FusedRunner\n"
        "from restort.weights.checkpoint import load_weights\n"
        f"runner = FusedRunner(load_weights(Path({str(SHIPPED)!r})), 'fp16')\n"
        "runner(np.zeros((1, 3, 256, 256), np.float32)); print(time.time() - start)"
    )
    times = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        times.append(float(done.stdout))
    assert times[1] < 8, times


@pytest.mark.parametrize("name", ["shipped", "elan-light"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pictures_are_converted_on_the_device_to_the_same_bits(
    name: str, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = weights_of(name)
    runner = FusedRunner(weights, "fp16")
    model = Model(weights, runner, name=name, entry=None, asked=("fused", "fp16"), tile="auto", overlap=None)
    pixels = np.arange(3 * 211 * 307, dtype=np.uint32).reshape(211, 307, 3) * 977 % (np.iinfo(dtype).max + 1)
    pixels = pixels.astype(dtype)
    made = model(pixels)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(model, [pixels] * 12))
    monkeypatch.setattr(Model, "_fits_device", lambda self, picture, runner: False)
    expected = model(pixels)
    assert made.dtype == dtype
    for each in (made, *together):
        np.testing.assert_array_equal(each, expected)
