"""Files of plans as the plugin in C++ reads them: what is damaged or cannot be is refused, by it as by Python."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from restort.backends.fused.aot_cache import AotRequest
from restort.backends.fused.aot_package import (
    ADDRESS,
    HEADER,
    KERNEL,
    LAUNCH,
    NUMBER,
    REGION,
    Argument,
    Call,
    join_aot,
    read_aot,
    split_aot,
    write_aot,
)
from restort.errors import RestortError
from restort.weights.checkpoint import load_weights
from tests.fakes.empty_aot import aot_of
from tests.fakes.fake_backend import ELAN, write_weights

ROOT = Path(__file__).resolve().parents[3]
REGIONS = HEADER.size
KERNELS = REGIONS + 4 * REGION.size
LAUNCHES = KERNELS + KERNEL.size
ARGUMENTS = LAUNCHES + LAUNCH.size
HUGE = (1 << 64) - 256


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ here")
    program = tmp_path_factory.mktemp("reader") / "aot_read"
    plugin = ROOT / "src" / "restort" / "backends" / "tensorrt" / "csrc"
    source = ROOT / "tests" / "emulator" / "aot_read.cpp"
    options = ["-std=c++17", "-O1", "-Wall", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
    command = [compiler, *options, f"-I{plugin}", "-o", str(program), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]
    return program


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A package of one launch, with an address and a number."""
    file = tmp_path_factory.mktemp("w") / "tiny.safetensors"
    weights = load_weights(write_weights(file, replace(ELAN[2], channels=30)))
    package = read_aot(aot_of(AotRequest(weights, "fp16", (1, 16, 16), 90)))
    call = Call(0, (1, 1, 1), (Argument(ADDRESS, 256, 2), Argument(NUMBER, -1)), "head")
    return write_aot(replace(package, launches=(call,)))


def changed(data: bytes, place: int, form: str, value: int) -> bytes:
    """With another number there, and a checksum that agrees."""
    made = bytearray(data)
    struct.pack_into(form, made, place, value)
    struct.pack_into("<I", made, 8, zlib.crc32(made[12:]))
    return bytes(made)


