"""Stubs of TensorRT's real bindings, without the library behind them: every name, argument and type is checked.

`StubModule(bindings)` looks like the module. Attributes of its objects, arguments of their methods, types and results
are read from the bindings (pybind11 writes signatures into docstrings). Calls are recorded; nothing is computed.

As a program: `python -m tests.fakes.binding_stubs BINDINGS STAND_INS` runs the adapter on the bindings in the folder
BINDINGS and prints what it did as JSON. `stand_ins(BINDINGS, STAND_INS)` makes the libraries that they are linked
against.
"""

from __future__ import annotations

import ctypes
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

RETURNS = {"ITensor.is_shape_tensor": False}
SCALARS = {"int": 1, "float": 1.0, "bool": True, "str": "input", "None": None}
TEXTS = {"SupportsInt": int, "SupportsFloat": (int, float), "int": int, "str": str, "bool": bool}


def stand_ins(bindings: Path, folder: Path) -> None:
    """Tiny shared libraries with the names and symbols that the bindings want of TensorRT's."""
    binary = bindings / "tensorrt_bindings" / "tensorrt.so"

    def output(*command: str) -> str:
        return subprocess.run([*command, str(binary)], check=True, capture_output=True, text=True).stdout

    names = re.findall(r"\[(libnv\w+\.so[\d.]*)\]", output("readelf", "-d"))
    wanted = [line.split() for line in output("nm", "-D", "--undefined-only").splitlines()]
    symbols = [s[1] for s in wanted if s[0] == "U" and "@" not in s[1] and not re.match(r"_?Py", s[1])]
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "all.c"
    source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in symbols))
    (folder / "none.c").write_text("")
    for i, name in enumerate(names):
        code = source if i == 0 else folder / "none.c"
        command = ["cc", "-shared", "-fPIC", "-o", str(folder / name), str(code), f"-Wl,-soname,{name}"]
        subprocess.run(command, check=True, capture_output=True)


class Wrong(AssertionError):
    """The adapter asked the bindings for something they do not have. No AttributeError: hasattr must not hide it."""


class StubModule:
    def __init__(self, real: Any) -> None:
        self.real = real
        self.calls: list[tuple[str, list[Any]]] = []
        self.__version__ = real.__version__

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.real, name)  # AttributeError is what hasattr wants
        if isinstance(found, type) and not hasattr(found, "__members__") and name not in SUBCLASSED:
            return StubClass(self, found)
        return found


SUBCLASSED = ("ILogger", "IProgressMonitor", "IStreamWriter", "IProfiler")


class StubClass:
    def __init__(self, module: StubModule, real: type) -> None:
        self._module, self._real = module, real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def __call__(self, *args: Any, **named: Any) -> Any:
        check(self._module, f"{self._real.__name__}.__init__", self._real.__init__.__doc__, args, named)
        return Stub(self._module, self._real)


class Stub:
    def __init__(self, module: StubModule, real: type) -> None:
        object.__setattr__(self, "_module", module)
        object.__setattr__(self, "_real", real)

    def __getattr__(self, name: str) -> Any:
        label = f"{self._real.__name__}.{name}"
        if name.startswith("__") or not hasattr(self._real, name):
            raise AttributeError(f"the bindings have no {label}")
        found = inspect.getattr_static(self._real, name)
        if isinstance(found, property):
            assert found.fget is not None
            if label in RETURNS:
                return RETURNS[label]
            return make(self._module, result(found.fget.__doc__ or ""))
        return lambda *args, **named: check(self._module, label, found.__doc__, args, named)

    def __setattr__(self, name: str, value: Any) -> None:
        label = f"{self._real.__name__}.{name}"
        found = inspect.getattr_static(self._real, name, None)
        if not isinstance(found, property) or found.fset is None:
            raise Wrong(f"{label} cannot be set")
        kind = result(found.fget.__doc__ or "") if found.fget else ""
        if not fits(self._module, value, kind):
            raise Wrong(f"{label} is of type {kind}, not {value!r}")
        self._module.calls.append((label, [plain(value)]))

    def __bytes__(self) -> bytes:
        return b"plan"


