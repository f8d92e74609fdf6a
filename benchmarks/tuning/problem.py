"""What a kernel is tried on: an op at one place of a network, its arguments and its reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

Constants = dict[str, Any]


@dataclass
class Problem:
    """One op at one place: its arguments on a device.

    launch    (form, constants) -> the launch; form 'triton' without constants is Triton's kernel as it is.
    outputs   of a launch, in the order of `expected`, as they are compared.
    expected  what the reference gives; None where an op is not checked.
    after     launches that belong to the op and follow this one.
    """

    launch: Callable[[str, Constants], Any]
    outputs: Callable[[Any], list[Any]]
    expected: Callable[[], list[Any]] | None
    after: Callable[[Any], list[Any]] | None = None
    compared: Callable[[list[Any]], list[Any]] = lambda seen: seen


@dataclass(frozen=True)
class Op:
    """An op of the registry.

    places    names of the places in a network.
    problem   (place, height, width of the picture, dtype, device) -> Problem.
    variants  constants to try, by form; {} is the kernel's own choice.
    allowed   whether a place can have a variant.
    """

    places: tuple[str, ...]
    problem: Callable[[str, int, int, Any, Any], Problem]
    variants: dict[str, list[Constants]]
    allowed: Callable[[str, str, Constants], bool] = lambda place, form, constants: True
    elan: bool = False


def drawn(device: Any, dtype: Any, *shape: int, scale: float = 1.0) -> Any:
    """Normal numbers of that scale; nothing but a shape on 'meta'."""
    import torch

    return (torch.randn(*shape, device=device) * scale).to(dtype)


@contextmanager
def tiling_replaced(module: Any, constants: Constants) -> Iterator[None]:
    """With `constants` in place of what the module's `tiling` chooses."""
    usual = module.tiling

    def tiling(*args: Any, **options: Any) -> Constants:
        found = {**usual(*args, **options), **constants}
        if "COLUMNS" in found:  # of a program, in whole steps
            found["COLUMNS"] = max(1, found["COLUMNS"] // found["BN"]) * found["BN"]
        return found

    if constants:
        module.tiling = tiling
    try:
        yield
    finally:
        module.tiling = usual
