"""The tables of benchmarks/gpu_report.py, as Markdown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from gpu_charts import BACKENDS, DASH, KINDS, Record, by_kernel, kind_of, number, pictures_s
from gpu_workloads import BATCHES, LARGE, TASKS

if TYPE_CHECKING:
    from gpu_report import Report

TITLES = {"restormer": "Restormer", "elan-x4": "ELAN x4", "elan-light-x4": "ELAN-light x4"}
PUBLISHED = {  # files from elsewhere that a shipped model shares its name with: the digest of the weights
    "a890f4eb16b734abbab7cba42e3c171fe33ae7b9a4f1f59567563eec4361b608": "elan-light-x4",
}
Cells = list[list[str]]
Section = Callable[["Report"], str]


def case_of(r: Record) -> str:
    """As benchmarks/tensorrt86.py names it."""
    variant = f" ({r['variant']})" if r["variant"] else ""
    return f"{r['workload']} x{r['batch']} {r['precision']}{variant}"


def percent(part: float | None, whole: float | None) -> str:
    return DASH if part is None or not whole else f"{100 * part / whole:.1f} %"


def by_kind(layers: list[Record]) -> dict[int, tuple[float, int]]:
    found: dict[int, tuple[float, int]] = {}
    for layer in layers:
        ms, count = found.get(kind_of(layer["name"]), (0.0, 0))
        found[kind_of(layer["name"])] = ms + layer["ms"], count + 1
    return found


def markdown(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def backends(report: Report) -> str:
    """1: the five workloads, milliseconds and how many times fused fp16 is faster."""
    say = report.say
    rows, marked = [], False
    for b in BACKENDS:
        row = [report.backend(*b)]
        for place in TASKS:
            r, ours = report.of(place, b), report.one(place)
            cell = number(r.get("median_ms"))
            if r and b == BACKENDS[0]:
                cell = f"**{cell}**"
            elif r and ours:
                times = report.times(r["median_ms"] / ours["median_ms"])
                cell += say(f" ({times})", f"（{times}）")
            if r.get("finite") is False:
                cell, marked = f"{cell} \\*", True
            row.append(cell)
        rows.append(row)
    made = markdown(["", *(report.title(place) for place in TASKS)], rows)
    if marked:
        made += "\n\n" + say("\\* The output holds NaN or infinity.", "\\* 输出含有 NaN 或无穷。")
    ways: dict[str, list[str]] = defaultdict(list)
    for r in report.found.values():
        way = str(r.get("note", "")).partition(":")[0]
        if r["backend"] == "torch-compile" and way.startswith("compiled ") and not r["variant"]:
            network = report.title(r["workload"]).partition(say(",", "，"))[0]
            ways[way[9:]] += [] if network in ways[way[9:]] else [network]
    words = {"whole": say("as a whole", "整体编译"), "regional": say("block by block", "逐块编译")}
    parts = [f"{say(' and ', ' 与 ').join(names)} {words.get(way, way)}" for way, names in ways.items()]
    head = say(
        "Milliseconds, median, batch 1; in brackets, how many times fused fp16 is faster:",
        "毫秒，中位数，批大小 1；括号内为 fused fp16 快多少倍：",
    )
    if parts:
        made += f"\n\ntorch.compile{say(': ', '：')}{say('; ', '；').join(parts)}{say('.', '。')}"
    return f"{head}\n\n{made}" if report.found else ""


def floors(report: Report) -> str:
    """2: fused fp16 against the floor."""
    say = report.say
    rows = []
    for place in TASKS:
        r = report.one(place)
        median, floor = r.get("median_ms"), r.get("floor_ms")
        launches = str(r["launches"]) if "launches" in r else DASH
        cells = [number(median), number(r.get("p95_ms")), number(floor), percent(floor, median)]
        rows.append([report.title(place), *cells, number(r.get("peak_mib")), launches])
    head = ["fused fp16", *say("ms|p95|floor|share of the floor", "毫秒|p95|下限|达到下限的比例").split("|")]
    head += say("peak memory (MiB)|launches", "显存峰值（MiB）|内核启动次数").split("|")
    note = say(
        "The floor is what no implementation in 16 bits can be faster than, by the products and by the bytes that "
        "must move at the GPU's measured rates (benchmarks/gpu_workloads.py).",
        "下限是任何 16 位实现都不可能更快的时间，由必需的乘加与必须搬运的字节按该 GPU 的实测速率算出"
        "（benchmarks/gpu_workloads.py）。",
    )
    return f"{markdown(head, rows)}\n\n{note}" if any(report.one(p) for p in TASKS) else ""


def batches(report: Report) -> str:
    """3: batches at 256 x 256."""
    say = report.say
    rows = []
    for (backend, precision), found in report.batched().items():
        by_batch = {r["batch"]: r for r in found}
        for batch in sorted({1, *BATCHES} if backend == "fused" else set(by_batch)):
            r = by_batch.get(batch, {})
            numbers = [number(v) for v in (r.get("median_ms"), pictures_s(r), r.get("peak_mib"))]
            rows.append([f"{report.backend(backend, precision)}, {batch}", *numbers])
    name = report.title("restormer-256x256") + say("; batch", "；批大小")
    head = [name, *say("ms|pictures a second|MiB", "毫秒|每秒图片数|MiB").split("|")]
    return markdown(head, rows) if any(rs for rs in report.batched().values()) else ""


def large(report: Report) -> str:
    """4: 1080p and 4K."""
    say = report.say
    rows = []
    for place in sorted(LARGE, key=lambda p: (-list(TITLES).index(p[0]) if p[0] in TITLES else 0, p[1])):
        r = report.one(place)
        floor = r.get("floor_ms")
        cells = [number(r.get("median_ms")), number(pictures_s(r)), number(floor)]
        rows.append(
            [report.title(place), *cells, percent(floor, r.get("median_ms")), number(r.get("peak_mib"))]
        )
    head = say(
        "fused fp16|ms|pictures a second|floor|share of the floor|peak memory (MiB)",
        "fused fp16|毫秒|每秒图片数|下限|达到下限的比例|显存峰值（MiB）",
    )
    return markdown(head.split("|"), rows) if any(report.one(p) for p in LARGE) else ""


def processes(report: Report) -> str:
    """5: the first call, with empty caches and with those of an earlier process."""
    say = report.say
    rows = []
    kinds = {
        "first process": say("first process", "首个进程"),
        "second process": say("second process", "第二个进程"),
    }
    places = dict.fromkeys([TASKS[1], TASKS[4], *TASKS])
    measured = [p for p in places if any(report.one(p, "fused", "fp16", 1, kind) for kind in kinds)]
    for place in measured:
        for kind, name in kinds.items():
            r = report.one(place, "fused", "fp16", 1, kind)
            seconds = [r[n] / 1e3 if n in r else None for n in ("create_ms", "first_call_ms")]
            values = [*seconds, r.get("prepare_s"), r.get("process_s")]
            cells = [*map(number, values), number(r.get("call_ms_host"))]
            rows.append([f"{report.title(place)}{say(', ', '，')}{name}", *cells])
    head = say(
        "fused fp16, seconds|creation|first call|until ready|whole process|second call (ms)",
        "fused fp16，秒|创建|首次调用|至就绪|整个进程|第二次调用（毫秒）",
    )
    note = say(
        "The first process begins with empty caches, the second with those that it left. Until ready: weights, "
        "kernels, CUDA graph and two calls; whole process: imports and the measurement included.",
        "首个进程的缓存为空，第二个进程使用其留下的缓存。至就绪：权重、内核、CUDA graph 与两次调用；"
        "整个进程：含导入与测量。",
    )
    return f"{markdown(head.split('|'), rows)}\n\n{note}" if measured else ""


def kernels(report: Report) -> str:
    """6: where the time of a pass goes."""
    say, parts = report.say, []
    head = say(
        "kernel|count|ms|share|floor|share of the floor|GB/s|TFLOP/s",
        "内核|次数|毫秒|占比|下限|达到下限的比例|GB/s|TFLOP/s",
    )
    for result in report.steps:
        groups = by_kernel(result)
        total = sum(g["total_ms"] for g in groups)
        names = ("total_ms", "count", "floor_ms", "gb", "tflop")
        whole = {"name": say("sum", "合计")} | {n: sum(g[n] for g in groups) for n in names}
        rows = []
        for g in [*groups, whole]:
            seconds = g["total_ms"] / 1e3 or 1.0
            cells = [str(g["count"]), number(g["total_ms"]), percent(g["total_ms"], total)]
            cells += [number(g["floor_ms"]), percent(g["floor_ms"], g["total_ms"])]
            rows.append(
                [
                    f"`{g['name']}`" if g is not whole else g["name"],
                    *cells,
                    f"{g['gb'] / seconds:.0f}",
                    f"{g['tflop'] / seconds:.1f}",
                ]
            )
        of = f"{report.title(result['workload'])}{say(', ', '，')}fused {result['precision']}"
        pass_ms = number(result.get("whole_ms", result.get("median_ms")))
        caption = say(f"{of}; the whole pass takes {pass_ms} ms:", f"{of}；整遍 {pass_ms} 毫秒：")
        parts.append(f"{caption}\n\n{markdown(head.split('|'), rows)}")
    note = say(
        "Every launch was repeated by itself; what fits into the L2 stays there, so the sum may be below the pass. "
        "The floor here is of each launch, by its own products and bytes, and their sum above that of the network.",
        "每次启动单独重复测量；能放进 L2 的数据会留在其中，因此合计可能小于整遍。此处的下限按每次启动自身的乘加与"
        "字节计算，其合计高于整个网络的下限。",
    )
    return "\n\n".join([*parts, note]) if parts else ""


def _tensorrt_rows(report: Report) -> Cells:
    rows = []
    for r in (r for r in report.found.values() if r["backend"] == "tensorrt"):
        timeline = len(report.layers.get(case_of(r), [])) or str(r.get("layer_summary", DASH)).split()[0]
        size = f"{r['engine_bytes'] / 1e6:.1f}" if "engine_bytes" in r else DASH
        types = r.get("engine_layers", {})
        half = DASH
        if types.get("source") == "engine":  # what a network says is not what a weakly typed engine does
            half = f"{types.get('float16', 0)} / {sum(n for n in types.values() if isinstance(n, int))}"
        cells = [number(r.get(n)) for n in ("build_s", "median_ms", "p95_ms")]
        rows.append([case_of(r), *cells, size, str(timeline), half, number(r.get("peak_mib"))])
    return rows


def tensorrt(report: Report) -> str:
    """7: engines, and the layers of those before and after."""
    say = report.say
    rows = _tensorrt_rows(report)
    for failure in report.failures:
        seconds = f"{failure.get('seconds', 0):.0f}"
        cell = say(f"failed after {seconds} s", f"{seconds} 秒后失败")
        if str(failure.get("error", "")).startswith("no result within"):
            cell = say(f"none within {seconds} s", f"{seconds} 秒内未完成")
        if failure["case"] not in {row[0] for row in rows}:
            rows.append([failure["case"], cell, *[DASH] * 6])
    head = say(
        "TensorRT|build (s)|ms|p95|engine (MB)|layers as they run|layers in fp16|peak memory (MiB)",
        "TensorRT|构建（秒）|毫秒|p95|引擎（MB）|运行的层数|fp16 层数|显存峰值（MiB）",
    )
    parts = [markdown(head.split("|"), rows)] if rows else []
    for workload, engines in report.before_and_after().items():
        sums = [by_kind(layers) for _, layers in engines]
        totals = [sum(ms for ms, _ in found.values()) for found in sums]
        lines = []
        for kind in sorted({k for found in sums for k in found}):
            cells = []
            for found, total in zip(sums, totals):
                ms, count = found.get(kind, (None, 0))
                cells += [number(ms), percent(ms, total), str(count)]
            lines.append([say(*KINDS[kind][1:]), *cells])
        foot = [say("sum", "合计")]
        for found, total in zip(sums, totals):
            foot += [number(total), "", str(sum(count for _, count in found.values()))]
        title = [report.title(workload)]
        for name, _ in engines:
            title += [f"{name}{say(', ms', '，毫秒')}", say("share", "占比"), say("layers", "层数")]
        parts.append(markdown(title, [*lines, foot]))
    if len(parts) > 1:
        parts.append(
            say(
                "Milliseconds of layers are the profiler's, outside a CUDA graph; their sum may be above the median.",
                "各层毫秒数由性能分析器给出，不在 CUDA graph 中；其合计可能高于中位数。",
            )
        )
    return "\n\n".join(parts)


def accuracy(report: Report) -> str:
    """8: what the accuracy files hold."""
    say, parts, rows = report.say, [], []
    for file in report.accuracy:
        for model in file.get("models", []):
            name = PUBLISHED.get(model.get("weights_sha256", ""), "")
            name = f"{name}{say(' (published weights)', '（公开权重）')}" if name else model["model"]
            if "error" in model:
                rows.append([name, str(model["error"]), *[DASH] * 7])
            for condition, found in model.get("conditions", {}).items():
                two = [found[p][f"relative_l2_{n}"] for p in ("fp16", "bf16") for n in ("max", "mean")]
                psnr = [found.get("psnr", {}).get(p) for p in ("fp32", "fp16", "bf16")]
                cells = [f"{v:.1e}" for v in two] + [DASH if v is None else f"{v:.3f}" for v in psnr]
                rows.append([name, condition, str(found["pictures"]), *cells])
    if rows:
        head = say(
            "fused|pictures of|number|fp16, largest L2|mean L2|bf16, largest L2|mean L2|PSNR float32|fp16|bf16",
            "fused|图片|张数|fp16 L2 最大|平均|bf16 L2 最大|平均|PSNR float32|fp16|bf16",
        )
        parts.append(markdown(head.split("|"), [row + [DASH] * (10 - len(row)) for row in rows]))
    stats = ("max", "mean", "median")
    for table in (table for file in report.accuracy for table in file.get("tables", [])):
        lines = []
        for row in table["rows"]:
            name = f"{row['backend']} {row['precision']}".replace("fp32", "float32")
            if row.get("error") or row.get("absolute") is None:
                lines.append([name, str(row.get("error") or "NaN"), *[DASH] * 8])
                continue
            errors = [row[kind][s] for kind in ("absolute", "relative") for s in stats]
            cells = [f"{v:.1e}" if v else "0" for v in [*errors, row["relative_l2"]]]
            lines.append([name, *cells, f"{row['psnr_on_set']:.3f}", f"{row['ssim_on_set']:.4f}"])
        head = say(
            "abs max|abs mean|abs median|rel max|rel mean|rel median|rel L2|PSNR|SSIM",
            "绝对误差最大|平均|中位数|相对误差最大|平均|中位数|相对 L2|PSNR|SSIM",
        )
        count = table["settings"]["pictures"]
        of = say(f"{table['dataset']}, {count} pictures", f"{table['dataset']}，{count} 张")
        parts.append(markdown([f"{table['model']}{say('; ', '；')}{of}", *head.split("|")], lines))
    return "\n\n".join(parts)


SECTIONS: tuple[tuple[str, str, Section, str], ...] = (
    ("Speed", "速度", backends, "records"),
    ("Against the floor", "与下限相比", floors, "records"),
    ("Batches", "批大小", batches, "records"),
    ("Large pictures", "大图", large, "records"),
    ("The first call", "首次调用", processes, "records"),
    ("Where the time goes", "时间用在何处", kernels, "steps"),
    ("TensorRT", "TensorRT", tensorrt, "tensorrt"),
    ("Accuracy", "精度", accuracy, "accuracy"),
)
