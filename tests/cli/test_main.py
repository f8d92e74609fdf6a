"""Every wrong use of the command line: one sentence, the right status, never a traceback."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from restort.cli import options
from restort.cli.main import main, parser
from restort.imaging.decode import read
from restort.imaging.encode import write
from restort.imaging.picture import Picture
from tests.fakes.command_line import FAKE
from tests.fakes.fake_backend import RESTORMER, write_weights

pytestmark = pytest.mark.usefixtures("fake_backend")


# --- wrong usage: status 2, one sentence on stderr, nothing on stdout -------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["upscal", "x.png"], "unknown command 'upscal', did you mean upscale?"),
        (["zzz"], "unknown command 'zzz'; `restort --help`"),
        (["--scale", "2", "upscale"], "unknown option --scale, an option of `restort upscale`"),
        (["--frobnicate"], "restort: unknown option --frobnicate;"),
        (["cache", "clean"], "restort cache: unknown command 'clean', did you mean clear?"),
        (
            ["cache", "clear", "--unused"],
            "restort cache clear: unknown option --unused, did you mean --unused-for?",
        ),
        (["upscale"], "required: INPUT"),
        (["upscale", "*.webp"], "no file matches *.webp"),
        (["denoise", "x.png", "-o", "y.png", "--format", "jpg"], "y.png names a format of its own"),
        (["denoise", "-", "x.png"], "- stands for one picture"),
        (["upscale", "x.png", "-o", "y.png", "--scale", "5"], "argument --scale"),
        (["upscale", "x.png", "-o", "y.png", "--scale", "two"], "argument --scale"),
        (["upscale", "x.png", "-o", "y.png", "--backend", "cuda"], "argument --backend"),
        (["upscale", "x.png", "-o", "y.png", "--precision", "int3"], "argument --precision"),
        (
            ["upscale", "x.png", "-o", "y.png", "--tile", "big"],
            "'big' is not auto, exact, none or a number of pixels",
        ),
        (["upscale", "x.png", "-o", "y.png", "--tile", "0"], "'0' is less than 1"),
        (["upscale", "x.png", "-o", "y.png", "--overlap", "-8"], "'-8' is less than 0"),
        (["upscale", "x.png", "-o", "y.png", "--overlap=-8"], "'-8' is less than 0"),
        (["upscale", "x.png", "-o", "y.png", "--overlap", "wide"], "'wide' is not a whole number"),
        (["upscale", "x.png", "-o", "y.png", "--threads", "0"], "'0' is less than 1"),
        (["upscale", "x.png", "-o", "y.png", "--max-pixels", "many"], "not a number of pixels"),
        (["upscale", "x.png", "-o", "y.png", "--max-pixels", "nan"], "not a number of pixels"),
        (["upscale", "x.png", "-o", "y.png", "--quality", "101"], "not from 1 to 100"),
        (
            ["upscale", "x.png", "-o", "y.png", "--frobnicate"],
            "restort upscale: unknown option --frobnicate",
        ),
        (
            ["upscale", "x.png", "-o", "y.png", "--over"],
            "--over, did you mean --overlap or --overwrite?",
        ),
        (["upscale", "x.png", "-o", "y.png", "--model", "a", "--weights", "b"], "not allowed with"),
        (
            ["denoise", "x.png", "-o", "y.png", "--scale", "2"],
            "denoise: unknown option --scale, an option of",
        ),
        (["run", "x.png", "-o", "y.png"], "one of the arguments --model --weights is required"),
        (["export", "-o", "y.onnx"], "one of the arguments --model --weights is required"),
        (["export", "--model", "a"], "with -o FILE.onnx"),
        (["export", "--model", "a", "-o", "y.onnx", "--precision", "bf16"], "in fp32 or fp16"),
        (["evaluate", "--model", "a"], "required: --dataset"),
        (["models", "x"], "restort models: unexpected argument 'x'"),
    ],
)
def test_wrong_options(restort: Any, arguments: list[str], expected: str) -> None:
    told = restort(*arguments)
    assert told.status == 2 and told.out == ""
    assert len(told.lines) == 1 and expected in told.err, told.err


def test_help_shows_the_basic_options_and_help_all_the_rest(restort: Any) -> None:
    basic, everything = restort("denoise", "--help"), restort("denoise", "--help-all")
    assert basic.status == everything.status == 0
    assert "--output" in basic.out and "--help-all" in basic.out
    for advanced in ("--overlap", "large pictures"):
        assert advanced not in basic.out and advanced in everything.out


def test_bare_command_prints_the_help(restort: Any) -> None:
    told = restort()
    assert told.status == 0 and told.err == "" and told.out == restort("--help").out
    assert restort("-V").out == restort("--version").out != ""


def test_verbose_prints_the_log_and_tracebacks(
    restort: Any,
    weights: Path,
    photo: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def create(*_: Any, **__: Any) -> Any:
        logging.getLogger("restort").info("in the log")
        raise ValueError("a defect")

    monkeypatch.setattr("restort.backends.registry.create", create)
    command = ["upscale", str(photo), "-o", str(tmp_path / "out.png"), "--weights", str(weights)]
    told = restort(*command)
    assert told.status == 1 and "unexpected error: ValueError: a defect (set RESTORT_DEBUG=1" in told.err
    assert "in the log" not in told.err
    assert main([*command, "-v"]) == 1
    err = capfd.readouterr().err
    assert "in the log" in err and "Traceback" in err and "unexpected error: ValueError: a defect" in err
    assert "in the log" not in restort(*command).err


def test_wrong_requests(restort: Any, weights: Path, photo: Path, tmp_path: Path) -> None:
    """What only a look at files and weights can tell; the JSON summary tells it, too."""
    cleaner = write_weights(tmp_path / "clean.safetensors", RESTORMER)
    deblurs = write_weights(tmp_path / "deblurs.safetensors", RESTORMER, metadata={"task": "deblur"})
    out = tmp_path / "out.png"
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("no picture")
    for arguments, expected in (
        (["upscale", photo, "-o", out, "--model", "elan-lihgt-x4"], "did you mean elan-light-x4"),
        (["run", photo, "-o", out, "--model", "qwertyuiop"], "no model named 'qwertyuiop'"),
        (["upscale", photo, "-o", out, "--weights", weights, "--scale", "3"], "--scale 3 was asked for"),
        (
            ["upscale", photo, "-o", out, "--model", "elan-light-x4-friedricelab", "--scale", "2"],
            "enlarges 4 times",
        ),
        (["upscale", photo, "-o", out, "--weights", cleaner], "another task"),
        (["upscale", photo, "-o", out, "--model", "restormer-real-denoising"], "another task, denoise"),
        (["denoise", photo, "-o", out, "--weights", weights], "another task: it enlarges 4 times"),
        (["denoise", photo, "-o", out, "--weights", deblurs], "another task, deblur"),
        (["dejpeg", photo, "-o", out, "--weights", deblurs], "another task, deblur, than dejpeg"),
        (["dejpeg", photo, "-o", out, "--weights", weights], "another task: it enlarges 4 times"),
        (["dejpeg", photo, "-o", out, "--model", "restormer-real-denoising"], "use `restort denoise`"),
        (["deblur", photo, "-o", out, "--model", "restormer-deraining"], "use `restort run`"),
        (["run", photo, "-o", photo, "--weights", cleaner], "overwrite the input"),
        (["upscale", empty, "-o", tmp_path / "o", "--weights", weights], "there is no picture in"),
        (["upscale", photo, "-o", tmp_path / "o.xyz", "--weights", weights], "no supported format"),
        (["upscale", photo, "-o", out, "--weights", weights, "--tile", "8"], "too small"),
        (
            ["upscale", photo, "-o", out, "--weights", weights, "--tile", "128", "--overlap", "99"],
            "overlap of",
        ),
    ):
        told = restort(*arguments)
        assert told.status == 2 and told.out == "", (arguments, told.err)
        assert len(told.lines) == 1 and expected in told.err, told.err
        told = restort(*arguments, "--json", "--quiet")
        report = json.loads(told.out)
        assert told.status == report["status"] == 2 and expected in report["error"]
    assert not out.exists()


def test_dejpeg_runs_weights_of_several_tasks(restort: Any, photo: Path, tmp_path: Path) -> None:
    both = write_weights(tmp_path / "both.safetensors", RESTORMER, metadata={"tasks": "denoise,dejpeg"})
    for task in ("denoise", "dejpeg"):
        told = restort(task, photo, "-o", tmp_path / f"{task}.png", "--weights", both, "--json")
        report = json.loads(told.out)
        assert (told.status, report["command"], report["model"]["task"]) == (0, task, "denoise")
        assert np.array_equal(read(tmp_path / f"{task}.png").pixels, 255 - read(photo).pixels)


def test_dejpeg_without_a_model_of_its_own(
    restort: Any, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("restort.weights.catalogue.WEIGHTS_FOLDER", tmp_path)
    told = restort("dejpeg", photo, "-o", tmp_path / "out.png")
    assert told.status == 2 and "no model serves dejpeg; give a file of weights by --weights" in told.err


def test_folder_as_output_of_itself(restort: Any, weights: Path, tmp_path: Path, photo: Path) -> None:
    told = restort("upscale", tmp_path, "-o", tmp_path, "--weights", weights)
    assert told.status == 2 and "input" in told.err and len(told.lines) == 1


def test_output_through_a_link_to_the_input(restort: Any, weights: Path, tmp_path: Path, photo: Path) -> None:
    before = photo.read_bytes()
    link = tmp_path / "link.png"
    link.symlink_to(photo)
    told = restort("upscale", photo, "-o", link, "--weights", weights, "--overwrite")
    assert told.status in (1, 2) and photo.read_bytes() == before
    hard = tmp_path / "hard.png"
    os.link(photo, hard)
    told = restort("upscale", photo, "-o", hard, "--weights", weights, "--overwrite")
    assert told.status in (1, 2) and photo.read_bytes() == before


# --- what goes where -------------------------------------------------------------------------------------


def test_quiet_and_json(restort: Any, weights: Path, photo: Path, tmp_path: Path) -> None:
    told = restort("upscale", photo, "-o", tmp_path / "a.png", "--weights", weights, "--quiet")
    assert (told.status, told.out, told.err) == (0, "", "")
    told = restort("upscale", photo, "-o", tmp_path / "b.png", "--weights", weights)
    assert told.status == 0 and told.out == "" and "1 done of 1" in told.err
    told = restort("upscale", photo, "-o", tmp_path / "c.png", "--weights", weights, "--json")
    report = json.loads(told.out)
    assert report["files"][0]["target"] == str(tmp_path / "c.png") and "1 done" in told.err


def test_models(restort: Any) -> None:
    told = restort("models")
    assert told.status == 0 and "restormer-motion-deblurring" in told.out and "non-commercial" in told.out
    listed = json.loads(restort("models", "--json").out)
    assert {"name", "task", "scale", "licence", "source", "sha256", "where"} <= listed[0].keys()


def test_doctor(restort: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told = restort("doctor")
    assert told.status in (0, 1) and "libvips" in told.out and "cache:" in told.out
    findings = json.loads(restort("doctor", "--json").out)
    assert findings["pictures"]["works"] and findings["libraries"]["numpy"]


@pytest.mark.parametrize(
    "broken",
    [
        "pyvips",
        "numpy",
        "onnx",
        "onnxruntime",
        "psutil",
        "platformdirs",
        "safetensors",
        "openvino",
        "torch",
        "tqdm",
    ],
)
def test_doctor_without(broken: str) -> None:
    """Whatever is broken, the doctor finishes and names it."""
    code = (
        f"import sys; sys.modules[{broken!r}] = None\n"
        "from restort.cli.main import main\n"
        "sys.exit(main(['doctor']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-1].startswith("restort ")
    if broken in ("pyvips", "numpy"):
        assert (
            done.returncode == 1 and f"import of {broken}" in done.stdout
        ) or "cannot be loaded" in done.stdout


def test_an_unexpected_error_is_one_sentence(
    restort: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr("restort.weights.catalogue.entries", fail)
    told = restort("models")
    assert told.status == 1 and len(told.lines) == 1 and "ZeroDivisionError: by nothing" in told.err
    monkeypatch.setenv("RESTORT_DEBUG", "1")
    assert main(["models"]) == 1
    assert "Traceback" in capfd.readouterr().err


def test_a_reader_that_goes_away() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "restort", "models", "--json"],
        stdout=write_end,
        stderr=subprocess.PIPE,
        timeout=60,
    )
    os.close(write_end)
    assert done.returncode == 1 and done.stderr == b""


def test_backends_and_commands_are_those_of_the_package() -> None:
    from restort.backends import registry

    assert tuple(registry.BACKENDS) == options.BACKENDS
    help = parser().format_help()
    for name in ("models", "upscale", "denoise", "dejpeg", "deblur", "run", "export", "doctor", "evaluate"):
        assert f"\n    {name} " in help


def test_help_is_quick_and_light() -> None:
    code = (
        "import sys, time; start = time.process_time(); import restort; from restort.cli.main import main\n"
        "main(['--help']); seconds = time.process_time() - start\n"
        "heavy = {'numpy', 'onnx', 'onnxruntime', 'torch', 'openvino', 'pyvips', 'tqdm'} & set(sys.modules)\n"
        "assert not heavy, heavy\nassert seconds < 0.3, seconds"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_export(restort: Any, weights: Path, tmp_path: Path) -> None:
    import onnx

    target = tmp_path / "new" / "x4.onnx"
    told = restort("export", "--weights", weights, "-o", target, "--json", "--quiet")
    report = json.loads(told.out)
    assert told.status == 0 and told.err == "" and report["metadata"]["restort.scale"] == "4"
    onnx.checker.check_model(onnx.load(target))
    told = restort("export", "--weights", weights, "-o", target)
    assert told.status == 1 and "--overwrite" in told.err
    assert (
        restort("export", "--weights", weights, "-o", target, "--overwrite", "--precision", "fp16").status
        == 0
    )
    assert target.stat().st_size < report["bytes"]
    told = restort("export", "--weights", weights, "-o", tmp_path / "x4.png")
    assert told.status == 2 and ".onnx" in told.err


def test_evaluate(restort: Any, weights: Path, tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    photos = tmp_path / "set"
    for name in ("a.png", "b.png"):
        photos.mkdir(exist_ok=True)
        write(photos / name, Picture(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    record = tmp_path / "record.json"
    told = restort("evaluate", "--weights", weights, "--dataset", photos, "-o", record, "--quiet")
    assert told.status == 0 and "average" in told.out and told.err == ""
    told = restort("evaluate", "--weights", weights, "--dataset", photos, "--json", "--quiet")
    assert json.loads(told.out)["task"] == json.loads(record.read_text())["task"] == "upscale"
    told = restort("evaluate", "--weights", weights, "--dataset", photos, "-o", record)
    assert told.status == 1 and "--overwrite" in told.err
    cleaner = write_weights(tmp_path / "clean.safetensors", RESTORMER)
    told = restort("evaluate", "--weights", cleaner, "--dataset", photos, "--quiet")
    assert told.status == 2 and "--task" in told.err
    told = restort(
        "evaluate", "--weights", cleaner, "--dataset", photos, "--task", "denoise", "--sigma", "25", "--json"
    )
    assert told.status == 0 and json.loads(told.out)["averages"][0]["pictures"] == 2
    told = restort("evaluate", "--weights", weights, "--dataset", tmp_path / "nowhere")
    assert told.status == 1 and len(told.lines) == 1


@pytest.mark.parametrize("guide", ["guide.md", "guide.zh-CN.md"])
def test_the_guide_knows_every_command_and_option(guide: str) -> None:
    import argparse

    text = (Path(__file__).parents[2] / "docs" / guide).read_text("utf-8")
    (commands,) = (a.choices for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    for name, command in commands.items():
        assert f"restort {name}" in text
        for action in command._actions:
            for option in action.option_strings[-1:]:
                assert option in text or option == "--help", f"{option} of {name}"


# --- outputs that nobody named, patterns, pipes -----------------------------------------------------------


def test_without_an_output_results_lie_beside_their_inputs(
    restort: Any, weights: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photo.parent)
    told = restort("upscale", "*.png", "--weights", weights)
    assert told.status == 0, told.err
    made = photo.with_name("photo_restored.png")
    assert read(made).pixels.shape == (48, 64, 3)
    again = restort("upscale", "photo.png", "--weights", weights)
    assert again.status == 1 and "photo_restored.png already exists; use --overwrite" in again.err
    told = restort("denoise", photo.parent, "--format", "jpg", "--quiet")
    assert told.status == 0, told.err
    folder = photo.parent.with_name(photo.parent.name + "_denoised")
    assert read(folder / "photo.jpg").format == "jpeg"


def test_what_cannot_be_read_is_told_and_what_is_up_to_date_is_counted(
    restort: Any, weights: Path, photo: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "b.png", "c.psd", "d.EXR", "e.psd"):
        (folder / name).write_bytes(photo.read_bytes())
    told = restort("upscale", folder, "-o", tmp_path / "out", "--weights", weights, "--json")
    assert "left out, because these formats cannot be read: 2 .psd, 1 .exr; convert them" in told.err
    assert sorted(Path(path).name for path in json.loads(told.out)["left_out"]) == [
        "c.psd",
        "d.EXR",
        "e.psd",
    ]
    assert "2 done of 2" in told.err
    again = restort("upscale", folder, "-o", tmp_path / "out", "--weights", weights)
    assert "0 done, 2 up to date of 2" in again.err and "a.png" not in again.err


def test_pictures_with_one_output_fail_alone(
    restort: Any, weights: Path, photo: Path, tmp_path: Path
) -> None:
    for name in ("x/a.png", "y/a.png", "b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(photo.read_bytes())
    inputs = [tmp_path / name for name in ("x/a.png", "y/a.png", "b.png")]
    told = restort("upscale", *inputs, "-o", tmp_path / "out", "--weights", weights)
    assert told.status == 1 and "2 done, 1 failed of 3" in told.err
    assert "would both be written to" in told.err
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["a.png", "b.png"]


@pytest.mark.parametrize("chosen", [None, "jpg"])
def test_pipes(weights: Path, photo: Path, tmp_path: Path, chosen: str | None) -> None:
    command = [*FAKE, "run", "-", "-o", "-", "--weights", str(weights), "--quiet"]
    command += [] if chosen is None else ["--format", chosen]
    done = subprocess.run(command, input=photo.read_bytes(), capture_output=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    target = tmp_path / "piped"
    target.write_bytes(done.stdout)
    made = read(target)
    assert (made.format, made.pixels.shape) == ("png" if chosen is None else "jpeg", (48, 64, 3))
    before = {path.name for path in tmp_path.iterdir()}
    broken = subprocess.run(command, input=b"no picture", capture_output=True, cwd=tmp_path)
    assert broken.returncode == 1 and broken.stdout == b""
    assert b"Traceback" not in broken.stderr and b"standard-input" in broken.stderr
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_commands_and_options(restort: Any, shell: str) -> None:
    pytest.importorskip("shtab", reason="the extra 'completion' is not installed")
    told = restort("completion", shell)
    assert told.status == 0 and told.err == ""
    assert all(word in told.out for word in ("denoise", "--strength", "--weights", "openvino"))
