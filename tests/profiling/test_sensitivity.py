"""Mixed precision by measurement, on tiny networks with a planted sensitive block."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.fakes.fake_backend import ELAN, RESTORMER, write_weights

torch = pytest.importorskip("torch")

from restort.backends.tensorrt import mixed_precision  # noqa: E402
from restort.errors import RestortError  # noqa: E402
from restort.export.form import sections  # noqa: E402
from restort.models.spec import Spec  # noqa: E402
from restort.models.torch_network import build  # noqa: E402
from restort.profiling.lowered import fold_batch_norms, lowered, modules_of  # noqa: E402
from restort.profiling.pairs import Pair, pairs  # noqa: E402
from restort.profiling.sensitivity import Budget, Choice, Cost, Search  # noqa: E402
from restort.weights.checkpoint import Weights, load_weights  # noqa: E402

PLANTED = "decoder_level2.0"
TINY_ELAN = replace(ELAN[2], channels=30, blocks=4)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """A Restormer in which one block overflows float16 and another, louder than the rest, is merely inexact."""
    found = load_weights(write_weights(tmp_path_factory.mktemp("w") / "tiny.safetensors", RESTORMER))
    found.state[f"{PLANTED}.ffn.project_in.weight"] *= 1e5
    found.state[f"{PLANTED}.ffn.project_out.weight"] *= 1e-9
    found.state["refinement.0.ffn.project_out.weight"] *= 4000
    return found


@pytest.fixture(scope="module")
def search(weights: Weights) -> Search:
    return Search(weights, pairs(weights, edge=32), device="cpu")


def test_the_planted_blocks_are_found(search: Search) -> None:
    said: list[str] = []
    alone = {name: search.cost([name]) for name in (PLANTED, "refinement.0", "latent.0")}
    assert math.isinf(alone[PLANTED].relative_l2)
    assert alone["refinement.0"].relative_l2 > alone["latent.0"].relative_l2
    loose = search.choose(Budget(1e-2, 1.0), said.append)
    assert loose.keep_fp32 == (PLANTED,)
    assert loose.measured.within(loose.budget) and math.isinf(loose.lowest.relative_l2)
    assert len(said) == len(search.names)
    tight = search.choose(Budget(0.9 * alone["refinement.0"].relative_l2, 1.0))
    assert {PLANTED, "refinement.0"} <= set(tight.keep_fp32) and tight.measured.within(tight.budget)
    without = [name for name in search.names if name not in tight.keep_fp32]
    for name in tight.keep_fp32:  # not one too many of the greedy order
        if name == min(tight.keep_fp32, key=lambda n: tight.costs[n].relative_l2):
            assert not search.cost([*without, name]).within(tight.budget)
    assert search.choose(Budget(0.0, 0.0)).keep_fp32 == search.names


def test_the_choice_as_data(search: Search, weights: Weights, tmp_path: Path) -> None:
    found = search.choose(Budget(1e-2, 1.0))
    text = json.dumps(found.to_json(), allow_nan=False)
    assert json.loads(text)["keep_fp32"] == [PLANTED] and json.loads(text)["weights_sha256"] == weights.digest
    rows = list(csv.DictReader(found.to_csv().splitlines()))
    assert [row["section"] for row in rows] == list(sections(weights.spec))
    assert [row["section"] for row in rows if row["kept_in_fp32"] == "1"] == [PLANTED]
    assert found.table().splitlines()[1].startswith(PLANTED) and PLANTED in found.summary()


def test_the_plot_marks_what_is_kept(search: Search) -> None:
    pytest.importorskip("matplotlib")
    from restort.profiling.plots import sensitivity

    text = sensitivity(search.choose(Budget(1e-2, 1.0))).decode()
    assert PLANTED in text and "kept in float32" in text and "budget" in text


def test_a_choice_is_remembered(
    search: Search, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESTORT_CACHE", str(tmp_path))
    with pytest.raises(RestortError, match="restort build --precision mixed"):
        mixed_precision.kept_sections(weights)
    path = mixed_precision.remember(weights, search.choose(Budget(1e-2, 1.0)).to_json())
    assert mixed_precision.kept_sections(weights) == (PLANTED,)
    assert mixed_precision.choice(replace(weights, digest="0" * 64)) is None
    path.write_text("{")
    assert mixed_precision.choice(weights) is None


@pytest.mark.parametrize("spec", [RESTORMER, replace(RESTORMER, bias=True, layer_norm="WithBias"), TINY_ELAN])
@pytest.mark.parametrize("low", ["fp16", "bf16"])
def test_lowering_is_undone(spec: Spec, low: str, tmp_path: Path) -> None:
    weights = load_weights(write_weights(tmp_path / "w.safetensors", spec))
    network = fold_batch_norms(build(spec, weights.state))
    plain = build(spec, weights.state)
    x = torch.from_numpy(pairs(weights, edge=32)[0].x) * spec.value_range
    names = sections(spec)
    assert all(network.get_submodule(m) for name in names for m in modules_of(name, spec))
    with torch.inference_mode():
        before = network(x)
        torch.testing.assert_close(before, plain(x), rtol=1e-4, atol=1e-3)
        with lowered(network, names, spec, low):  # type: ignore[arg-type]
            inside = network(x)
        assert torch.equal(network(x), before) and not torch.equal(inside, before)
    for name, value in build(spec, weights.state).state_dict().items():
        if name in network.state_dict() and "project_inp" not in name:
            assert torch.equal(network.state_dict()[name], value)


def test_emulated_bfloat16_is_as_far_off_as_the_real_one(tmp_path: Path) -> None:
    spec = replace(RESTORMER, layer_norm="WithBias")
    weights = load_weights(write_weights(tmp_path / "w.safetensors", spec))
    x = torch.from_numpy(pairs(weights, edge=48)[0].x)
    network = build(spec, weights.state)
    with torch.inference_mode():
        reference = network(x)
        with lowered(network, sections(spec), spec, "bf16"):
            emulated = network(x)
        real = build(spec, weights.state, torch.bfloat16)(x.bfloat16()).float()
    far, near = ((y - reference).norm() for y in (real, emulated))
    assert 0.2 < near / far < 2  # the real one also adds the picture in bfloat16


def test_pairs_are_what_the_task_meets(tmp_path: Path) -> None:
    elan = load_weights(write_weights(tmp_path / "e.safetensors", ELAN[3]))
    for pair in pairs(elan, edge=40):
        assert pair.x.shape == (1, 3, 48, 48) and pair.clean is not None
        assert pair.clean.shape == (1, 3, 144, 144) and pair.x.min() >= 0 and pair.x.max() <= 1
    deblur = load_weights(write_weights(tmp_path / "r.safetensors", RESTORMER, metadata={"task": "deblur"}))
    assert all(pair.clean is None for pair in pairs(deblur, edge=32))
    from restort.imaging.encode import write
    from restort.imaging.picture import Picture

    write(tmp_path / "p.png", Picture(np.full((70, 200, 3), 99, np.uint8)))
    (pair,) = pairs(elan, [tmp_path / "p.png"], edge=40)
    assert pair.name == "p.png" and pair.x.shape == (1, 3, 16, 48)
    write(tmp_path / "q.png", Picture(np.full((20, 200, 3), 99, np.uint8)))
    with pytest.raises(RestortError, match="too small"):
        pairs(elan, [tmp_path / "q.png"])


def test_costs() -> None:
    assert Cost(1e-3, None).within(Budget(1e-3, 0.0)) and not Cost(1e-3, 0.1).within(Budget(1e-3, 0.01))
    assert not Cost(math.inf, math.inf).within(Budget(1e9, 1e9))


def test_nothing_to_measure_on(weights: Weights) -> None:
    with pytest.raises(RestortError, match="at least one picture"):
        Search(weights, [])
    assert Choice and Pair
