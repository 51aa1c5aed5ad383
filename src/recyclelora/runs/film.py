"""The overlay of a video as a video, and the labels of its frames as an archive.

    NAME_overlay.mp4    H.264, yuv420p, at the times of the video's frames; without sound. The legend names the classes
                        that occur in any frame. H.264 needs even sides: an odd one gets its last line of pixels twice.
    NAME_labels.zip     000000.png, 000001.png, ...: train ids of each frame

The labels of the frames so far are in `.NAME-KEY.frames/`, whose key stands for the video's bytes and all settings, so
that a prediction that was stopped goes on at the frame where it was. It is removed at the end.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from recyclelora.data.decoding import read_labels
from recyclelora.data.label_maps import cityscapes_ids
from recyclelora.data.video import Video, examined, frames
from recyclelora.errors import UserError
from recyclelora.files import write_bytes
from recyclelora.pages.progress import Progress
from recyclelora.runs.overlay import overlay, with_legend
from recyclelora.runs.pictures import Style, png
from recyclelora.runs.predictor import Predictor

LONG_AGO = (1980, 1, 1, 0, 0, 0)
"""The date of all files in an archive, the first that a ZIP can hold: equal labels make equal archives."""
ENCODER = {"crf": "18", "x264-params": "mbtree=0"}
"""The settings of x264. Its constant rate factor goes from 0, without loss, to 51; from about 18 on a loss can be seen.
With `mbtree`, on a CPU with AVX-512, the same frames give other bytes from one call to the next."""
FRAME = re.compile(r"\d{6,}\.png")
"""The name of a frame's labels in an archive."""
BT709 = 1
"""The number of ITU-R BT.709 in ITU-T H.273: how RGB becomes the colours of the video, which players have to know."""

Write = Callable[[Path], None]
"""Writes a file at a path."""


@dataclass(frozen=True)
class Film:
    """A video, and the folder with the labels of its frames."""

    video: Video
    folder: Path

    def labels_of(self, number: int) -> Path:
        """The file of a frame's labels; it is hidden, so that it is never taken for an image."""
        return self.folder / f".{number:06d}.png"

    def all_labels(self) -> Iterator[UInt8[np.ndarray, "h w"]]:
        """The labels of the frames, one after the other."""
        for number in range(self.video.count):
            yield read_labels(self.labels_of(number))


def work_folder(place: Path, name: str, sha256: str, settings: Mapping[str, Any]) -> Path:
    """The folder for the labels of the frames of a video, beside the files that are written in the end."""
    key = hashlib.sha256(json.dumps([sha256, dict(settings)], sort_keys=True).encode()).hexdigest()[:16]
    file = place / name
    return file.with_name(f".{file.name}-{key}.frames")


def discard(folder: Path, own: bool = True) -> None:
    """Remove the folders for the labels of a video that other bytes or settings have left, and its own if asked for."""
    start = folder.name.rpartition("-")[0]
    for other in folder.parent.iterdir() if folder.parent.is_dir() else ():
        if other.suffix == ".frames" and other.name.rpartition("-")[0] == start and (own or other != folder):
            shutil.rmtree(other, ignore_errors=True)


def unpack(archive: Path, folder: Path) -> None:
    """Take the labels of the frames from an archive that an earlier call wrote; of a damaged one, what can be read."""
    with suppress(OSError, zipfile.BadZipFile, zlib.error), zipfile.ZipFile(archive) as opened:
        for name in opened.namelist():
            if FRAME.fullmatch(name):
                write_bytes(folder / f".{name}", opened.read(name))


def predicted(model: Predictor, file: Path, folder: Path, shown: bool) -> Film:
    """Predict the frames of a video that have no labels yet.

    Raises:
        UnreadableVideoError: as `recyclelora.data.video.examined`.
        UserError: as `Predictor.predict`, or the labels cannot be written.
    """
    film = Film(examined(file, shown), folder)
    done = next((n for n in range(film.video.count) if not film.labels_of(n).is_file()), film.video.count)
    if done == film.video.count:
        return film
    with Progress(f"predicting {file.name}", film.video.count, "frames", done, shown) as progress:
        for number, (_, image) in enumerate(frames(film.video, done), done):
            write_bytes(film.labels_of(number), png(model.predict(image)))
            progress.advance()
    return film