def check(module: StubModule, label: str, doc: str | None, args: Any, named: dict[str, Any]) -> Any:
    """Calls nothing, but sees to it that one of the signatures in `doc` takes these arguments."""
    found = re.findall(r"^(?:\d+\. )?\w+\((self: .*?)\) -> (\S.*)$", doc or "", re.MULTILINE)
    reasons = []
    for text, returned in found:
        parameters = [part.split(": ", 1) for part in re.split(r", (?=\w+: )", text)][1:]
        names = [name for name, _ in parameters]
        required = [name for name, kind in parameters if " = " not in kind]
        given = dict(zip(names, args)) | named
        if len(args) > len(names) or set(given) - set(names) or set(required) - set(given):
            reasons.append(f"takes ({', '.join(names)})")
            continue
        kinds = {name: kind.split(" = ")[0] for name, kind in parameters}
        bad = [name for name, value in given.items() if not fits(module, value, kinds[name])]
        if not bad:
            module.calls.append((label, [plain(value) for value in (*args, *named.values())]))
            return make(module, returned)
        reasons.append(f"takes {bad[0]}: {kinds[bad[0]]}")
    raise Wrong(f"{label}{args!r} {named or ''}: {'; '.join(reasons) or 'no signature'}")


def result(doc: str) -> str:
    return doc.strip().splitlines()[0].rsplit("-> ", 1)[-1] if "-> " in doc else "None"


def fits(module: StubModule, value: Any, kind: str) -> bool:
    """Whether a parameter of the type `kind`, as written in a docstring, takes `value`."""
    short = kind.strip().rsplit(".", 1)[-1]
    if "Buffer" in kind or short == "buffer":
        return isinstance(value, (bytes, bytearray, memoryview))
    if short == "Dims":
        return isinstance(value, tuple) and all(isinstance(n, int) for n in value)
    if short in TEXTS:
        return isinstance(value, TEXTS[short])
    real = getattr(module.real, short, None)
    if isinstance(real, type):
        return issubclass(value._real, real) if isinstance(value, Stub) else isinstance(value, real)
    return True


def make(module: StubModule, kind: str) -> Any:
    short = re.split(r"[.:]", kind.strip())[-1]
    if short in SCALARS:
        return SCALARS[short]
    if "Dims" in short:
        return (
            [(1, 3, 64, 64)] * 3
            if kind.strip().lower().startswith(("list", "typing.list"))
            else (1, 3, 64, 64)
        )
    short = {"IEngineInspector": "EngineInspector"}.get(short, short)  # C++'s name, in 8.6
    real = getattr(module.real, short, None)
    if hasattr(real, "__members__"):
        return next(iter(real.__members__.values()))
    return Stub(module, real) if isinstance(real, type) else None


def plain(value: Any) -> Any:
    if hasattr(value, "name") and not isinstance(value, Stub):
        return value.name
    return value if isinstance(value, (int, float, str, bool, tuple)) else type(value).__name__


