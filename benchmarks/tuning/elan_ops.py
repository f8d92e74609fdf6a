"""ELAN's two ops: local feature extraction (LFE) and attention within windows."""

from __future__ import annotations

from typing import Any

from workloads import weights_of

from tuning.problem import Constants, Problem, drawn


def elan_block(
    place: str, height: int, width: int, dtype: Any, device: Any
) -> tuple[Any, Any, Any, Any, Any]:
    """The first block of a network, features with their border, and what its LFE gives: (packed, block, x, v, q)."""
    import torch

    from restort.backends.fused import elan_planner
    from restort.kernels.lfe import reference

    weights = weights_of(place)
    packed = elan_planner.pack(weights, dtype).to(device)
    torch.manual_seed(0)
    c = weights.spec.channels
    x = torch.zeros(1, height + 4, width + 4, packed.stored, device=device, dtype=dtype)
    x[:, 2:-2, 2:-2, :c] = drawn(device, dtype, 1, height, width, c, scale=8)
    block = packed.groups[0][0]
    _, v, q = reference.lfe(x, block.local, block.values, block.queries, c)
    v, q = (a[..., : packed.part].reshape(1, height, width, -1).contiguous() for a in (v, q))
    return packed, block, x, v, q


def lfe(place: str, height: int, width: int, dtype: Any, device: Any) -> Problem:
    import torch

    from restort.kernels.gpu_target import gpu_target
    from restort.kernels.lfe import reference, sm80, sm90, triton

    network, _, values_only = place.partition(" ")
    packed, block, x, v, q = elan_block(network, height, width, dtype, device)
    has_q = not values_only
    out, mine, ours = torch.zeros_like(x), torch.zeros_like(v), torch.zeros_like(q)
    c = packed.spec.channels
    _, sms = gpu_target(torch.device(device))

    def launch(form: str, constants: Constants) -> Any:
        if form == "triton":
            queries = block.queries if has_q else None
            return triton.launch(x, block.local, block.values, queries, out, mine, ours, c, **constants)
        if form == "sm80":
            return sm80.launch(x, block.sm80[0], has_q, out, mine, ours, c, **constants)
        return sm90.launch(x, block.lfe_sm90, has_q, out, mine, ours, c, **{"num_sms": sms, **constants})

    def expected() -> list[Any]:
        features, _, _ = reference.lfe(x, block.local, block.values, block.queries, c)
        return [features.float() - inside(x).float(), v, *([q] if has_q else [])]

    def compared(seen: list[Any]) -> list[Any]:
        return [inside(seen[0]).float() - inside(x).float(), *seen[1:]]

    return Problem(launch, lambda one: [out, mine, *([ours] if has_q else [])], expected, compared=compared)


def inside(features: Any) -> Any:
    """Features without their border."""
    return features[:, 2:-2, 2:-2]


def window_attention(place: str, height: int, width: int, dtype: Any, device: Any) -> Problem:
    import torch

    from restort.kernels.window_attention import reference, sm80, triton

    network, _, rolled = place.partition(" ")
    packed, block, x, v, q = elan_block(network, height, width, dtype, device)
    nothing = torch.zeros_like(x)  # so that the result is only what attention adds
    out = torch.zeros_like(x)
    c = packed.spec.channels

    def launch(form: str, constants: Constants) -> Any:
        if form == "triton":
            return triton.launch(q, v, nothing, block.out, out, c, bool(rolled), **constants)
        return sm80.launch(q, v, nothing, block.sm80[1], out, c, bool(rolled), **constants)

    return Problem(
        launch,
        lambda one: [out],
        lambda: [reference.window_attention(q, v, nothing, block.out, bool(rolled))],
        compared=lambda seen: [inside(seen[0])],
    )


def elan_allows(place: str, form: str, constants: Constants) -> bool:
    light = place.startswith("elan-light")
    if light and form == "sm90":  # LFE for Hopper is for 180 channels
        return False
    return "only" not in constants or light == (constants["only"] == "light")
