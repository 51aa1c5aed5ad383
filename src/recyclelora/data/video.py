"""Reads videos frame by frame, upright and whole, with PyAV (the extra `video`).

What a video is, its bytes say: MP4 and QuickTime, AVI, Matroska and WebM are read, in any codec of FFmpeg. Sound is not
read. A video that is cut off, or of which a frame is damaged, is refused as far as this can be known: some codecs, such
as VP8, decode damaged frames without a word, and a live recording does not state its length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from recyclelora.data.container import is_cut
from recyclelora.data.decoding import MOST_PIXELS
from recyclelora.data.stored import kind_of, named, refuse_link_or_device
from recyclelora.errors import MissingExtraError, UserError, shortened
from recyclelora.files import file_sha256
from recyclelora.pages.progress import Progress

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".avi", ".mkv", ".webm"})
READ = "mov,avi,matroska"
"""FFmpeg's names of the containers; others, such as playlists, could lead to other files."""
USUAL_RATE = Fraction(25)
"""Frames per second where a video does not say."""


class UnreadableVideoError(UserError):
    """A file is no video that can be read to its end."""


@dataclass(frozen=True)
class Video:
    """What is known of a video that was decoded to its end.

    Attributes:
        count: how many frames it has.
        size: height and width of its frames, upright.
        rate: frames per second on average.
        unit: the seconds in which times are counted, its time base.
        pixel: width by height of a pixel.
    """

    path: Path
    count: int
    size: tuple[int, int]
    rate: Fraction
    unit: Fraction
    pixel: Fraction


def is_video(path: Path) -> bool:
    """Whether a file is one by its name."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def check_reader() -> None:
    """Refuse to go on without PyAV.

    Raises:
        MissingExtraError: it is not installed.
    """
    if find_spec("av") is None:
        raise MissingExtraError("a video", "av", "video")


def video_sha256(path: Path) -> str:
    """The SHA-256 of a video's bytes.

    Raises:
        UserError: it is no file, or cannot be read.
    """
    refuse_link_or_device(path)
    try:
        return file_sha256(path)
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error


def examined(path: Path, shown: bool = True) -> Video:
    """Decode a video to its end, before anything is computed for it; the number that its file states may be wrong.

    Raises:
        UnreadableVideoError: it is cut off, damaged or of another kind, has no frames or frames of several sizes, or
            these are too large.
    """
    with _opened(path) as container:
        stream: Any = container.streams.best("video")
        total = stream.frames or int((container.duration or 0) / 1e6 * (stream.average_rate or USUAL_RATE))
        first, count = None, 0
        with Progress(f"checking {path.name}", total, "frames", shown=shown) as progress:
            for frame in _decoded(path, container):
                first = first or frame
                if (frame.width, frame.height) != (first.width, first.height):
                    raise UnreadableVideoError(
                        f"{path}: frame {count} is of {frame.width} x {frame.height} pixels, those before of "
                        f"{first.width} x {first.height}, expected one size; encode the video again in one size"
                    )
                count += 1
                progress.total = max(progress.total, count)
                progress.advance()
        if first is None:
            raise _unreadable(path, "it has no frames")
        height, width = (first.height, first.width)[:: -1 if _quarters(first) % 2 else 1]
        pixel = Fraction(stream.sample_aspect_ratio or 1)
        pixel = 1 / pixel if _quarters(first) % 2 else pixel
        rate = Fraction(stream.average_rate or USUAL_RATE)
        return Video(path, count, (height, width), rate, Fraction(stream.time_base), pixel)


def frames(video: Video, first: int = 0) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
    """Time and upright RGB image of each frame from number `first` on.

    Times are counted in the video's unit from its first frame on, and rise.

    Raises:
        UnreadableVideoError: as `examined`; the file has been changed since.
    """
    with _opened(video.path) as container:
        step = max(1, round(1 / (video.rate * video.unit)))
        start, time = 0, -step
        for number, frame in enumerate(_decoded(video.path, container)):
            if number == 0:
                start = frame.pts or 0
            stated = time + step if frame.pts is None else frame.pts - start
            time = max(stated, time + 1)
            if number >= first:
                image = np.rot90(frame.to_ndarray(format="rgb24"), _quarters(frame))
                yield time, np.ascontiguousarray(image)


def _opened(path: Path) -> Any:
    """The container of a video, which closes at the end of a `with` block."""
    import av

    refuse_link_or_device(path)
    try:
        with path.open("rb") as file:
            kind = kind_of(file.read(64))
    except OSError as error:
        raise _unreadable(path, _reason(error)) from error
    if kind not in ("", "video"):
        raise _unreadable(path, f"it holds {named(kind)}")
    try:
        container = av.open(path.absolute().as_posix(), container_options={"format_whitelist": READ})
    except (av.FFmpegError, OSError, ValueError) as error:
        cut = "it is cut off" if _is_cut(path) else ""
        raise _unreadable(path, cut or _reason(error)) from error
    stream: Any = container.streams.best("video")
    if stream is None:
        container.close()
        raise _unreadable(path, "there is no video in it")
    pixels = stream.codec_context.width * stream.codec_context.height
    if pixels > MOST_PIXELS:
        container.close()
        raise UnreadableVideoError(
            f"{path}: frames of {pixels:,} pixels, expected at most {MOST_PIXELS:,}; scale the video down"
        )
    return container


def _decoded(path: Path, container: Any) -> Iterator[Any]:
    """The frames of a video, up to the first that is damaged."""
    import av

    if _is_cut(path):
        raise _unreadable(path, "it is cut off")
    stream = container.streams.best("video")
    stream.thread_type = "AUTO"
    number = 0
    try:
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise _unreadable(path, f"frame {number} is damaged")
            yield frame
            number += 1
    except (av.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise _unreadable(path, f"frame {number}: {_reason(error)}") from error


def _is_cut(path: Path) -> bool:
    with path.open("rb") as file:
        return is_cut(file)


def _quarters(frame: Any) -> int:
    """By how many quarters of a turn, against the clock, a frame is shown."""
    rotation: int = frame.rotation
    return round(rotation / 90)


def _reason(error: Exception) -> str:
    return shortened(str(getattr(error, "strerror", None) or error))


def _unreadable(path: Path, reason: str) -> UnreadableVideoError:
    return UnreadableVideoError(
        f"{path}: cannot be read as a video ({reason}), expected a whole MP4, MOV, AVI, MKV or WebM; copy it again, or "
        "convert it"
    )
