"""Damaged pictures: a picture or a sentence, in little time and memory; what was read can be written and read again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attack import SEED, children, count

pytest.importorskip("resource", reason="limits of a process are those of POSIX")


@pytest.mark.timeout(7200)
def test_damaged_pictures(tmp_path: Path) -> None:
    assert children.run("tests.attack.picture_tries", SEED, count(400, 20_000), tmp_path) == []


def test_a_death_is_noticed(tmp_path: Path) -> None:
    """The harness itself: a child that aborts at its fifth try is told, and the tries after it are made."""
    found = children.run("tests.attack.dying_tries", SEED, 8, tmp_path)
    assert [words.split(":")[0] for words in found] == [
        f"try 2 of seed {SEED}",
        f"try 4 of seed {SEED} ended the process",
        f"try 7 of seed {SEED}",
    ]
