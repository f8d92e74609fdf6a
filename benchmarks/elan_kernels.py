"""Times the tile sizes of ELAN's kernels on this GPU, and its whole passes:
python benchmarks/elan_kernels.py --output FILE

For choosing the tables `tiles` in restort.kernels.lfe and .window_attention. Each variant is first compared with the
reference on the same arrays, then launched 20 times in a CUDA graph, whose time by events is divided. Weights and
pictures are random numbers of the size that trained ones have.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from restort.backends.fused import elan
from restort.kernels import lfe, precompile, window_attention
from restort.kernels.launch import Launch
from restort.kernels.machine import machine
from restort.models.build import build
from restort.models.spec import ElanSpec

SPECS = {
    "light": ElanSpec(4, 24, 60, 1, 3, (4, 8, 16), 255.0, 2),
    "full": ElanSpec(4, 36, 180, 0, 3, (4, 8, 16), 255.0, 2),
}
TILED = {  # of restort.kernels.lfe.tile: WARPS, STAGES, BLOCKS
    "light": [(8, 0, 2), (4, 0, 3), (4, 0, 2), (4, 2, 4), (8, 0, 1), (8, 2, 2), (2, 2, 8)],
    "full": [(8, 3, 1), (8, 2, 1), (4, 3, 1), (4, 2, 1), (4, 2, 2)],
}
ATTENTION_TILED = {  # of restort.kernels.window_attention.tile: WARPS, BLOCKS, EARLY
    "light": [(8, 2, 1), (8, 2, 0), (8, 3, 0), (8, 3, 1), (8, 1, 1), (16, 1, 1), (16, 1, 0)],
    "full": [(8, 2, 0), (8, 1, 0), (8, 1, 1), (16, 1, 0)],
}
# Never one stage of the groups' loop: Triton 3.6 then reads beyond its shared memory on compute capability 9.0.
LFE = {  # rows, columns, warps, stages of the groups' loop, of the projections' loop
    "light": [
        (4, 16, 4, 2, 2), (4, 16, 4, 3, 2), (8, 16, 4, 2, 2), (8, 16, 8, 2, 2), (8, 16, 8, 3, 2), (16, 16, 8, 2, 2),
    ],
    "full": [(8, 16, 8, 2, 2), (4, 16, 8, 2, 2), (4, 16, 4, 2, 2)],
}  # fmt: skip
ATTENTION = {  # quads, keys of a step, warps, keys loaded ahead, columns of the output projection loaded ahead
    "light": [
        (1, 64, 4, 1, 1), (1, 64, 4, 2, 1), (1, 64, 4, 3, 1), (1, 32, 4, 1, 1), (1, 128, 4, 1, 1), (1, 64, 8, 1, 1),
        (2, 64, 8, 1, 1), (2, 64, 8, 2, 1), (2, 128, 8, 1, 1), (2, 64, 4, 1, 1),
    ],
    "full": [
        (1, 64, 4, 1, 1), (1, 64, 4, 2, 1), (1, 64, 4, 2, 2), (1, 32, 4, 1, 1), (1, 128, 4, 1, 1), (1, 64, 8, 1, 1),
        (2, 64, 8, 1, 1), (2, 64, 8, 2, 1), (2, 64, 8, 2, 2), (2, 128, 8, 1, 1),
    ],
}  # fmt: skip
REPEATS = 20
DEVICE = "cuda"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only", choices=("light", "full"))
    parser.add_argument("--what", nargs="*", default=["tiled", "attention", "pass"], help="also lfe, triton")
    parser.add_argument("--size", type=int, nargs=2, default=(192, 320))
    parser.add_argument(
        "--registers", type=int, nargs="*", default=[], help="also with these limits of registers"
    )
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="float16")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    found: list[dict[str, Any]] = []
    print(torch.cuda.get_device_name(), torch.__version__, flush=True)
    for name in [options.only] if options.only else list(SPECS):
        state = random_state(SPECS[name])
        if {"tiled", "lfe", "attention"} & set(options.what):
            sweep(name, state, options, dtype, found)
        if "pass" in options.what:
            whole(name, state, options, dtype, found)
        if options.output:
            options.output.write_text(json.dumps(found, indent=1))


def random_state(spec: ElanSpec) -> dict[str, Any]:
    """A state whose features and scores stay in the range of a trained network's."""
    torch.manual_seed(0)
    state = {}
    for key, value in build(spec).state_dict().items():
        if key.endswith("running_var"):
            value = torch.rand_like(value) + 0.5
        elif key.endswith("project_inp.1.weight"):
            value = torch.rand_like(value) * 0.05 + 0.02
        elif key.endswith("conv1x1.weight"):
            value = torch.randn_like(value) * 0.3 / value.shape[1] ** 0.5
        state[key] = value
    return state


