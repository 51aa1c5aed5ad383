"""The verb `predict`: labels and a colour overlay for each image and each video, or what else is to be saved.

OUT/NAME_labels.png, NAME_overlay.png    the pictures of an image, and NAME_overlay.mp4, NAME_labels.zip of a video;
                                         `pictures` has all kinds
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

from recyclelora.data.classes import recoloured
from recyclelora.data.decoding import read_image
from recyclelora.data.finding import IMAGE_SUFFIXES, find_images
from recyclelora.data.label_maps import cityscapes_ids
from recyclelora.data.stored import read_file
from recyclelora.data.video import VIDEO_SUFFIXES, UnreadableVideoError, check_reader, is_video, video_sha256
from recyclelora.errors import UserError
from recyclelora.files import holds_nothing, locked, replacing, user_path, write_bytes
from recyclelora.models.plan import Blend
from recyclelora.runs import film
from recyclelora.runs.film import Write
from recyclelora.runs.pictures import OF_IMAGES, OF_VIDEOS, Style, checked_kinds, contents, files_of, possible_files
from recyclelora.runs.predictor import CheckpointName, Predictor, load
from recyclelora.runs.record import RECORD, Record, made_before
from recyclelora.runs.sharing import Processes, joined
from recyclelora.stopping import begun


@dataclass(frozen=True)
class Predictions:
    """The files that were written, those that were there already, and what was wrong with the other images."""

    written: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)

    def add(self, seen: _Seen, file: Path, out: Path) -> None:
        """Count an image with its files in `out`, or with the reason why it has none."""
        if seen.error:
            self.failed[file] = seen.error
        self.written.extend(files_of(out, seen.name, seen.new, _suffixes(file)).values())
        self.kept.extend(files_of(out, seen.name, seen.kept, _suffixes(file)).values())


def predict(
    run: str | Path,
    images: str | Path | Sequence[str | Path],
    out: str | Path,
    opacity: float = 0.6,
    weights: str | None = None,
    overwrite: bool = False,
    checkpoint: CheckpointName | None = None,
    devices: int = 1,
    *,
    save: str | Sequence[str] = ("labels", "overlay"),
    blend: Blend | None = None,
    colours: str | Path | None = None,
    legend: bool = True,
) -> Predictions:
    """Segment images and videos at their own size. Called again, it goes on with what is not there yet.

    What cannot be read is left out, and listed in what is returned.

    Args:
        run: folder of a finished training.
        images: image files, videos (MP4, MOV, AVI, MKV, WebM; the extra `video`), folders of these, or patterns such as
            `photos/**/*.jpg`; the pictures of earlier calls are left out, also those in other folders than `out`.
        out: folder for what is written, `NAME_labels.png`, `NAME_overlay.png`, ... for each image, and
            `NAME_overlay.mp4`, `NAME_labels.zip` for each video.
        opacity: strength of the colours over the image, 0 to 1.
        weights: where the base weights are now, if not where the recipe says.
        overwrite: replace files that are in `out`.
        checkpoint: as in `recyclelora.load`.
        devices: this many GPUs, or processes on a CPU, share the images, as in `recyclelora.evaluate`.
        save: kinds of files: labels, overlay, confidence (16-bit PNG), probabilities (NPY, float16), cityscapes-ids.
            Videos have no confidence and no probabilities.
        blend: how windows that overlap are averaged, `uniform` or `hann`; the recipe's way if not given.
        colours: file with lines `name r g b`, the form of `classes.txt`; classes that it does not name keep theirs.
        legend: whether a strip below an overlay names the classes.

    Raises:
        UserError: an image does not exist or would be overwritten, `out` holds something else or cannot be written to,
            a kind cannot be saved of these classes or of a video, `colours` names no class of the model, a process was
            ended, or as `recyclelora.load`.
    """
    out, kinds = user_path(out), checked_kinds(save)
    if not 0 <= opacity <= 1:
        raise UserError(f"opacity {opacity}: expected 0 (only the image) to 1 (only the colours)")
    with ExitStack() as lock, joined(devices) as processes:
        record, files = processes.of_first(lambda: _opened(images, out, kinds, overwrite))
        with processes.agreeing():
            model = load(run, weights, processes.device, checkpoint).with_evaluation(blend=blend)
            space = recoloured(model.space, user_path(colours)) if colours is not None else model.space
            if "cityscapes-ids" in kinds:
                cityscapes_ids(space, f"{run}: save cityscapes-ids")
            work = _Work(model, Style(space, opacity, legend), kinds, out, overwrite, record, processes.leads)
            settings = work.settings
            if record.settings not in (None, settings) and not overwrite:
                differing = [key for key in settings if (record.settings or {}).get(key) != settings[key]]
                raise UserError(
                    f"{out} holds predictions that were made otherwise (they differ in {', '.join(differing)}); choose "
                    "another --out or replace files there with --overwrite"
                )
        processes.check_alike(settings, str(run))

        def begin() -> Record:
            lock.enter_context(locked(out))
            record.begin(settings, anew=overwrite)
            return record

        work.record = processes.of_first(begin)
        made, names = Predictions(), list(files)
        units = "files" if any(map(is_video, files.values())) else "images"
        with begun(), processes.sharing(len(files), "predicting", units) as rounds:
            for index in rounds:
                own: _Seen | None = None
                pictures: dict[Path, bytes | Write] = {}
                with processes.agreeing():
                    if index is not None:
                        own, pictures = work.predict(names[index], files[names[index]])
                found = [each for each in processes.all_of(own) if each is not None]
                _write([each for each in found if each.new], own, pictures, work, processes)
                for each in found:
                    made.add(each, files[each.name], out)
    return made


@dataclass(frozen=True)
class _Seen:
    """What was found out about an image: its SHA-256, or why it cannot be read, and the kinds of its files.

    `new` are those that have to be written, `kept` those that are there, `stale` those that may be there of other bytes
    or settings.
    """

    name: str
    sha256: str | None = None
    new: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    error: str = ""


@dataclass
class _Work:
    """Predicts single images and videos for `predict`."""

    model: Predictor
    style: Style
    kinds: tuple[str, ...]
    out: Path
    overwrite: bool
    record: Record
    shown: bool

    @property
    def settings(self) -> dict[str, Any]:
        """What the files of an image depend on."""
        settings = {
            "weights_sha256": self.model.run.info["weights_sha256"],
            "trained_sha256": self.model.run.trained_sha256,
            "opacity": self.style.opacity,
            "legend": self.style.legend,
            "evaluation": self.model.evaluation.model_dump(mode="json"),
            "colours": self.style.space.colours,
        }
        read: dict[str, Any] = json.loads(json.dumps(settings))  # as they come back from the file
        return read

    def predict(self, name: str, file: Path) -> tuple[_Seen, dict[Path, bytes | Write]]:
        """Predict an image or a video of which files are missing; what is to be written where."""
        try:
            seen = self._seen(name, file)
            image = read_image(file) if seen.new and not is_video(file) else None
        except UserError as error:
            return _Seen(name, error=str(error)), {}
        places = files_of(self.out, name, seen.new, _suffixes(file))
        for place in places.values():
            _refuse_links(place, self.out)
        made: Mapping[str, bytes | Write] = {}
        if image is not None:
            made = contents(self.model, image, seen.new, self.style)
        elif is_video(file):
            try:
                made = self._of_video(seen, file)
            except UnreadableVideoError as error:
                return _Seen(name, error=str(error)), {}
        return seen, {place: made[kind] for kind, place in places.items()}

    def _seen(self, name: str, file: Path) -> _Seen:
        sha256 = video_sha256(file) if is_video(file) else hashlib.sha256(read_file(file)).hexdigest()
        noted = self.record.kinds.get(name, ())
        same = self.record.hashes.get(name) == sha256
        places = files_of(self.out, name, self.kinds, _suffixes(file))
        kept = [kind for kind in self.kinds if same and kind in noted and places[kind].is_file()]
        new = [kind for kind in self.kinds if kind not in kept]
        return _Seen(name, sha256, tuple(new), tuple(kept), () if same else noted)

    def _of_video(self, seen: _Seen, file: Path) -> Mapping[str, Write]:
        folder = self.folder(seen)
        film.discard(folder, own=self.overwrite or not seen.new)
        if not seen.new:
            return {}
        _refuse_links(folder / "labels", self.out)
        if "labels" in seen.kept:
            film.unpack(files_of(self.out, seen.name, ["labels"], OF_VIDEOS)["labels"], folder)
        return film.writers(film.predicted(self.model, file, folder, self.shown), self.style, self.shown)

    def folder(self, seen: _Seen) -> Path:
        """The folder for the labels of a video."""
        return film.work_folder(self.out, seen.name, seen.sha256 or "", self.settings)


def _write(
    new: Sequence[_Seen], own: _Seen | None, pictures: Mapping[Path, bytes | Write], work: _Work, processes: Processes
) -> None:
    """Write the own files of a round; the first process lists all its images, before and after."""
    record = work.record
    with processes.agreeing():
        if processes.leads:
            for each in new:
                record.add(each.name, None, dict.fromkeys((*record.kinds.get(each.name, ()), *each.new)))
    with processes.agreeing():
        for place, content in pictures.items():
            if isinstance(content, bytes):
                write_bytes(place, content)
            else:
                with replacing(place) as part:
                    content(part)
        for place in possible_files(work.out, own.name, own.stale) if own else ():
            if place not in pictures:  # it would stay beside the new ones
                place.unlink(missing_ok=True)
    with processes.agreeing():
        if processes.leads:
            for each in new:
                others = () if each.stale else record.kinds[each.name]
                record.add(each.name, each.sha256, dict.fromkeys((*each.kept, *each.new, *others)))
    if own and own.new:
        film.discard(work.folder(own))


def _opened(
    images: str | Path | Sequence[str | Path], out: Path, kinds: Sequence[str], overwrite: bool
) -> tuple[Record, dict[str, Path]]:
    """What `out` holds of an earlier call, and the images by name."""
    record = Record(out / RECORD)
    if out.is_file() or not (overwrite or holds_nothing(out) or record.file.is_file()):
        raise UserError(f"{out} exists and is not empty; choose another --out or replace files there with --overwrite")
    return record, _inputs(images, out, kinds, record)


def _inputs(
    images: str | Path | Sequence[str | Path], out: Path, kinds: Sequence[str], record: Record
) -> dict[str, Path]:
    """The images and videos by name, without the files of earlier calls."""
    ours = made_before(out, record)
    found = find_images(images, IMAGE_SUFFIXES | VIDEO_SUFFIXES, VIDEO_SUFFIXES, known=ours)
    files = {name: file for name, file in found.items() if not ours(file)}
    if not files:
        place = next(iter(found.values())).parent
        raise UserError(f"{place}: holds nothing but pictures that `predict` made; give a folder of images")
    if video := next(filter(is_video, files.values()), None):
        check_reader()
        if missing := [kind for kind in kinds if kind not in OF_VIDEOS]:
            raise UserError(
                f"{video}: of a video no {' and no '.join(missing)} can be saved, expected {', '.join(OF_VIDEOS)}; "
                "leave it out of `save`, or extract the frames as images"
            )
    taken: dict[Path, Path] = {}
    for name, file in files.items():
        for place in files_of(out, name, kinds, _suffixes(file)).values():
            if (other := taken.setdefault(place.resolve(), file)) != file:
                raise UserError(f"{file} and {other} have the same name; predict them into folders of their own")
    for file in files.values():
        if file.resolve() in taken:
            raise UserError(f"{file}: would be overwritten by the pictures of another image; choose another --out")
    return files


def _suffixes(file: Path) -> Mapping[str, str]:
    return OF_VIDEOS if is_video(file) else OF_IMAGES


def _refuse_links(picture: Path, out: Path) -> None:
    for place in picture.relative_to(out).parents:
        if place.name and (out / place).is_symlink():
            raise UserError(f"{out / place}: a link, and pictures are written through none; remove it")
