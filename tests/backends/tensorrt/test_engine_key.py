"""The identity of an engine."""

from __future__ import annotations

import pytest

from restort.backends.tensorrt.engine_key import emitter_digest, graph_digest, runs_with


def test_the_graph_digest_follows_weights_options_and_emitter(monkeypatch: pytest.MonkeyPatch) -> None:
    assert graph_digest("a", "fp16") == graph_digest("a", "fp16")
    assert len({graph_digest("a", "fp16"), graph_digest("b", "fp16"), graph_digest("a", "fp32")}) == 3
    before = graph_digest("a")
    monkeypatch.setattr("restort.backends.tensorrt.engine_key.emitter_digest", lambda: "another emitter")
    assert graph_digest("a") != before
    assert len(emitter_digest()) == 64


def test_which_versions_run_an_engine() -> None:
    compatible = {"flags": {"version_compatible": True}}
    for about, built, installed, expected in (
        ({}, "8.6.0", "8.6.0", True),
        ({}, "8.6.0", "10.16.1.11", False),
        (compatible, "8.6.0", "8.6.0", True),
        (compatible, "8.6.0", "10.16.1.11", True),
        (compatible, "10.3.0", "10.16.1.11", True),
        (compatible, "10.16.1.11", "10.3.0", False),
        (compatible, "10.16.1.11", "", False),
    ):
        assert runs_with(about, built, installed) is expected
