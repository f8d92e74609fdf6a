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
    """Return the error of `runner` on the pairs of the search, against the reference network.

    search   an existing search; without one the reference network runs now, which takes PyTorch
    returns  None without a search and without PyTorch
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
    """Run the mixed engine of the cache here; return (whether it passes, the outcome as a sentence).

    An engine that cannot be checked passes.
    """
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
