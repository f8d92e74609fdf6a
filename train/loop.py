"""The training loop: it stops at any time and continues exactly, from one checkpoint file."""

from __future__ import annotations

import csv
import dataclasses
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from restort.models.torch_network import build
from train.config import Config
from train.fast import forward, losses, speed_up
from train.qat import Quantized
from train.start import starting_weights
from train.tasks import Task, seed_of

COLUMNS = ("step", "seconds", "loss", "learning_rate", "images_per_second", "validation_psnr")
VALIDATION_COLUMNS = ("step", "set", "input", "output", "worst_gain")
LOG_EVERY = 50
EAGER_STEPS = 4  # of a shape before its update is captured


def learning_rate(config: Config, step: int) -> float:
    """Linear warm-up, then a cosine from `learning_rate` to `final_learning_rate` at the last step."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    low = config.final_learning_rate
    return low + (config.learning_rate - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def psnr(a: Tensor, b: Tensor) -> float:
    """PSNR in dB of values in [0, 1], `a` clipped; at most 80."""
    return -10 * math.log10(max((a.clamp(0, 1) - b).square().mean().item(), 1e-8))


class Graphed(NamedTuple):
    """A captured update: copy into `inputs`, replay, read `loss`."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, Tensor]
    loss: Tensor


class GraphedBatch(NamedTuple):
    """A captured batch: seed `generator`, replay, read `pair`."""

    graph: torch.cuda.CUDAGraph
    generator: torch.Generator
    pair: tuple[Tensor, Tensor]


