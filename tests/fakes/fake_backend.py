"""The command line with a stand-in for the network, so that tests of everything around it are quick.

Enlarging repeats pixels; networks of scale 1 invert them. `python fake_backend.py ARGUMENTS` runs the command line in
a process of its own; FAKE_SECONDS makes every run of the network last that long, FAKE_ROOM lets every run of more
pixels fail for lack of memory, FAKE_USER gives up root before any picture is read whole.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from restort.errors import OutOfMemory
from restort.models.spec import ElanSpec, RestormerSpec, Spec, parameter_shapes
from restort.runner import Runner

ELAN = {
    scale: ElanSpec(
        scale=scale,
        blocks=2,
        channels=10,
        n_share=1,
        colors=3,
        window_sizes=(4, 8, 16),
        rgb_range=255.0,
        expand=2,
    )
    for scale in (2, 3, 4)
}
RESTORMER = RestormerSpec(
    in_channels=3,
    out_channels=3,
    dim=8,
    num_blocks=(1, 1, 1, 1),
    num_refinement_blocks=1,
    heads=(1, 2, 4, 8),
    ffn_expansion=2.0,
    bias=False,
    layer_norm="BiasFree",
    dual_pixel=False,
)


def write_weights(path: Path, spec: Spec, seed: int = 0, metadata: dict[str, str] | None = None) -> Path:
    """A file of small random weights; the fixed buffers of an ELAN are left to the reader."""
    random = np.random.default_rng(seed)
    fixed = ("shift_conv.weight", "num_batches_tracked", "_mean.weight", "_mean.bias")
    state = {}
    for name, shape in parameter_shapes(spec).items():
        if not name.endswith(fixed):
            values = random.standard_normal(shape) * 0.1
            state[name] = (np.abs(values) + 1 if "running_var" in name else values).astype(np.float32)
    save_file(state, path, metadata)
    return path


class FakeRunner(Runner):
    name = "fake"

    def __init__(self, spec: Spec, precision: str) -> None:
        self.spec = spec
        self.precision = "fp32" if precision == "auto" else precision
        self.calls = 0
        self.failed: list[tuple[int, ...]] = []
        self.closed = False

    def __call__(self, x: np.ndarray) -> np.ndarray:
        assert x.dtype == np.float32 and x.flags.c_contiguous
        assert x.shape[1] == self.spec.in_channels
        assert not x.shape[2] % self.spec.size_multiple and not x.shape[3] % self.spec.size_multiple
        self.calls += 1
        time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
        if x.shape[0] * x.shape[2] * x.shape[3] > int(os.environ.get("FAKE_ROOM", 1 << 62)):
            self.failed.append(x.shape)
            raise OutOfMemory("the memory of the fake is not enough")
        if self.spec.scale == 1:
            return 1 - x[:, : self.spec.out_channels]
        return x.repeat(self.spec.scale, axis=2).repeat(self.spec.scale, axis=3)

    def close(self) -> None:
        self.closed = True


def create(
    weights: Any,
    backend: str = "auto",
    precision: str = "auto",
    *,
    threads: Any = None,
    notify: Any = None,
    warn: Any = None,
) -> FakeRunner:
    if "FAKE_USER" in os.environ:  # as late as this: that user may not be able to read Python's own modules
        from restort.imaging.vips import vips
        from restort.utils import memory

        vips()
        memory.available_memory()
        os.seteuid(int(os.environ["FAKE_USER"]))
    return FakeRunner(weights.spec, precision)


def main() -> int:
    from restort.backends import registry
    from restort.cli.main import main as command_line

    registry.create = create  # type: ignore[assignment]
    return command_line(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
