"""Whether the file of a video ends before its contents do, by the sizes that its container states.

MP4, QuickTime    boxes: size (4 bytes, or 8 behind the kind), kind            ISO/IEC 14496-12
AVI               `RIFF`, size (4 bytes, the lowest first), again and again     Microsoft, RIFF; OpenDML
Matroska, WebM    elements: identity, size (1 to 8 bytes, the first says how many)   RFC 8794
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

EBML, SEGMENT = 0x1A45DFA3, 0x18538067
FIRST_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"moof", b"sidx"})
"""The kinds of boxes that a file may begin with."""


def is_cut(file: BinaryIO) -> bool:
    """Whether a part at the top of a video's container ends behind the end of the file; not of other kinds of files."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(8)
    if start[:4] == b"RIFF":
        return _end_of_chunks(file, size) > size
    if start[:4] == EBML.to_bytes(4, "big"):
        return _end_of_segment(file) > size
    return start[4:] in FIRST_BOXES and _end_of_boxes(file, size) > size


def _end_of_boxes(file: BinaryIO, size: int) -> int:
    end = 0
    while end < size:
        file.seek(end)
        header = file.read(16)
        if len(header) < 8:
            return size + 1
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length < 8:  # 0: up to the end of the file; others are no size
            return size
        end += length
    return end


def _end_of_chunks(file: BinaryIO, size: int) -> int:
    end = 0
    while end + 8 <= size:
        file.seek(end)
        kind, length = struct.unpack("<4sI", file.read(8))
        if kind != b"RIFF" or length in (
            0,
            2**32 - 1,
        ):  # something else; a live recording
            return size
        end += 8 + length
    return end


def _end_of_segment(file: BinaryIO) -> int:
    """The end of the segment behind the header; 0 if it is not stated, as by a live recording."""
    file.seek(4)
    length = _number(file)
    file.seek(file.tell() + (length or 0))
    if int.from_bytes(file.read(4), "big") != SEGMENT:
        return 0
    length = _number(file)
    return 0 if length is None else file.tell() + length


def _number(file: BinaryIO) -> int | None:
    """A size of an element; None if it is unknown, which all bits 1 say."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    count = 9 - first[0].bit_length()
    value = int.from_bytes(first + file.read(count - 1), "big")
    most = (1 << 7 * count) - 1
    return None if value & most == most else value & most