def sweep(name: str, state: dict[str, Any], options: Any, dtype: Any, found: list[dict[str, Any]]) -> None:
    spec, (h, w) = SPECS[name], options.size
    packed = elan.pack(SimpleNamespace(state=state, spec=spec), dtype).to(DEVICE)  # type: ignore[arg-type]
    wide = torch.zeros(1, h + 4, w + 4, packed.stored, device=DEVICE, dtype=dtype)
    wide[:, 2:-2, 2:-2, : spec.channels] = torch.randn(1, h, w, spec.channels, device=DEVICE) * 8
    block = packed.groups[0][0]
    wanted, v, q = lfe.lfe(wide, block.local, block.values, block.queries, spec.channels)

    def rows(x: Any) -> Any:
        return x[..., : packed.part].reshape(1, h, w, -1).contiguous()

    v, q = rows(v), rows(q)
    cases: list[tuple[str, Launch, Callable[[], float]]] = []
    for choice in TILED[name] if "tiled" in options.what else []:
        for has_q in (True, False):
            out, mine, ours = torch.zeros_like(wide), torch.zeros_like(v), torch.zeros_like(q)
            variant = dict(zip(("WARPS", "STAGES", "BLOCKS"), choice, strict=True))
            launch = lfe.tile.launch(wide, block.tiled[0], has_q, out, mine, ours, spec.channels, **variant)

            def check_tiled(out: Any = out, mine: Any = mine, ours: Any = ours, has_q: bool = has_q) -> float:
                added = out[:, 2:-2, 2:-2].float() - wide[:, 2:-2, 2:-2].float()
                pairs = [(added, wanted.float() - wide[:, 2:-2, 2:-2].float()), (mine, v)]
                return max(error(a, b) for a, b in [*pairs, *([(ours, q)] if has_q else [])])

            cases.append((f"lfe tiled {choice}{'' if has_q else ' values only'}", launch, check_tiled))
    if "lfe" in options.what:
        for choice in LFE[name]:
            out, mine, ours = torch.zeros_like(wide), torch.zeros_like(v), torch.zeros_like(q)
            launch = lfe.launch(
                wide, block.local, block.values, block.queries, out, mine, ours, spec.channels, choice=choice
            )

            def check_lfe(out: Any = out, mine: Any = mine, ours: Any = ours) -> float:
                added = out[:, 2:-2, 2:-2].float() - wide[:, 2:-2, 2:-2].float()
                pairs = [(added, wanted.float() - wide[:, 2:-2, 2:-2].float()), (mine, v), (ours, q)]
                return max(error(a, b) for a, b in pairs)

            cases.append((f"lfe {choice}", launch, check_lfe))
            if choice == LFE[name][1]:
                less = replace(launch, constants={**launch.constants, "HAS_Q": False})
                cases.append((f"lfe {choice} values only", less, lambda: 0.0))
    if "attention" in options.what:
        nothing = torch.zeros_like(wide)  # so that the result is only what attention adds
        for rolled in (False, True):
            good = window_attention.window_attention(q, v, nothing, block.out, rolled)
            for choice in ATTENTION_TILED[name]:
                out = torch.zeros_like(nothing)
                variant = dict(zip(("WARPS", "BLOCKS", "EARLY"), choice, strict=True))
                launch = window_attention.tile.launch(
                    q, v, nothing, block.tiled[1], out, spec.channels, rolled, **variant
                )

                def check_tiles(out: Any = out, good: Any = good) -> float:
                    return error(out[:, 2:-2, 2:-2], good)

                if launch.constants["SHARED"] <= 227 << 10:
                    cases.append((f"attention tiled {'rolled ' * rolled}{choice}", launch, check_tiles))
            for choice in ATTENTION[name] if "triton" in options.what else []:
                out = torch.zeros_like(nothing)
                launch = window_attention.launch(
                    q, v, nothing, block.out, out, spec.channels, rolled, choice=choice
                )

                def check_attention(out: Any = out, good: Any = good) -> float:
                    return error(out[:, 2:-2, 2:-2], good)

                cases.append((f"attention {'rolled ' * rolled}{choice}", launch, check_attention))
    started = time.perf_counter()
    capability, _ = machine(torch.device(DEVICE))
    precompile.precompile_cuda([launch for _, launch, _ in cases], capability)
    jobs = precompile.missing([launch for _, launch, _ in cases], capability)
    made = precompile.precompile(list(jobs.values()))
    print(f"# compiled {made} of {len(jobs)} in {time.perf_counter() - started:.1f} s", flush=True)
    for label, launch, check in cases:
        for registers in [None, *options.registers]:
            timed(name, label, launch, check, registers, found)


