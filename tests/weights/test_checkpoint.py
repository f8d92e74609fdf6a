"""Weights from files: every published form is read, bit for bit, without PyTorch."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from restort.errors import RestortError
from restort.models.spec import ElanSpec, RestormerSpec, Spec, detect, parameter_shapes
from restort.weights.checkpoint import load_weights
from tests.fakes.fake_backend import RESTORMER as SMALL

SMALL_ELAN = ElanSpec(
    scale=3, blocks=4, channels=30, n_share=1, colors=3, window_sizes=(4, 8, 16), rgb_range=255.0, expand=2
)


def arrays(spec: Spec) -> dict[str, Any]:
    """Random weights of `spec`, with the fixed buffers of an ELAN as published."""
    from restort.models import elan_names

    random = np.random.default_rng(0)
    state = {name: random.standard_normal(s).astype(np.float32) for name, s in parameter_shapes(spec).items()}
    if isinstance(spec, ElanSpec):
        fixed = ("shift_conv.weight", "num_batches_tracked", "_mean.weight", "_mean.bias")
        state = {
            name: value for name, value in state.items() if not name.endswith(fixed) or "running" in name
        }
        elan_names.add_fixed_buffers(state)
    return state


def same(found: dict[str, np.ndarray], expected: dict[str, Any]) -> None:
    assert set(found) == set(expected)
    for name, value in found.items():
        assert value.dtype == (np.int64 if name.endswith("tracked") else np.float32), name
        assert value.tobytes() == np.asarray(expected[name]).astype(value.dtype).tobytes(), name


def test_published_shapes_are_detected(shared: Path) -> None:
    cases = json.loads((shared / "golden" / "official_state_shapes.json").read_text())
    assert len(cases) >= 7
    for name, shapes in cases.items():
        spec = detect({key: SimpleNamespace(shape=tuple(shape)) for key, shape in shapes.items()})
        assert parameter_shapes(spec) == {key: tuple(shape) for key, shape in shapes.items()}, name
    official = detect({k: SimpleNamespace(shape=s) for k, s in cases["restormer_official"].items()})
    assert (official.dim, official.ffn_expansion, official.num_blocks) == (48, 2.66, (4, 6, 6, 8))


def test_golden_files_are_loaded(shared: Path) -> None:
    index = json.loads((shared / "golden" / "index.json").read_text())
    for name, case in index.items():
        path = shared / "golden" / f"{name}.safetensors"
        weights, config = load_weights(path), case["config"]
        stored = {k[6:]: v for k, v in load_file(path).items() if k.startswith("state.")}
        same(weights.state, stored)
        assert parameter_shapes(weights.spec) == {k: v.shape for k, v in stored.items()}
        if isinstance(weights.spec, RestormerSpec):
            assert weights.spec.heads == tuple(config["heads"])
            assert weights.spec.ffn_expansion == config["ffn_expansion_factor"]
            assert weights.spec.layer_norm == config["LayerNorm_type"]
        else:
            assert (weights.spec.blocks, weights.spec.n_share) == (config["m_elan"], config["n_share"])
            assert (weights.spec.scale, weights.spec.rgb_range) == (config["scale"], config["rgb_range"])


def test_second_naming_scheme_equals_the_published_names(shared: Path) -> None:
    path = shared / "weights" / "ELAN-light_LSR_x4_unofficial.pth"
    other = load_weights(path)
    published = load_weights(shared / "weights" / "elan_light_x4_friedricelab.safetensors")
    assert other.spec == published.spec
    assert list(other.state) == list(published.state)
    same(other.state, published.state)
    assert other.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert published.metadata["licence"] == "MIT"


@pytest.mark.parametrize(
    "drop", ["shift_conv.weight", "num_batches_tracked", "sub_mean", "add_mean", "_mean"]
)
def test_fixed_buffers_may_be_absent(tmp_path: Path, drop: str) -> None:
    state = arrays(SMALL_ELAN)
    kept = {k: v for k, v in state.items() if "running" in k or drop not in k}
    assert len(kept) < len(state)
    save_file(kept, tmp_path / "a.safetensors")
    weights = load_weights(tmp_path / "a.safetensors")
    assert weights.spec == SMALL_ELAN
    same(weights.state, state)
    assert weights.state["add_mean.bias"].tolist() == [
        114.44400024414062,
        111.46049499511719,
        103.02000427246094,
    ]


def test_safetensors_types(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    state = {k: torch.from_numpy(v) for k, v in arrays(SMALL).items()}
    for kind in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        stored = {k: v.to(kind) for k, v in state.items()}
        save_torch(stored, tmp_path / "a.safetensors", metadata={"made": "here"})
        weights = load_weights(tmp_path / "a.safetensors")
        same(weights.state, {k: v.float().numpy() for k, v in stored.items()})
        assert weights.metadata == {"made": "here"}
        wide = load_weights(tmp_path / "a.safetensors", dtype=np.float64)
        assert all(np.array_equal(v, stored[k].double().numpy()) for k, v in wide.state.items())
        assert all(v.dtype == np.float64 for v in wide.state.values())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "float64"])
def test_torch_files(tmp_path: Path, zipped: bool, kind: str) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pth"
    for spec in (SMALL, SMALL_ELAN):
        state = {
            k: torch.from_numpy(v).to(getattr(torch, kind)) if v.dtype == np.float32 else torch.from_numpy(v)
            for k, v in arrays(spec).items()
        }
        if isinstance(spec, ElanSpec) and kind == "bfloat16":  # 103.02 is not a bfloat16: nothing to compare
            continue
        torch.save(OrderedDict(state), path, _use_new_zipfile_serialization=zipped)
        weights = load_weights(path)
        assert weights.spec == spec
        same(
            weights.state, {k: (v.float() if v.is_floating_point() else v).numpy() for k, v in state.items()}
        )


@pytest.mark.parametrize("zipped", [True, False])
def test_views_strides_and_shared_storages(tmp_path: Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    state = {k: torch.from_numpy(v) for k, v in arrays(SMALL).items()}
    qkv = "latent.0.attn.qkv.weight"
    state[qkv] = torch.randn(64, 192, 1, 1).transpose(0, 1)  # not contiguous
    block = torch.randn(3, 64)  # one storage, three views
    for i, name in enumerate(("latent.0.norm1.body.weight", "latent.0.norm2.body.weight")):
        state[name] = block[i + 1]
    state["output.weight"] = torch.nn.Parameter(state["output.weight"])
    state["patch_embed.proj.weight"] = torch.randn(8, 3, 3, 6)[..., ::2]
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    same(
        load_weights(tmp_path / "a.pth").state, {k: v.detach().contiguous().numpy() for k, v in state.items()}
    )


def wrapped(state: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The containers met in published files; each must yield `state`, not `other`."""

    def before(prefix: str, values: dict[str, Any] = state) -> dict[str, Any]:
        return {prefix + k: v for k, v in values.items()}

    return {
        "params": {"params": state},
        "params_ema": {"params": other, "params_ema": state},
        "empty ema": {"params": state, "params_ema": None},
        "state_dict": {"epoch": 3, "state_dict": before("module.")},
        "model": {"model": {"state_dict": state}, "step": 10},
        "model_state_dict": {"model_state_dict": before("module.module."), "loss": 0.5},
        "own name": {"restorer": state, "iteration": 4},
        "flat with leftovers": {**state, "epoch": 3},
        "lightning": {"state_dict": before("net_g.") | {"perceptual.vgg.0.weight": state["output.weight"]}},
        "compiled": before("_orig_mod."),
        "generator": before("generator."),
        "ema prefix": before("net_g.", other) | before("net_g_ema."),
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_containers_and_prefixes(tmp_path: Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    plain = arrays(SMALL)
    state = {k: torch.from_numpy(v) for k, v in plain.items()}
    for content in wrapped(state, {k: v + 1 for k, v in state.items()}).values():
        torch.save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
        same(load_weights(tmp_path / "a.ckpt").state, plain)
    torch.save({f"{p}{k}": v for p in ("net_a.", "net_b.") for k, v in state.items()}, tmp_path / "a.ckpt")
    with pytest.raises(RestortError, match=r"several networks \(under net_a., net_b.\)"):
        load_weights(tmp_path / "a.ckpt")


AVERAGED = {  # how trainers keep an average beside the weights, and the name that the note gives it
    "params_ema": lambda state, other: {"params": other, "params_ema": state},
    "g_ema": lambda state, other: {"g": other, "d": {"c.weight": state["output.weight"]}, "g_ema": state},
    "netG_EMA": lambda state, other: {"netG": other, "netG_EMA": state},
    "state_dict_ema": lambda state, other: {"state_dict": other, "state_dict_ema": state, "epoch": 1},
    "model_ema.module": lambda state, other: {"model": other, "model_ema": {"module": state}},
    "state_dict.ema_model.module": lambda state, other: {
        "state_dict": {f"model.{k}": v for k, v in other.items()}
        | {f"ema_model.module.{k}": v for k, v in state.items()}
    },
    "ema.ema_model": lambda state, other: {
        "ema": {f"online_model.{k}": v for k, v in other.items()}
        | {f"ema_model.{k}": v for k, v in state.items()}
        | {"step": state["output.weight"]}
    },
}


@pytest.mark.parametrize("label", AVERAGED)
def test_averaged_weights_are_preferred_and_a_note_says_so(tmp_path: Path, label: str) -> None:
    torch = pytest.importorskip("torch")
    plain = arrays(SMALL)
    state = {k: torch.from_numpy(v) for k, v in plain.items()}
    torch.save(AVERAGED[label](state, {k: v + 1 for k, v in state.items()}), tmp_path / "a.pth")
    weights = load_weights(tmp_path / "a.pth")
    same(weights.state, plain)
    assert weights.note == f"using the averaged weights {label!r} of the checkpoint"


def test_no_note_without_a_choice(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = {k: torch.from_numpy(v) for k, v in arrays(SMALL).items()}
    for content in (state, {"params": state}, [state, {"epoch": 3}], (state, 5)):
        torch.save(content, tmp_path / "a.pth")
        weights = load_weights(tmp_path / "a.pth")
        same(weights.state, arrays(SMALL))
        assert weights.note is None


def test_averages_without_names(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = {k: torch.from_numpy(v) for k, v in arrays(SMALL).items()}
    shadow = [v + 1 for v in state.values()]
    average = {"decay": 0.99, "num_updates": torch.tensor(3), "shadow_params": shadow}
    torch.save({"model": state, "ema": average}, tmp_path / "a.pth")
    weights = load_weights(tmp_path / "a.pth")
    same(weights.state, {k: v + 1 for k, v in arrays(SMALL).items()})
    assert weights.note == "using the averaged weights 'ema.shadow_params' of the checkpoint"
    torch.save({"model": state, "ema": {**average, "shadow_params": shadow[1:]}}, tmp_path / "a.pth")
    weights = load_weights(tmp_path / "a.pth")
    same(weights.state, arrays(SMALL))
    assert weights.note is not None
    assert weights.note.startswith("using 'model': the averaged weights 'ema.shadow_params' have no names")


def test_operation_counters_of_thop_are_left_out(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = {k: torch.from_numpy(v) for k, v in arrays(SMALL).items()}
    counters = {
        f"{prefix}{name}": torch.zeros(1, dtype=torch.float64)
        for prefix in ("", "encoder_level1.0.", "encoder_level1.0.attn.qkv.")
        for name in ("total_ops", "total_params")
    }
    for content in (state | counters, {f"module.{k}": v for k, v in (state | counters).items()}):
        torch.save(content, tmp_path / "a.pth")
        same(load_weights(tmp_path / "a.pth").state, arrays(SMALL))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_numpy_arrays(tmp_path: Path, zipped: bool, protocol: int) -> None:
    torch = pytest.importorskip("torch")
    plain = arrays(SMALL_ELAN)
    state = dict(plain)
    state["head.0.weight"] = np.asfortranarray(plain["head.0.weight"])
    state["tail.0.bias"] = plain["tail.0.bias"].astype(">f4")
    state["tail.0.weight"] = plain["tail.0.weight"].astype(np.float64)
    torch.save(
        {"params": state, "names": np.array(["a", None], object)},
        tmp_path / "a.pth",
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=zipped,
    )
    same(load_weights(tmp_path / "a.pth").state, plain)


@pytest.mark.parametrize("zipped", [True, False])
def test_training_checkpoints_with_objects(tmp_path: Path, zipped: bool) -> None:
    """Options, paths, NumPy numbers and optimiser states lie beside the weights and are passed over."""
    torch = pytest.importorskip("torch")
    import argparse
    from collections import Counter, defaultdict

    plain = arrays(SMALL)
    model = torch.nn.Linear(3, 3)
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    content = {
        "args": argparse.Namespace(lr=1e-3, path=Path("/tmp")),
        "optimizer": optimiser.state_dict(),
        "psnr": np.float64(31.5),
        "curve": np.arange(4),
        "counts": Counter("abc"),
        "best": defaultdict(list, a=[1]),
        "sizes": (torch.Size([1, 2]), torch.float16, {1, 2}, frozenset("a"), 2**80, b"x", None, True),
        "mask": torch.zeros(3, dtype=torch.complex64) if zipped else torch.zeros(3, dtype=torch.bool),
        "rng": torch.get_rng_state(),
        "state_dict": OrderedDict((k, torch.from_numpy(v)) for k, v in plain.items()),
        "device": torch.device("cpu"),
    }
    content["state_dict"]._metadata = {"": {"version": 1}}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    same(load_weights(tmp_path / "a.pt").state, plain)
    for protocol in (3, 4, 5):
        torch.save(
            content, tmp_path / "a.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped
        )
        same(load_weights(tmp_path / "a.pt").state, plain)


def test_torch_is_not_imported(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({k: torch.from_numpy(v) for k, v in arrays(SMALL).items()}, tmp_path / "a.pth")
    code = (
        "import sys; from restort.weights.checkpoint import load_weights; load_weights(sys.argv[1]);"
        "assert not {'torch', 'onnx', 'onnxruntime'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.pth")], check=True, timeout=60)
