"""What every test may use."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from restort.cli.main import main


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of test data beside the checkout; tests that need it are skipped where it is absent."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not (folder / "README.md").is_file():
        pytest.skip("the folder ../shared with test data is not here")
    return folder


@pytest.fixture
def restort(capfd: pytest.CaptureFixture[str]) -> Any:
    """A function that runs the command line: its status, what it printed, the lines of stderr; never a traceback."""

    def call(*arguments: object) -> SimpleNamespace:
        status = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return SimpleNamespace(status=status, out=out, err=err, lines=err.splitlines())

    return call
