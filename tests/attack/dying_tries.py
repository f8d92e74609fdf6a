"""Tries of which two go wrong and one ends the process: what `children.run` must tell."""

from __future__ import annotations

import os
from pathlib import Path

from tests.attack import children


def attempt(seed: int, number: int, folder: Path) -> str | None:
    if number == 4:
        os.abort()
    return "wrong" if number in (2, 7) else None


if __name__ == "__main__":
    children.main(attempt)
