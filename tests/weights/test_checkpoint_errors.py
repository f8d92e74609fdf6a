"""Bad files of weights: one clear sentence each, quickly, and nothing in them is ever run."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from restort.errors import RestortError
from restort.weights.checkpoint import load_weights
from tests.weights.test_checkpoint import SMALL, SMALL_ELAN, arrays


def refused(path: Path, *parts: str) -> str:
    start = time.perf_counter()
    with pytest.raises(RestortError) as caught:
        load_weights(path)
    message = str(caught.value)
    assert time.perf_counter() - start < 5
    assert path.name in message
    assert "\n" not in message
    for part in parts:
        assert part in message
    return message


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def torch_bytes(content: Any, zipped: bool = True) -> bytes:
    torch = pytest.importorskip("torch")
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def tensors(state: dict[str, np.ndarray]) -> dict[str, Any]:
    torch = pytest.importorskip("torch")
    return {name: torch.from_numpy(value) for name, value in state.items()}


def archive(
    pickled: bytes, extra: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED
) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        for name, data in (extra or {}).items():
            file.writestr(f"archive/{name}", data)
    return stream.getvalue()


def test_no_such_file_and_no_file(tmp_path: Path) -> None:
    refused(tmp_path / "none.pth", "no such file")
    (tmp_path / "folder.pth").mkdir()
    refused(tmp_path / "folder.pth", "folder")
    refused(write(tmp_path / "empty.safetensors", b""), "empty")
    refused(write(tmp_path / "text.pth", b"These are not the weights you are looking for.\n" * 9), "neither")
    refused(write(tmp_path / "page.safetensors", b"<!DOCTYPE html><html></html>"), "web page")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.pth")
        refused(tmp_path / "pipe.pth", "regular file")
    if os.geteuid():
        write(tmp_path / "locked.pth", b"x").chmod(0)
        refused(tmp_path / "locked.pth", "cannot be read")


def test_truncated_files(tmp_path: Path) -> None:
    whole = {
        "a.safetensors": save(arrays(SMALL)),
        "zip.pth": torch_bytes(tensors(arrays(SMALL))),
        "legacy.pth": torch_bytes(tensors(arrays(SMALL)), zipped=False),
    }
    for name, data in whole.items():
        load_weights(write(tmp_path / name, data))
        for length in (1, 2, 8, 9, 60, 300, len(data) // 2, len(data) - 100, len(data) - 1):
            refused(write(tmp_path / name, data[:length]))
    refused(write(tmp_path / "zip.pth", whole["zip.pth"][:-50]), "truncated")
    refused(write(tmp_path / "a.safetensors", whole["a.safetensors"][:-50]), "truncated")
    refused(write(tmp_path / "legacy.pth", whole["legacy.pth"][:-50]), "truncated")


def other_networks() -> dict[str, dict[str, tuple[int, ...]]]:
    return {
        "resnet": {"conv1.weight": (4, 3, 7, 7), "layer1.0.conv1.weight": (4, 4, 3, 3), "fc.bias": (10,)},
        "swinir": {
            "conv_first.weight": (6, 3, 3, 3),
            "patch_embed.norm.weight": (6,),
            "layers.0.residual_group.blocks.0.attn.qkv.weight": (18, 6),
        },
        "vit": {"patch_embed.proj.weight": (8, 3, 16, 16), "blocks.0.attn.qkv.weight": (24, 8)},
    }


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_other_architectures(tmp_path: Path, kind: str) -> None:
    for shapes in other_networks().values():
        state = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        data = save(state) if kind == "safetensors" else torch_bytes(tensors(state), kind == "zip")
        refused(write(tmp_path / "a.pth", data), "neither a Restormer nor an ELAN", next(iter(state)))


def test_wrong_shapes_names_and_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"

    def attempt(change: Callable[[dict[str, Any]], Any], *parts: str, spec: Any = SMALL) -> None:
        state = arrays(spec)
        change(state)
        save_file({k: np.array(v, order="C") for k, v in state.items()}, path)
        refused(path, *parts)

    def zeros(name: str, *shape: int) -> Callable[[dict[str, Any]], Any]:
        return lambda state: state.update({name: np.zeros(shape, np.float32)})

    attempt(zeros("output.weight", 3, 16, 5, 5), "output.weight", "[3, 16, 3, 3]")
    attempt(zeros("output.weight"), "shapes")
    attempt(zeros("patch_embed.proj.weight", 8), "shapes")
    attempt(zeros("patch_embed.proj.weight", 0, 3, 3, 3))
    attempt(zeros("latent.0.attn.temperature", 7, 1, 1), "heads")
    attempt(zeros("more.weight", 2), "more.weight")
    attempt(lambda state: state.pop("latent.0.norm1.body.weight"), "lack", "latent.0.norm1.body.weight")
    attempt(lambda state: state["output.weight"].__setitem__(0, np.nan), "NaN", "output.weight")
    attempt(lambda state: state["output.weight"].__setitem__(0, np.inf), "infinite")
    attempt(lambda state: state.update({"output.weight": np.full((3, 16, 3, 3), 1e300)}), "infinite")
    attempt(lambda state: state.update({"output.weight": np.ones((3, 16, 3, 3), np.int8)}), "int8")
    attempt(zeros("tail.0.weight", 75, 30, 3, 3), "scale", spec=SMALL_ELAN)
    attempt(zeros("head.0.weight", 30, 0, 3, 3), spec=SMALL_ELAN)
    attempt(zeros("body.0.modules_lfe.lfe_0.conv0.shift_conv.weight", 30, 1, 3, 3), "shift", spec=SMALL_ELAN)
    attempt(lambda state: [state.pop(k) for k in list(state) if k.startswith("body.0.")], spec=SMALL_ELAN)


class Payload:
    """On unpickling: calls `function(*args)`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def attacks(canary: Path) -> dict[str, bytes]:
    code = f"open({str(canary)!r}, 'w').write('run')"
    found = {
        f"{name} {protocol}": pickle.dumps({"params": value}, protocol=protocol)
        for protocol in (0, 2, 4)
        for name, value in {
            "system": Payload(os.system, f"touch {canary}"),
            "eval": Payload(builtins.eval, code),
            "exec": Payload(builtins.exec, code),
            "open": Payload(builtins.open, str(canary), "w"),
            "getattr": Payload(builtins.getattr, Payload(__import__, "os"), "system"),
            "popen": Payload(subprocess.Popen, ["touch", str(canary)]),
            "nested": [{"a": (Payload(os.system, f"touch {canary}"),)}],
        }.items()
    }
    touch = f"touch {canary}".encode()
    found["posix"] = b"cposix\nsystem\n(V" + touch + b"\ntR."
    found["instance"] = b"(V" + touch + b"\nios\nsystem\n."
    found["object"] = b"(cos\nsystem\nV" + touch + b"\no."
    found["chain"] = (
        b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93\x8c" + bytes([len(touch)]) + touch + b"\x85R."
    )
    found["setstate"] = b"\x80\x02}(X\x0c\x00\x00\x00__setstate__cos\nsystem\nucos\nsystem\nb."
    found["extension"] = b"\x80\x02\x82\x01."
    return found


