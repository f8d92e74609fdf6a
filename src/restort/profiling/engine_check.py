"""Check a mixed engine against its budget by running it once after its build."""

from __future__ import annotations

import contextlib
import importlib.util
from typing import TYPE_CHECKING, Any

from restort.profiling.pairs import EDGE, pairs
from restort.profiling.sensitivity import Budget, Cost, Search
from restort.utils.integers import round_up

if TYPE_CHECKING:
    from restort.runner import Runner
    from restort.weights.checkpoint import Weights


def check(weights: Weights, runner: Runner, search: Search | None = None) -> Cost | None:
    """How far `runner`'s results on the pairs of the search are from the reference network's.

    search  one that was made before; else the reference runs now. None is returned where that takes PyTorch and
            PyTorch is not here.
    """
    if search is None:
        if importlib.util.find_spec("torch") is None:
            return None
        search = Search(weights, pairs(weights))
    return search.cost_of([runner(pair.x) for pair in search.pairs])


def outcome(cost: Cost | None, budget: Budget) -> str:
    """Return the outcome as a sentence."""
    if cost is None:
        return "the engine was not checked against the reference network, which takes PyTorch"
    found = f"relative L2 {cost.relative_l2:.1e}"
    if cost.psnr_loss is not None:
        found += f", {cost.psnr_loss:.4f} dB"
    if cost.within(budget):
        return f"the engine was run and meets the budget: {found}"
    return (
        f"the engine was run and misses the budget of {budget.relative_l2:g}: {found}; give a lower --budget"
    )


def of_engine(
    weights: Weights, flavour: str, profile: Any, options: dict[str, Any], budget: Budget
) -> tuple[bool, str]:
    """(whether nothing speaks against it, the outcome in words) of the mixed engine in the cache, run here."""
    from restort.backends.tensorrt.runner import TensorrtRunner

    size = round_up(EDGE, weights.spec.size_multiple)
    if not profile.covers((1, size, size)):
        return (
            True,
            f"the engine was not checked: it does not take 1x{size}x{size}, what it would be checked on",
        )
    runner = TensorrtRunner(weights, "mixed", flavour=flavour, profile=profile, options=options)
    with contextlib.closing(runner):
        cost = check(weights, runner)
    return cost is None or cost.within(budget), outcome(cost, budget)
