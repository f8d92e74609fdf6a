"""Engines of RestoRT's own kernels, on a fake library and GPU: chosen, cached apart from others, and run."""

from __future__ import annotations

import gc
import importlib.util
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from restort.backends.fused import aot_cache
from restort.backends.fused.aot_cache import AotCache, AotRequest, open_aot, validate_aot_file
from restort.backends.fused.aot_package import join_aot
from restort.backends.tensorrt import runner as runners
from restort.backends.tensorrt.aot_builder import aot_graph
from restort.backends.tensorrt.cache import EngineCache
from restort.backends.tensorrt.options import BuildOptions, Profile
from restort.backends.tensorrt.provider import EngineProvider, check_build
from restort.backends.tensorrt.runner import TensorrtRunner
from restort.errors import RestortError, UsageError
from restort.utils.gpu import Gpu
from restort.weights.checkpoint import Weights
from tests.fakes.empty_aot import aot_of
from tests.fakes.fake_gpu import H100, World, make_runner, picture
from tests.fakes.fake_tensorrt import enlarged

FUSED = {"kernels": "fused"}
MANY = Profile((1, 16, 16), (1, 32, 32), (1, 64, 64))


def made(weights: Weights, precision: str = "fp16", **options: Any) -> tuple[TensorrtRunner, list[str]]:
    return make_runner(weights, precision, options={**FUSED, **options})


def request_of(weights: Weights, h: int = 32, w: int = 48) -> AotRequest:
    return AotRequest(weights, "fp16", (1, h, w), 90)


def test_every_size_has_an_engine_of_its_own(world: World, weights: Weights) -> None:
    runner, said = made(weights)
    for size in ((32, 48), (16, 16), (32, 48)):
        x = picture(*size)
        np.testing.assert_array_equal(runner(x), enlarged(x))
    np.testing.assert_array_equal(runner(picture(n=3)), enlarged(picture(n=3)))  # one after the other
    assert [str(options.profile) for options in world.builds] == ["1x32x48", "1x16x16"]
    assert (
        world.compiled == ["1x32x48", "1x16x16"]
        and "compiling the AOT package of tiny, fp16, 1x32x48" in said[1]
    )
    runner.close()
    again, said = made(weights)
    np.testing.assert_array_equal(again(picture()), enlarged(picture()))
    assert len(world.builds) == 2 and not said and world.loaded
    again.close()
    names = sorted(stored.path.name for stored in EngineCache().entries())
    assert [name.rsplit("-", 1)[0] for name in names] == ["tiny-fp16-fused-16x16", "tiny-fp16-fused-32x48"]