def test_hostile_pickles_never_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for name, pickled in attacks(canary).items():
        message = refused(write(tmp_path / "a.pth", archive(pickled)))
        refused(write(tmp_path / "a.pth", pickled))
        if name not in ("extension",):
            assert "nothing was run" in message, name
        assert not canary.exists(), name


@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_object_beside_good_weights(tmp_path: Path, zipped: bool) -> None:
    canary = tmp_path / "canary"
    content = {"params": tensors(arrays(SMALL)), "extra": Payload(os.system, f"touch {canary}")}
    refused(
        write(tmp_path / "a.pth", torch_bytes(content, zipped)), "asks to run", "system", "nothing was run"
    )
    assert not canary.exists()


def test_other_zips_and_torchscript(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("word/document.xml", "x")
    refused(write(tmp_path / "a.pth", stream.getvalue()), "not a PyTorch checkpoint")
    script = torch.jit.trace(torch.nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 2, 2))
    torch.jit.save(script, str(tmp_path / "b.pt"))
    refused(tmp_path / "b.pt", "TorchScript", "state_dict")
    whole = torch_bytes(torch.nn.Linear(2, 2))
    refused(write(tmp_path / "c.pt", whole), "no weights")
    refused(write(tmp_path / "d.pt", pickle.dumps([1, 2], protocol=2)), "not one written by torch.save")
    refused(write(tmp_path / "e.pt", torch_bytes({"psnr": 3})), "no weights")


