"""The verb `predict`: a PNG of train ids and a colour overlay for each image.

OUT/NAME_labels.png, NAME_overlay.png    the pictures of an image
    predictions.jsonl                    what they were made with, and then a line for each image, by which a call that
                                         was stopped goes on, and pictures are not taken for images
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from recyclelora.data.decoding import read_image
from recyclelora.data.finding import find_images
from recyclelora.data.stored import read_file
from recyclelora.errors import UserError
from recyclelora.files import append_line, holds_nothing, locked, read_lines, write_bytes, write_text
from recyclelora.runs.overlay import overlay, with_legend
from recyclelora.runs.predictor import CheckpointName, Predictor, load
from recyclelora.runs.sharing import Processes, joined
from recyclelora.stopping import begun

RECORD = "predictions.jsonl"
PICTURES = ("labels", "overlay")


@dataclass(frozen=True)
class Predictions:
    """The pictures that were written, how many images had theirs already, and what was wrong with the others."""

    written: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)

    def add(self, seen: _Seen, file: Path, out: Path) -> None:
        """Count an image with its pictures in `out`, or with the reason why it has none."""
        if seen.error:
            self.failed[file] = seen.error
        else:
            (self.kept if seen.kept else self.written).extend(_pictures(out, seen.name))


def predict(
    run: str | Path,
    images: Sequence[str | Path],
    out: str | Path,
    opacity: float = 0.6,
    weights: str | None = None,
    overwrite: bool = False,
    checkpoint: CheckpointName | None = None,
    devices: int = 1,
) -> Predictions:
    """Segment images at their own size. Called again, it goes on with the images that have no pictures yet.

    Images that cannot be read are left out, and listed in what is returned.

    Args:
        run: folder of a finished training.
        images: image files, or folders of images; the pictures of an earlier call are left out.
        out: folder for the pictures, `NAME_labels.png` and `NAME_overlay.png` for each image. The overlay has a legend
            below it.
        opacity: strength of the colours over the image, 0 to 1.
        weights: where the base weights are now, if not where the recipe says.
        overwrite: replace files that are in `out`.
        checkpoint: as in `recyclelora.load`.
        devices: this many GPUs, or processes on a CPU, share the images, as in `recyclelora.evaluate`.

    Raises:
        UserError: an image does not exist or would be overwritten, `out` holds something else or cannot be written to,
            a process was ended, or as `recyclelora.load`.
    """
    out = Path(out)
    with ExitStack() as lock, joined(devices) as processes:
        record, files = processes.of_first(lambda: _opened(images, out, overwrite))
        with processes.agreeing():
            model = load(run, weights, processes.device, checkpoint)
            settings = _settings(model, opacity)
            if record.settings not in (None, settings) and not overwrite:
                differing = [key for key in settings if (record.settings or {}).get(key) != settings[key]]
                raise UserError(
                    f"{out} holds predictions that were made otherwise (they differ in {', '.join(differing)}); choose "
                    "another --out or replace files there with --overwrite"
                )
        processes.check_alike(settings, str(run))

        def begin() -> _Record:
            lock.enter_context(locked(out))
            record.begin(settings, anew=overwrite)
            return record

        record = processes.of_first(begin)
        made, names = Predictions(), list(files)
        with begun(), processes.sharing(len(files), "predicting") as rounds:
            for index in rounds:
                own: _Seen | None = None
                pictures: dict[Path, bytes] = {}
                with processes.agreeing():
                    if index is not None:
                        own, pictures = _predict_one(model, names[index], files[names[index]], out, opacity, record)
                found = [each for each in processes.all_of(own) if each is not None]
                _write([each for each in found if each.is_new], pictures, record, processes)
                for each in found:
                    made.add(each, files[each.name], out)
    return made


@dataclass(frozen=True)
class _Seen:
    """What was found out about an image: its SHA-256, whether its pictures are there, or why it cannot be read."""

    name: str
    sha256: str | None = None
    kept: bool = False
    error: str = ""

    @property
    def is_new(self) -> bool:
        """Whether its pictures have to be written."""
        return not (self.kept or self.error)


def _predict_one(
    model: Predictor, name: str, file: Path, out: Path, opacity: float, record: _Record
) -> tuple[_Seen, dict[Path, bytes]]:
    """Predict an image that has no pictures yet; the contents of its pictures."""
    pictures = _pictures(out, name)
    try:
        content_hash = hashlib.sha256(read_file(file)).hexdigest()
        if record.hashes.get(name) == content_hash and all(picture.is_file() for picture in pictures):
            return _Seen(name, content_hash, kept=True), {}
        image = read_image(file)
    except UserError as error:
        return _Seen(name, error=str(error)), {}
    labels = model.predict(image)
    legible = with_legend(overlay(image, labels, model.space, opacity), labels, model.space)
    coloured = np.ascontiguousarray(legible[..., ::-1])
    for picture in pictures:
        _refuse_links(picture, out)
    contents = [cv2.imencode(".png", pixels)[1].tobytes() for pixels in (labels, coloured)]
    return _Seen(name, content_hash), dict(zip(pictures, contents, strict=True))


def _write(new: Sequence[_Seen], pictures: Mapping[Path, bytes], record: _Record, processes: Processes) -> None:
    """Write the own ones of the pictures of a round; the first process lists all its images, before and after."""
    with processes.agreeing():
        if processes.leads:
            for each in new:
                record.add(each.name, None)
    with processes.agreeing():
        for picture, content in pictures.items():
            write_bytes(picture, content)
    with processes.agreeing():
        if processes.leads:
            for each in new:
                record.add(each.name, each.sha256)


def _opened(images: Sequence[str | Path], out: Path, overwrite: bool) -> tuple[_Record, dict[str, Path]]:
    """What `out` holds of an earlier call, and the images by name."""
    record = _Record(out / RECORD)
    if out.is_file() or not (overwrite or holds_nothing(out) or record.file.is_file()):
        raise UserError(f"{out} exists and is not empty; choose another --out or replace files there with --overwrite")
    return record, _inputs(images, out, record)


def _inputs(images: Sequence[str | Path], out: Path, record: _Record) -> dict[str, Path]:
    """The images by name, without the pictures of earlier calls."""
    ours = {picture.resolve() for name in record.hashes for picture in _pictures(out, name)}
    found = find_images([Path(place) for place in images])
    files = {name: file for name, file in found.items() if file.resolve() not in ours}
    if not files:
        raise UserError(f"{images[0]}: holds nothing but pictures that `predict` made; give a folder of images")
    taken = {picture.resolve() for name in files for picture in _pictures(out, name)}
    for file in files.values():
        if file.resolve() in taken:
            raise UserError(f"{file}: would be overwritten by the pictures of another image; choose another --out")
    return files


def _pictures(out: Path, name: str) -> list[Path]:
    return [out / f"{name}_{suffix}.png" for suffix in PICTURES]


def _refuse_links(picture: Path, out: Path) -> None:
    for place in picture.relative_to(out).parents:
        if place.name and (out / place).is_symlink():
            raise UserError(f"{out / place}: a link, and pictures are written through none; remove it")


def _settings(model: Predictor, opacity: float) -> dict[str, Any]:
    """What the pictures of an image depend on."""
    settings = {
        "weights_sha256": model.run.info["weights_sha256"],
        "trained_sha256": model.run.trained_sha256,
        "opacity": opacity,
        "evaluation": model.evaluation.model_dump(mode="json"),
        "colours": model.space.colours,
    }
    read: dict[str, Any] = json.loads(json.dumps(settings))  # as they come back from the file
    return read


class _Record:
    """The file that says from which images the pictures in a folder were made.

    An image is listed before its pictures are written, and again, with its hash, after them.

    Attributes:
        settings: what they were made with; None if there is no file.
        hashes: the SHA-256 of each image, by its name; None if its pictures may be missing or those of another image.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.settings: dict[str, Any] | None = None
        self.hashes: dict[str, str | None] = {}
        lines = read_lines(file) if file.is_file() else []
        try:
            self.settings = dict(lines[0]) if lines else None
            self.hashes = {str(line["image"]): line["sha256"] for line in lines[1:]}
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{file}: damaged ({error}); remove it, and the pictures beside it") from error

    def begin(self, settings: Mapping[str, Any], anew: bool) -> None:
        """Write the settings if they are not there, or `anew`; the list of images that have pictures stays."""
        if anew or self.settings is None:
            self.hashes = dict.fromkeys(self.hashes)
            lines = [json.dumps(settings), *(_line(name, None) for name in self.hashes)]
            write_text(self.file, "".join(f"{line}\n" for line in lines))

    def add(self, name: str, sha256: str | None) -> None:
        """List an image."""
        append_line(self.file, _line(name, sha256))
        self.hashes[name] = sha256


def _line(name: str, sha256: str | None) -> str:
    return json.dumps({"image": name, "sha256": sha256})
