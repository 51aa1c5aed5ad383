"""Reads image and label files strictly, with OpenCV where it gives the same pixels as Pillow in less time.

Pillow decides what a file holds. OpenCV decodes JPEG and PNG with 8 bits per channel in two thirds of the time, but
returns partly grey images for truncated files, so it only gets whole files. Pillow reads all other files, and its
errors are reported. Pillow also reads the labels: it keeps the indices of palette PNGs, which are the label ids, while
OpenCV expands them to colours. It is no slower on them.

What a file is, its bytes say, not its name. A size is checked before memory is taken for the pixels.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import (
    BmpImagePlugin,
    ExifTags,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from recyclelora.data import jpeg, png
from recyclelora.data.stored import kind_of, read_file, refuse_other_kinds
from recyclelora.errors import UserError

JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"

OPENERS: dict[str, Callable[[io.BytesIO, str], Image.Image]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.jpeg_factory,
    "WebP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
"""How Pillow reads the header of each kind; `Image.open` would also warn of images half as large as `MOST_PIXELS`."""

IMAGE_KINDS = tuple(OPENERS)

MOST_PIXELS = 178_956_970
"""The largest image: 0.5 GiB as RGB, the size from which Pillow refuses to read one."""

GREY_STEPS = {1: 1, 2: 85, 4: 17, 8: 1}
"""What Pillow multiplies grey values of so many bits by; it gives values of one bit as they are."""


def read_image(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """The RGB image in a file, turned upright if its EXIF data say so.

    Raises:
        UserError: the file is missing, damaged, truncated, of another kind or too large, or has more than 8 bits per
            channel.
    """
    return read_turned(path)[0]


def read_turned(path: Path) -> tuple[UInt8[np.ndarray, "h w 3"], int]:
    """As `read_image`, with the EXIF orientation from which the image was turned; 1 if it is stored upright."""
    content = read_file(path)
    image = _header(path, content, IMAGE_KINDS)
    bits = _bits(image, content)
    if bits > 8:
        raise UserError(
            f"{path}: image of mode {image.mode!r} with 16 or more bits per channel, expected 8 bits; convert it to "
            "8 bits, divided so that its own brightest value becomes 255 (12 bits stored in 16: divide by 16)"
        )
    pixels, orientation = _decode(content), 1
    if pixels is None:
        image, orientation = _load(path, content, image)
        pixels = np.array(in_rgb(image))
    # The grey of a block without data is another one in CMYK.
    if image.format in ("JPEG", "MPO") and (image.mode == "CMYK" or jpeg.has_grey_block(pixels)):
        _check_whole_jpeg(path, content)
    return pixels, orientation


def in_rgb(image: Image.Image) -> Image.Image:
    """The image in the mode RGB, without its opacity."""
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # Pillow warns if such an opacity is dropped in one step
    return image if image.mode == "RGB" else image.convert("RGB")


def _check_whole_jpeg(path: Path, content: bytes) -> None:
    try:
        short = jpeg.is_short(content)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, EOFError, struct.error, ...
        raise _damaged(path, error) from error
    if short:
        raise _damaged(path, "its compressed data end before its last pixels, which a decoder would make grey")


def as_jpeg(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The RGB image that comes back from a JPEG file as Pillow writes it if no quality is given."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG")
    return np.asarray(_by_opencv(file.getvalue()), np.uint8)


def read_labels(path: Path) -> UInt8[np.ndarray, "h w"]:
    """The ids in a label PNG: grey values as stored with 1, 2, 4 or 8 bits, or palette indices.

    Raises:
        UserError: the file is missing, damaged, truncated, too large or no PNG, has several channels or more than
            8 bits, or its EXIF data turn it.
    """
    return stored_ids(path, *checked_label(path))


def stored_ids(path: Path, content: bytes, image: Image.Image) -> UInt8[np.ndarray, "h w"]:
    """As `read_labels`, of a file that `checked_label` has read."""
    if image.mode not in ("L", "P", "1"):
        bits = " (16 bits)" if image.mode.startswith("I") else f" ({len(image.getbands())} channels)"
        raise UserError(
            f"{path}: label of mode {image.mode!r}{bits}, expected one channel of 8-bit ids; "
            "write the class ids as a grey or palette PNG"
        )
    labels = decoded_label(path, content, image).astype(np.uint8)
    step = GREY_STEPS[png.header(content).bits] if image.mode == "L" else 1
    return labels // step if step > 1 else labels


def decoded_label(path: Path, content: bytes, image: Image.Image) -> Shaped[np.ndarray, "h w *channels"]:
    """The values in a file that `checked_label` has read, as Pillow gives them in the mode of the image.

    Raises:
        UserError: the pixels cannot be decoded.
    """
    return np.asarray(_load(path, content, image, whole=True)[0])


def checked_label(path: Path) -> tuple[bytes, Image.Image]:
    """The bytes of a label PNG that is whole and not turned, and its header as Pillow reads it.

    Raises:
        UserError: the file is missing, damaged, truncated, too large or no PNG, or its EXIF data turn it.
    """
    content = read_file(path)
    image = _header(path, content, ("PNG",))
    try:
        png.check_whole(content)
    except ValueError as error:
        raise _damaged(path, error) from error
    if any(png.may_be_turned(kind, data) for kind, data in png.chunks(content)):
        orientation = _load(path, content, _header(path, content, ("PNG",)))[1]
        if orientation != 1:
            raise UserError(
                f"{path}: label that its EXIF data turn (orientation {orientation}), expected pixels as they are shown;"
                " save the label and its image upright, without this entry"
            )
    return content, image


def _header(path: Path, content: bytes, kinds: tuple[str, ...]) -> Image.Image:
    """The image of which Pillow has read only the header, if it is of one of these kinds and not too large."""
    labels = "write the class ids again as a grey or palette PNG, as other kinds may have changed them"
    refuse_other_kinds(path, content, kinds, "save it as one of these" if kinds == IMAGE_KINDS else labels)
    kind = kind_of(content)
    if not kind:
        raise _damaged(path, "of no known kind" if content else "an empty file")
    try:
        image = OPENERS[kind](io.BytesIO(content), "")
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, EOFError, struct.error, ...
        raise _damaged(path, error) from error
    pixels = image.width * image.height
    if pixels > MOST_PIXELS:
        raise UserError(f"{path}: an image of {pixels:,} pixels, expected at most {MOST_PIXELS:,}; cut it into tiles")
    return image


def _bits(image: Image.Image, content: bytes) -> int:
    """The bits of a channel, which the mode of Pillow does not show for colours; 32 stands for real numbers."""
    if image.format == "PNG":
        return png.header(content).bits
    if image.format == "TIFF":
        stored = image.getexif().get(ExifTags.Base.BitsPerSample, 8)
        return max(stored) if isinstance(stored, tuple) else int(stored)
    return 32 if image.mode.startswith(("I", "F")) else 8


def _load(path: Path, content: bytes, image: Image.Image, whole: bool = False) -> tuple[Image.Image, int]:
    """The decoded image, upright, and the EXIF orientation from which it was turned.

    `whole` says that a PNG is known to be whole.
    """
    try:
        if image.format == "PNG" and not whole:
            png.check_whole(content)
        # The orientation of a PNG may come after its pixels, while that of a TIFF is dropped with them.
        before = None if image.format == "PNG" else image.getexif().get(ExifTags.Base.Orientation)
        with warnings.catch_warnings() if image.format == "TIFF" else nullcontext():
            if image.format == "TIFF":
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # as at `OPENERS`
            image.load()
        orientation = before or image.getexif().get(ExifTags.Base.Orientation, 1)
        ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, EOFError, struct.error, ...
        raise _damaged(path, error) from error
    return image, orientation if orientation in range(2, 9) else 1


def _damaged(path: Path, reason: Exception | str) -> UserError:
    text = re.sub(r"<_io\.BytesIO object at \w+>", "the file", " ".join(str(reason).split()))
    return UserError(f"{path}: cannot be read as an image ({text}); replace the damaged file")


def _decode(content: bytes) -> UInt8[np.ndarray, "h w 3"] | None:
    """The image as OpenCV decodes it; None if Pillow might give other pixels or an error."""
    try:
        if not (png.plain(content) or _plain_jpeg(content)):
            return None
        pixels = _by_opencv(content)
    except Exception:  # of any kind: Pillow reports the reason
        return None
    return None if pixels is None else np.asarray(pixels, np.uint8)


def _by_opencv(content: bytes) -> np.ndarray | None:
    """The RGB image in a file's content as it is stored; None if OpenCV cannot decode it."""
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(content, np.uint8), flags)


def _plain_jpeg(content: bytes) -> bool:
    """Whether this is a grey or YCbCr JPEG that is upright and has an end marker."""
    if not content.startswith(JPEG_START) or not content.endswith(JPEG_END):
        return False
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(content))  # reads only the header
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    return image.mode in ("RGB", "L") and not turned
