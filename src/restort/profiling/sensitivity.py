"""Find the fewest sections of a network that must stay in float32 to meet an error budget (mixed precision).

Each section alone is lowered in the reference network (restort.profiling.lowered), and the error of the output is
measured: a forward pass per section and picture. Errors of several lowered sections add in squares, like independent
noise, so the choice is greedy: the most sensitive sections are kept until the sum of the others is within the budget.
This choice is then measured itself, and sections are added or removed until the smallest set that meets the budget is
found. No engine is built.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from restort.errors import RestortError
from restort.export.form import sections
from restort.profiling.machine import provenance
from restort.profiling.pairs import Pair
from restort.utils.extras import install_command
from restort.weights.checkpoint import Weights

FORMAT = 1
Notify = Callable[[str], object]


@dataclass(frozen=True)
class Budget:
    """The largest allowed cost: relative L2 error of the output, and loss of PSNR in dB against a clean picture."""

    relative_l2: float = 3e-4
    psnr_loss: float = 0.002


@dataclass(frozen=True)
class Cost:
    """The cost of lowering: infinite where the output was not finite; `psnr_loss` is None without clean pictures."""

    relative_l2: float
    psnr_loss: float | None

    def within(self, budget: Budget) -> bool:
        """Return whether the cost is within the budget; an unknown loss of PSNR counts as none."""
        return self.relative_l2 <= budget.relative_l2 and (self.psnr_loss or 0.0) <= budget.psnr_loss


@dataclass(frozen=True)
class Choice:
    """The sections to keep in float32, and the costs behind the choice.

    costs       of lowering each section alone
    predicted   of lowering all other sections together, from `costs`; `measured` is that cost, measured
    lowest      of lowering every section
    """

    model: str
    digest: str
    low: str
    budget: Budget
    costs: dict[str, Cost]
    keep_fp32: tuple[str, ...]
    predicted: float
    measured: Cost
    lowest: Cost
    pictures: list[str]
    about: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return valid JSON; infinite numbers become None."""
        return {
            "format": FORMAT,
            "model": self.model,
            "weights_sha256": self.digest,
            "low": self.low,
            "budget": asdict(self.budget),
            "keep_fp32": list(self.keep_fp32),
            "predicted_relative_l2": _finite(self.predicted),
            "measured": _json(self.measured),
            "everything_lowered": _json(self.lowest),
            "sections": [
                {"name": name, **_json(cost), "kept": name in self.keep_fp32}
                for name, cost in self.costs.items()
            ],
            "pictures": self.pictures,
            **self.about,
        }

    def to_csv(self) -> str:
        """Return CSV: a line for each section."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["section", "relative_l2", "psnr_loss_db", "kept_in_fp32"])
        for name, cost in self.costs.items():
            table.writerow([name, cost.relative_l2, cost.psnr_loss, int(name in self.keep_fp32)])
        return text.getvalue()

    def table(self) -> str:
        """Return text: a line for each section, the most sensitive first."""
        width = max(len(name) for name in self.costs)
        lines = [f"{'section':{width}}  relative L2  PSNR loss (dB)"]
        for name, cost in sorted(self.costs.items(), key=lambda item: -item[1].relative_l2):
            loss = "-" if cost.psnr_loss is None else f"{cost.psnr_loss:.5f}"
            kept = "  float32" if name in self.keep_fp32 else ""
            lines.append(f"{name:{width}}  {cost.relative_l2:11.2e}  {loss:>14}{kept}".rstrip())
        return "\n".join([*lines, "", self.summary()])

    def summary(self) -> str:
        """Return the choice as a sentence."""
        cost = self.measured
        loss = "" if cost.psnr_loss is None else f", {cost.psnr_loss:.4f} dB"
        found = f"relative L2 {cost.relative_l2:.1e}{loss}"
        if not self.keep_fp32:
            return f"no section needs float32: all of it in {self.low} has {found}"
        return (
            f"{len(self.keep_fp32)} of {len(self.costs)} sections stay in float32 ({', '.join(self.keep_fp32)}): "
            f"{found}; all in {self.low}: {self.lowest.relative_l2:.1e}"
        )


class Search:
    """The reference network of `weights` on `pairs`; measures the cost of lowering sections.

    device  of PyTorch; by default the GPU if there is one.

    Raises RestortError where PyTorch is not installed.
    """

    def __init__(
        self, weights: Weights, pairs: Sequence[Pair], low: str = "fp16", device: str | None = None
    ) -> None:
        try:
            import torch
        except ImportError:
            raise RestortError(
                "measuring sensitivity needs PyTorch, which is not installed; "
                f"install it with: {install_command('torch')}"
            ) from None
        from restort.models.torch_network import build
        from restort.profiling.lowered import fold_batch_norms

        if not pairs:
            raise RestortError("measuring which blocks need float32 takes at least one picture")
        self._torch = torch
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.weights, self.spec, self.low, self.pairs = weights, weights.spec, low, list(pairs)
        self.network: Any = fold_batch_norms(build(weights.spec, weights.state)).to(self.device)
        if self.device != "cpu":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.names = sections(weights.spec)
        self.references = [self.run(pair.x) for pair in self.pairs]

    def run(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Run the network, as it is now, on x float32 (1, C, H, W) in [0, 1]."""
        torch, scale = self._torch, self.spec.value_range
        with torch.inference_mode():
            result = self.network(torch.from_numpy(x).to(self.device) * scale)
            found: np.ndarray[Any, Any] = (result.float() / scale).cpu().numpy()
        return found

    def cost(self, lowered_sections: Sequence[str]) -> Cost:
        """Return the cost of lowering these sections together."""
        from restort.profiling.lowered import lowered

        with lowered(self.network, lowered_sections, self.spec, self.low):  # type: ignore[arg-type]
            results = [self.run(pair.x) for pair in self.pairs]
        return self.cost_of(results)

    def cost_of(self, results: Sequence[np.ndarray[Any, Any]]) -> Cost:
        """Return the cost of results on the pairs, such as those of an engine."""
        squares = energy = 0.0
        losses = []
        for pair, y, reference in zip(self.pairs, results, self.references, strict=True):
            if not np.isfinite(y).all():
                return Cost(math.inf, math.inf)
            error = y.astype(np.float64) - reference
            squares += float((error**2).sum())
            energy += float((reference.astype(np.float64) ** 2).sum())
            if pair.clean is not None:
                losses.append(_psnr(reference, pair.clean) - _psnr(y, pair.clean))
        loss = float(np.mean(losses)) if losses else None
        return Cost(math.sqrt(squares / max(energy, 1e-30)), loss)

    def choose(self, budget: Budget = Budget(), notify: Notify = lambda line: None) -> Choice:
        """Return the fewest sections to keep in float32, by the greedy choice above.

        Raises RestortError where even float32 everywhere is not within the budget.
        """
        if not Cost(0.0, 0.0).within(budget):
            raise RestortError(f"a budget of {budget.relative_l2:g} cannot be met; give one of at least 0")
        costs = {}
        for i, name in enumerate(self.names):
            costs[name] = self.cost([name])
            notify(
                f"{i + 1}/{len(self.names)} {name}: relative L2 {costs[name].relative_l2:.1e} in {self.low} alone"
            )
        order = sorted(self.names, key=lambda name: -costs[name].relative_l2)
        rest = [_norm(costs[name].relative_l2 for name in order[k:]) for k in range(len(order) + 1)]
        kept = next(k for k, error in enumerate(rest) if error <= budget.relative_l2)
        tried: dict[int, Cost] = {len(order): Cost(0.0, None if costs[order[0]].psnr_loss is None else 0.0)}

        def fits(k: int) -> bool:
            if k not in tried:
                tried[k] = self.cost(order[k:])
            return tried[k].within(budget)

        while not fits(kept):
            kept += 1
        while kept and fits(kept - 1):
            kept -= 1
        chosen = tuple(name for name in self.names if name in order[:kept])
        lowest = tried.get(0) or self.cost(order)
        return Choice(
            self.weights.metadata.get("name") or self.weights.path.stem,
            self.weights.digest,
            self.low,
            budget,
            costs,
            chosen,
            rest[kept],
            tried[kept],
            lowest,
            [pair.name for pair in self.pairs],
            {"computed_on": self.device, **provenance()},
        )


def _norm(errors: Any) -> float:
    return math.sqrt(sum(error * error for error in errors))


def _psnr(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    error = float(np.mean((np.clip(a, 0, 1).astype(np.float64) - b) ** 2))
    return -10 * math.log10(max(error, 1e-20))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _json(cost: Cost) -> dict[str, float | None]:
    return {"relative_l2": _finite(cost.relative_l2), "psnr_loss": _finite(cost.psnr_loss)}