class Trainer:
    """One run in folder `out`: checkpoint.pt, log.csv, and ema.safetensors (float32 weights to ship or start from)."""

    def __init__(
        self,
        config: Config,
        task: Task,
        out: Path,
        device: torch.device,
        *,
        fast: bool,
        fitted: bool = False,
        quantized: Quantized | None = None,
    ) -> None:
        """`fitted`: the number of steps is found by `fit` when the run begins, and kept in its checkpoint.

        `quantized`: the network to train instead of a new one of `config`.
        """
        self.config, self.task, self.out, self.device, self.fitted = config, task, out, device, fitted
        out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config.seed)
        self.metadata = quantized.metadata if quantized else None
        self.model = (quantized.model if quantized else build(config.spec)).to(device).train()
        if config.start_from and not quantized:
            self.model.load_state_dict(starting_weights(Path(config.start_from), self.model, config.spec))
        self.dtype = {"bf16": torch.bfloat16, "fp32": None}[config.precision]
        self.ema = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        on_gpu = device.type == "cuda"
        # a tensor, so that a captured CUDA graph reads the step's own rate
        self.rate = torch.tensor(config.learning_rate, device=device)
        self.optimizer = torch.optim.AdamW(
            parameters,
            self.rate,
            (0.9, 0.99),
            weight_decay=config.weight_decay,
            fused=on_gpu,
            capturable=on_gpu,
        )
        self.loss = losses(config)[config.loss]
        self.fast = fast
        self.graphs: dict[torch.Size, Graphed] = {}  # by the shape of the input
        self.eager_steps: dict[torch.Size, int] = {}
        self.batches: dict[
            tuple[int, int], GraphedBatch | int
        ] = {}  # by (patch, n); a number counts batches before capture
        self.step = 0
        self.seconds = 0.0
        self._resume()
        if fast:
            speed_up(self.model, self.dtype or torch.float32)

    def _resume(self) -> None:
        path = self.out / "checkpoint.pt"
        if not path.is_file():
            return
        saved: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        self.ema = saved["ema"]
        self.step, self.seconds = saved["step"], saved["seconds"]
        if self.fitted:  # the schedule that the first part of the run was fitted to
            self.config = dataclasses.replace(self.config, steps=saved["steps"])
        log = self.out / "log.csv"
        if log.is_file():  # rows after the checkpoint will be written again
            with log.open(newline="") as file:
                rows = [r for r in csv.DictReader(file) if int(r["step"]) <= self.step]
            with log.open("w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(rows)

    def save(self) -> None:
        """Write checkpoint and EMA weights, each to a temporary name and then renamed."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema,
            "step": self.step,
            "seconds": self.seconds,
            "steps": self.config.steps,
        }
        torch.save(state, self.out / "checkpoint.tmp")
        (self.out / "checkpoint.tmp").replace(self.out / "checkpoint.pt")
        ema = {k: v.contiguous() for k, v in self.ema.items()}
        save_file(ema, self.out / "ema.tmp", metadata=self.metadata)
        (self.out / "ema.tmp").replace(self.out / "ema.safetensors")

    def train_step(self) -> Tensor:
        """One step; the loss stays on the device."""
        degraded, clean = self._batch(self.step)
        self.rate.fill_(learning_rate(self.config, self.step))
        loss = self._advance(degraded, clean)
        self._update_ema()
        self.step += 1
        return loss

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The pairs of a step; on a GPU from a CUDA graph, since a recipe launches about a thousand small kernels."""
        if self.task.make is None or not self.fast:
            return self.task.batch(step)
        stage = self.config.stage(step)
        known = self.batches.get(stage, 0)
        if isinstance(known, int):
            if known < EAGER_STEPS - 1:  # fills the caches of constants, which capture could not
                self.batches[stage] = known + 1
                return self.task.batch(step)
            generator = torch.Generator(self.device)
            graph = torch.cuda.CUDAGraph()
            graph.register_generator_state(generator)
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                pair = self.task.make(generator, *stage)
            known = self.batches[stage] = GraphedBatch(graph, generator, pair)
        known.generator.manual_seed(seed_of(self.config, step))
        known.graph.replay()
        return known.pair

    def _advance(self, degraded: Tensor, clean: Tensor) -> Tensor:
        return (self._graphed_update if self.fast else self._update)(degraded, clean)

    def _update(self, degraded: Tensor, clean: Tensor) -> Tensor:
        """Forward, backward and the optimiser."""
        config = self.config
        loss: Tensor = self.loss(forward(self.model, degraded, self.dtype), clean)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip, foreach=True)
        self.optimizer.step()
        return loss.detach()

    def _graphed_update(self, degraded: Tensor, clean: Tensor) -> Tensor:
        """`_update` as one CUDA graph for each shape, captured after a few steps that run without."""
        shape = degraded.shape
        if shape not in self.graphs:
            self.eager_steps[shape] = self.eager_steps.get(shape, 0) + 1
            if self.eager_steps[shape] <= EAGER_STEPS:
                return self._update_on_side_stream(degraded, clean)
            inputs = degraded.clone(), clean.clone()
            graph = torch.cuda.CUDAGraph()
            self.optimizer.zero_grad(set_to_none=True)
            with torch.cuda.graph(graph):
                loss = self._update(*inputs)
            self.graphs[shape] = Graphed(graph, inputs, loss)
        graphed = self.graphs[shape]
        for static, given in zip(graphed.inputs, (degraded, clean), strict=True):
            static.copy_(given)
        graphed.graph.replay()
        return graphed.loss.clone()

    def _update_on_side_stream(self, degraded: Tensor, clean: Tensor) -> Tensor:
        """What capture asks of the steps before it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            loss = self._update(degraded, clean)
        torch.cuda.current_stream().wait_stream(stream)
        return loss

    @torch.no_grad()
    def _update_ema(self) -> None:
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        if not hasattr(self, "_pairs"):
            own = self.model.state_dict()
            floats = [k for k, v in own.items() if v.is_floating_point()]
            self._pairs = [self.ema[k] for k in floats], [own[k] for k in floats]
        torch._foreach_lerp_(*self._pairs, 1 - decay)

    def warm_up(self) -> None:
        """Compile and capture the update of every stage, leaving weights, statistics and optimiser as they were."""
        weights = {k: v.clone() for k, v in self.model.state_dict().items()}
        moments = {p: {k: v.clone() for k, v in s.items()} for p, s in self.optimizer.state.items()}
        self.rate.zero_()
        for share, _, _ in self.config.stages():
            for _ in range(EAGER_STEPS + 2):
                self._advance(*self._batch(math.ceil(share * self.config.steps)))
        self.model.load_state_dict(weights)
        with torch.no_grad():
            for p, state in self.optimizer.state.items():  # in place: captured graphs hold these tensors
                for k, v in state.items():
                    v.copy_(moments[p][k]) if p in moments else v.zero_()

    def fit(self, seconds: float, trial: int = 12) -> None:
        """Set the number of steps so that the whole schedule takes about `seconds`; call it after `warm_up`."""
        if self.step:
            return  # a continued run keeps the schedule it has
        weights = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.rate.zero_()
        stages = self.config.stages()
        ends = [share for share, _, _ in stages[1:]] + [1.0]
        cost = 0.0
        for (share, _, _), end in zip(stages, ends, strict=True):
            step = math.ceil(share * self.config.steps)
            self._advance(*self._batch(step)).item()
            begin = time.perf_counter()
            for i in range(trial):
                self._advance(*self._batch(step + i))
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            cost += (end - share) * (time.perf_counter() - begin) / trial
        self.model.load_state_dict(weights)
        with torch.no_grad():
            for state in self.optimizer.state.values():
                for v in state.values():
                    v.zero_()
        self.config = dataclasses.replace(self.config, steps=max(self.config.warmup + 1, int(seconds / cost)))

    @torch.no_grad()
    def validate(self) -> dict[str, tuple[float, float, float]]:
        """Of every validation set: mean PSNR of input and output, and the least gain of a picture, in dB (RGB, peak 1).

        With the EMA weights, in float32. PSNR ends at 80 dB, where the pictures are equal for any file.
        """
        kept = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.ema)
        self.model.eval()
        result = {}
        with torch.compiler.set_stance("force_eager"):
            for name, pairs in self.task.validation.items():
                before, after = [], []
                for degraded, clean in pairs:
                    enlarged = F.interpolate(degraded, clean.shape[-2:], mode="bicubic")
                    before.append(psnr(enlarged, clean))
                    after.append(psnr(forward(self.model, degraded, None), clean))
                gains = [a - b for a, b in zip(after, before, strict=True)]
                result[name] = (sum(before) / len(before), sum(after) / len(after), min(gains))
        self.model.load_state_dict(kept)
        self.model.train()
        return result

    def _validated(self) -> float:
        """Validate, append a row for each set to validation.csv, and give the mean PSNR over the sets."""
        scores = self.validate()
        path = self.out / "validation.csv"
        new = not path.is_file()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(VALIDATION_COLUMNS)
            for name, values in scores.items():
                writer.writerow([self.step, name, *(f"{v:.3f}" for v in values)])
                print(
                    f"  {name}: {values[0]:.2f} -> {values[1]:.2f} dB, worst gain {values[2]:+.2f}",
                    flush=True,
                )
        return sum(v[1] for v in scores.values()) / max(1, len(scores))

    def run(self, seconds: float | None = None) -> bool:
        """Train until the last step, or for `seconds`; True when the run is complete. Saves before it returns."""
        begin = last_save = time.perf_counter()
        before, images, mark = self.seconds, 0, begin
        losses: list[Tensor] = []
        new = not (self.out / "log.csv").is_file()
        with (self.out / "log.csv").open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if new:
                writer.writeheader()
            while self.step < self.config.steps:
                images += self.config.stage(self.step)[1]
                losses.append(self.train_step())
                last = self.step == self.config.steps
                if self.step % LOG_EVERY == 0 or last:
                    loss = torch.stack(losses).mean().item()  # waits for the device
                    now = time.perf_counter()
                    self.seconds = before + now - begin
                    row = {
                        "step": self.step,
                        "seconds": f"{self.seconds:.1f}",
                        "loss": f"{loss:.6g}",
                        "learning_rate": f"{learning_rate(self.config, self.step - 1):.4g}",
                        "images_per_second": f"{images / (now - mark):.1f}",
                        "validation_psnr": "",
                    }
                    if self.step % self.config.validate_every == 0 or last:
                        row["validation_psnr"] = f"{self._validated():.4f}"
                    writer.writerow(row)
                    file.flush()
                    print(self.config.name, *(f"{k}={v}" for k, v in row.items() if v != ""), flush=True)
                    if not math.isfinite(loss):
                        raise FloatingPointError(
                            f"the loss is {loss} at step {self.step}; the last checkpoint is sound"
                        )
                    if now - last_save > self.config.checkpoint_seconds:
                        self.save()
                        last_save = time.perf_counter()
                    losses, images, mark = [], 0, time.perf_counter()
                    if seconds is not None and now - begin > seconds:
                        break
        self.save()
        return self.step >= self.config.steps
