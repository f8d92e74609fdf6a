"""Restormer's half blocks as one kernel each: GDFN, and MDTA's Gram matrix."""

from __future__ import annotations

from typing import Any

from tuning.problem import Constants, Problem, drawn

LEVELS = {  # channels, hidden channels, heads, divisor of the picture's size
    "level 1": (48, 128, 1, 1),
    "decoder 1": (96, 256, 1, 1),
    "level 2": (96, 256, 2, 2),
    "level 3": (192, 512, 4, 4),
}


def half_block(place: str, height: int, width: int, dtype: Any, device: Any) -> dict[str, Any]:
    """Arguments of both halves, about unit activations; the official networks have no biases."""
    import torch

    torch.manual_seed(0)
    c, f, _, divisor = LEVELS[place]
    h, w = height // divisor, width // divisor

    def draw(*shape: int, scale: float = 1.0, kind: Any = dtype) -> Any:
        return drawn(device, kind, *shape, scale=scale)

    return {
        "x": draw(1, h, w, c),
        "v": draw(1, h, w, c),
        "attention": draw(1, c, c, scale=c**-0.5),
        "attention_b": None,
        "w": draw(2 * f, c, scale=c**-0.5),
        "affine": draw(2, 2 * f, kind=torch.float32),
        "dw": draw(10, 2 * f, scale=0.33),
        "out_w": draw(f, c, scale=f**-0.5),
        "out_b": None,
        "qkv_w": draw(3 * c, c, scale=c**-0.5),
        "qkv_affine": draw(2, 3 * c, kind=torch.float32),
        "qkv_dw": draw(10, 3 * c, scale=0.33),
    }


def in_float32(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: None if value is None else value.float() for name, value in arguments.items()}


def gdfn(place: str, height: int, width: int, dtype: Any, device: Any) -> Problem:
    import torch

    from restort.kernels.gdfn import reference, sm80, sm90

    given = half_block(place, height, width, dtype, device)
    out = torch.empty_like(given["x"])

    def launch(form: str, constants: Constants) -> Any:
        kernel: Any = sm90 if form == "sm90" else sm80
        weights = kernel.pack(given["w"], given["affine"], given["dw"], given["out_w"])
        names = ("x", "v", "attention", "attention_b", "out_b")
        arrays = {**{n: given[n] for n in names}, "weights": weights, "out": out}
        hidden = {} if form == "sm90" else {"hidden": len(given["out_w"])}
        return kernel.launch(**arrays, **hidden, **constants)

    def expected() -> list[Any]:
        names = ("x", "v", "attention", "attention_b", "w", "affine", "dw", "out_w", "out_b")
        return [reference.gdfn(**{n: v for n, v in in_float32(given).items() if n in names})]

    return Problem(launch, lambda one: [out], expected)


def mdta_gram(place: str, height: int, width: int, dtype: Any, device: Any) -> Problem:
    import torch

    from restort.kernels.gpu_target import gpu_target
    from restort.kernels.mdta_gram import reference, sm80, sm90

    given = half_block(place, height, width, dtype, device)
    n, h, w, c = given["x"].shape
    heads = LEVELS[place][2]
    v = torch.empty_like(given["x"])
    _, sms = gpu_target(torch.device(device))

    def launch(form: str, constants: Constants) -> Any:
        kernel: Any = sm90 if form == "sm90" else sm80
        splits = kernel.splits(n, h, w, c, sms, **constants)
        sums = torch.empty(splits, n, heads, c // heads * (c // heads + 2), device=device)
        parts = given["qkv_w"], given["qkv_affine"], given["qkv_dw"]
        if form == "sm90":
            return sm90.launch(given["x"], sm90.pack(*parts), v, sums, **constants)
        return sm80.launch(given["x"], *parts, v, sums, **constants)

    def expected() -> list[Any]:
        x, *parts = (given[name].float() for name in ("x", "qkv_w", "qkv_affine", "qkv_dw"))
        return list(reference.mdta_gram(x, *parts, heads))

    return Problem(
        launch,
        lambda one: [v, one.tensors["sums"]],
        expected,
        compared=lambda seen: [seen[0], seen[1].sum(0)],
    )


def half_block_allows(place: str, form: str, constants: Constants) -> bool:
    """More channels than 96 leave no registers for other numbers of warps and blocks, more than 48 none for 12 rows."""
    c = LEVELS[place][0]
    if form == "sm90" and "only" in constants:
        return c in constants["only"]
    registers = (c <= 96 or not {"WARPS", "BLOCKS"} & constants.keys()) and (
        c <= 48 or constants.get("TALL") != 12
    )
    return registers and c % constants.get("CHUNK", 16) == 0