def answers(reader: Path, folder: Path, files: list[bytes]) -> list[str]:
    paths = [folder / f"{i}.rtaot" for i in range(len(files))]
    for path, data in zip(paths, files):
        path.write_bytes(data)
    done = subprocess.run([str(reader), *map(str, paths)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def is_package(data: bytes) -> bool:
    try:
        read_aot(data)
    except RestortError:
        return False
    return True


@pytest.mark.parametrize(
    ("place", "form", "value", "expected"),
    [
        (12, "<I", 3, "version 3, and this plugin reads 1 and 2"),
        (48, "<I", 1, "ends before its last size"),
        (REGIONS + 2 * REGION.size + 4, "<I", 1, "an impossible region"),  # weights of another package
        (16, "<Q", HUGE, "bytes"),
        (28, "<I", 0xFFFFFFFF, "ends in a table"),
        (40, "<I", 0xFFFFFFFF, "ends in a table"),
        (64, "<I", 0xFFFFFFFF, "an impossible shape"),
        (68, "<I", 17, "does not match its shape"),
        (REGIONS, "<I", 9, "an impossible region"),
        (REGIONS, "<I", 3, "does not have one input and one output"),
        (REGIONS + 2 * REGION.size + 16, "<Q", HUGE, "an impossible region"),  # offset
        (REGIONS + 2 * REGION.size + 24, "<Q", 1 << 20, "an impossible region"),  # contents after the end
        (REGIONS + 3 * REGION.size + 8, "<Q", 0, "an impossible region"),
        (KERNELS, "<Q", HUGE, "an impossible kernel"),
        (KERNELS, "<Q", 0, "an impossible kernel"),  # the file's own beginning, which is no machine code
        (KERNELS + 8, "<Q", 0, "an impossible kernel"),
        (KERNELS + 20, "<I", 1025, "an impossible kernel"),
        (LAUNCHES, "<I", 1, "an impossible launch"),
        (LAUNCHES + 16, "<I", 0xFFFFFFFF, "an impossible launch"),
        (LAUNCHES + 20, "<I", 0xFFFFFFFF, "an impossible launch"),
        (ARGUMENTS, "<I", 3, "outside of its region"),
        (ARGUMENTS + 4, "<I", 4, "outside of its region"),
        (ARGUMENTS + 8, "<q", 1 << 20, "outside of its region"),
        (ARGUMENTS + 8, "<q", -256, "outside of its region"),
    ],
)
def test_numbers_that_cannot_be(
    reader: Path, whole: bytes, tmp_path: Path, place: int, form: str, value: int, expected: str
) -> None:
    other = changed(whole, place, form, value)
    assert is_package(whole) and not is_package(other)
    fine, refused = answers(reader, tmp_path, [whole, other])
    assert fine == "read" and expected in refused


def test_regions_whose_sum_is_too_large(reader: Path, whole: bytes, tmp_path: Path) -> None:
    """Two halves of 2**64 would be an allocation of nothing."""
    other = whole
    for region in (2, 3):
        other = changed(other, REGIONS + region * REGION.size + 8, "<Q", 1 << 63)
    assert answers(reader, tmp_path, [other]) == ["the AOT package has an impossible region"]


def test_damage_anywhere(reader: Path, whole: bytes, tmp_path: Path) -> None:
    """Cut off, and with one or several bytes changed, with and without a checksum that agrees: never a crash."""
    dice = random.Random(0)
    files = [whole[: dice.randrange(len(whole))] for _ in range(50)]
    for _ in range(50):
        other = bytearray(whole)
        other[dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
        files.append(bytes(other))
    said = answers(reader, tmp_path, files)
    assert len(said) == len(files) and "read" not in said and not any(map(is_package, files))
    end = ARGUMENTS + 32
    summed = []
    for _ in range(300):
        other = bytearray(whole)
        for _ in range(dice.randrange(1, 9)):
            other[dice.randrange(20, end)] = dice.choice((0, 1, 127, 128, 255))
        summed.append(changed(bytes(other), 8, "<I", 0))
    said = answers(reader, tmp_path, summed)
    assert len(said) == len(summed) and len(set(said)) > 5
    for data, line in zip(summed, said):
        assert line == "read" or not is_package(data), line  # what Python takes the plugin takes


@pytest.mark.parametrize("text", [b"[]", b"7", b"{", b"\xff\xff"])
def test_text_that_is_no_table(whole: bytes, text: bytes) -> None:
    made = bytearray(whole)
    length = struct.unpack_from("<I", whole, 44)[0]
    made[ARGUMENTS + 32 : ARGUMENTS + 32 + length] = text.ljust(length)
    with pytest.raises(RestortError, match=r"cannot be read .*; make it again"):
        read_aot(changed(bytes(made), 8, "<I", 0))


def sized(tmp_path: Path, *shapes: tuple[int, int, int], **text: object) -> list[bytes]:
    weights = load_weights(write_weights(tmp_path / "tiny.safetensors", replace(ELAN[2], channels=30)))
    return [aot_of(AotRequest(weights, "fp16", shape, 90), **text) for shape in shapes]


def test_several_sizes_in_one_file(reader: Path, tmp_path: Path) -> None:
    files = sized(tmp_path, (1, 16, 16), (2, 16, 32), (1, 32, 48))
    packages = [read_aot(data) for data in files]
    joined = join_aot(files)
    found = split_aot(joined)
    assert [package.input for package in found] == [package.input for package in packages]
    assert found[0] == packages[0] and split_aot(files[0]) == (packages[0],)
    for package, own in zip(found[1:], packages[1:]):
        assert package.regions[2] == replace(own.regions[2], data=b"", shared=3)
        assert package.regions[3] == own.regions[3] and package.launches == own.launches
    with pytest.raises(RestortError, match="holds several sizes; name the files of one size each"):
        read_aot(joined)
    cut = [joined[: len(joined) - n] for n in (1, 300, len(joined) - len(files[0]))]
    lone = write_aot(packages[0])[: HEADER.size + REGION.size]
    wrong = bytearray(joined)
    second = -(-len(files[0]) // 256) * 256
    struct.pack_into("<I", wrong, second + REGIONS + 2 * REGION.size + 4, 4)  # weights that are scratch
    struct.pack_into(
        "<I", wrong, second + 8, zlib.crc32(wrong[second + 12 : second + size_at(wrong, second)])
    )
    said = answers(reader, tmp_path, [joined, joined + bytes(9), *cut, lone, bytes(wrong)])
    assert said[:2] == ["read", "read"]
    assert all("of " in line or "ends before its last size" in line for line in said[2:6]), said
    assert said[6] == "the AOT package has an impossible region"
    for data in (*cut, lone, bytes(wrong)):
        with pytest.raises(RestortError):
            split_aot(data)


def size_at(data: bytes, place: int) -> int:
    """The bytes of the package there."""
    return int(struct.unpack_from("<Q", data, place + 16)[0])


def test_what_cannot_be_joined(reader: Path, tmp_path: Path) -> None:
    one, other = sized(tmp_path, (1, 16, 16), (1, 16, 32))
    with pytest.raises(RestortError, match="two of the AOT packages are of one size, 1x3x16x16"):
        join_aot([one, other, one])
    (foreign,) = sized(tmp_path, (1, 16, 48), precision="bf16")
    with pytest.raises(RestortError, match="differ in precision cannot be joined"):
        join_aot([one, foreign])
    bent = replace(read_aot(other), output=(1, 3, 32, 48))
    bent = replace(bent, regions=(*bent.regions[:1], replace(bent.regions[1], size=18432), *bent.regions[2:]))
    files = [join_aot([one, write_aot(bent)])]
    assert answers(reader, tmp_path, files) == [
        "the AOT package has outputs that do not scale with its inputs"
    ]
