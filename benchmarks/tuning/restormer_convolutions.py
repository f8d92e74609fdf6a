"""Restormer's 3x3 convolutions between its levels, and the 1x1 convolutions after the skip connections."""

from __future__ import annotations

from typing import Any

from tuning.problem import Constants, Problem, drawn, tiling_replaced

RING = {"TAPS": 1, "SLOTS": 4, "BLOCKS": 2}
LARGE, SMALL = {**RING, "PARTS": 2}, {**RING, "PARTS": 1}
UPS = [
    {},
    {**SMALL, "COLUMNS": 192, "DEFER": 1},
    {**SMALL, "COLUMNS": 96, "BLOCKS": 3, "SLOTS": 3, "DEFER": 0},
    {**LARGE, "COLUMNS": 96, "DEFER": 1},
    {**LARGE, "COLUMNS": 96, "DEFER": 0},
    {**SMALL, "COLUMNS": 48, "TAPS": 3, "SLOTS": 3, "DEFER": 0},
]
DOWNS = [
    {},
    {**LARGE, "DEFER": 1},
    {**SMALL, "BLOCKS": 3, "DEFER": 0},
    {**LARGE, "TAPS": 3, "SLOTS": 2, "DEFER": 0},
]
CONVOLUTIONS: dict[
    str, tuple[str, int, int, int, list[Constants]]
] = {  # mode, divisor, channels, rows, variants
    "output": ("LAST", 1, 96, 3, [{}, {"TALL": 12, "BLOCKS": 4}]),
    "down1_2": ("DOWN", 1, 48, 24, [{}, {"BLOCKS": 4}, {"TAPS": 3, "SLOTS": 3}]),
    "up2_1": ("UP", 2, 96, 192, UPS),
    "down2_3": ("DOWN", 2, 96, 48, DOWNS),
    "patch_embed": ("FIRST", 1, 3, 48, [{}, {"WARPS": 4, "BLOCKS": 4}]),
    "down3_4": ("DOWN", 4, 192, 96, [*DOWNS[:3], {**SMALL, "COLUMNS": 48, "DEFER": 0}]),
    "up3_2": ("UP", 4, 192, 384, UPS),
    "up4_3": ("UP", 8, 384, 768, UPS),
}


def conv3x3(place: str, height: int, width: int, dtype: Any, device: Any) -> Problem:
    import torch

    from restort.backends.fused.restormer_weights import step
    from restort.kernels.conv3x3 import reference, sm90
    from restort.kernels.conv3x3 import triton as kernel
    from restort.kernels.conv3x3_first import reference as first_reference
    from restort.kernels.conv3x3_first import sm80 as first_sm80
    from restort.kernels.conv3x3_first import triton as first
    from restort.kernels.conv3x3_last import reference as last_reference
    from restort.kernels.conv3x3_last import sm90 as last_sm90
    from restort.utils.integers import round_up

    kind, divisor, c, rows, _ = CONVOLUTIONS[place]
    h, w = height // divisor, width // divisor
    torch.manual_seed(0)
    if kind == "FIRST":
        image = torch.rand(1, c, h, w, device=device)
        taps = torch.zeros(rows, 32, device=device)
        taps[:, : 9 * c] = drawn(device, torch.float32, rows, 9 * c, scale=(9 * c) ** -0.5)
        y = drawn(device, dtype, 1, h, w, rows)

        def launch_first(form: str, constants: Constants) -> Any:
            if form == "triton":
                return first.launch(image, taps, y)
            return first_sm80.launch(image, first_sm80.pack(taps, c, dtype), y, **constants)

        return Problem(
            launch_first, lambda one: [y], lambda: [first_reference.conv3x3_first(image, taps, torch.float32)]
        )
    mode = getattr(kernel, kind)
    x = drawn(device, dtype, 1, h, w, c)
    weight = drawn(device, dtype, rows, 3, round_up(3 * c, step(c)), scale=(9 * c) ** -0.5)
    bias = torch.zeros(rows, device=device)
    extra = None
    if kind == "LAST":
        extra, y = torch.rand(1, rows, h, w, device=device), drawn(device, torch.float32, 1, rows, h, w)
    elif kind == "DOWN":
        y = drawn(device, dtype, 1, h // 2, w // 2, 4 * rows)
    else:
        extra = drawn(device, dtype, 1, 2 * h, 2 * w, rows // 4) if place == "up2_1" else None
        y = drawn(device, dtype, 1, 2 * h, 2 * w, rows // (4 if extra is None else 2))

    def launch(form: str, constants: Constants) -> Any:
        if form == "triton":
            with tiling_replaced(kernel, constants):
                return kernel.launch(mode, x, weight, bias, y, step=step(c), extra=extra)
        if kind == "LAST":
            return last_sm90.launch(x, last_sm90.pack(weight, c), bias, y, extra=extra, **constants)
        macros = {**sm90.tiling(mode, c, rows, 1, h, w), **constants}
        return sm90.launch(mode, x, sm90.pack(weight, c, macros), bias, y, extra=extra, **constants)

    def expected() -> list[Any]:
        more = None if extra is None else extra.float()
        a, b = x.float(), weight.float()
        if kind == "DOWN":
            return [reference.down(a, b, bias)]
        return [(last_reference.conv3x3_last if kind == "LAST" else reference.up)(a, b, bias, more)]

    return Problem(launch, lambda one: [y], expected)


def conv3x3_allows(place: str, form: str, constants: Constants) -> bool:
    if form == "triton":
        return not constants or CONVOLUTIONS[place][0] in ("UP", "DOWN")
    return constants in CONVOLUTIONS[place][4]


def conv1x1(place: str, height: int, width: int, dtype: Any, device: Any) -> Problem:
    import torch

    from restort.kernels.conv1x1 import reference
    from restort.kernels.conv1x1 import triton as kernel

    torch.manual_seed(0)
    divisor, c, rows = {"reduce_chan_level3": (4, 384, 192), "reduce_chan_level2": (2, 192, 96)}[place]
    h, w = height // divisor, width // divisor
    a, b = (drawn(device, dtype, 1, h, w, c // 2) for _ in range(2))
    weight, y = drawn(device, dtype, rows, c, scale=c**-0.5), drawn(device, dtype, 1, h, w, rows)
    bias = torch.zeros(rows, device=device)

    def launch(form: str, constants: Constants) -> Any:
        with tiling_replaced(kernel, constants):
            return kernel.launch(a, weight, bias, y, b=b)

    return Problem(
        launch, lambda one: [y], lambda: [reference.conv1x1(a.float(), weight.float(), bias, b=b.float())]
    )
