"""The training loop: it stops at any time and continues exactly, from one checkpoint file."""

from __future__ import annotations

import csv
import math
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from restort.models.build import build
from train.config import Config
from train.fast import LOSSES, forward, speed_up
from train.tasks import Task

COLUMNS = ("step", "seconds", "loss", "learning_rate", "images_per_second", "validation_psnr")
LOG_EVERY = 50


def learning_rate(config: Config, step: int) -> float:
    """Linear warm-up, then a cosine from `learning_rate` to `final_learning_rate` at the last step."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    low = config.final_learning_rate
    return low + (config.learning_rate - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Trainer:
    """One run in folder `out`: checkpoint.pt, log.csv, and ema.safetensors (float32 weights to ship or start from)."""

    def __init__(self, config: Config, task: Task, out: Path, device: torch.device, *, fast: bool) -> None:
        self.config, self.task, self.out, self.device = config, task, out, device
        out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config.seed)
        self.model = build(config.spec).to(device).train()
        if config.start_from:
            self._start_from(Path(config.start_from))
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
        self.fast, self.graph, self.eager_steps = fast, None, 0
        self.step = 0
        self.seconds = 0.0
        self._resume()
        if fast:
            speed_up(self.model, self.dtype or torch.float32)

    def _start_from(self, path: Path) -> None:
        """Take over every parameter whose name and shape agree; a tail of another scale starts anew."""
        own = self.model.state_dict()
        given = load_file(path, device=str(self.device))
        self.model.load_state_dict(
            {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}, strict=False
        )

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
        }
        torch.save(state, self.out / "checkpoint.tmp")
        (self.out / "checkpoint.tmp").replace(self.out / "checkpoint.pt")
        save_file({k: v.contiguous() for k, v in self.ema.items()}, self.out / "ema.tmp")
        (self.out / "ema.tmp").replace(self.out / "ema.safetensors")

    def train_step(self) -> Tensor:
        """One step; the loss stays on the device."""
        degraded, clean = self.task.batch(self.step)
        self.rate.fill_(learning_rate(self.config, self.step))
        update = self._graphed_update if self.fast else self._update
        loss = update(degraded, clean)
        self._update_ema()
        self.step += 1
        return loss

    def _update(self, degraded: Tensor, clean: Tensor) -> Tensor:
        """Forward, backward and the optimiser."""
        config = self.config
        loss: Tensor = LOSSES[config.loss](forward(self.model, degraded, self.dtype), clean)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip, foreach=True)
        self.optimizer.step()
        return loss.detach()

    def _graphed_update(self, degraded: Tensor, clean: Tensor) -> Tensor:
        """The same as one CUDA graph, captured anew for each shape after a few steps that run as they are."""
        if self.graph is None or self.graph_inputs[0].shape != degraded.shape:
            if self.graph is not None:
                self.graph, self.eager_steps = None, 0
            if self.eager_steps < 4:
                self.eager_steps += 1
                return self._update_on_side_stream(degraded, clean)
            self.graph_inputs = (degraded.clone(), clean.clone())
            self.graph = torch.cuda.CUDAGraph()
            self.optimizer.zero_grad(set_to_none=True)
            with torch.cuda.graph(self.graph):
                self.graph_loss = self._update(*self.graph_inputs)
        for static, given in zip(self.graph_inputs, (degraded, clean), strict=True):
            static.copy_(given)
        self.graph.replay()
        return self.graph_loss.clone()

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

    @torch.no_grad()
    def validate(self) -> float:
        """Mean PSNR (RGB, peak 1) of the EMA weights in float32 over the held-out photographs."""
        kept = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.ema)
        self.model.eval()
        scores = []
        with torch.compiler.set_stance("force_eager"):
            for degraded, clean in self.task.validation:
                result = forward(self.model, degraded, None).clamp(0, 1)
                scores.append(-10 * math.log10(max((result - clean).square().mean().item(), 1e-12)))
        self.model.load_state_dict(kept)
        self.model.train()
        return sum(scores) / max(1, len(scores))

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
                        row["validation_psnr"] = f"{self.validate():.4f}"
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
