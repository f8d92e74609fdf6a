"""The ops of Restormer's latent level: 384 channels, 8 heads, 1,024 hidden channels."""

from __future__ import annotations

from typing import Any

from tuning.problem import Constants, Problem, drawn, tiling_replaced

CHANNELS, HIDDEN, HEADS = 384, 1024, 8


def layernorm_conv1x1(place: str, height: int, width: int, dtype: Any, device: Any) -> Problem:
    import torch

    from restort.kernels.layernorm_conv1x1 import reference, sm90
    from restort.kernels.layernorm_conv1x1 import triton as kernel

    torch.manual_seed(0)
    rows, pixels = 2 * HIDDEN if place == "gdfn" else 3 * CHANNELS, height // 8 * (width // 8)
    x = (drawn(device, torch.float32, pixels, CHANNELS) + 0.5).to(dtype)
    w = drawn(device, dtype, rows, CHANNELS, scale=CHANNELS**-0.5)
    affine = torch.stack([w.float().sum(1), drawn(device, torch.float32, rows)])
    y = torch.empty(pixels, rows, dtype=dtype, device=device)

    def launch(form: str, constants: Constants) -> Any:
        if form == "triton":
            with tiling_replaced(kernel, constants):
                return kernel.launch(x, w, affine, y)
        return sm90.launch(x, sm90.pack(w, constants.get("COLUMNS", 0)), affine, y, **constants)

    return Problem(
        launch, lambda one: [y], lambda: [reference.layernorm_conv1x1(x.float(), w.float(), affine)]
    )


def gelu_gate(place: str, height: int, width: int, dtype: Any, device: Any) -> Problem:
    import torch

    from restort.kernels.depthwise_gram.reference import depthwise3x3
    from restort.kernels.gelu_gate_project import sm80
    from restort.kernels.gelu_gate_project import triton as kernel
    from restort.kernels.gpu_target import gpu_target

    torch.manual_seed(0)
    h, w = height // 8, width // 8
    expanded, dw = drawn(device, dtype, 1, h, w, 2 * HIDDEN), drawn(device, dtype, 10, 2 * HIDDEN) / 3
    y = torch.empty(1, h, w, HIDDEN, dtype=dtype, device=device)
    capability, sms = gpu_target(torch.device(device))

    def launch(form: str, constants: Constants) -> Any:
        if form == "triton":
            return kernel.launch_gate(expanded, dw.float(), y)
        return sm80.launch(expanded, dw, y, capability=capability, num_sms=sms, **constants)

    def expected() -> list[Any]:
        gates, values = depthwise3x3(expanded.float(), dw.float()).chunk(2, -1)
        return [torch.nn.functional.gelu(gates) * values]

    return Problem(launch, lambda one: [y], expected)


def depthwise_gram(place: str, height: int, width: int, dtype: Any, device: Any) -> Problem:
    import torch

    from restort.kernels.attention_matrix import triton as attention
    from restort.kernels.depthwise_gram import reference as references
    from restort.kernels.depthwise_gram import sm80
    from restort.kernels.depthwise_gram import triton as kernel
    from restort.kernels.gpu_target import gpu_target

    torch.manual_seed(0)
    h, w = height // 8, width // 8
    qkv, dw = drawn(device, dtype, 1, h, w, 3 * CHANNELS), drawn(device, dtype, 10, 3 * CHANNELS) / 3
    temperature = torch.ones(HEADS, device=device)
    out_w = drawn(device, dtype, CHANNELS, CHANNELS).float() / CHANNELS**0.5
    v = torch.empty(1, h, w, CHANNELS, dtype=dtype, device=device)
    capability, sms = gpu_target(torch.device(device))

    def launch(form: str, constants: Constants) -> Any:
        how = {"capability": capability, "num_sms": sms, **constants}
        shape = 1, h, w, CHANNELS, HEADS
        splits = kernel.splits(*shape, sms) if form == "triton" else sm80.splits(*shape, **how)
        sums = torch.empty(kernel.sums_shape(1, HEADS, CHANNELS, splits), device=device)
        if form == "triton":
            return kernel.launch(qkv, dw.float(), v, sums)
        return sm80.launch(qkv, dw, v, sums, **how)

    def attention_matrix(one: Any) -> list[Any]:
        sums = one.tensors["sums"]
        total = torch.empty(1, *sums.shape[1:], device=device) if sums.shape[0] > attention.FEW else None
        out = torch.empty(1, CHANNELS, CHANNELS, dtype=dtype, device=device)
        return list(attention.launches(sums, total, temperature, out_w, out, capability=capability))

    return Problem(
        launch,
        lambda one: [v, one.tensors["sums"]],
        lambda: list(references.depthwise_gram(qkv.float(), dw.float(), HEADS)),
        attention_matrix,
        lambda seen: [seen[0], seen[1].sum(0)],
    )
