"""The identity of an engine."""

from __future__ import annotations

import pytest

from restort.backends.tensorrt.engine_key import emitter_digest, graph_digest


def test_the_graph_digest_follows_weights_options_and_emitter(monkeypatch: pytest.MonkeyPatch) -> None:
    assert graph_digest("a", "fp16") == graph_digest("a", "fp16")
    assert len({graph_digest("a", "fp16"), graph_digest("b", "fp16"), graph_digest("a", "fp32")}) == 3
    before = graph_digest("a")
    monkeypatch.setattr("restort.backends.tensorrt.engine_key.emitter_digest", lambda: "another emitter")
    assert graph_digest("a") != before
    assert len(emitter_digest()) == 64
