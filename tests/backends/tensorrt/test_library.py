"""Which TensorRT is installed."""

from __future__ import annotations

import re

import pytest

from restort.backends.tensorrt import library
from restort.errors import RestortError, UsageError
from restort.utils.extras import install_command


def test_what_is_installed() -> None:
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    assert library.installed()["rtx"] == library.find("rtx").version


def test_flavours_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="unknown flavour of TensorRT: 'cuda'"):
        library.find("cuda")
    monkeypatch.setattr(library, "installed", dict)
    remedy = re.escape(f"TensorRT-RTX is not installed; get it with: {install_command('rtx')}")
    with pytest.raises(RestortError, match=remedy):
        library.find("rtx")
    with pytest.raises(RestortError, match="neither TensorRT nor TensorRT-RTX is installed"):
        library.find()
