"""A model repository for NVIDIA's Triton Inference Server: NAME/config.pbtxt and NAME/1/model.onnx or model.plan.

The configuration has one size of pictures, to which clients pad, and batches in fixed rungs: the server prefers to
collect that many pictures, and runs each rung once before it is ready. It has nothing to do with the language Triton.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

FILES = {"onnxruntime": "model.onnx", "tensorrt": "model.plan"}
"""The file of version 1 for each backend of the server."""


@dataclass(frozen=True)
class ServedModel:
    """What config.pbtxt says.

    name        of the model and its folder
    backend     of the server, a key of FILES
    dtype       of input and output
    channels    of input and output
    size        (height, width) of the input in pixels
    scale       of the output
    rungs       sizes of batches, increasing; the last one is the largest
    delay       milliseconds that a picture may wait for others
    """

    name: str
    backend: str
    dtype: Literal["FP32", "FP16"]
    channels: tuple[int, int]
    size: tuple[int, int]
    scale: int
    rungs: Sequence[int]
    delay: float = 5.0

    def config(self) -> str:
        """Return config.pbtxt, the text form of the server's message ModelConfig."""
        height, width = self.size
        inputs = f"{self.channels[0]}, {height}, {width}"
        outputs = f"{self.channels[1]}, {height * self.scale}, {width * self.scale}"
        parts = [
            "# Pictures are RGB in 0..1, NCHW. Clients pad them to the size of the input and cut the output.",
            f"name: {json.dumps(self.name)}",
            f'backend: "{self.backend}"',
            f'default_model_filename: "{FILES[self.backend]}"',
            f"max_batch_size: {self.rungs[-1]}",
            f'input [{{ name: "input" data_type: TYPE_{self.dtype} dims: [{inputs}] }}]',
            f'output [{{ name: "output" data_type: TYPE_{self.dtype} dims: [{outputs}] }}]',
            "instance_group [{ kind: KIND_AUTO count: 1 }]",
        ]
        if len(self.rungs) > 1:
            preferred = ", ".join(str(rung) for rung in self.rungs if rung > 1)
            delay = round(self.delay * 1000)
            parts.append(
                f"dynamic_batching {{ preferred_batch_size: [{preferred}] max_queue_delay_microseconds: {delay} }}"
            )
        for rung in self.rungs:
            zeros = f'{{ key: "input" value {{ data_type: TYPE_{self.dtype} dims: [{inputs}] zero_data: true }} }}'
            parts.append(
                f'model_warmup [{{ name: "batch {rung}" batch_size: {rung} count: 1 inputs {zeros} }}]'
            )
        return "\n".join(parts) + "\n"


def repository_name(name: str) -> str:
    """Return a name that the server takes for a model and the system for a folder."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip(".") or "model"