def test_an_engine_that_asks_for_no_scratch(
    world: World, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.fakes.fake_tensorrt.FakeEngine.device_memory_size", 0)
    runner, _ = made(weights)
    for _ in range(3):  # the last as a graph; the stand-in refuses the address 0
        np.testing.assert_array_equal(runner(picture()), enlarged(picture()))
    runner.close()


def test_the_environment_chooses_too(world: World, weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESTORT_TENSORRT_KERNELS", "fused")
    runner = TensorrtRunner(weights)
    runner(picture())
    assert world.builds[-1].kernels == "fused" and world.builds[-1].profile.is_fixed
    runner.close()
    runner = TensorrtRunner(weights, options={"kernels": "tensorrt"})
    runner(picture())
    assert world.builds[-1].kernels == "tensorrt" and not world.builds[-1].profile.is_fixed
    runner.close()
    monkeypatch.setenv("RESTORT_TENSORRT_KERNELS", "cutlass")
    with pytest.raises(
        UsageError, match=r"unknown kernels for an engine: 'cutlass'; choose tensorrt, fused .*=cutlass"
    ):
        TensorrtRunner(weights)
    monkeypatch.setenv("RESTORT_TENSORRT_KERNELS", "fused")
    with pytest.raises(UsageError, match=r"not support fp32.*RESTORT_TENSORRT_KERNELS=fused chose.*unset it"):
        TensorrtRunner(weights, "fp32")
    with pytest.raises(UsageError, match=r"or leave --kernels out$"):
        TensorrtRunner(weights, "fp32", options=FUSED)


def test_neither_kind_of_kernels_stands_for_the_other(world: World, weights: Weights) -> None:
    providers = [
        EngineProvider(weights, "fp16", world.flavour, options=o)
        for o in ({}, FUSED, {"kernels": "tensorrt"})
    ]
    keys = [provider.key(Profile.fixed(1, 32, 48)) for provider in providers]
    assert keys[0].digest == keys[2].digest != keys[1].digest
    for a, b in ((0, 1), (1, 0)):
        assert not keys[a].stands_for(keys[b].to_json(), (1, 32, 48))


def test_keys_tell_kernels_and_plugins_apart(
    world: World, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = EngineProvider(weights, "fp16", world.flavour, options=FUSED)

    def digest() -> str:
        return provider.key(Profile.fixed(1, 32, 48)).digest

    found = [digest()]
    library = tmp_path / "librestort_pass.so"
    monkeypatch.setenv("RESTORT_PLUGIN", str(library))
    with pytest.raises(UsageError, match=r"RESTORT_PLUGIN names a file that does not exist"):
        digest()
    for content in (b"one", b"two"):
        library.write_bytes(content)
        found.append(digest())
    monkeypatch.setattr("restort.backends.tensorrt.provider.sources_digest", lambda: "other kernels")
    found.append(digest())
    assert len(set(found)) == 4


def test_results_that_are_not_finite(world: World, weights: Weights) -> None:
    world.behaves["fp16"] = "nan"
    runner, said = made(weights)
    np.testing.assert_array_equal(runner(picture()), enlarged(picture()))
    assert [(o.precision, o.kernels) for o in world.builds] == [("fp16", "fused"), ("bf16", "fused")]
    world.behaves["bf16"] = "nan"
    np.testing.assert_array_equal(runner(picture(16, 16)), enlarged(picture(16, 16)))
    assert (world.builds[-1].precision, world.builds[-1].kernels) == ("fp32", "tensorrt")
    assert sum("produced NaN/Inf" in line for line in said) == 1
    runner.close()


def test_few_engines_stay_open(world: World, weights: Weights) -> None:
    runner, _ = made(weights)
    stream = runner.stream(picture(16, 16) for _ in range(4))
    first = next(stream)
    for i in range(2, 8):
        runner(picture(16, 16 * i))
    assert len(runner._engines) == runners.KEPT == 4
    np.testing.assert_array_equal(first, enlarged(picture(16, 16)))
    assert len(list(stream)) == 3  # of an engine that was let go meanwhile
    del stream
    gc.collect()
    runner.close()


def test_the_plugin_is_there_before_an_engine_is_opened(
    world: World, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, _ = made(weights)
    runner(picture())
    runner.close()

    def missing(flavour: Any, notify: Any = None) -> None:
        raise RestortError("there is no compiler; get one")

    monkeypatch.setattr("restort.backends.tensorrt.plugin.load", missing)
    runner, said = made(weights)
    with pytest.raises(RestortError, match="this engine needs the plugin RestortPass: there is no compiler"):
        runner(picture())
    assert not said and len(EngineCache().entries()) == 1  # it is not the engine's fault
    runner.close()


def test_what_is_not_for_auto(world: World, weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    from restort.backends.tensorrt import availability, library

    monkeypatch.setattr(library, "installed", lambda: {"tensorrt": "8.6.0"})
    runner, _ = made(weights)
    runner(picture())
    runner.close()
    assert not availability.is_ready(weights, "fp16")  # a runner without the option would build another
    monkeypatch.setenv("RESTORT_TENSORRT_KERNELS", "fused")
    assert availability.is_ready(weights, "fp16")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"profile": MANY}, r"single sizes, not 1x16x16\.\.1x32x32.*--shape 1x32x32, or leave --kernels out"),
        ({"precision": "fp32"}, "does not support fp32; choose fp16 or bf16, or leave"),
        ({"precision": "mixed"}, "does not support mixed"),
        ({"compute_capabilities": ("8.6",)}, "leave --compute-capability out"),
        ({"level": 3}, "does not choose kernels; leave --level out"),
    ],
)
def test_options_that_make_no_sense(world: World, changes: dict[str, Any], expected: str) -> None:
    options = BuildOptions(Profile.fixed(1, 32, 32), "fp16", **FUSED)
    check_build(world.flavour, options)
    with pytest.raises(UsageError, match=expected):
        check_build(world.flavour, replace(options, **changes))


def test_libraries_that_have_no_such_plugin(world: World) -> None:
    options = BuildOptions(Profile.fixed(1, 32, 32), "fp16", **FUSED)
    world.flavour.version = "9.3.0"
    with pytest.raises(
        UsageError, match=r"needs TensorRT 8\.6, 10 or 11, and 9\.3\.0 is installed; leave --kernels out"
    ):
        check_build(world.flavour, options)
    world.flavour.name, world.flavour.title = "rtx", "TensorRT-RTX 1.7"
    with pytest.raises(UsageError, match=r"TensorRT-RTX 1\.7 does not support plugins.*--backend fused"):
        check_build(world.flavour, options)
    world.flavour.name, world.flavour.version = "tensorrt", "8.6.0"
    world.gpu = None
    with pytest.raises(UsageError, match=r"no NVIDIA GPU.*restort export --format aot"):
        check_build(world.flavour, options)


def test_packages_are_found_by_what_makes_them(world: World, weights: Weights) -> None:
    cache, said = AotCache(), []
    request = request_of(weights)
    assert cache.find(request) is None
    path = cache.provide(request, said.append)
    assert path == cache.find(request) and path.parent.name == "aot" and len(said) == 1
    assert path.name.startswith("tiny-fp16-1x32x48-sm90-")
    others = (
        replace(request, precision="bf16"),
        replace(request, shape=(1, 48, 32)),
        replace(request, capability=80),
        replace(request, weights=replace(weights, digest="another")),
    )
    assert len({one.name for one in (request, *others)}) == 5
    assert all(cache.find(one) is None for one in others)
    path.write_bytes(path.read_bytes()[:-1])  # damaged: made again
    assert cache.find(request) is None and cache.provide(request, said.append) == path
    assert open_aot(path).text["weights_sha256"] == weights.digest and len(world.compiled) == 2


def test_packages_used_longest_ago_go(world: World, weights: Weights) -> None:
    size = len(aot_of(request_of(weights)))
    cache = replace(AotCache(), limit=int(2.5 * size))
    paths = []
    for i in range(1, 5):
        paths.append(cache.provide(request_of(weights, 16 * i, 16), lambda line: None))
        for j, path in enumerate(paths):
            if path.exists():
                os.utime(path, (1000 + j, 1000 + j))
    assert [path.exists() for path in paths] == [False, False, True, True]


def test_without_pytorch_a_package_has_to_be_there(
    world: World, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        aot_cache.importlib.util, "find_spec", lambda name: None if name == "torch" else find_spec(name)
    )
    runner, _ = made(weights)
    with pytest.raises(RestortError) as error:
        runner(picture())
    text = str(error.value)
    assert (
        "no AOT package of tiny" in text and "torch is not installed to make one" in text and "--aot" in text
    )
    assert "restort export --format aot --shape 1x32x48 --precision fp16 --compute-capability 9.0" in text
    path = AotCache().folder / request_of(weights).name
    path.parent.mkdir(parents=True)
    path.write_bytes(aot_of(request_of(weights)))
    np.testing.assert_array_equal(runner(picture()), enlarged(picture()))
    assert world.packages == [path] and not world.compiled
    runner.close()


def test_a_package_that_is_named(world: World, weights: Weights, tmp_path: Path) -> None:
    request = request_of(weights)
    file = tmp_path / "pass.rtaot"
    profile = Profile.fixed(*request.shape)
    file.write_bytes(aot_of(request))
    said: list[str] = []
    provider = EngineProvider(
        weights, "fp16", world.flavour, options=FUSED, packages=(file,), notify=said.append
    )
    assert provider.obtain(profile).built and not provider.obtain(profile).built
    assert world.packages == [file.resolve()] and not world.compiled
    file.write_bytes(aot_of(request, compilers="Triton 4.0"))
    assert provider.obtain(profile).about["aot"]["compilers"] == "Triton 4.0"
    assert any("it holds another AOT package" in line for line in said)
    kept = EngineCache().entries()[0].path
    file.write_bytes(aot_of(replace(request, capability=80)))
    with pytest.raises(UsageError, match="does not fit"):
        provider.obtain(profile)
    assert kept.exists() and len(world.packages) == 2  # a package that does not fit costs no engine


def several() -> Profile:
    return Profile((1, 32, 48), (1, 32, 48), (1, 32, 48), ((1, 16, 32), (2, 64, 16)))


def test_several_sizes_in_one_engine(world: World, weights: Weights, tmp_path: Path) -> None:
    profile = several()
    said: list[str] = []
    provider = EngineProvider(weights, "fp16", world.flavour, options=FUSED, notify=said.append)
    stored = provider.obtain(profile)
    assert world.compiled == ["1x32x48", "1x16x32", "2x64x16"] and "1x32x48, 1x16x32, 2x64x16" in said[0]
    assert stored.path.name.startswith("tiny-fp16-fused-32x48+2-")
    assert stored.about["key"]["profile"]["others"] == [[1, 16, 32], [2, 64, 16]]
    memory = stored.about["aot"]["memory"]
    assert memory == {"weights": 1 << 20, "context": 2 << 20} and stored.about["aot"]["kernels"] == 3
    runner = TensorrtRunner(weights, "fp16", options=FUSED)
    for shape in ((1, 3, 32, 48), (2, 3, 64, 16), (1, 3, 16, 32), (2, 3, 64, 16)):
        x = np.random.default_rng(0).random(shape, np.float32)
        for _ in range(3):  # the last as a graph
            np.testing.assert_array_equal(runner(x), enlarged(x))
    assert len(world.builds) == 1 and len(world.flavour.opened) == 1
    runner.close()
    named = TensorrtRunner(weights, "fp16", options=FUSED, profile=profile)
    with pytest.raises(RestortError, match=r"takes inputs of 1x32x48, 1x16x32, 2x64x16 \(batch x"):
        named(np.zeros((1, 3, 16, 16), np.float32))
    named.close()


def test_packages_of_several_sizes_that_are_named(world: World, weights: Weights, tmp_path: Path) -> None:
    files = []
    for i, size in enumerate(((2, 64, 16), (1, 32, 48), (1, 16, 32))):  # in any order
        files.append(tmp_path / f"{i}.rtaot")
        files[-1].write_bytes(aot_of(replace(request_of(weights), shape=size)))
    provider = EngineProvider(weights, "fp16", world.flavour, options=FUSED, packages=tuple(files))
    assert provider.obtain(several()).built and not provider.obtain(several()).built
    assert world.packages == [files[1], files[2], files[0]] and not world.compiled
    with pytest.raises(UsageError, match=r"3 AOT packages for 1 sizes \(1x32x48\); give one --aot for"):
        provider.obtain(Profile.fixed(1, 32, 48))


def test_the_graph_of_several_sizes(weights: Weights) -> None:
    sizes = ((1, 32, 48), (1, 16, 32))
    data = join_aot([aot_of(replace(request_of(weights), shape=size)) for size in sizes])
    graph = aot_graph(weights, data, "2").graph
    shapes = [
        [d.dim_value or d.dim_param for d in port.type.tensor_type.shape.dim]
        for port in (*graph.input, *graph.output)
    ]
    assert shapes == [[1, 3, "input_height", "input_width"], [1, 3, "output_height", "output_width"]]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in graph.node[0].attribute}
    assert attributes == {"plan": data, "plugin_version": b"2", "plugin_namespace": b""}