def rebuilt(key: str, numel: int, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """The pickle of {'patch_embed.proj.weight': tensor} as torch.save writes it, with any numbers."""

    def number(n: int) -> bytes:
        return pickle.dumps(n, protocol=2)[2:-1]

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    name = key.encode()
    storage = (
        (b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX" + struct.pack("<I", len(name)) + name)
        + b"X\x03\x00\x00\x00cpu"
        + number(numel)
        + b"tQ"
    )
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + numbers(shape) + numbers(stride)
    )
    return tensor + b"\x89ccollections\nOrderedDict\n)RtR"


def whole_state(first: bytes) -> bytes:
    """A pickle of SMALL's state in which `first` is the tensor of patch_embed.proj.weight."""
    result = b"\x80\x02}("
    for name, value in arrays(SMALL).items():
        steps = tuple(s // 4 for s in value.strides)
        tensor = rebuilt("0", 1 << 20, 0, value.shape, steps)
        result += b"X" + struct.pack("<I", len(name)) + name.encode()
        result += first if name == "patch_embed.proj.weight" else tensor
    return result + b"u."


def test_windows_beyond_the_storage(tmp_path: Path) -> None:
    data, path = {"data/0": bytes(1 << 22)}, tmp_path / "a.pth"
    good = (8, 3, 3, 3), (27, 9, 3, 1)
    load_weights(write(path, archive(whole_state(rebuilt("0", 216, 0, *good)), data)))
    load_weights(write(path, archive(whole_state(rebuilt("0", 300, 84, *good)), data)))
    refused(write(path, archive(whole_state(rebuilt("0", 216, 1, *good)), data)), "beyond")
    refused(write(path, archive(whole_state(rebuilt("0", 216, -1, *good)), data)), "impossible")
    refused(
        write(path, archive(whole_state(rebuilt("0", 216, 0, (8, 3, 3, 3), (27, 9, 3, -1))), data)),
        "impossible",
    )
    refused(
        write(path, archive(whole_state(rebuilt("0", 216, 0, (8, 3, 3, 3), (27, 9, 4, 1))), data)), "beyond"
    )
    refused(
        write(path, archive(whole_state(rebuilt("0", 216, 0, (8, 3, 3, 3), (27, 9, 3))), data)), "strides"
    )
    refused(write(path, archive(whole_state(rebuilt("9", 216, 0, *good)), data)), "lacks")
    refused(write(path, archive(whole_state(rebuilt("0", 1 << 30, 0, *good)), {"data/0": b""})), "damaged")
    refused(write(path, archive(whole_state(rebuilt("0", 1 << 90, 0, *good)), data)), "impossible")
    deep = rebuilt("0", 216, 0, (1,) * 100, (1,) * 100)
    refused(write(path, archive(whole_state(deep), data)), "impossible")


def test_files_made_to_fill_the_memory(tmp_path: Path) -> None:
    path, vast = tmp_path / "a.pth", (1 << 20, 1 << 20, 3, 3)
    # 10 TB from one number: strides of zero.
    refused(
        write(path, archive(whole_state(rebuilt("0", 1, 0, vast, (0, 0, 0, 0))), {"data/0": bytes(1 << 22)}))
    )
    bomb = archive(b"\x80\x02" + b"N0" * (1 << 24) + b".", compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 1 << 17
    refused(write(path, bomb), "compressed")
    refused(write(path, struct.pack("<Q", 99_999_999) + b"{" + b" " * 20), "damaged")
    refused(write(path, b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x."))
    refused(write(path, b"\x80\x04Nr\xff\xff\xff\xff."))
    nested = b"\x80\x02N" + b"\x85" * 200_000 + b"."
    refused(write(path, archive(nested)))
    doubled = b"\x80\x02K\x01K\x01\x86" + b"2\x86" * 80 + b"}\x85" + b"."
    refused(write(path, archive(doubled)))
    cycle = b"\x80\x02}q\x00X\x06\x00\x00\x00paramsh\x00s."
    refused(write(path, archive(cycle)), "no weights")


def long(value: int) -> bytes:
    """The instruction LONG1 for an integer of any size."""
    digits = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(digits)]) + digits


def test_integers_of_one_hash_value(tmp_path: Path) -> None:
    """A dict with n keys of one hash value takes n * n / 2 comparisons: 20,000 keys took 12 s."""
    prime, count = (1 << 61) - 1, 20_000  # CPython hashes integers modulo this prime
    keys = [long(k * prime) for k in range(1, count + 1)]
    path = tmp_path / "a.pth"
    pairs = b"".join(b"]" + key + b"aNa" for key in keys)  # [key, None]
    for pickled in (
        b"}(" + b"".join(key + b"N" for key in keys) + b"u.",
        b"}" + b"".join(key + b"Ns" for key in keys) + b".",
        b"(" + b"".join(key + b"N" for key in keys) + b"d.",
        b"ccollections\nOrderedDict\n](" + pairs + b"e\x85R.",
        b"N" + b"".join(b"p%d\n" % (k * prime) for k in range(1, count + 1)) + b".",
    ):
        start = time.perf_counter()
        refused(write(path, archive(b"\x80\x02" + pickled)))
        assert time.perf_counter() - start < 2


def test_budgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from restort.weights import pickle_reader, state_dict, torch_file

    path = tmp_path / "a.pth"
    refused(write(path, archive(b"\x80\x02N" + b"0N" * 1_100_000 + b".")), "2,000,000 instructions")
    refused(write(path, archive(b"\x80\x02Np99999999\n.")), "memo")
    content = torch_bytes({"params": tensors(arrays(SMALL))})
    load_weights(write(path, content))
    for module, name, value, expected in (
        (pickle_reader, "MAX_INSTRUCTIONS", 1000, "more than 1,000 instructions"),
        (state_dict, "MAX_ENTRIES", 20, "more than 20 tensors"),
        (torch_file, "MAX_DIRECTORY_BYTES", 1000, "too many entries"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            refused(path, expected)


def test_damaged_numpy_arrays(tmp_path: Path) -> None:
    def array(shape: bytes, data: bytes, code: bytes = b"f4") -> bytes:
        """The pickle of a NumPy array as protocol 3 has it, with any shape and bytes."""
        dtype = b"cnumpy\ndtype\n(X" + struct.pack("<I", len(code)) + code + b"\x89\x88tR(K\x03U\x01<NNNtb"
        return (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR(K\x01"
            + shape
            + dtype
            + b"\x89B"
            + struct.pack("<I", len(data))
            + data
            + b"tb"
        )

    whole, vast = b"(K\x08K\x03K\x03K\x03t", b"(J\x00\x00\x10\x00K\x03K\x03K\x03t"
    path, extra = tmp_path / "a.pth", {"data/0": bytes(1 << 22)}
    load_weights(write(path, archive(whole_state(array(whole, bytes(864))), extra)))
    refused(write(path, archive(whole_state(array(whole, bytes(860))), extra)), "fewer numbers")
    refused(write(path, archive(whole_state(array(vast, bytes(864))), extra)))
    refused(write(path, archive(whole_state(array(whole, bytes(864), b"O8")), extra)), "neither")
    refused(write(path, archive(whole_state(array(b"J\xff\xff\xff\xff\x85", b"")), extra)), "impossible")


def test_lfs_pointer(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
    refused(write(tmp_path / "a.safetensors", pointer), "Git LFS pointer", "git lfs pull")


VALID: dict[str, bytes] = {}


def valid(kind: str) -> bytes:
    if not VALID:
        state = OrderedDict((k, v) for k, v in arrays(SMALL).items())
        VALID["safetensors"] = save(dict(state))
        VALID["zip"] = torch_bytes({"params": tensors(state), "epoch": 3})
        with zipfile.ZipFile(
            io.BytesIO(VALID["zip"])
        ) as file:  # by itself: the zip's checksums would guard it
            VALID["pickle"] = next(file.read(name) for name in file.namelist() if name.endswith("data.pkl"))
        VALID["legacy"] = torch_bytes(tensors(state), zipped=False)
    return VALID[kind]


def only_restort_errors(path: Path) -> None:
    start = time.perf_counter()
    try:
        load_weights(path)
    except RestortError as error:
        assert path.name in str(error)
    assert time.perf_counter() - start < 5


relaxed = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@relaxed
@given(
    start=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x20" + bytes(7) + b"{"]),
    data=st.binary(),
)
def test_random_bytes(tmp_path: Path, start: bytes, data: bytes) -> None:
    only_restort_errors(write(tmp_path / "a.pth", start + data))
    only_restort_errors(write(tmp_path / "a.pth", archive(b"\x80\x02" + data)))


@relaxed
@given(
    text=st.lists(
        st.sampled_from(list(b"(.0N}])tR2bQsucoi\x85\x86\x87\x81\x89\x88\x93\x94ahjqdlep1e")), max_size=40
    )
)
def test_random_pickle_instructions(tmp_path: Path, text: list[int]) -> None:
    only_restort_errors(write(tmp_path / "a.pth", archive(b"\x80\x02" + bytes(text) + b".")))


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy", "pickle"])
@relaxed
@given(data=st.data())
def test_damaged_files(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    content = bytearray(valid(kind))
    # Half of the changes go where the descriptions are: the start of each format, the end of a zip.
    ends = (
        st.integers(0, 20_000)
        if kind != "zip"
        else st.one_of(st.integers(0, 30_000), st.integers(-9_000, -1))
    )
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.one_of(ends, st.integers(0, len(content) - 1))) % len(content)
        piece = data.draw(st.binary(min_size=1, max_size=8))
        content[place : place + data.draw(st.sampled_from([0, len(piece), 40]))] = piece
    changed = bytes(content)
    only_restort_errors(write(tmp_path / "a.pth", archive(changed) if kind == "pickle" else changed))


def test_no_import_of_what_a_pickle_names(tmp_path: Path) -> None:
    write(tmp_path / "trap_module.py", b"raise SystemExit('imported')")
    path = write(tmp_path / "a.pth", archive(b"\x80\x02ctrap_module\nthing\n)R."))
    sys.path.insert(0, str(tmp_path))
    try:
        refused(path, "no weights")
    finally:
        sys.path.remove(str(tmp_path))
    assert "trap_module" not in sys.modules
