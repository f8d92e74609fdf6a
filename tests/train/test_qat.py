"""Quantisation-aware training: rounding, the network it begins with, a short run and its exported graph."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch")
from safetensors.numpy import save_file  # noqa: E402

from restort.export.emit import emit  # noqa: E402
from restort.export.qdq import QuantType, quantizable_layers  # noqa: E402
from restort.models.spec import Spec  # noqa: E402
from restort.models.torch_network import build  # noqa: E402
from restort.profiling.calibration import TRAINED_RANGES, calibrated  # noqa: E402
from restort.profiling.fake_quantization import FakeQuantConv, fake_quantize  # noqa: E402
from restort.profiling.synthetic import dead_leaves  # noqa: E402
from restort.weights.checkpoint import load_weights  # noqa: E402
from tests.train.test_train import TINY_ELAN, TINY_RESTORMER, config  # noqa: E402
from tests.train.test_train import photographs as photographs  # noqa: E402
from train import __main__ as command  # noqa: E402
from train.loop import Trainer  # noqa: E402
from train.qat import quantized  # noqa: E402
from train.tasks import make_task  # noqa: E402

NETWORKS = {"upscale": TINY_ELAN, "denoise": TINY_RESTORMER}


@pytest.fixture(params=NETWORKS)
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def weights(task: str, tmp_path: Path) -> Path:
    """A random network, with BatchNorms that are not the identity."""
    torch.manual_seed(0)
    state = build(NETWORKS[task]).state_dict()
    for name, values in state.items():
        if name.endswith("running_var"):
            values.uniform_(0.5, 2.0)
        elif name.endswith((".1.weight", "norm1.body.weight", "norm2.body.weight")):
            values.uniform_(0.1, 0.3)
    path = tmp_path / "tiny.safetensors"
    save_file({k: v.numpy() for k, v in state.items()}, path, {"model": "tiny"})
    return path


def graph_output(path: Path, kind: QuantType, x: np.ndarray) -> np.ndarray:
    found = calibrated(load_weights(path), kind)
    graph = emit(found.weights, quantization=found.quantization).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": x})[0])


def network_output(network: torch.nn.Module, spec: Spec, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return np.asarray((network(torch.from_numpy(x) * spec.value_range) / spec.value_range).numpy())


def test_rounding_has_straight_gradients_that_end_where_numbers_are_clipped() -> None:
    x = torch.tensor([0.0, 0.24, 0.26, -1.0, 3.0], requires_grad=True)
    y = fake_quantize(x, torch.tensor(1.27), "int8")
    assert y.tolist() == pytest.approx([0.0, 0.24, 0.26, -1.0, 1.27])
    y.sum().backward()
    assert x.grad is not None and x.grad.tolist() == pytest.approx([1, 1, 1, 1, 0])
    steps = fake_quantize(torch.tensor([1.0, 17.0, 500.0]), torch.tensor(448.0), "fp8")
    assert steps.tolist() == [1.0, 16.0, 448.0]  # 17 has five bits of mantissa, FP8 four
    assert fake_quantize(torch.tensor([0.004]), torch.tensor(1.27), "int8").item() == 0


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_trained_file_is_exported_as_the_graph_that_was_trained(
    task: str, weights: Path, kind: QuantType, photographs: Path, tmp_path: Path
) -> None:
    settings = config(task, steps=3)
    begin = quantized(weights, kind, sorted(photographs.iterdir()))
    cpu, out = torch.device("cpu"), tmp_path / "run"
    before = {k: v.clone() for k, v in begin.model.state_dict().items()}
    trainer = Trainer(settings, make_task(settings, photographs, cpu), out, cpu, fast=False, quantized=begin)
    assert trainer.run()
    layers = [name for name, part in trainer.model.named_modules() if isinstance(part, FakeQuantConv)]
    assert sorted(layers) == sorted(quantizable_layers(begin.spec))
    assert all(not torch.equal(trainer.ema[f"{name}.weight"], before[f"{name}.weight"]) for name in layers)

    trained = load_weights(out / "ema.safetensors")
    assert set(json.loads(trained.metadata[TRAINED_RANGES])) == set(layers)
    assert trained.metadata["model"] == "tiny" and trained.spec == begin.spec
    trainer.model.load_state_dict(trainer.ema)
    trainer.model.eval()
    x = dead_leaves(32, 32, 3, 5)[None]
    simulated = network_output(trainer.model, begin.spec, x)
    plain = network_output(build(trained.spec, trained.state), begin.spec, x)
    exported = graph_output(out / "ema.safetensors", kind, x)
    rounding = float(np.sqrt(np.mean((simulated - plain) ** 2)))
    error = float(np.sqrt(np.mean((exported - simulated) ** 2)))
    assert error < 0.5 * rounding, (error, rounding)  # single numbers round the other way


def test_the_network_begins_as_the_file_says(task: str, weights: Path) -> None:
    """Folding and equalising change no output, and rounding little."""
    found = quantized(weights, "int8", ())
    x = dead_leaves(32, 32, 3, 5)[None]
    rounded = network_output(found.model, found.spec, x)
    for part in found.model.modules():
        if isinstance(part, FakeQuantConv):
            part.__class__ = torch.nn.Conv2d
    whole = load_weights(weights)
    reference = network_output(build(whole.spec, whole.state), whole.spec, x)
    error = np.abs(network_output(found.model, found.spec, x) - reference).max()
    assert error < 1e-4 * np.abs(reference).max()
    assert 10 * error < np.abs(rounded - reference).max() < 0.2 * np.abs(reference).max()


def test_the_command_fine_tunes_at_a_small_rate(
    weights: Path, task: str, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if task == "upscale":
        pytest.skip("one network is enough for the command")
    toml = tmp_path / "tiny.toml"
    toml.write_text(
        'task = "denoise"\nsteps = 2\nbatch = 2\npatch = 24\nlearning_rate = 1e-3\nwarmup = 1\n[network]\n'
        'architecture = "restormer"\ndim = 8\nnum_blocks = [1, 1, 1, 1]\nnum_refinement_blocks = 1\n'
        'heads = [1, 2, 4, 8]\nffn_expansion = 2.0\nlayer_norm = "BiasFree"\n'
    )
    out = tmp_path / "run"
    options = ["--data", photographs, "--out", out, "--device", "cpu", "--start-from", weights, "--qat"]
    monkeypatch.setattr(sys, "argv", ["train", str(toml), *map(str, options)])
    command.main()
    assert (out / "log.csv").read_text().splitlines()[-1].startswith("2,")
    assert load_weights(out / "ema.safetensors").metadata["quantization"] == "int8"
