"""Reads image and label files strictly, with OpenCV where it gives the same pixels as Pillow in less time.

Pillow decides what a file holds. OpenCV decodes JPEG and PNG with 8 bits per channel in two thirds of the time, but
returns partly grey images for truncated files, so it only gets whole files. Pillow reads all other files, and its
errors are reported. Pillow also reads the labels: it keeps the indices of palette PNGs, which are the label ids, while
OpenCV expands them to colours. It is no slower on them.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps

from recyclelora.errors import UserError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
TEXT = (b"tEXt", b"zTXt", b"iTXt")
METADATA = (b"Raw profile type", b"XML:com.adobe.xmp")
"""Keywords of the text chunks of a PNG in which Pillow finds an orientation."""


def read_image(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """The RGB image in a file, turned upright if its EXIF data say so.

    Raises:
        UserError: the file is missing, damaged or truncated, or has 16 or more bits per channel.
    """
    pixels = _decode(path)
    if pixels is not None:
        return pixels
    image = _open(path, upright=True)
    if image.mode.startswith(("I", "F")):
        raise UserError(
            f"{path}: image of mode {image.mode!r} (16 or more bits), expected 8 bits; convert it to 8 bits"
        )
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def as_jpeg(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The RGB image that comes back from a JPEG file as Pillow writes it if no quality is given."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG")
    return np.asarray(_by_opencv(file.getvalue()), np.uint8)


def read_labels(path: Path) -> UInt8[np.ndarray, "h w"]:
    """The ids in a label PNG: grey values, palette indices, or 0 and 1 in a PNG with one bit per pixel.

    Raises:
        UserError: the file is missing, damaged or truncated, or has several channels or more than 8 bits.
    """
    image = _open(path)
    if image.mode not in ("L", "P", "1"):
        bits = " (16 bits)" if image.mode.startswith("I") else f" ({len(image.getbands())} channels)"
        raise UserError(
            f"{path}: label of mode {image.mode!r}{bits}, expected one channel of 8-bit ids; "
            "write the class ids as a grey or palette PNG"
        )
    return np.asarray(image).astype(np.uint8)


def _open(path: Path, upright: bool = False) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            if upright:
                ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, EOFError, struct.error, ...
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read as an image ({reason}); replace the damaged file") from error
    return image


def _decode(path: Path) -> UInt8[np.ndarray, "h w 3"] | None:
    """The image as OpenCV decodes it; None if Pillow might give other pixels or an error."""
    try:
        content = path.read_bytes()
        if not (_plain_png(content) or _plain_jpeg(content)):
            return None
        pixels = _by_opencv(content)
    except Exception:  # of any kind: Pillow reports the reason
        return None
    return None if pixels is None else np.asarray(pixels, np.uint8)


def _by_opencv(content: bytes) -> np.ndarray | None:
    """The RGB image in a file's content as it is stored; None if OpenCV cannot decode it."""
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(content, np.uint8), flags)


def png_chunks(content: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """The kind and the data of each chunk of a PNG, to its end.

    Raises:
        ValueError: the content is not a PNG, is truncated, or holds a chunk whose checksum is wrong.
    """
    start, view, kind = len(PNG_SIGNATURE), memoryview(content), b""
    if not content.startswith(PNG_SIGNATURE):
        raise ValueError("not a PNG")
    while kind != b"IEND":
        # 4 bytes of length, 4 of the kind, the data, 4 of the checksum over kind and data
        end = start + 8 + int.from_bytes(view[start : start + 4])
        if end + 4 > len(content) or zlib.crc32(view[start + 4 : end]) != int.from_bytes(view[end : end + 4]):
            raise ValueError("truncated, or a wrong checksum")
        kind = content[start + 4 : start + 8]
        yield kind, view[start + 8 : end]
        start = end + 4


def _plain_png(content: bytes) -> bool:
    """Whether this is a whole PNG with 8 bits per channel and correct checksums, upright and not animated."""
    try:
        for kind, data in png_chunks(content):
            if kind == b"IHDR" and data[8] != 8:  # after 4 bytes of width and 4 of height
                return False
            if kind in (b"acTL", b"eXIf") or (kind in TEXT and bytes(data[:32]).startswith(METADATA)):
                return False
    except ValueError:
        return False
    return True


def _plain_jpeg(content: bytes) -> bool:
    """Whether this is a grey or YCbCr JPEG that is upright and has an end marker."""
    if not content.startswith(JPEG_START) or not content.endswith(JPEG_END):
        return False
    with Image.open(io.BytesIO(content)) as image:  # reads only the header
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
        return image.mode in ("RGB", "L") and not turned
