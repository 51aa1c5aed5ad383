"""The parts of a PNG file, and whether it is whole: its checksums, and as many pixels as its header says.

Decoders differ in what they forgive. Pillow fills missing rows with 0 and does not look at all checksums.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import NamedTuple

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXT = (b"tEXt", b"zTXt", b"iTXt")
METADATA = (b"Raw profile type", b"XML:com.adobe.xmp")
"""Keywords of the text chunks of a PNG in which Pillow finds an orientation."""

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""How many channels each colour type has; 0 is grey, 3 a palette."""

PASSES = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
"""First row and step between rows, first column and step, of each pass of an interlaced PNG (section 8.2 there)."""


class Header(NamedTuple):
    """What the first chunk of a PNG says."""

    width: int
    height: int
    bits: int
    colour: int
    interlaced: bool

    @property
    def size(self) -> int:
        """How many bytes the pixels have before compression, one byte per row for its filter among them."""
        passes = PASSES if self.interlaced else ((0, 1, 0, 1),)
        total = 0
        for row, rows, column, columns in passes:
            high, wide = -(-(self.height - row) // rows), -(-(self.width - column) // columns)
            if high > 0 and wide > 0:
                total += high * (1 + -(-wide * self.bits * CHANNELS[self.colour] // 8))
        return total


def chunks(content: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """The kind and the data of each chunk of a PNG, to its end.

    Raises:
        ValueError: the content is not a PNG, is truncated, or holds a chunk whose checksum is wrong.
    """
    start, view, kind = len(SIGNATURE), memoryview(content), b""
    if not content.startswith(SIGNATURE):
        raise ValueError("not a PNG")
    while kind != b"IEND":
        # 4 bytes of length, 4 of the kind, the data, 4 of the checksum over kind and data
        end = start + 8 + int.from_bytes(view[start : start + 4])
        if end + 4 > len(content):
            raise ValueError("truncated")
        if zlib.crc32(view[start + 4 : end]) != int.from_bytes(view[end : end + 4]):
            raise ValueError("wrong checksum of a PNG chunk")
        kind = content[start + 4 : start + 8]
        yield kind, view[start + 8 : end]
        start = end + 4


def header(content: bytes) -> Header:
    """The header of a PNG.

    Raises:
        ValueError: the header is missing, is damaged, or holds values that PNG does not have.
    """
    kind, data = next(chunks(content))
    if kind != b"IHDR" or len(data) != 13 or data[9] not in CHANNELS or data[8] not in (1, 2, 4, 8, 16):
        raise ValueError("damaged PNG header")
    return Header(int.from_bytes(data[:4]), int.from_bytes(data[4:8]), data[8], data[9], bool(data[12]))


def check_whole(content: bytes) -> None:
    """Check the checksums of a PNG, and that it has as many pixels as its header says.

    Raises:
        ValueError: it is truncated, a checksum is wrong, or it has fewer or more pixels; the message says which.
    """
    size, found, stream = header(content).size, 0, zlib.decompressobj()
    try:
        for kind, data in chunks(content):
            if kind == b"IDAT" and found <= size:  # at most one byte too many is unpacked
                found += len(stream.decompress(data, max(1, size + 1 - found)))
    except zlib.error as error:
        raise ValueError(f"damaged pixels: {error}") from error
    if found == size and not stream.eof:
        raise ValueError("truncated pixels")
    if found != size:
        raise ValueError(f"its pixels have {'fewer' if found < size else 'more'} bytes than the {size:,} of its header")


def may_be_turned(kind: bytes, data: memoryview) -> bool:
    """Whether a chunk is of metadata in which there may be an orientation."""
    return kind == b"eXIf" or (kind in TEXT and bytes(data[:32]).startswith(METADATA))


def plain(content: bytes) -> bool:
    """Whether this is a PNG with 8 bits per channel and correct checksums, upright and not animated."""
    try:
        return not any(
            kind == b"acTL" or may_be_turned(kind, data) or (kind == b"IHDR" and data[8] != 8)
            for kind, data in chunks(content)
        )
    except ValueError:
        return False
