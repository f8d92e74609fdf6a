"""The tutorial: its commands run and print what the chapters show, in form, and both languages show the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = ROOT / "docs" / "tutorial"
CHAPTERS = sorted(path.name for path in (TUTORIAL / "zh").glob("0*.md"))

sys.path.insert(0, str(TUTORIAL))
from run import commands, form  # noqa: E402


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_commands_print_what_the_chapter_shows(chapter: str) -> None:
    for library in ("torch", "matplotlib"):
        pytest.importorskip(library)
    paths = [f"{ROOT / 'src'}", os.environ.get("PYTHONPATH", "")]
    ran = subprocess.run(
        [sys.executable, str(TUTORIAL / "run.py"), str(TUTORIAL / "zh" / chapter)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_both_languages_show_the_same_commands_and_outputs() -> None:
    assert sorted(path.name for path in (TUTORIAL / "en").glob("0*.md")) == CHAPTERS
    for chapter in CHAPTERS:
        chinese, english = (
            commands((TUTORIAL / language / chapter).read_text("utf-8")) for language in ("zh", "en")
        )
        assert chinese == english, chapter


def test_form_forgets_numbers_and_nothing_else() -> None:
    assert form("conv  12.5 ms -----\n") == form("conv 3.0e-4 ms --\n")
    assert form("conv 12.5 ms") != form("gemm 12.5 ms")
    assert form("one\ntwo") != form("one")


def test_a_changed_output_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- run -->\n```python\nprint('layers', 3)\n```\n\n```text\nnodes 3\n```\n", "utf-8")
    ran = subprocess.run(
        [sys.executable, str(TUTORIAL / "run.py"), str(page)], capture_output=True, text=True
    )
    assert ran.returncode == 1
    assert "another output" in ran.stdout
