"""A video that is cut off anywhere is noticed; a whole one, and one that states no length, are not."""

import io
import struct

import pytest

from recyclelora.data.container import is_cut
from videos import CODECS, filmed


@pytest.mark.parametrize("suffix", CODECS)
def test_a_video_without_its_end_is_noticed(suffix, tmp_path):
    content = filmed(tmp_path / f"a{suffix}").read_bytes()
    assert not is_cut(io.BytesIO(content))
    for size in (len(content) - 1, len(content) * 2 // 3, len(content) // 3):
        assert is_cut(io.BytesIO(content[:size])), size


def test_large_boxes_state_their_size_in_eight_bytes():
    box = struct.pack(">I4sQ", 1, b"mdat", 40) + bytes(24)
    assert not is_cut(io.BytesIO(box))
    assert is_cut(io.BytesIO(box[:-1]))


def test_a_file_of_several_chunks_is_cut_in_any_of_them():
    chunk = b"RIFF" + struct.pack("<I", 12) + b"AVI " + bytes(8)
    assert not is_cut(io.BytesIO(chunk * 3))
    assert is_cut(io.BytesIO(chunk * 3 + chunk[:-1]))
    assert not is_cut(io.BytesIO(chunk + b"something else"))


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xd8\xff\xe0\0\x10JFIF", b"GIF89a\x40\0\x30\0", b"G\x40\x11\x10\0B\xf0%"]
)
def test_of_another_kind_of_file_nothing_is_said(content):
    assert not is_cut(io.BytesIO(content))


@pytest.mark.parametrize(
    "content",
    [
        b"\x1aE\xdf\xa3\x82ab\x18S\x80g\x01\xff\xff\xff\xff\xff\xff\xffrest",
        b"RIFF\xff\xff\xff\xffAVI rest",
        struct.pack(">I4s", 0, b"mdat") + b"rest",
    ],
)
def test_recordings_that_state_no_length_are_not_refused(content):
    assert not is_cut(io.BytesIO(content))
