"""Chunks of PNG and segments of JPEG that libvips does not carry: text, comments, gamma, metadata behind the pixels.

Everything here works on the bytes of whole files and copies payloads unchanged. Malformed files give what was found up
to the fault: the decoder reports the fault.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator

from restort.utils.files import Content

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"tIME")
XMP_KEYWORD = b"XML:com.adobe.xmp\0"
COLOUR_CHUNKS = (b"cICP", b"sRGB", b"gAMA", b"cHRM")
"""What defines the colours of a PNG without a profile, in the order of precedence."""
_SRGB_GAMMA = struct.pack(">I", 45455)
_SRGB_PRIMARIES = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
_MOST_XMP = 16 << 20  # bytes of decompressed XMP; more is no real packet

Chunk = tuple[bytes, bytes]
"""The type of a PNG chunk, four letters, and its data."""


def png_chunks(data: Content) -> Iterator[Chunk]:
    """Yield the chunks of a PNG file in order, IDAT without its data."""
    place = len(PNG_SIGNATURE)
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        kind, end = data[place + 4 : place + 8], place + 8 + length
        if end + 4 > len(data):
            return
        yield kind, b"" if kind == b"IDAT" else data[place + 8 : end]
        place = end + 4


def without_png_text(data: bytes) -> bytes:
    """Return the file without its text, which libvips would decompress, however much it is."""
    kept, place = [], len(PNG_SIGNATURE)
    begin = 0
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        end = place + 12 + length
        if data[place + 4 : place + 8] in TEXT_CHUNKS and end <= len(data):
            kept.append(data[begin:place])
            begin = end
        place = end
    return data if not begin else b"".join((*kept, data[begin:]))


def has_compressed_text(data: Content) -> bool:
    """Whether a PNG file has text that libvips would decompress, however much it is."""
    return any(
        kind == b"zTXt" or (kind == b"iTXt" and body[body.find(b"\0") + 1 :][:1] == b"\1")
        for kind, body in png_chunks(data)
    )


def first_webp_frame(data: bytes) -> tuple[bytes, int]:
    """Return the WebP file without the frames after the first, and their number (1 for a still picture).

    The time that libwebp takes to list frames grows with the square of their number.
    """
    kept, frames, place = [], 0, 12
    while place + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, place + 4)
        end = place + 8 + length + length % 2
        frame = data[place : place + 4] == b"ANMF"
        frames += frame
        if not frame or frames == 1:
            kept.append(data[place:end])
        place = end
    if frames < 2:
        return data, 1
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body, frames


def apng_frames(data: Content) -> int:
    """The number of frames that a PNG file announces before its pixels; 0 for a still picture."""
    for kind, body in png_chunks(data):
        if kind == b"acTL" and len(body) == 8:
            return int.from_bytes(body[:4], "big")
        if kind == b"IDAT":
            break
    return 0


def png_text(chunks: Iterable[Chunk]) -> tuple[Chunk, ...]:
    """Select text and time, without XMP, which is metadata of its own."""
    return tuple(
        (kind, body) for kind, body in chunks if kind in TEXT_CHUNKS and not body.startswith(XMP_KEYWORD)
    )


def png_colour(chunks: Iterable[Chunk]) -> tuple[Chunk, ...]:
    """Select the chunks that define the colours where there is no profile: COLOUR_CHUNKS."""
    found = dict(chunks)
    if b"iCCP" in found:
        return ()
    return tuple((kind, found[kind]) for kind in COLOUR_CHUNKS if kind in found)


def means_srgb(chunks: Iterable[Chunk]) -> bool:
    """Whether COLOUR_CHUNKS say nothing but what a picture without them means."""
    found = dict(chunks)
    if b"cICP" in found:
        return False
    defined = [found[kind] for kind in (b"gAMA", b"cHRM") if kind in found]
    return b"sRGB" in found or all(body in (_SRGB_GAMMA, _SRGB_PRIMARIES) for body in defined)


def png_exif(chunks: Iterable[Chunk]) -> bytes | None:
    """Return the EXIF block, also one that stands behind the pixels, where libvips does not look."""
    return next((b"Exif\0\0" + body for kind, body in chunks if kind == b"eXIf"), None)


def png_xmp(chunks: Iterable[Chunk]) -> bytes | None:
    """Return the XMP packet, also one that stands behind the pixels, or in the zTXt chunk that libvips writes."""
    for kind, body in chunks:
        if kind in TEXT_CHUNKS and body.startswith(XMP_KEYWORD):
            rest = body[len(XMP_KEYWORD) :]
            compressed = kind == b"zTXt" or (kind == b"iTXt" and rest[:1] == b"\1")
            # language and translated keyword stand before the text, or the method of compression
            text = rest[2:].split(b"\0", 2)[-1] if kind == b"iTXt" else rest[compressed:]
            try:
                return zlib.decompressobj().decompress(text, _MOST_XMP) if compressed else text
            except zlib.error:
                return None
    return None


def xmp_chunk(packet: bytes) -> Chunk:
    """Make the PNG chunk that the XMP specification (part 3) asks for: iTXt, not compressed."""
    return b"iTXt", XMP_KEYWORD + b"\0\0\0\0" + packet


def insert_png_chunks(data: bytes, chunks: Iterable[Chunk]) -> bytes:
    """Return the PNG file `data` with chunks behind its header."""
    header = len(PNG_SIGNATURE) + 25  # IHDR: 12 bytes around 13 bytes of data
    return data[:header] + b"".join(packed(kind, body) for kind, body in chunks) + data[header:]


def packed(kind: bytes, body: bytes) -> bytes:
    """Make a PNG chunk: length, type, data and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def comment_chunk(comment: bytes) -> Chunk:
    """Make a PNG text chunk of a JPEG comment, which is ASCII, UTF-8 or, where it is neither, Latin-1."""
    comment = comment.rstrip(b"\0").replace(b"\0", b" ")
    try:
        international = not comment.decode("utf-8").isascii()
    except UnicodeDecodeError:
        international = False
    return (b"iTXt", b"Comment\0\0\0\0\0" + comment) if international else (b"tEXt", b"Comment\0" + comment)


def jpeg_segments(data: Content) -> Iterator[Chunk]:
    """Yield (marker, data) of the segments between the start of a JPEG file and its first scan."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # fill bytes before a marker
            place += 1
            continue
        if marker == 0xDA or marker == 0xD9:  # start of scan, end of image
            return
        (length,) = struct.unpack_from(">H", data, place + 2)
        yield bytes([marker]), data[place + 4 : place + 2 + length]
        place += 2 + length


def lacks_jpeg_end(data: Content) -> bool:
    """Return whether a baseline JPEG file has no end marker; a progressive one may lack whole scans."""
    segments = list(jpeg_segments(data))
    scan = data.find(
        b"\xff\xda", 2 + sum(4 + len(body) for _, body in segments)
    )  # not that of a thumbnail in EXIF
    if scan < 0 or data.find(b"\xff\xd9", scan) >= 0:
        return False
    return all(marker != b"\xc2" for marker, _ in segments)


def insert_jpeg_comments(data: bytes, comments: Iterable[bytes]) -> bytes:
    """Return the JPEG file `data` with comments behind its application segments."""
    place = 2
    while data[place] == 0xFF and 0xE0 <= data[place + 1] <= 0xEF:
        place += 2 + struct.unpack_from(">H", data, place + 2)[0]
    segments = [b"\xff\xfe" + struct.pack(">H", len(text) + 2) + text for text in comments]
    return data[:place] + b"".join(segments) + data[place:]
