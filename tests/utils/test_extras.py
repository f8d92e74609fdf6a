"""Commands in remedies: they work in a clone and with an installed package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from restort.errors import RestortError
from restort.utils import extras

ROOT = Path(__file__).resolve().parents[2]
NAMES = re.compile(r"^(\w+) = \[", re.MULTILINE)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "clone_folder", lambda: None)


def test_commands_in_a_clone() -> None:
    assert extras.clone_folder() == ROOT
    assert extras.install_command("torch") == f"pip install -e '{ROOT}[torch]'"
    assert extras.reinstall_command() == f"git -C {ROOT} checkout -- src/restort"


def test_commands_of_an_installed_package(installed: None) -> None:
    assert extras.install_command("torch") == "pip install 'restort[torch]'"
    assert extras.reinstall_command() == "pip install --force-reinstall --no-deps restort"


def test_a_wheel_is_not_a_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "lib/python3.12/site-packages/restort/utils"
    folder.mkdir(parents=True)
    monkeypatch.setattr(extras, "__file__", str(folder / "extras.py"))
    assert extras.clone_folder.__wrapped__() is None


def test_no_other_place_words_the_command() -> None:
    """A literal 'restort[extra]' in a message is wrong in a clone; every extra that is named exists."""
    known = NAMES.findall(
        (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    )
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.name != "extras.py":
            assert "restort[" not in text, path
            assert not re.search(r"pip install ['\"]?\.\[?", text), path
        for extra in re.findall(r"install_command\([\"'](\w+)[\"']\)", text):
            assert extra in known, (path, extra)


def test_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(extras.importlib, "import_module", absent)
    with pytest.raises(RestortError, match="plotting needs matplotlib, which is not installed") as error:
        extras.need("matplotlib.figure", "plotting")
    assert str(error.value).endswith(extras.install_command("plots"))
