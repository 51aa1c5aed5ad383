"""Whether a JPEG with an end marker lacks pixels all the same, as after a transfer that left a part out.

A decoder that meets a marker too early sets the blocks that are missing to a middle grey. It only warns, and neither
Pillow nor OpenCV passes the warning on. If more data stand before the marker, though, it reads them as the missing
blocks, while data behind the last block are skipped.
"""

from __future__ import annotations

import io
import re

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import JpegImagePlugin

GREY = 128
"""What a block without data becomes in every channel of a grey or YCbCr JPEG."""

START_OF_SCAN, END_OF_IMAGE, RESTARTS = 0xDA, 0xD9, range(0xD0, 0xD8)
_MARKER = re.compile(rb"\xff+[^\x00\xff]")
_MORE = bytes([0xB6, 0x5D, 0x2C, 0x91]) * 16


def has_grey_block(pixels: UInt8[np.ndarray, "h w 3"]) -> bool:
    """Whether there may be a block of 8 x 8 pixels that are all of the middle grey; it takes little time."""
    sampled = np.ascontiguousarray(pixels[::4, ::4])  # 2 x 2 of these points lie in every such block
    grey = np.asarray(cv2.inRange(sampled, (GREY,) * 3, (GREY,) * 3), np.uint8)
    return bool((grey[:-1, :-1] & grey[1:, :-1] & grey[:-1, 1:] & grey[1:, 1:]).any())


def is_short(content: bytes) -> bool:
    """Whether a JPEG that can be decoded has fewer blocks than its header says; decodes it twice."""
    one, other = (JpegImagePlugin.JpegImageFile(io.BytesIO(data)) for data in (content, _with_more(content)))
    return not np.array_equal(np.asarray(one), np.asarray(other))


def _with_more(content: bytes) -> bytes:
    """The JPEG with more data behind the last block of every interval between markers."""
    parts, kept, at = [], 0, 2
    while match := _MARKER.match(content, at):
        marker, at = content[match.end() - 1], match.end()
        if marker == END_OF_IMAGE:
            break
        at += int.from_bytes(content[at : at + 2])
        while marker == START_OF_SCAN and (match := _MARKER.search(content, at)):
            parts += [content[kept : match.start()], _MORE]
            kept = at = match.start()
            if content[match.end() - 1] not in RESTARTS:
                break
            at = match.end()
    return b"".join([*parts, content[kept:]])
