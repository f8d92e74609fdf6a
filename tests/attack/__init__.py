"""Attacks on what the guide promises: mutated pictures and weights, kills, hostile output folders.

By default a few of each, in well under a minute. RESTORT_ATTACK=long tries as many as docs/robustness.md counts;
RESTORT_ATTACK_SEED=N tries others.
"""

from __future__ import annotations

import os

LONG = os.environ.get("RESTORT_ATTACK") == "long"
SEED = int(os.environ.get("RESTORT_ATTACK_SEED", "0"))


def count(usual: int, long: int) -> int:
    """The number of tries."""
    return long if LONG else usual
