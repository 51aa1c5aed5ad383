"""Frames of videos that OpenCV wrote are those that it reads, and damaged videos are refused."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from labelled_files import picture, refused, write
from recyclelora.data import decoding, video
from recyclelora.data.video import UnreadableVideoError, examined, frames, is_video
from recyclelora.errors import MissingExtraError
from recyclelora.runs.film import write_video
from videos import CODECS, as_opencv_reads, filmed, noise, scene, turned


@pytest.mark.parametrize("suffix", CODECS)
def test_frames_are_those_that_opencv_reads(suffix, tmp_path):
    file = filmed(tmp_path / f"a{suffix}", count=6, rate=12.5)
    found = examined(file)
    assert (found.count, found.size, found.rate, found.pixel) == (6, (48, 64), Fraction(25, 2), 1)
    read = list(frames(found))
    for (_, image), expected in zip(read, as_opencv_reads(file), strict=True):
        assert np.abs(image.astype(int) - expected).max() <= 3
    np.testing.assert_allclose([float(time * found.unit) for time, _ in read], np.arange(6) / 12.5, atol=1e-3)
    np.testing.assert_array_equal(next(frames(found, 4))[1], read[4][1])


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_frames_are_upright(degrees, tmp_path):
    file = filmed(tmp_path / "a.mp4", count=2)
    (_, plain), *_ = frames(examined(file))
    found = examined(turned(file, degrees))
    (_, image), *_ = frames(found)
    np.testing.assert_array_equal(image, np.rot90(plain, -degrees // 90))
    assert found.size == image.shape[:2]


def test_times_that_are_not_even_are_kept(tmp_path):
    times = [0, 3, 4, 10, 11]
    shots = ((time, scene(number)) for number, time in enumerate(times))
    write_video(tmp_path / "a.mp4", shots, Fraction(10), Fraction(1, 25))
    found = examined(tmp_path / "a.mp4")
    assert [time * found.unit for time, _ in frames(found)] == [Fraction(time, 25) for time in times]


def test_the_shape_of_pixels_is_turned_with_the_frame(tmp_path):
    shots = ((number, scene(number)) for number in range(2))
    write_video(tmp_path / "a.mp4", shots, Fraction(10), Fraction(1, 10), Fraction(4, 3))
    assert examined(tmp_path / "a.mp4").pixel == Fraction(4, 3)
    assert examined(turned(tmp_path / "a.mp4", 90)).pixel == Fraction(3, 4)


@pytest.mark.parametrize("suffix", CODECS)
def test_a_video_that_is_cut_off_is_refused(suffix, tmp_path):
    file = filmed(tmp_path / f"a{suffix}")
    file.write_bytes(file.read_bytes()[:-40])
    refused(lambda: examined(file), file, "cannot be read as a video (it is cut off)")


def test_damaged_frames_are_refused_when_they_are_reached(tmp_path):
    file = tmp_path / "a.mp4"
    write_video(file, ((number, noise(number, (48, 64))) for number in range(12)), Fraction(10), Fraction(1, 10))
    content = bytearray(file.read_bytes())
    start = content.index(b"mdat")
    part = slice(start + (len(content) - start) // 3, start + (len(content) - start) * 2 // 3)
    content[part] = bytes(255 - value for value in content[part])
    whole = examined(file)
    file.write_bytes(content)
    message = refused(lambda: examined(file), file, "cannot be read as a video (frame ")
    number = int(message.partition("(frame ")[2].split()[0].rstrip(":"))
    assert 0 < number < 12
    with pytest.raises(UnreadableVideoError):
        list(frames(whole))


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "Invalid data"), (b"#EXTM3U\n#EXTINF:1,\na.mp4\n", "cannot be read"), (b"ffconcat version 1.0\n", "cannot")],
)
def test_other_kinds_are_refused(content, reason, tmp_path):
    (tmp_path / "a.mp4").write_bytes(content)
    refused(lambda: examined(tmp_path / "a.mp4"), tmp_path / "a.mp4", reason)
    write(tmp_path / "b.png", picture())
    refused(lambda: examined((tmp_path / "b.png").rename(tmp_path / "b.mp4")), "b.mp4", "as a video (it holds a PNG)")


def test_frames_beyond_the_largest_image_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "MOST_PIXELS", 48 * 64 - 1)
    assert decoding.MOST_PIXELS > 1e8
    refused(lambda: examined(filmed(tmp_path / "a.avi")), "frames of 3,072 pixels, expected at most 3,071")


def test_without_pyav_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'package av, .*recyclelora\[video\]"'):
        video.check_reader()


def test_names_say_what_is_a_video(tmp_path):
    names = ["a.mp4", "A.MOV", "b.avi", "b.mkv", "b.webm", "c.png", "d"]
    assert list(itertools.takewhile(lambda name: is_video(tmp_path / name), names)) == names[:5]
