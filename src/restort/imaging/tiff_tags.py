"""Tags of TIFF files and EXIF blocks, which share one structure: directories (IFDs) of typed values.

libvips reads and writes no EXIF in TIFF, and cuts off IPTC. `exif_of_tiff` makes an EXIF block of the tags of a TIFF
file, for any output format; `insert_tags` writes the tags of an EXIF block, and IPTC, into a TIFF file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path

from restort.utils.files import Content

DESCRIPTION = {
    269,
    270,
    271,
    272,
    285,
    301,
    305,
    306,
    315,
    316,
    318,
    319,
    18246,
    18249,
    33432,
    *range(40091, 40096),
}
"""Tags of the first directory that describe the picture: title, camera, date, author, colour, rating, copyright ..."""
GEOREFERENCE = {33550, 33922, 34264, 34735, 34736, 34737, 42112, 42113}
"""Tags of GeoTIFF and GDAL: where on the earth the pixels lie, which a result of another size has no longer."""
SUBFILE, BITS, COMPRESSION, PHOTOMETRIC, IPTC, PHOTOSHOP = 254, 258, 259, 262, 33723, 34377
EXIF_IFD, GPS_IFD, INTEROP_IFD = 34665, 34853, 40965
WIDTH, HEIGHT = 0xA002, 0xA003
_SUBDIRECTORIES = (EXIF_IFD, GPS_IFD, INTEROP_IFD)
_UNITS = {1: (1, 1), 2: (1, 1), 3: (2, 1), 4: (4, 1), 5: (4, 2), 6: (1, 1), 7: (1, 1), 8: (2, 1), 9: (4, 1)}
_UNITS |= {10: (4, 2), 11: (4, 1), 12: (8, 1), 13: (4, 1), 16: (8, 1), 17: (8, 1), 18: (8, 1)}
"""Type of a value: (bytes that are swapped together, how many of them one value has)."""
_MOST_ENTRIES = 4096


@dataclass(frozen=True)
class Value:
    """A value in the byte order of its file; `kind` is the type number of TIFF."""

    kind: int
    count: int
    data: bytes


@dataclass
class Directory:
    """One IFD: values and, under their tags, the directories that it points to."""

    values: dict[int, Value]
    children: dict[int, Directory]

    def number(self, tag: int, order: str) -> int | None:
        """The first number of a SHORT or LONG value; None without one."""
        value = self.values.get(tag)
        if value is None or value.kind not in (3, 4) or not value.count:
            return None
        return int(struct.unpack_from(order + ("H" if value.kind == 3 else "I"), value.data)[0])


@dataclass(frozen=True)
class _Layout:
    """Byte order of a file ('<' or '>') and whether it is a BigTIFF, with 8-byte offsets."""

    order: str
    big: bool = False

    def unpack(self, code: str, data: Content, place: int) -> int:
        return int(struct.unpack_from(self.order + code, data, place)[0])


def read_directory(data: Content, *, most: int = 16 << 20) -> tuple[str, Directory] | None:
    """Parse the first directory of a TIFF file or EXIF block (without "Exif\\0\\0"): byte order and directory.

    None if `data` has no such structure. Values that lie outside of it are left out, and those that exceed `most` bytes
    in all: a hostile file points to one large block from thousands of tags.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 16:
        return None
    layout = _Layout(order, data[2:4] in (b"+\0", b"\0+"))
    try:
        first = layout.unpack("Q", data, 8) if layout.big else layout.unpack("I", data, 4)
        return order, _read(layout, data, first, [most], depth=0)
    except (struct.error, OverflowError):  # an offset beyond the end, or beyond 2**63
        return None


