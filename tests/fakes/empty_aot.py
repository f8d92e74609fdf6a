"""An AOT package without launches; making it needs neither PyTorch nor a compiler."""

from __future__ import annotations

from typing import Any

import restort
from restort.backends.fused.aot_cache import AotRequest
from restort.backends.fused.aot_package import ALIGNMENT, AotPackage, Kernel, Region, write_aot
from restort.backends.fused.sources import sources_digest


def aot_of(request: AotRequest, **text: Any) -> bytes:
    """The bytes of one that is as requested, but for what `text` says of it."""
    (n, h, w), spec = request.shape, request.weights.spec
    shapes = (n, spec.in_channels, h, w), (n, spec.out_channels, h * spec.scale, w * spec.scale)
    regions = []
    for kind, (b, c, y, x) in zip(("input", "output"), shapes):
        regions.append(Region(kind, -(-4 * b * c * y * x // ALIGNMENT) * ALIGNMENT))
    regions += [Region("weights", 1 << 20, b"\1" * 100), Region("scratch", 2 << 20)]
    about = {
        "architecture": spec.architecture,
        "precision": request.precision,
        "weights_sha256": request.weights.digest,
        "restort": restort.__version__,
        "sources": sources_digest(),
        "compilers": "Triton 3.9.0, NVRTC 13.0",
    } | text
    kernel = Kernel(b"\x7fELF", "kernel", 0, 32)
    return write_aot(AotPackage(request.capability, *shapes, tuple(regions), (kernel,), (), about))
