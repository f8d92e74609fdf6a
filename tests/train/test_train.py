"""Training: a run continues bit for bit, crops of two scales agree, a shipped file computes what was trained."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from PIL import Image  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from restort.models.spec import ElanSpec, RestormerSpec  # noqa: E402
from restort.models.torch_network import build  # noqa: E402
from restort.weights.checkpoint import load_weights  # noqa: E402
from train.config import Config, read_config  # noqa: E402
from train.data import Bank  # noqa: E402
from train.data import photographs as split  # noqa: E402
from train.fast import forward  # noqa: E402
from train.loop import Trainer, learning_rate  # noqa: E402
from train.ship import rounded, shipped_form  # noqa: E402
from train.tasks import make_task  # noqa: E402

TINY_RESTORMER = RestormerSpec(3, 3, 8, (1, 1, 1, 1), 1, (1, 2, 4, 8), 2.0, False, "BiasFree", False)
TINY_ELAN = ElanSpec(2, 2, 15, 1, 3, (4, 8, 16), 32.0, 2)
CONFIGS = Path(__file__).resolve().parents[2] / "train/configs"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    generator = np.random.default_rng(0)
    for i in range(5):
        coarse = generator.integers(0, 256, (13 + i, 15, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((15 * 9, (13 + i) * 9), Image.Resampling.BICUBIC).save(
            folder / f"{i}.png"
        )
    return folder


def config(task: str, steps: int = 6) -> Config:
    spec = TINY_ELAN if task == "upscale" else TINY_RESTORMER
    patch = 32 if task == "upscale" else 24
    return Config(
        "tiny", task, spec, steps, 2, patch, 1e-3, warmup=2, precision="fp32", validate_every=3, kernel_size=9
    )


def photo_config(task: str, steps: int = 6) -> Config:
    return dataclasses.replace(
        config(task, steps),
        recipe="photo",
        batch=7,
        patch=16,
        drawings=1,
        progressive=((0.5, 32, 4),),
        loss="psnr",
    )


def trainer(settings: Config, photographs: Path, out: Path, *, fitted: bool = False) -> Trainer:
    cpu = torch.device("cpu")
    return Trainer(settings, make_task(settings, photographs, cpu), out, cpu, fast=False, fitted=fitted)


@pytest.mark.parametrize("recipe", ["classic", "photo"])
@pytest.mark.parametrize("task", ["upscale", "denoise", "deblur"])
def test_interrupted_run_continues_bit_for_bit(
    task: str, recipe: str, photographs: Path, tmp_path: Path
) -> None:
    settings = config(task) if recipe == "classic" else photo_config(task)
    whole = trainer(settings, photographs, tmp_path / "whole")
    assert whole.run()

    first = trainer(settings, photographs, tmp_path / "parts")
    for _ in range(3):
        first.train_step()
    first.save()
    first.train_step()  # lost: what a kill takes away after the last checkpoint
    second = trainer(settings, photographs, tmp_path / "parts")
    assert second.step == 3
    assert second.run()

    for a, b in ((whole.model.state_dict(), second.model.state_dict()), (whole.ema, second.ema)):
        for name, value in a.items():
            assert torch.equal(value, b[name]), name
    mine, theirs = (t.optimizer.state_dict()["state"] for t in (whole, second))
    assert all(torch.equal(v, theirs[i][k]) for i, entry in mine.items() for k, v in entry.items())
    rows = list(csv.DictReader((tmp_path / "parts/log.csv").open()))
    assert [row["step"] for row in rows] == ["6"]
    assert float(rows[0]["validation_psnr"]) > 0


def test_a_fitted_run_keeps_its_schedule(photographs: Path, tmp_path: Path) -> None:
    """The number of steps is measured once; a continued run takes it from the checkpoint."""
    run = trainer(photo_config("denoise"), photographs, tmp_path, fitted=True)
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    run.warm_up()
    run.fit(0.5, trial=2)
    assert run.step == 0 and run.config.steps > run.config.warmup
    assert all(torch.equal(v, before[k]) for k, v in run.model.state_dict().items())
    moments = run.optimizer.state_dict()["state"].values()
    assert all(not v.any() for state in moments for v in state.values())
    run.train_step()
    run.save()
    again = trainer(photo_config("denoise", steps=99), photographs, tmp_path, fitted=True)
    again.fit(100.0)
    assert (again.step, again.config.steps) == (1, run.config.steps)


def test_a_deeper_network_begins_as_the_one_it_starts_from(tmp_path: Path) -> None:
    from train.start import starting_weights

    for small, large in (
        (TINY_RESTORMER, dataclasses.replace(TINY_RESTORMER, num_blocks=(2, 1, 2, 2))),
        (TINY_ELAN, dataclasses.replace(TINY_ELAN, blocks=6)),
    ):
        torch.manual_seed(0)
        first = build(small).eval()
        path = tmp_path / "first.safetensors"
        save_file({k: v.contiguous() for k, v in first.state_dict().items()}, path)
        deeper = build(large)
        deeper.load_state_dict(starting_weights(path, deeper, large))
        x = torch.rand(1, 3, 32, 32)
        with torch.inference_mode():
            torch.testing.assert_close(
                forward(deeper.eval(), x, None), forward(first, x, None), atol=1e-5, rtol=0
            )


def test_a_run_starts_from_a_shipped_file_of_another_range(tmp_path: Path) -> None:
    from train.start import starting_weights

    torch.manual_seed(0)
    trained = build(TINY_ELAN).eval()
    path = tmp_path / "shipped.safetensors"
    save_file(shipped_form(trained.state_dict(), config("upscale")), path)
    again = build(TINY_ELAN)
    again.load_state_dict(starting_weights(path, again, TINY_ELAN))
    x = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        expected, result = forward(trained, x, None), forward(again.eval(), x, None)
    assert ((result - expected).norm() / expected.norm()).item() < 3e-3


def test_log_rows_after_the_checkpoint_are_written_again(photographs: Path, tmp_path: Path) -> None:
    settings = config("denoise")
    run = trainer(settings, photographs, tmp_path)
    run.save()
    (tmp_path / "log.csv").write_text(
        "step,seconds,loss,learning_rate,images_per_second,validation_psnr\n50,1,1,1,1,\n"
    )
    assert trainer(settings, photographs, tmp_path).run()
    assert [row["step"] for row in csv.DictReader((tmp_path / "log.csv").open())] == ["6"]


def test_learning_reduces_the_loss(photographs: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(config("denoise", steps=40), sigma=(50.0, 50.0), batch=4)
    run = trainer(settings, photographs, tmp_path)
    before = run.validate()["white"]
    run.run()
    after = run.validate()["white"]
    assert after[0] == before[0], "the input of a validation set changed"
    assert after[1] > before[1] + 1


def test_crops_of_both_scales_show_the_same_place() -> None:
    """Turning and flipping commute with shrinking, so a crop of the small picture is the small crop."""
    generator = torch.Generator().manual_seed(1)
    small = torch.randint(0, 256, (20, 30, 3), generator=generator, dtype=torch.uint8)
    large = small.repeat_interleave(2, 0).repeat_interleave(2, 1)
    cpu = torch.device("cpu")
    banks = Bank([small, small], cpu), Bank([large, large], cpu)
    image, turn = torch.tensor([0, 1] * 4), torch.arange(8)
    top, left = banks[0].positions(image, 8, generator)
    a = banks[0].crop(image, top, left, 8, turn)
    b = banks[1].crop(image, top * 2, left * 2, 16, turn)
    assert torch.equal(a.repeat_interleave(2, 2).repeat_interleave(2, 3), b)
    assert len({tuple(crop.flatten().tolist()) for crop in a}) == 8


def test_schedule() -> None:
    settings = config("denoise", steps=100)
    rates = [learning_rate(settings, step) for step in range(100)]
    assert rates[0] == pytest.approx(5e-4)
    assert max(rates) == rates[2] == pytest.approx(1e-3)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] < 2e-6


@pytest.mark.parametrize("task", ["upscale", "denoise"])
def test_the_shipped_file_computes_what_was_trained(task: str, tmp_path: Path) -> None:
    settings = config(task)
    torch.manual_seed(0)
    model = build(settings.spec).train()
    forward(model, torch.rand(2, 3, 32, 32), None)  # moves BatchNorm's statistics away from 0 and 1
    model.eval()
    path = tmp_path / "shipped.safetensors"
    save_file(shipped_form(model.state_dict(), settings), path)
    weights = load_weights(path)
    assert weights.spec == (
        dataclasses.replace(TINY_ELAN, rgb_range=255.0) if task == "upscale" else TINY_RESTORMER
    )
    x = torch.rand(1, 3, 32, 48)
    with torch.inference_mode():
        expected = forward(model, x, None)
        result = forward(build(weights.spec, weights.state), x, None)
    assert ((result - expected).norm() / expected.norm()).item() < 3e-3


def test_excluded_photographs_are_in_neither_part(photographs: Path) -> None:
    training, held = split(photographs, ("3.png",))
    assert sorted(p.name for p in (*training, *held)) == ["0.png", "1.png", "2.png", "4.png"]
    assert not set(training) & set(held)


@pytest.mark.parametrize("bits", [11, 10, 9])
def test_rounding_to_fewer_bits_is_to_the_nearest(bits: int) -> None:
    values = torch.cat(
        (torch.randn(5000), torch.tensor([0.0, -0.0, 1e-7, 65504.0, -65504.0, 2.0, -0.5]))
    ).half()
    result = rounded(values, bits)
    normal = values.abs() >= 2**-14
    assert (
        (result.float() - values.float()).abs()[normal] <= values.float().abs()[normal] * 2.0**-bits
    ).all()
    assert (result.view(torch.int16) & ((1 << 11 - bits) - 1) == 0).all()
    assert torch.isfinite(result).all() and (torch.signbit(result) == torch.signbit(values)).all()
    assert bits < 11 or torch.equal(result, values)


def test_every_configuration_reads() -> None:
    names = {read_config(path).name for path in CONFIGS.glob("*.toml")}
    assert len(names) == len(list(CONFIGS.glob("*.toml"))) - 1, "elan-light-x4 has two of one name"


def test_a_forecast_finds_the_curve_it_was_drawn_from() -> None:
    from train.forecast import fit

    steps = [float(t) for t in range(1000, 21000, 1000)]
    curve = fit(steps, [32.0 - 1.5 * (t / 20000) ** -0.5 for t in steps])
    assert abs(curve.at(80000) - (32.0 - 0.75)) < 0.02
    assert curve.residual < 0.01
    with pytest.raises(ValueError, match="5 validated steps"):
        fit(steps[:4], [1.0, 2.0, 3.0, 4.0])