def timed(
    name: str,
    label: str,
    launch: Launch,
    check: Callable[[], float],
    registers: int | None,
    found: list[dict[str, Any]],
) -> None:
    more = {"maxnreg": registers} if registers else {}

    def run() -> Any:
        return launch.kernel[launch.grid](
            *launch.tensors.values(),
            *launch.sizes.values(),
            **launch.constants,
            num_warps=launch.warps,
            num_stages=launch.stages,
            **more,
        )

    try:
        kernel = run()
        torch.cuda.synchronize()
        wrong = check()
        ms = graph_ms([run] * REPEATS) / REPEATS
    except Exception as trouble:
        print(f"{name:5} {label:44} {type(trouble).__name__}: {str(trouble)[:100]}", flush=True)
        return
    row = {
        "network": name,
        "case": label,
        "registers_limit": registers,
        "microseconds": round(ms * 1e3, 2),
        "relative_l2": wrong,
        "registers": getattr(kernel, "n_regs", None),
        "spills": getattr(kernel, "n_spills", None),
        "shared": getattr(getattr(kernel, "metadata", None), "shared", None),
        "tflops": round(launch.flops / ms / 1e9, 1),
        "gb_s": round(launch.moved / ms / 1e6),
    }
    found.append(row)
    print(
        f"{name:5} {label + (f' max {registers}' if registers else ''):44} {row['microseconds']:8.2f} us  "
        f"{row['tflops']:6.1f} TFLOP/s {row['gb_s']:5} GB/s  regs {row['registers']} spills {row['spills']} "
        f"shared {row['shared']}  error {wrong:.1e}{'' if wrong < 1e-2 else '  WRONG'}",
        flush=True,
    )


def whole(name: str, state: dict[str, Any], options: Any, dtype: Any, found: list[dict[str, Any]]) -> None:
    """A pass against the reference network, its time in a graph, and how the launches share it."""
    spec, (h, w) = SPECS[name], options.size
    packed = elan.pack(SimpleNamespace(state=state, spec=spec), dtype).to(DEVICE)  # type: ignore[arg-type]
    device = torch.device(DEVICE)
    whole_pass(name, "", elan.plan(packed, spec, 1, h, w, dtype, device), spec, state, found, False)
    whole_pass(name, "overlapping", elan.plan(packed, spec, 1, h, w, dtype, device), spec, state, found, True)
    if "triton" in options.what:
        whole_pass(
            name,
            "Triton",
            elan.plan(packed, spec, 1, h, w, dtype, device, tiled=False),
            spec,
            state,
            found,
            False,
        )


def whole_pass(
    name: str,
    kind: str,
    made: Any,
    spec: ElanSpec,
    state: dict[str, Any],
    found: list[dict[str, Any]],
    over: bool,
) -> None:
    h, w = made.input.shape[2:]
    made.launches = [
        replace(launch, constants={**launch.constants, "OVERLAP": int(over)})
        if "OVERLAP" in launch.constants
        else launch
        for launch in made.launches
    ]
    capability, _ = machine(torch.device(DEVICE))
    precompile.precompile_cuda(made.launches, capability)
    precompile.precompile(list(precompile.missing(made.launches, capability).values()))
    made.input.copy_(torch.rand(made.input.shape, device=DEVICE))
    made.run()
    torch.backends.cudnn.allow_tf32 = False
    with torch.no_grad():
        wanted = build(spec, state).to(DEVICE)(made.input * spec.value_range) / spec.value_range
    wrong = error(made.output, wanted)
    first, differs = made.output.clone(), 0
    for _ in range(REPEATS):
        made.run()
        differs = max(differs, int((made.output != first).sum()))
    ms = graph_ms(made.launches)
    mib = made.workspace.bytes / 2**20
    row = {"network": name, "case": f"pass {h}x{w} {kind}", "ms": ms, "relative_l2": wrong, "mib": mib}
    row["differs"] = differs
    found.append(row)
    print(
        f"{name:5} pass {h}x{w} {kind}: {ms:.3f} ms, {made.flops / ms / 1e9:.0f} TFLOP/s, "
        f"{made.moved / ms / 1e6:.0f} GB/s, "
        f"{len(made.launches)} launches, {mib:.0f} MiB, error {wrong:.1e}"
        f"{f'  TWO RUNS DIFFER in {differs} numbers' if differs else ''}",
        flush=True,
    )
    kinds: dict[Any, list[Launch]] = {}
    for launch in made.launches:
        kinds.setdefault(launch.variant(), []).append(launch)
    for some in kinds.values():
        one = graph_ms([some[0]] * REPEATS) / REPEATS
        print(
            f"      {len(some):3} x {one * 1e3:7.2f} us = {one * len(some):.3f} ms  {some[0].label}",
            flush=True,
        )
        found.append({"network": name, "case": some[0].label, "microseconds": one * 1e3, "count": len(some)})


def error(mine: Any, wanted: Any) -> float:
    """Relative L2."""
    return float((mine.double() - wanted.double()).norm() / wanted.double().norm())


def graph_ms(calls: Sequence[Callable[[], Any]]) -> float:
    """Median milliseconds of all of them in one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for i in range(13):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i >= 3:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


if __name__ == "__main__":
    main()
