"""What every test may use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from restort.cli.main import main
from tests.fakes.fake_backend import create


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pictures", type=int, help="pretended pictures of the test of a cluster run's memory")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of test data beside the checkout; tests that need it are skipped where it is absent."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not (folder / "README.md").is_file():
        pytest.skip("the folder ../shared with test data is not here")
    return folder


@pytest.fixture
def fake_backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stand-in for every network (tests.fakes.fake_backend), and an empty cache folder."""
    monkeypatch.setattr("restort.backends.registry.create", create)
    monkeypatch.setenv("RESTORT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: networks of tests are slower on several."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def restort(capfd: pytest.CaptureFixture[str]) -> Any:
    """A function that runs the command line: its status, what it printed, the lines of stderr; never a traceback."""

    def call(*arguments: object) -> SimpleNamespace:
        status = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return SimpleNamespace(status=status, out=out, err=err, lines=err.splitlines())

    return call
