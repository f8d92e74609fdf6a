"""Libraries that report their use to their makers, imported so that they do not."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any


def onnx_runtime() -> Any:
    """Import onnxruntime without its telemetry.

    From version 1.32 on it writes a device id below HOME and looks up its maker's host, unless this variable is set
    before the import. A value that the user has set is kept.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return importlib.import_module("onnxruntime")


def openvino() -> Any:
    """Import openvino without its telemetry.

    Importing it sends an event to a web service, through the package openvino_telemetry; where that cannot be imported
    it does without. A None in sys.modules makes the import fail.
    """
    name = "openvino_telemetry"
    hidden = "openvino" not in sys.modules and name not in sys.modules
    if hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("openvino")
    finally:
        if hidden:
            del sys.modules[name]