def writers(film: Film, style: Style, shown: bool) -> dict[str, Write]:
    """What writes the file of each kind."""

    def labels(path: Path) -> None:
        _write_archive(path, (film.labels_of(number).read_bytes() for number in range(film.video.count)))

    def ids(path: Path) -> None:
        table = cityscapes_ids(style.space, str(film.video.path))
        _write_archive(path, (png(table[each]) for each in film.all_labels()))

    return {"labels": labels, "overlay": lambda path: _write_overlay(path, film, style, shown), "cityscapes-ids": ids}


def _write_archive(path: Path, contents: Iterator[bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for number, content in enumerate(contents):
            entry = zipfile.ZipInfo(f"{number:06d}.png", LONG_AGO)
            entry.create_system, entry.external_attr = 3, 0o644 << 16  # alike on all systems
            archive.writestr(entry, content)


def _write_overlay(path: Path, film: Film, style: Style, shown: bool) -> None:
    video = film.video
    strip = _legend(film, style) if style.legend else None

    def pictures() -> Iterator[tuple[int, UInt8[np.ndarray, "_ _ 3"]]]:
        with Progress(f"writing {video.path.name}", video.count, "frames", shown=shown) as progress:
            for (time, image), labels in zip(frames(video), film.all_labels(), strict=True):
                picture = overlay(image, labels, style.space, style.opacity)
                yield time, picture if strip is None else _pasted(picture, strip)
                progress.advance()

    write_video(path, pictures(), video.rate, video.unit, video.pixel)


def _legend(film: Film, style: Style) -> UInt8[np.ndarray, "_ _ 3"]:
    """A picture with the legend of the classes that occur, which has room for the frames in its upper left corner."""
    counts = np.zeros(256, np.int64)
    for labels in film.all_labels():
        counts += np.bincount(labels.ravel(), minlength=256)
    occurring = np.flatnonzero(counts).astype(np.uint8)[None]
    return with_legend(np.full((*film.video.size, 3), 255, np.uint8), occurring, style.space)


def _pasted(picture: UInt8[np.ndarray, "_ _ 3"], strip: UInt8[np.ndarray, "_ _ 3"]) -> UInt8[np.ndarray, "_ _ 3"]:
    whole = strip.copy()
    whole[: picture.shape[0], : picture.shape[1]] = picture
    return whole


def write_video(
    path: Path,
    pictures: Iterator[tuple[int, UInt8[np.ndarray, "_ _ 3"]]],
    rate: Fraction,
    unit: Fraction,
    pixel: Fraction = Fraction(1),
) -> None:
    """Write RGB pictures of one size as H.264 in MP4, which players and browsers show.

    Args:
        pictures: each with its time in units, rising.
        rate: pictures per second on average.
        unit: seconds.
        pixel: width by height of a pixel.

    Raises:
        UserError: the encoder refuses them, as for sides beyond 16,384 pixels.
    """
    import av

    try:
        with av.open(path.absolute().as_posix(), "w", format="mp4", options={"movflags": "faststart"}) as container:
            stream: Any = None
            for time, picture in pictures:
                even = _even(picture)
                if stream is None:
                    stream = container.add_stream("libx264", rate=rate, options=ENCODER)
                    stream.height, stream.width = even.shape[:2]
                    stream.pix_fmt = "yuv420p"
                    context = stream.codec_context
                    context.time_base, context.sample_aspect_ratio = unit, pixel
                    context.colorspace = context.color_primaries = context.color_trc = BT709
                frame = av.VideoFrame.from_ndarray(even, format="rgb24")
                frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
                frame.pts, frame.time_base = time, unit
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    except av.FFmpegError as error:
        if isinstance(error, OSError) and error.filename:
            raise
        raise UserError(f"{path}: could not be encoded as H.264 ({error}); scale the video down") from error


def _even(picture: UInt8[np.ndarray, "_ _ 3"]) -> UInt8[np.ndarray, "h w 3"]:
    below, beside = picture.shape[0] % 2, picture.shape[1] % 2
    if not (below or beside):
        return np.ascontiguousarray(picture)
    return np.asarray(cv2.copyMakeBorder(picture, 0, below, 0, beside, cv2.BORDER_REPLICATE), np.uint8)
