"""A backend and a precision, as one word."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Side:
    """`backend:precision`, as asked for or as made."""

    backend: str
    precision: str = "fp32"

    def __str__(self) -> str:
        return f"{self.backend}:{self.precision}"