def rehearse(bindings: str, libraries: str = "") -> dict[str, Any]:
    """Build, inspect and run engines of every precision on these bindings; return what was called."""
    from dataclasses import replace

    import numpy as np

    from restort.backends.tensorrt import builder, cuda, engine, inspector, library, provider
    from restort.backends.tensorrt.options import BuildOptions, Profile
    from restort.export.emit import emit
    from restort.export.qdq import Quantization, quantizable_layers
    from restort.export.typed import typed_graph
    from restort.utils import gpu
    from tests.export.test_graphs import FORMS, weights_of
    from tests.fakes.fake_cuda import FakeCuda
    from tests.fakes.fake_driver import Driver

    gpu._driver = lambda: Driver(capability=(8, 9), cuda=12080, name="NVIDIA GeForce RTX 4090")
    fake = FakeCuda(seed=0)
    cuda.runtime = lambda: fake
    module = StubModule(load(bindings, libraries))
    found = library.adapt("rtx" if bindings == "rtx" else "tensorrt", module)
    weights = weights_of(FORMS["restormer-gray"])
    done: dict[str, Any] = {"version": found.version, "can": found.capabilities.to_json(), "precisions": {}}
    for precision in found.precisions:
        module.calls.clear()
        keep = ["latent.0"] if precision == "mixed" else []
        newer = found.capabilities.newer_operators
        graph = typed_graph(weights, precision, keep_fp32=keep, newer_operators=newer)
        size = (1, 64, 64)
        profile = Profile(size, size, (2, 128, 128))
        options = BuildOptions(profile, precision, (), 2, timing_cache=b"times")
        built = builder.build(found, graph, options)
        done["precisions"][precision] = {
            "set": [call[1][0] for call in module.calls if call[0] == "IBuilderConfig.set_flag"],
            "cleared": [call[1][0] for call in module.calls if call[0] == "IBuilderConfig.clear_flag"],
            "layer": [call[1] for call in module.calls if call[0] == "ILayer.precision"],
            "flags": built.report["flags"],
            "timings": built.timing_cache is not None,
        }
    if found.name == "tensorrt":
        module.calls.clear()
        compatible = replace(options, precision="fp32", version_compatible=True)
        graph = typed_graph(weights, "fp32", newer_operators=newer)
        assert builder.build(found, graph, compatible).report["flags"]["version_compatible"]
        opened = engine.Engine(found, b"plan", host_code=True)
        assert opened(np.zeros((1, 3, 64, 64), np.float32)).shape == (1, 3, 64, 64)
        opened.close()
        done["compatible"] = [
            call[1][0] for call in module.calls if call[0].endswith(("set_flag", "host_code_allowed"))
        ]
        done["fused"] = fused(module, found, weights)
    module.calls.clear()
    ranges = dict.fromkeys(quantizable_layers(weights.spec), 1.0)
    graph = emit(weights, opset=None if newer else 17, quantization=Quantization("int8", ranges))
    report = builder.build(found, graph, replace(options, precision="fp32")).report
    done["int8"] = [call[1][0] for call in module.calls if call[0] == "IBuilderConfig.set_flag"]
    assert report["flags"]["quantization"] == "int8"
    done["names"] = sorted({call[0] for call in module.calls})
    if found.capabilities.timing_cache:
        assert provider.timing_cache_combiner(found)(b"a", b"b") == b"plan"
    inspector.summary(found, b"plan")
    opened = engine.Engine(found, b"plan")
    done["ran"] = opened(np.zeros((1, 3, 64, 64), np.float32)).shape
    opened.close()
    return done


def fused(module: StubModule, flavour: Any, weights: Any) -> list[str]:
    """Build an engine of RestoRT's own kernels; return the layers of its report, and the names that were called."""
    import tempfile

    from restort.backends.tensorrt import plugin
    from restort.backends.tensorrt.aot_builder import aot_requests, build_aot_engine
    from restort.backends.tensorrt.options import BuildOptions, Profile
    from tests.fakes.empty_aot import aot_of

    plugin.load = lambda flavour: None
    module.calls.clear()
    module.get_plugin_registry = lambda: Stub(module, module.real.IPluginRegistry)  # type: ignore[attr-defined]
    plugin.is_registered(flavour)  # what it returns has no type in the bindings
    module.get_plugin_registry().load_library("librestort_pass.so")
    profile = Profile.fixed(1, 64, 64)
    options = BuildOptions(profile, "bf16", kernels="fused")
    with tempfile.NamedTemporaryFile() as file:
        file.write(aot_of(*aot_requests(weights, "bf16", profile, "8.9")))
        file.flush()
        built = build_aot_engine(flavour, weights, [Path(file.name)], options)
    set_ = [name for name, _ in module.calls]
    return [*built.report["layers"], *sorted(set(set_))]


def load(bindings: str, libraries: str) -> Any:
    """The module of the bindings in a folder, after the libraries they want; 'rtx' is the installed TensorRT-RTX."""
    if bindings == "rtx":
        import tensorrt_rtx

        return tensorrt_rtx
    for library in sorted(Path(libraries).glob("lib*")):
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    sys.path.insert(0, bindings)
    import tensorrt_bindings

    return tensorrt_bindings


if __name__ == "__main__":
    print(json.dumps(rehearse(*sys.argv[1:])))
