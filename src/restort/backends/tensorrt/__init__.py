"""TensorRT and TensorRT-RTX: engines from weights, kept, and run without PyTorch.

The rooms, and what they promise one another:

flavour.py   Which library: `find('auto'|'tensorrt'|'rtx') -> Flavour` (RestortError where none is installed or it
             does not load). A Flavour has `name` ('tensorrt' or 'rtx'), `version` ('8.6.0', '11.4.0.106',
             '1.7.1.116'), `module` (tensorrt or tensorrt_rtx), `capabilities` (a dataclass of booleans found by
             looking at the module: strongly_typed, precision_flags, compute_capabilities, plugins, timing_cache,
             progress, stream_writer, runtime_cache, engine_validity, ...), and `log`, the one logger of the
             process for this library: `log.logger` goes to Builder and Runtime;
             `with log.listening() as heard:` collects what it says in this thread's calls meanwhile, and
             `heard.error(doing)` is the RestortError of it: one sentence, with the likely remedy.
             `installed() -> dict[name, version]` looks without importing.
build.py     `build(flavour, graph, options) -> Built(plan: bytes, report: dict, timing_cache: bytes | None)`.
             `graph` is an onnx.ModelProto or its bytes, of `restort.export.typed.typed_graph`. BuildOptions is
             frozen; see there. The report becomes the sidecar.
build_plan.py  `build_plan(flavour, weights, plan, options) -> Built`: an engine of RestoRT's own kernels, the file
             `plan` (restort.backends.fused.aot_cache) as one node; `ready(flavour, about)` before one is opened.
plan_graph.py  `plan_graph(weights, plan) -> onnx.ModelProto`: one node, a whole pass of
             restort.backends.fused.aot_compile, which the plugin in C++ in plugin/ runs.
plugin_library.py  `load(flavour)`: that plugin as a library, named by RESTORT_PLUGIN or compiled once.
report.py    `report_of(...)`: what the sidecars of both kinds of engines have in common.
sidecar.py   `ENGINE.json` beside `ENGINE`: `write(path, built)`, under temporary names, the sidecar last, so that
             an engine without one is unfinished; `read(path) -> dict` (RestortError: none, damaged, of a newer
             schema); `problem(path) -> str | None`: whether size and SHA-256 of the engine are those written.

A sidecar holds, schema 1:
    schema 1, restort (version), created (UTC, ISO), seconds, bytes, sha256 (of the plan: to find damage, never a
    key, because builds are not reproducible), flavour, version,
    targets     ["8.6", "8.9"]: compute capabilities named to the builder (rtx); else that of the GPU built on
    gpu         {"name", "compute_capability", "driver"} of the machine built on, or null where there was none
    graph       {"sha256", "nodes", "opset", "inputs": [{"name", "dtype", "shape"}], "outputs": [...]}
    model       {"name", "architecture", "scale", "size_multiple", "weights_sha256"}, null where the graph is
                not RestoRT's
    profile     {"min": [B, H, W], "opt": [...], "max": [...]}
    precision   fp32 | tf32 | fp16 | bf16 | mixed; keep_fp32: names of sections kept in float32
    flags       what was set: {"strongly_typed": true, "tf32": false, "level": 3, "workspace": null, ...}
    layers      {"source": "engine" | "network", "float32": n, "float16": n, ...}: by type of the output; from
                the engine's inspector where it can be opened here, else from the parsed network, whose types a
                strongly typed engine keeps; {"source": "plugin", "RestortPass": 1} with RestoRT's own kernels
    kernels     "fused" with RestoRT's own kernels; absent with the library's
    plan        of those: {"sha256", "compute_capability", "restort", "sources" (digest), "compilers", "kernels" and
                "launches" (numbers), "memory": {"weights", "context"} (bytes on the GPU), "plugin_sha256"}
Input and output of an engine are always float32 NCHW, 'input' and 'output', whatever it computes in.

plugins, cache and runtime: cache.py (keys, locks, LRU), runtime.py and runner.py (running), see there.
"""
