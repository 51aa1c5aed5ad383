"""What a file is by its bytes, whatever its name says; and bytes only of what is a file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from recyclelora.errors import UserError

LFS_POINTER = b"version https://git-lfs.github.com/spec/"

SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (8, b"WEBP", "WebP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (0, b"BM", "BMP"),
    (0, b"GIF8", "GIF"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (4, b"ftypavi", "AVIF"),
    *((4, b"ftyp" + brand, "HEIC") for brand in (b"hei", b"hev", b"mif1", b"msf1")),
    (4, b"ftyp", "video"),
    (4, b"moov", "video"),
    (4, b"mdat", "video"),
    (8, b"AVI ", "video"),
    (0, b"\x1aE\xdf\xa3", "video"),
    (0, b"\0\0\x01\xba", "video"),
    (0, b"\0\0\x01\xb3", "video"),
    (0, b"FLV\x01", "video"),
    (0, LFS_POINTER, "Git LFS pointer"),
    (0, b"\0\x05\x16\x07", "macOS resource fork"),
    (0, b"%PDF", "PDF"),
    (0, b"PK\x03\x04", "ZIP archive"),
    (0, b"\x1f\x8b", "gzip archive"),
    (0, b"\x93NUMPY", "NumPy array"),
    (0, b"8BPS", "Photoshop file"),
    (0, b"<svg", "SVG"),
    (0, b"<!DOCTYPE", "web page"),
    (0, b"<!doctype", "web page"),
    (0, b"<html", "web page"),
)
"""Where a kind of file has which bytes; the first that fits decides."""

MOST_BYTES = 2**30
"""The largest file that is read: twice the pixels of the largest image without compression."""

FIXES = {
    "Git LFS pointer": "fetch the file itself with `git lfs pull`",
    "video": "extract its frames as images",
    "macOS resource fork": "remove it",
    "web page": "download the file again",
}


def kind_of(content: bytes) -> str:
    """The kind of file that these bytes are, such as "PNG"; empty if it is none of those known."""
    return next((kind for at, mark, kind in SIGNATURES if content.startswith(mark, at)), "")


def named(kind: str) -> str:
    """The kind with its article: "a PNG", "an AVIF"."""
    return f"{'an' if kind in ('AVIF', 'SVG') else 'a'} {kind}"


def refuse_link_or_device(path: Path) -> None:
    """Refuse what is not a file, without opening it: a pipe would block.

    Raises:
        UserError: the path is a dangling link, a folder, a pipe, a device or a socket, or does not exist.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if path.is_symlink():
            raise UserError(
                f"{path}: a link to {os.readlink(path)}, where there is no file ({error.strerror}); "
                "put the file there, or replace the link by the file"
            ) from error
        raise UserError(f"{path}: cannot be read ({error.strerror}); put the file there") from error
    if stat.S_ISREG(mode):
        return
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    raise UserError(f"{path}: a {kinds.get(stat.S_IFMT(mode), 'device')}, expected a file; put the file there")


def read_file(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        UserError: it is no file, does not exist, cannot be read, or is larger than any image may be.
    """
    refuse_link_or_device(path)
    try:
        with path.open("rb") as file:
            size, start = os.fstat(file.fileno()).st_size, file.read(64)
            if size <= MOST_BYTES:
                return start + file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); allow reading it, or copy it again") from error
    kind = kind_of(start)
    raise UserError(
        f"{path}: a file of {size:,} bytes{f' ({named(kind)})' if kind else ''}, expected at most {MOST_BYTES:,}; "
        f"{FIXES.get(kind, 'cut the image into tiles')}"
    )


def refuse_other_kinds(path: Path, content: bytes, expected: tuple[str, ...], way_out: str) -> None:
    """Refuse a file that is known to be of another kind than those expected, with this way out of most kinds.

    Raises:
        UserError: its bytes are of another kind; the message names the kind and the fix.
    """
    kind = kind_of(content)
    if kind and kind not in expected:
        wanted = " or ".join(filter(None, (", ".join(expected[:-1]), expected[-1])))
        fix = FIXES.get(kind, way_out)
        raise UserError(f"{path}: holds {named(kind)}, whatever its name says, expected {wanted}; {fix}")
