"""AOT packages (.rtaot): one forward pass at one shape, compiled for one kind of GPU, with its weights.

Little-endian, fixed records, so that C++ reads it by offsets (backends/tensorrt/csrc/restort_pass.cpp does):

    header      96 bytes: magic 'RSTPLAN\\n', uint32 CRC-32 of all bytes from offset 12 on, uint32 version (1; 2 in a
                file of several sizes), uint64 bytes of the package, uint32 capability (90 for 9.0), uint32 numbers of
                regions, kernels, launches and arguments, uint32 bytes of the text, uint32 number of packages that
                follow the first one of a file (0 in others), uint32 0, 4 uint32 shape of the input (N, C, H, W),
                4 uint32 shape of the output, uint64 0
    regions     32 bytes each: uint32 kind, uint32 shared, uint64 bytes of memory, uint64 offset of its first content
                in the package, uint64 bytes of that (0: none). `shared` is 1 + the index of the region of the file's
                first package that these weights are, or 0.
    kernels     144 bytes each: uint64 offset and uint64 bytes of the cubin, uint32 dynamic shared memory, uint32
                threads of a block, uint32 blocks of a cluster (compiled in; 1: none), uint32 1 if launched with
                programmatic stream serialization, int32 preferred shared memory carveout in percent (-1: the
                driver's choice), uint32 0, char[104] name of the function, zeros after
    launches    80 bytes each: uint32 kernel, 3 uint32 grid, uint32 first argument, uint32 how many, char[56] where in
                the network it stands, zeros after
    arguments   16 bytes each: uint32 kind (0: address, 1: int32, 2: the address 0), uint32 region of an address,
                int64 offset in that region, or the number
    text        JSON, for people and Python: architecture, precision, model, weights_sha256, restort, sources
                (digest of the kernels' sources), compilers
    contents    cubins and contents of regions, each at a multiple of 256

Kinds of region: 0 the input, 1 the output, both float32 and given by the caller; 2 weights; 3 the pass's scratch;
4 other memory that begins as zeros. Whoever runs the package owns 2, 3 and 4, zeroes them once and copies their
contents to the beginning. Two runs at a time need two sets. Every region begins at a multiple of 256. Launches run in
their order on one stream.

A file of several sizes (`join_aot`) is one such package after another, each at a multiple of 256.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from restort.errors import RestortError
from restort.utils.integers import round_up

MAGIC, VERSION = b"RSTPLAN\n", 1
JOINED = 2  # the version of packages in a file of several
HEADER = struct.Struct("<8sIIQ8I4I4IQ")
REGION = struct.Struct("<IIQQQ")
KERNEL = struct.Struct("<QQIIIIiI104s")
LAUNCH = struct.Struct("<6I56s")
ARGUMENT = struct.Struct("<IIq")
KINDS = ("input", "output", "weights", "scratch", "zeroed")
ADDRESS, NUMBER, NOTHING = range(3)
ALIGNMENT = 256
MAX_BYTES = 1 << 46  # of all regions
Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Region:
    """Memory of `size` bytes, a multiple of 256; `data` is what it begins with, zeros after.

    shared      in a file of several packages, 1 + the index of the region of the first package that these weights are
    """

    kind: str
    size: int
    data: bytes = b""
    shared: int = 0


@dataclass(frozen=True)
class Kernel:
    """Machine code and the launch settings of its function (fields as in the module's docstring)."""

    cubin: bytes
    name: str
    shared: int
    threads: int
    cluster: int = 1
    overlap: bool = False
    carveout: int = -1


@dataclass(frozen=True)
class Argument:
    """`kind` ADDRESS: `value` bytes into `region`; NUMBER: an int32; NOTHING: the address 0."""

    kind: int
    value: int = 0
    region: int = 0


@dataclass(frozen=True)
class Call:
    """One launch: `kernel` is an index of AotPackage.kernels."""

    kernel: int
    grid: tuple[int, int, int]
    arguments: tuple[Argument, ...]
    label: str = ""


@dataclass(frozen=True)
class AotPackage:
    """The contents of a file. `input` (N, C, H, W) and `output` (N, C', H', W') are float32, contiguous."""

    capability: int
    input: Shape
    output: Shape
    regions: tuple[Region, ...]
    kernels: tuple[Kernel, ...]
    launches: tuple[Call, ...]
    text: dict[str, Any] = field(default_factory=dict)

    @property
    def memory(self) -> int:
        """Bytes of all regions except the caller's."""
        return sum(region.size for region in self.regions if region.kind not in ("input", "output"))


def write_aot(package: AotPackage) -> bytes:
    """Return the file's bytes. RestortError for an inconsistent package."""
    return _pack(package, VERSION, 0)


def join_aot(files: Sequence[bytes]) -> bytes:
    """Join files of one package each, of one network in several sizes, into one file that has equal weights once.

    Raises RestortError for packages of other weights, precisions or GPUs, or two of one size.
    """
    packages = [read_aot(data) for data in files]
    first = packages[0]
    for i, package in enumerate(packages):
        names = ("weights_sha256", "precision", "sources")
        differ = [name for name in names if package.text.get(name) != first.text.get(name)]
        if package.capability != first.capability or differ:
            what = differ[0] if differ else "compute capability"
            raise RestortError(
                f"AOT packages that differ in {what} cannot be joined; make them again from one model"
            )
        if package.input in [other.input for other in packages[:i]]:
            size = "x".join(map(str, package.input))
            raise RestortError(f"two of the AOT packages are of one size, {size}; give each size once")
    known = {
        (region.size, region.data): i + 1
        for i, region in enumerate(first.regions)
        if region.kind == "weights"
    }

    def shared(region: Region) -> Region:
        number = known.get((region.size, region.data), 0) if region.kind == "weights" else 0
        return replace(region, data=b"", shared=number) if number else region

    made = bytearray(_pack(first, JOINED, len(packages) - 1))
    for package in packages[1:]:
        made += bytes(-len(made) % ALIGNMENT)
        made += _pack(replace(package, regions=tuple(map(shared, package.regions))), JOINED, 0)
    return bytes(made)


def split_aot(data: bytes) -> tuple[AotPackage, ...]:
    """Return the packages of a file of one size or several. RestortError where one cannot be read."""
    if data[:8] != MAGIC or len(data) < HEADER.size:
        return (read_aot(data),)
    following, place = HEADER.unpack_from(data)[10], 0
    found: list[AotPackage] = []
    while len(found) <= following:
        if len(data) < place + HEADER.size:
            raise RestortError("the AOT package ends before its last size; make it again")
        size = HEADER.unpack_from(data, place)[3]
        last = len(found) == following
        found.append(_read(data[place:] if last else data[place : place + size], found[0] if found else None))
        place = round_up(place + size, ALIGNMENT)
    return tuple(found)


def _pack(package: AotPackage, version: int, following: int) -> bytes:
    validate_aot(package)
    text = json.dumps(package.text, sort_keys=True).encode()
    arguments = [argument for call in package.launches for argument in call.arguments]
    counts = len(package.regions), len(package.kernels), len(package.launches), len(arguments)
    tables = sum(n * record.size for n, record in zip(counts, (REGION, KERNEL, LAUNCH, ARGUMENT)))
    end = HEADER.size + tables + len(text)
    blobs: list[tuple[int, bytes]] = []

    def place(blob: bytes) -> int:
        nonlocal end
        if not blob:
            return 0
        start = round_up(end, ALIGNMENT)
        blobs.append((start, blob))
        end = start + len(blob)
        return start

    head = bytearray()
    for region in package.regions:
        kind = KINDS.index(region.kind)
        head += REGION.pack(kind, region.shared, region.size, place(region.data), len(region.data))
    for kernel in package.kernels:
        head += KERNEL.pack(
            place(kernel.cubin), len(kernel.cubin), kernel.shared, kernel.threads, kernel.cluster,
            kernel.overlap, kernel.carveout, 0, kernel.name.encode(),
        )  # fmt: skip
    first = 0
    for call in package.launches:
        head += LAUNCH.pack(call.kernel, *call.grid, first, len(call.arguments), call.label.encode()[:55])
        first += len(call.arguments)
    for argument in arguments:
        head += ARGUMENT.pack(argument.kind, argument.region, argument.value)
    head += text
    header = HEADER.pack(
        MAGIC,
        0,
        version,
        end,
        package.capability,
        *counts,
        len(text),
        following,
        0,
        *package.input,
        *package.output,
        0,
    )
    made = bytearray(end)
    made[: HEADER.size + len(head)] = header + head
    for start, blob in blobs:
        made[start : start + len(blob)] = blob
    struct.pack_into("<I", made, 8, zlib.crc32(memoryview(made)[12:]))
    return bytes(made)


def read_aot(data: bytes) -> AotPackage:
    """Return the package in the bytes of a file of one size. RestortError if they are not one, or damaged."""
    if data[:8] == MAGIC and len(data) >= HEADER.size and HEADER.unpack_from(data)[10]:
        raise RestortError("the AOT package holds several sizes; name the files of one size each")
    return _read(data, None)


def _read(data: bytes, first: AotPackage | None) -> AotPackage:
    """Like `read_aot`; or a package after the `first` of a file of several."""
    if data[:8] != MAGIC:
        raise RestortError(
            "no AOT package: the file does not begin with RSTPLAN; make one with `restort export --format aot`"
        )
    if len(data) < HEADER.size:
        raise RestortError("the AOT package ends in its header; make it again")
    _, crc, version, size, capability, *numbers = HEADER.unpack_from(data)
    if version not in (VERSION, JOINED):
        raise RestortError(
            f"the AOT package has version {version}, supported are {VERSION} and {JOINED}; make it again"
        )
    if size != len(data):
        raise RestortError(f"the AOT package has {len(data)} of {size} bytes; make it again")
    if zlib.crc32(memoryview(data)[12:]) != crc:
        raise RestortError("the AOT package is damaged (wrong checksum); make it again")
    try:
        package = _unpack(data, capability, numbers, first)
    except (struct.error, ValueError, IndexError, TypeError) as error:
        raise RestortError(f"the AOT package cannot be read ({error}); make it again") from None
    validate_aot(package)
    return package


def _unpack(data: bytes, capability: int, numbers: list[int], first: AotPackage | None) -> AotPackage:
    n_regions, n_kernels, n_launches, n_arguments, length = numbers[:5]
    place = HEADER.size

    def table(record: struct.Struct, count: int) -> list[Any]:
        nonlocal place
        rows = [record.unpack_from(data, place + i * record.size) for i in range(count)]
        place += count * record.size
        return rows

    def blob(start: int, size: int) -> bytes:
        if start + size > len(data):
            raise ValueError("contents end after the file")
        return data[start : start + size]

    regions = []
    for kind, shared, size, at, n in table(REGION, n_regions):
        regions.append(Region(KINDS[kind], size, blob(at, n), shared))
        if shared:
            other = first.regions[shared - 1] if first is not None else None
            if (
                other is None
                or n
                or (other.kind, other.size) != (KINDS[kind], size)
                or other.kind != "weights"
            ):
                raise ValueError(f"region {len(regions) - 1} shares weights that are not there")
    kernels = [
        Kernel(blob(at, n), _text(name), shared, threads, cluster, bool(overlap), carveout)
        for at, n, shared, threads, cluster, overlap, carveout, _, name in table(KERNEL, n_kernels)
    ]
    calls, rows = table(LAUNCH, n_launches), table(ARGUMENT, n_arguments)
    arguments = [Argument(kind, value, region) for kind, region, value in rows]
    if any(first + count > n_arguments for *_, first, count, _ in calls):
        raise ValueError("arguments of a launch end after their table")
    launches = [
        Call(kernel, (x, y, z), tuple(arguments[first : first + count]), _text(label))
        for kernel, x, y, z, first, count, label in calls
    ]
    if sum(len(call.arguments) for call in launches) != n_arguments:
        raise ValueError("launches and arguments do not agree")
    text = json.loads(blob(place, length)) if length else {}
    if not isinstance(text, dict):
        raise ValueError("its text is no JSON object")
    a, b, c, d, e, f, g, h = numbers[7:15]
    made = tuple(regions), tuple(kernels), tuple(launches), text
    return AotPackage(capability, (a, b, c, d), (e, f, g, h), *made)


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode()


def validate_aot(package: AotPackage) -> None:
    """Raise RestortError unless all addresses lie in their regions, numbers fit their types and indices are valid."""
    problem = _problem(package)
    if problem:
        raise RestortError(f"the AOT package is not usable: {problem}")


def _problem(package: AotPackage) -> str | None:
    for kind, shape in (("input", package.input), ("output", package.output)):
        sizes = [region.size for region in package.regions if region.kind == kind]
        n, c, h, w = shape
        if len(sizes) != 1 or sizes[0] != round_up(4 * n * c * h * w, ALIGNMENT):
            return f"it has {len(sizes)} regions for the {kind}, or one of another size than its shape"
    for i, region in enumerate(package.regions):
        if region.size % ALIGNMENT or not region.size or len(region.data) > region.size:
            return f"region {i} has {region.size} bytes and {len(region.data)} of contents"
    if sum(region.size for region in package.regions) > MAX_BYTES:
        return "its regions take more memory than any GPU has"
    for i, kernel in enumerate(package.kernels):
        if kernel.cubin[:4] != b"\x7fELF" or not 0 < len(kernel.name.encode()) < 104:
            return f"kernel {i} is no machine code, or its name is too long"
        if not 0 < kernel.threads <= 1024 or kernel.cluster < 1 or not 0 <= kernel.shared < 1 << 20:
            return f"kernel {i} has {kernel.threads} threads and {kernel.shared} bytes of shared memory"
    for i, call in enumerate(package.launches):
        if not 0 <= call.kernel < len(package.kernels) or not all(0 < n < 1 << 31 for n in call.grid):
            return f"launch {i} is of kernel {call.kernel} over {call.grid}"
        if call.grid[0] % package.kernels[call.kernel].cluster:
            return f"launch {i} has a grid that is no multiple of its clusters"
        for argument in call.arguments:
            if argument.kind == ADDRESS:
                if not 0 <= argument.region < len(package.regions):
                    return f"launch {i} names region {argument.region}"
                if not 0 <= argument.value < package.regions[argument.region].size:
                    return f"launch {i} points {argument.value} bytes into region {argument.region}"
            elif argument.kind == NUMBER and not -(1 << 31) <= argument.value < 1 << 31:
                return f"launch {i} has the number {argument.value}, which is no int32"
            elif argument.kind not in (NUMBER, NOTHING):
                return f"launch {i} has an argument of kind {argument.kind}"
    return None