def test_a_package_named_from_home(
    world: World, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "pass.rtaot").write_bytes(aot_of(request_of(weights)))
    provider = EngineProvider(weights, "fp16", world.flavour, options=FUSED, packages=(Path("~/pass.rtaot"),))
    for built in (True, False):
        assert provider.obtain(Profile.fixed(1, 32, 48)).built is built


def test_a_package_that_cannot_be_made_or_kept(
    world: World, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(request: AotRequest, processes: int | None = None) -> bytes:
        raise RestortError("a kernel does not compile")

    monkeypatch.setattr(aot_cache, "compile_request", fails)
    with pytest.raises(RestortError, match=r"^a kernel does not compile$"):  # of no folder's fault
        AotCache().provide(request_of(weights), lambda line: None)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RestortError, match=r"cannot write the cache .*file/aot .*set RESTORT_CACHE"):
        AotCache(tmp_path / "file" / "aot").provide(request_of(weights), lambda line: None)


def test_kernels_that_cannot_be_kept(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from restort.backends.fused import aot_compile

    def fails(*arguments: Any, **options: Any) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(aot_compile, "compile_aot", fails)
    with pytest.raises(
        RestortError, match=r"cannot write the cache .* .permission denied.; set RESTORT_CACHE"
    ):
        aot_cache.compile_request(request_of(weights))

    def starved(*arguments: Any, **options: Any) -> bytes:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(aot_compile, "compile_aot", starved)
    with pytest.raises(RestortError, match=r"cannot start a process to compile in .*free some memory"):
        aot_cache.compile_request(request_of(weights))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"weights": "another"}, "made of other weights"),
        ({"precision": "bf16"}, "it is in bf16, not fp16"),
        ({"shape": (1, 16, 16)}, "inputs of 1x16x16 .BxHxW., not 1x32x48"),
        ({"capability": 80}, r"for compute capability 8\.0, not 9\.0"),
        (
            {"sources": "others"},
            "another version of RestoRT's kernels .0.1.0.; make one with `restort export",
        ),
    ],
)
def test_packages_of_something_else(
    weights: Weights, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    request, text = request_of(weights), {}
    other = request
    if "weights" in changes:
        other = replace(request, weights=replace(weights, digest="another"))
    elif "sources" in changes:
        text = changes
    else:
        other = replace(request, **changes)
    file = tmp_path / "pass.rtaot"
    file.write_bytes(aot_of(other, **text))
    with pytest.raises(UsageError, match=f"pass.rtaot does not fit: .*{expected}"):
        validate_aot_file(file, request)


def test_files_that_are_no_packages(weights: Weights, tmp_path: Path) -> None:
    file = tmp_path / "pass.rtaot"
    with pytest.raises(RestortError, match=r"pass\.rtaot"):
        validate_aot_file(file, request_of(weights))
    file.write_bytes(b"nothing")
    with pytest.raises(RestortError, match=r"pass\.rtaot: no AOT package.*restort export --format aot"):
        validate_aot_file(file, request_of(weights))
    with pytest.raises(RestortError, match="it is a folder; give the name of a file"):
        validate_aot_file(tmp_path, request_of(weights))


def test_another_gpu_has_other_packages(world: World, weights: Weights) -> None:
    assert H100.compute_capability == "9.0"
    world.gpu = Gpu("NVIDIA A100", (8, 0), (12, 2))
    runner, _ = made(weights)
    runner(picture())
    assert "-sm80-" in world.packages[0].name
    runner.close()