def _read(layout: _Layout, data: Content, place: int, room: list[int], depth: int) -> Directory:
    """Parse the directory at byte `place`; `room[0]` is how many bytes of values may still be read."""
    big = layout.big
    count = layout.unpack("Q" if big else "H", data, place)
    start, step, inline = (place + 8, 20, 8) if big else (place + 2, 12, 4)
    found = Directory({}, {})
    count = min(count, _MOST_ENTRIES, (len(data) - start) // step)
    for entry in range(start, start + step * count, step):
        tag, kind = layout.unpack("H", data, entry), layout.unpack("H", data, entry + 2)
        number = layout.unpack("Q" if big else "I", data, entry + 4)
        size, parts = _UNITS.get(kind, (0, 0))
        length, where = size * parts * number, entry + step - inline
        if length > inline:
            where = layout.unpack("Q" if big else "I", data, where)
        if not size or length > room[0] or where + length > len(data):
            continue
        value = data[where : where + length]
        room[0] -= length
        if tag in _SUBDIRECTORIES and number == 1 and size in (4, 8):
            if tag in found.children or depth == 2:
                continue
            try:
                child = layout.unpack("Q" if size == 8 else "I", value, 0)
                found.children[tag] = _read(layout, data, child, room, depth + 1)
            except (struct.error, OverflowError):
                pass  # the pointer leads nowhere; the other tags are sound
        else:
            found.values[tag] = Value(kind, number, value)
    return found


def _directories(data: Content) -> Iterator[tuple[_Layout, int, int]]:
    """Yield (layout, place, entries) of the pages of a TIFF file, at most _MOST_ENTRIES of them."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return
    layout = _Layout(order, data[2:4] in (b"+\0", b"\0+"))
    link, (head, step) = 8 if layout.big else 4, (8, 20) if layout.big else (2, 12)
    for _ in range(_MOST_ENTRIES):
        try:
            place = layout.unpack("Q" if layout.big else "I", data, link)
            if not place:
                return
            count = layout.unpack("Q" if layout.big else "H", data, place)
            link = place + head + step * count
        except (struct.error, OverflowError):
            return
        yield layout, place, count


def reduced_pages(data: Content) -> int:
    """Count the pages of a TIFF file that show the picture in a smaller size, as pyramids have them."""
    found = 0
    for layout, place, count in _directories(data):
        start, step, inline = (place + 8, 20, 8) if layout.big else (place + 2, 12, 4)
        for entry in range(start, min(start + step * count, len(data) - step + 1), step):
            if layout.unpack("H", data, entry) == SUBFILE:
                found += layout.unpack("I", data, entry + step - inline) & 1
                break
    return found


def lab_as_rgb(data: Content) -> bytes | None:
    """Return an 8-bit CIELab file that calls itself RGB, since libvips refuses it otherwise; None for other files."""
    found = read_directory(data)
    if found is None or data[2:4] in (b"+\0", b"\0+"):
        return None
    order, directory = found
    if directory.number(PHOTOMETRIC, order) != 8 or directory.number(BITS, order) != 8:
        return None
    changed = bytearray(data)
    (first,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, first)
    for entry in range(first + 2, first + 2 + 12 * count, 12):
        if struct.unpack_from(order + "H", data, entry)[0] == PHOTOMETRIC:
            struct.pack_into(order + "H", changed, entry + 8, 2)
    return bytes(changed)


def exif_of_tiff(order: str, directory: Directory) -> bytes | None:
    """Make an EXIF block of the descriptive tags, the EXIF and the GPS directory of a TIFF file; None without any."""
    values = {tag: value for tag, value in directory.values.items() if tag in DESCRIPTION}
    kept = Directory(
        values, {tag: directory.children[tag] for tag in (EXIF_IFD, GPS_IFD) if tag in directory.children}
    )
    if not kept.values and not kept.children:
        return None
    head = b"Exif\0\0" + (b"II*\0\x08\0\0\0" if order == "<" else b"MM\0*\0\0\0\x08")
    return head + _packed(_Layout(order), kept, 8)


def _packed(layout: _Layout, directory: Directory, place: int, further: int = 0) -> bytes:
    """Serialise a directory that starts at byte `place`, its values and its children behind it.

    further   place of the directory of the next page; 0 without one
    """
    big, order = layout.big, layout.order
    tags = sorted({*directory.values, *directory.children})
    step, inline = (20, 8) if big else (12, 4)
    size = (8 + step * len(tags) + 8) if big else (2 + step * len(tags) + 4)
    entries, behind = b"", b""
    for tag in tags:
        if tag in directory.children:
            start = place + size + len(behind)
            kind, count, data = 4, 1, struct.pack(order + "I", start)
            behind += _even(_packed(layout, directory.children[tag], start))
        else:
            value = directory.values[tag]
            kind, count, data = value.kind, value.count, value.data
            if len(data) > inline:
                data = struct.pack(order + ("Q" if big else "I"), place + size + len(behind))
                behind += _even(value.data)
        entries += struct.pack(order + ("HHQ" if big else "HHI"), tag, kind, count) + data.ljust(
            inline, b"\0"
        )
    head = struct.pack(order + ("Q" if big else "H"), len(tags))
    return head + entries + struct.pack(order + ("Q" if big else "I"), further) + behind


def _even(data: bytes) -> bytes:
    return data + bytes(len(data) % 2)


def insert_tags(tiff: bytes, exif: bytes | None, iptc: bytes | None, width: int, height: int) -> bytes:
    """Return the TIFF file with the descriptive tags, the EXIF and the GPS directory of an EXIF block, and with IPTC.

    A new first directory goes to the end of the file; the pixels stay where they are. The pixel dimensions in the EXIF
    directory become `width` and `height`. A malformed EXIF block is left out.
    """
    added = _added(tiff, len(tiff), exif, iptc, width, height)
    if added is None:
        return tiff
    body = bytearray(_even(tiff))
    _, link, directory = added
    body[link[0] : link[0] + len(link[1])] = link[1]
    return bytes(body + directory)


def insert_tags_into(path: Path, exif: bytes | None, iptc: bytes | None, width: int, height: int) -> None:
    """Like `insert_tags`, in a file that stays on the disk. Raises OSError."""
    with path.open("r+b") as file:
        with mmap(file.fileno(), 0, access=ACCESS_READ) as tiff:
            added = _added(tiff, len(tiff), exif, iptc, width, height)
        if added is not None:
            place, link, directory = added
            file.seek(place)
            file.write(directory)
            file.flush()  # before the header points there
            file.seek(link[0])
            file.write(link[1])


def _added(
    tiff: Content, size: int, exif: bytes | None, iptc: bytes | None, width: int, height: int
) -> tuple[int, tuple[int, bytes], bytes] | None:
    """Return where a new first directory goes, (the place of the pointer to it, its value), and the directory."""
    source = None if exif is None else read_directory(exif.removeprefix(b"Exif\0\0"))
    target = read_directory(tiff, most=size)
    if target is None or (source is None and iptc is None):
        return None
    layout, first, count = next(_directories(tiff))
    added = Directory({}, {}) if source is None else _in_order(source[1], source[0], target[0])
    merged = target[1]
    merged.values.update({tag: value for tag, value in added.values.items() if tag in DESCRIPTION})
    merged.children.update({tag: added.children[tag] for tag in (EXIF_IFD, GPS_IFD) if tag in added.children})
    if EXIF_IFD in merged.children:
        details = merged.children[EXIF_IFD].values
        for tag, length in ((WIDTH, width), (HEIGHT, height)):
            if tag in details:
                details[tag] = Value(4, 1, struct.pack(layout.order + "I", length))
    if iptc is not None:
        merged.values[IPTC] = Value(7, len(iptc), iptc)
    place, code = size + size % 2, layout.order + ("Q" if layout.big else "I")
    if not layout.big and place >= 4_000_000_000:
        return None
    further = first + (8 + 20 * count if layout.big else 2 + 12 * count)  # of a pyramid, say
    directory = _packed(layout, merged, place, layout.unpack("Q" if layout.big else "I", tiff, further))
    return place, (8 if layout.big else 4, struct.pack(code, place)), directory


def _in_order(directory: Directory, order: str, wanted: str) -> Directory:
    """Convert the byte order of all values."""
    if order == wanted:
        return directory
    values = {}
    for tag, value in directory.values.items():
        size = _UNITS[value.kind][0]
        swapped = b"".join(value.data[i : i + size][::-1] for i in range(0, len(value.data), size))
        values[tag] = Value(value.kind, value.count, swapped)
    children = {tag: _in_order(child, order, wanted) for tag, child in directory.children.items()}
    return Directory(values, children)


def iptc_of_photoshop(block: bytes) -> bytes | None:
    """Return the IPTC records in a block of Photoshop resources ("8BIM ..."), None without any."""
    place = 0
    while block[place : place + 4] == b"8BIM" and place + 12 <= len(block):
        (identifier,) = struct.unpack_from(">H", block, place + 4)
        name = 1 + block[place + 6]
        start = place + 6 + name + name % 2
        if start + 4 > len(block):
            return None
        (length,) = struct.unpack_from(">I", block, start)
        if identifier == 0x0404:
            return block[start + 4 : start + 4 + length]
        place = start + 4 + length + length % 2
    return None


PHOTOSHOP_HEADER = b"Photoshop 3.0\0"


def iptc_for_jpeg(iptc: bytes) -> bytes:
    """IPTC as JPEG stores it, in a Photoshop resource behind a header; a block that has the header stays as it is."""
    if iptc.startswith(PHOTOSHOP_HEADER):
        return iptc
    return PHOTOSHOP_HEADER + b"8BIM\x04\x04\0\0" + struct.pack(">I", len(iptc)) + _even(iptc)


def iptc_for_tiff(iptc: bytes) -> bytes | None:
    """IPTC as TIFF stores it, the bare records; None if the block holds none."""
    if iptc.startswith(PHOTOSHOP_HEADER):
        return iptc_of_photoshop(iptc[len(PHOTOSHOP_HEADER) :])
    return iptc
