"""What do INT8 and FP8 cost in dB, and which mistake costs how much? `accuracy.py quantize`.

`ptq` runs the files of `restort export --precision int8|fp8` in ONNX Runtime. `causes` rounds in PyTorch, where
everything can be rounded: each variant makes one mistake beside the INT8 of the exported file, the last ones several.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from harness import RESULTS, SHARED, Record, about, write_json
from model_errors import SHIPPED, task_of
from torch import Tensor, nn

from restort.evaluation.scoring import evaluate
from restort.export.emit import emit
from restort.export.qdq import quantizable_layers
from restort.models import elan
from restort.models.torch_network import build
from restort.profiling.calibration import EDGE, TRAINED_KIND, TRAINED_RANGES, calibrated
from restort.profiling.fake_quantization import FakeQuantConv, fake_quantize, input_ranges, quantize_layers
from restort.profiling.lowered import fold_batch_norms
from restort.profiling.pairs import pairs
from restort.profiling.samples import files
from restort.tiling.padding import pad_to_multiple
from restort.utils.cpu import processor_name
from restort.utils.quiet_imports import onnx_runtime
from restort.weights.checkpoint import Weights, load_weights

Array = np.ndarray
Run = Callable[[Array], Array]  # (1, C, H, W) in [0, 1], H and W multiples of the network's size multiple
MODELS = ("elan-light-x4", "restormer-small-denoise")
SETS = {"upscale": ("set5", "set14"), "denoise": ("kodak24",)}
SIGMA = 25.0
CALIBRATION = 8  # pictures
NOT_BLOCKS = {"elan": ("head.0", "tail.0"), "restormer": ("patch_embed.proj", "output")}


class PerTensorConv(FakeQuantConv):
    """FakeQuantConv with one scale for the whole weight."""

    def weight_range(self) -> Tensor:
        return self.weight.detach().abs().amax()


@dataclass(frozen=True)
class Mistake:
    """A variant of INT8. Defaults are those of the exported file, whose channels are equalised besides.

    share       of the absolute values that a range covers, much as an entropy calibrator chooses it
    unit_scale  ranges are measured on [0, 1] where the network takes [0, 255]
    scores      +-range of the attention scores, rounded to INT8; 0: the largest of the calibration; None: float
    """

    name: str
    per_tensor: bool = False
    share: float = 1.0
    unit_scale: bool = False
    ends: bool = False
    sums: bool = False
    scores: float | None = None


MISTAKES = (
    Mistake("none (channels not equalised)"),
    Mistake("weights with one scale a layer", per_tensor=True),
    Mistake("head and tail in INT8, too", ends=True),
    Mistake("residual sums in INT8", sums=True),
    Mistake("ranges of 99.9 % of the values", share=0.999),
    Mistake("ranges of 99 % of the values", share=0.99),
    Mistake("scores in INT8, +-1200", scores=1200.0),
    Mistake("scores in INT8, +-100", scores=100.0),
    Mistake("scores in INT8, +-10", scores=10.0),
    Mistake("scores in INT8, +-3", scores=3.0),
    Mistake("calibrated on [0, 1] instead of [0, 255]", unit_scale=True),
    Mistake("[0, 1], and sums, head, tail", unit_scale=True, sums=True, ends=True),
    Mistake("[0, 1], and sums, head, tail, scores +-10", False, 1.0, True, True, True, 10.0),
    Mistake(
        "[0, 1], and sums, head, tail, scores by the same calibration", False, 1.0, True, True, True, 0.0
    ),
    Mistake("the same, and weights with one scale a layer", True, 1.0, True, True, True, 0.0),
    Mistake("residual sums in INT8 by 99 % of the values", share=0.99, sums=True),
    Mistake("sums, head, tail, scores by 99.9 % of the values", False, 0.999, False, True, True, 0.0),
    Mistake("sums, head, tail, scores by 99 % of the values", False, 0.99, False, True, True, 0.0),
    Mistake("[0, 1], and sums, head, tail, scores by 99 % of the values", False, 0.99, True, True, True, 0.0),
)


@dataclass
class Simulation:
    """The network in PyTorch with its BatchNorm folded, and what it was calibrated on."""

    weights: Weights
    calibration: list[Array]
    scale: float = field(init=False)

    def __post_init__(self) -> None:
        self.scale = self.weights.spec.value_range

    def network(self) -> nn.Module:
        return fold_batch_norms(build(self.weights.spec, self.weights.state)).eval()

    @contextmanager
    def run(self, mistake: Mistake) -> Iterator[Run]:
        """The network with the mistake; patches the attention while it is open."""
        names = quantizable_layers(self.weights.spec)
        names += NOT_BLOCKS[self.weights.spec.architecture] if mistake.ends else ()
        unit = 1.0 if mistake.unit_scale else self.scale
        inputs = [torch.from_numpy(x) * unit for x in self.calibration]
        measure = input_ranges if mistake.share == 1 else lambda *given: quantiles(*given, mistake.share)
        network = self.network()
        ranges = measure(network, names, inputs)
        parts = Parts(mistake)
        with torch.no_grad(), parts.rounded():
            for x in inputs if mistake.sums or mistake.scores == 0 else ():
                network(x)
            parts.measuring = False
            quantize_layers(network, ranges, "int8")
            for module in network.modules() if mistake.per_tensor else ():
                if isinstance(module, FakeQuantConv):
                    module.__class__ = PerTensorConv
            yield lambda x: (network(torch.from_numpy(x) * self.scale) / self.scale).numpy()


class Parts:
    """ELAN's attention scores and residual stream in INT8, as a mistake has them.

    Ranges are measured first: of the sums one for each group, of the scores one for the network.
    """

    def __init__(self, mistake: Mistake) -> None:
        self.mistake, self.measuring = mistake, True
        self.ranges: dict[int, Tensor] = {}  # by group; 0: of the scores
        if mistake.scores:
            self.ranges[0] = torch.tensor(mistake.scores)

    @contextmanager
    def rounded(self) -> Iterator[None]:
        attention = elan.window_attention if self.mistake.scores is None else self.attention
        forward = (lambda group, x: self.forward(group, x)) if self.mistake.sums else elan.Group.forward
        with (
            mock.patch.object(elan, "window_attention", attention),
            mock.patch.object(elan.Group, "forward", forward),
        ):
            yield

    def attention(self, q: Tensor, v: Tensor, size: int, rolled: bool) -> Tensor:
        offset = size // 2 if rolled else 0
        q, v = (torch.roll(t, (-offset, -offset), (2, 3)) for t in (q, v))
        rows = elan.windows(q, size)
        scores = self.round(0, rows @ rows.transpose(1, 2))
        y = elan.unwindows(scores.softmax(-1) @ elan.windows(v, size), size, v.shape)
        return torch.roll(y, (offset, offset), (2, 3))

    def forward(self, group: elan.Group, x: Tensor) -> Tensor:
        queries = None
        for lfe, gmsa in zip(group.modules_lfe.values(), group.modules_gmsa.values(), strict=True):
            x = self.round(id(group), lfe(x) + x)
            y, queries = gmsa(x, queries)
            x = self.round(id(group), y + x)
        return x

    def round(self, key: int, x: Tensor) -> Tensor:
        if not self.measuring:
            return fake_quantize(x, self.ranges[key], "int8")
        if key or not self.mistake.scores:
            largest = torch.tensor(largest_of(x, self.mistake.share))
            self.ranges[key] = torch.maximum(self.ranges.get(key, torch.tensor(0.0)), largest)
        return x


def largest_of(x: Tensor, share: float) -> float:
    """The size below which `share` of the values of `x` lie."""
    values = x.abs().flatten()
    place = max(1, round(share * values.numel()))
    return float(values.max() if share == 1 else values.kthvalue(place).values)


@torch.no_grad()
def quantiles(
    network: nn.Module, names: tuple[str, ...], inputs: list[Tensor], share: float
) -> dict[str, float]:
    """As `input_ranges`, of `share` of the absolute values of a picture; the largest of all pictures."""
    found = dict.fromkeys(names, 0.0)

    def observe(name: str) -> Any:
        def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            values = given[0].abs().flatten()
            found[name] = max(
                found[name], float(values.kthvalue(max(1, round(share * values.numel()))).values)
            )

        return network.get_submodule(name).register_forward_pre_hook(hook)

    hooks = [observe(name) for name in names]
    for x in inputs:
        network(x)
    for hook in hooks:
        hook.remove()
    return found


def exported(weights: Weights, kind: str, pictures: list[Path]) -> Run:
    """The exported graph in ONNX Runtime: 'fp32', 'int8' or 'fp8'."""
    ort = onnx_runtime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if kind == "fp32":
        model = emit(weights)
    else:
        trained = TRAINED_RANGES in weights.metadata  # their own ranges
        found = calibrated(weights, kind, () if trained else pictures)  # type: ignore[arg-type]
        model = emit(found.weights, quantization=found.quantization)
    graph = model.SerializeToString()
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(["output"], {"input": x})[0]


def psnr_of(run: Run, weights: Weights, dataset: str, args: argparse.Namespace) -> float:
    """Mean PSNR in dB of a test set."""
    scale, task = weights.spec.scale, task_of(weights)

    def restore(image: Array) -> Array:
        height, width = image.shape[0] * scale, image.shape[1] * scale
        x = pad_to_multiple(image.transpose(2, 0, 1)[None], weights.spec.size_multiple)
        return run(np.ascontiguousarray(x, np.float32))[0].transpose(1, 2, 0)[:height, :width]

    noise: dict[str, Any] = {"sigmas": (SIGMA,)} if task == "denoise" else {"scale": scale}
    report = evaluate(
        restore, args.data / dataset, task, limit=args.limit, crop=args.crop, ssim=False, **noise
    )
    (mean,) = report.averages()
    return mean.psnr


class Tables:
    """The record, written after every row. Rows that it has of the same weights and settings are not made again."""

    def __init__(self, output: Path, about_all: Record) -> None:
        self.output = output
        self.record: Record = json.loads(output.read_text()) if output.is_file() else {"tables": []}
        self.record |= about_all

    def rows(self, named: Record) -> list[Record]:
        """The rows of the table `named`, to which `add` appends."""
        for table in self.record["tables"]:
            if all(table[key] == value for key, value in named.items()):
                return table["rows"]  # type: ignore[no-any-return]
        same = ("table", "model", "dataset")
        others = [t for t in self.record["tables"] if any(t[key] != named[key] for key in same)]
        self.record["tables"] = [*others, {**named, "rows": []}]
        return self.record["tables"][-1]["rows"]  # type: ignore[no-any-return]

    def find(self, model: str, dataset: str, settings: Record) -> float:
        """The PSNR of `model` in fp32."""
        for table in self.record["tables"]:
            named = (table["table"], table["model"], table["dataset"], table["settings"])
            if named == ("ptq", model, dataset, settings):
                return float(table["rows"][0]["psnr"])
        raise SystemExit(f"the record lacks {model} on {dataset} with {settings}; measure it first")

    def add(self, rows: list[Record], name: str, measure: Callable[[], float], base: float | None) -> float:
        """Measure the PSNR of `name` where it is not there; `base` is that of fp32."""
        for row in rows:
            if row["name"] == name:
                return float(row["psnr"])
        psnr = round(measure(), 4)
        rows.append(
            {"name": name, "psnr": psnr, "loss_db": round((psnr if base is None else base) - psnr, 4)}
        )
        print(f"| {name} | {psnr:.3f} | {rows[-1]['loss_db']:.3f} |", file=sys.stderr, flush=True)
        write_json(self.output, self.record | {"about": about()})
        return psnr


def quantize(args: argparse.Namespace) -> int:
    """Write the record, row by row."""
    pictures = files([args.calibration or SHARED / "data" / "train"])
    pictures = pictures[:: max(1, len(pictures) // CALIBRATION)][:CALIBRATION]
    calibration = {"device": processor_name(), "calibration": [path.name for path in pictures]}
    tables = Tables(args.output or RESULTS / "accuracy" / "quantization.json", calibration)
    for path in (*(SHIPPED / f"{name}.safetensors" for name in MODELS), *args.weights):
        weights = load_weights(path)
        if args.only in label_of(weights):
            score_model(weights, tables, pictures, args)
    return 0


def label_of(weights: Weights) -> str:
    """The name of a model in the record; of weights that were trained quantised it ends in -qat."""
    trained = TRAINED_KIND in weights.metadata
    return f"{weights.metadata.get('model', weights.path.stem)}-qat" if trained else weights.path.stem


def score_model(weights: Weights, tables: Tables, pictures: list[Path], args: argparse.Namespace) -> None:
    settings: Record = {"crop": args.crop, "limit": args.limit}
    settings |= {"sigma": SIGMA} if weights.spec.scale == 1 else {}
    label = label_of(weights)
    named = {"model": label, "weights_sha256": weights.digest, "settings": settings}
    base: dict[str, float] = {}  # PSNR of fp32 by set

    def file_psnr(kind: str, dataset: str) -> float:
        return psnr_of(exported(weights, kind, pictures), weights, dataset, args)

    for dataset in SETS[task_of(weights)]:
        rows = tables.rows({"table": "ptq", "dataset": dataset, **named})
        kinds: tuple[str, ...] = ("int8", "fp8")
        if TRAINED_KIND in weights.metadata:  # the loss is against the weights that the training began with
            kinds = (weights.metadata[TRAINED_KIND],)
            base[dataset] = tables.find(label.removesuffix("-qat"), dataset, settings)
        else:
            base[dataset] = tables.add(rows, "fp32", partial(file_psnr, "fp32", dataset), None)
        for kind in kinds:
            tables.add(rows, kind, partial(file_psnr, kind, dataset), base[dataset])
    if weights.spec.architecture != "elan" or weights.path in args.weights:
        return
    simulation = Simulation(weights, [pair.x for pair in pairs(weights, pictures, EDGE)])

    def mistake_psnr(mistake: Mistake) -> float:
        with simulation.run(mistake) as run:
            return psnr_of(run, weights, "set5", args)

    rows = tables.rows({"table": "causes", "dataset": "set5", **named})
    for mistake in MISTAKES:
        tables.add(rows, mistake.name, partial(mistake_psnr, mistake), base["set5"])
