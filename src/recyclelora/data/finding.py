"""Finds images and labels in folders: pairs of the same name for training, and images for a prediction."""

from __future__ import annotations

import glob
import os
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recyclelora.data.layouts import Layout, explain, shared_name
from recyclelora.data.stored import kind_of, named, refuse_link_or_device
from recyclelora.errors import FIXES, UserError, shortened
from recyclelora.files import user_path

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
LABEL_SUFFIXES = frozenset({".png"})
OnePlace = str | bytes | os.PathLike[Any]

OTHERS = 5
"""At most this many files that are left out are named."""


class RepeatedNameError(UserError):
    """Two files have one name, of which only one can be meant."""


@dataclass(frozen=True)
class Pair:
    """An image, its label, and their common name."""

    name: str
    image: Path
    label: Path


def find_pairs(
    root: Path, layouts: Iterable[Layout], split: str, domain: str = "", mistakes: Mapping[str, str] | None = None
) -> list[Pair]:
    """The pairs of a split and domain, sorted by name, in the first layout that is found below `root`.

    Raises:
        UserError: no layout is found, there are no images, an image or a label lacks its counterpart, or one of them
            is no file.
    """
    layouts = list(layouts)
    for layout in layouts:
        if layout.is_at(root, split, domain):
            return _match(layout, *layout.folders(root, split, domain))
    raise UserError(explain(root, layouts, split, domain, mistakes or {}))


def image_files(layout: Layout, folder: Path) -> dict[str, Path]:
    """The images of a layout in its folder, as `files_by_name`."""
    return files_by_name(folder, IMAGE_SUFFIXES, layout.image)


def label_files(layout: Layout, folder: Path) -> dict[str, Path]:
    """The labels of a layout in its folder, as `files_by_name`, without the labels that other toolkits left there."""
    files = files_by_name(folder, LABEL_SUFFIXES, layout.label)
    end = layout.left_alone
    return {name: file for name, file in files.items() if not (end and name.endswith(end))}


def _match(layout: Layout, image_folder: Path, label_folder: Path) -> list[Pair]:
    images = image_files(layout, image_folder) or _nothing(image_folder, "images", IMAGE_SUFFIXES, layout.image)
    labels = label_files(layout, label_folder) or _nothing(label_folder, "labels", LABEL_SUFFIXES, layout.label)
    if bare := sorted(images.keys() - labels.keys()):
        raise UserError(
            f"{images[bare[0]]}: image without label ({len(bare)} of {len(images)} images), "
            f"expected {_counterpart(label_folder, bare[0], layout.label)}.png; "
            + (_nested(image_folder, label_folder) or "add the label or remove the image")
        )
    if bare := sorted(labels.keys() - images.keys()):
        raise UserError(
            f"{labels[bare[0]]}: label without image ({len(bare)} of {len(labels)} labels), "
            f"expected {_counterpart(image_folder, bare[0], layout.image)} with an image's suffix"
            f"{_instead(_counterpart(image_folder, bare[0], layout.image))}; "
            + (_nested(image_folder, label_folder) or "add the image or remove the label")
        )
    for file in (*images.values(), *labels.values()):
        refuse_link_or_device(file)
    return [Pair(name, images[name], labels[name]) for name in sorted(images)]


def _nothing(folder: Path, kind: str, suffixes: frozenset[str], pattern: str) -> dict[str, Path]:
    names = "files" if pattern == "*" else f"files named {pattern}"
    there = next((file.name for file in _walk(folder)), "no file")
    raise UserError(
        f"{folder}: no {kind}, expected {names} ending in {', '.join(sorted(suffixes))}, found {there}; "
        "put them there, or unpack them again"
    )


def _counterpart(folder: Path, name: str, pattern: str) -> Path:
    path = folder / name
    return path.with_name(pattern.replace("*", path.name))


def _instead(path: Path) -> str:
    """The file of this name with another suffix, and what it is by its bytes; empty if there is none."""
    for file in sorted(path.parent.glob(f"{glob.escape(path.name)}.*")):
        if file.is_file() and not _like_an_image(file):
            with file.open("rb") as content:
                kind = kind_of(content.read(64))
            return f", found {file.name}{f' ({named(kind)})' if kind else ''}"
    return ""


def _nested(images: Path, labels: Path) -> str:
    """How to fix an archive that was unpacked inside a folder of the same name; empty if there is none."""
    doubled = [folder / folder.name for folder in (images, labels) if (folder / folder.name).is_dir()]
    return " and ".join(f"move the files of {folder} up into {folder.parent}" for folder in doubled)


def files_by_name(
    folder: Path, suffixes: frozenset[str], pattern: str = "*", kept: frozenset[str] = frozenset()
) -> dict[str, Path]:
    """The files below a folder that have one of these suffixes and a name that matches the pattern.

    The keys are their paths relative to the folder, in which only what `*` stands for is left of the name. They are in
    Unicode's composed form (NFC), as macOS may store the same letters in another form. Links are followed; hidden files
    and folders are left out.
    """
    files: dict[str, Path] = {}
    for file in _walk(folder):
        shared = shared_name(unicodedata.normalize("NFC", file.stem), pattern)
        if shared is None or file.suffix.lower() not in suffixes or file.name.startswith("."):
            continue
        name = _name(file.relative_to(folder).with_name(shared + file.suffix), kept)
        if name in files:
            raise RepeatedNameError(
                f"{file}: has the same name as {files[name].name}, expected one file per name; remove one"
            )
        files[name] = file
    return files


def _name(file: Path, kept: frozenset[str]) -> str:
    """The name of a file: its path without suffix, if this is not one of `kept`."""
    path = file if file.suffix.lower() in kept else file.with_suffix("")
    return unicodedata.normalize("NFC", path.as_posix())


def _walk(folder: Path) -> Iterator[Path]:
    """The files below a folder and behind its links, without hidden folders.

    A folder without images that is called as one is refused.
    """
    above = {folder: {os.path.realpath(folder)}}
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        passed = above.pop(Path(parent))
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            place = Path(parent, name)
            if place.is_symlink() and os.path.realpath(place) in passed:
                raise UserError(f"{place}: a link to a folder above it, whose images never end; remove the link")
            if _like_an_image(place) and not any(map(_like_an_image, place.iterdir())):
                raise UserError(f"{place}: a folder, expected a file by its name; rename the folder, or remove it")
            above[place] = passed | {os.path.realpath(place)}
        yield from (Path(parent, name) for name in sorted(names))


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: a folder that cannot be read ({error.strerror}); allow reading it") from error


def _like_an_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def as_path(place: OnePlace) -> Path:
    """A path as users write it: `~` stands for the user's folder, and bytes for a name in the system's encoding.

    Raises:
        UserError: it is empty, which would stand for the current folder and all that is in it.
    """
    text = os.fsdecode(place)
    if not text:
        raise UserError("an empty path, expected that of an image or a folder; give `.` for the current folder")
    return user_path(text)


def find_images(
    given: OnePlace | Iterable[OnePlace],
    suffixes: frozenset[str] = IMAGE_SUFFIXES,
    kept: frozenset[str] = frozenset(),
    known: Callable[[Path], bool] = lambda file: False,
) -> dict[str, Path]:
    """The given image files, those below the given folders, and those that match the given patterns, by their names.

    The name of an image is its path without suffix, relative to the given folder, or to the part of the pattern before
    its first wildcard. What exists is never a pattern: `a[1].jpg` is that file. In a pattern `**` stands for any
    folders. If no image matches, those below the folders that match are taken.

    Args:
        suffixes: of the files that are taken from folders and patterns, in small letters.
        kept: suffixes that stay in the name.
        known: the files of which no warning is needed if they are left out.

    Raises:
        UserError: nothing is given, a place does not exist or is no file or folder, a folder has no images, a pattern
            matches none, or two images have the same name. One that is given twice is taken once.

    Warns:
        UserWarning: a folder also holds pictures, videos or archives of other kinds, which are left out.
    """
    places = [as_path(place) for place in ([given] if isinstance(given, str | bytes | os.PathLike) else given)]
    if not places:
        raise UserError("no images are given; give image files, folders of these, or patterns")
    found: dict[str, Path] = {}
    for place in places:
        if not _is_there(place):
            inside = _matching(place, suffixes, kept)
        elif place.is_dir():
            inside = files_by_name(place, suffixes, kept=kept)
        else:
            inside = {_name(Path(place.name), kept): place}
        if not inside:
            there = next((file.name for file in _walk(place) if not file.name.startswith(".")), "no file")
            raise UserError(
                f"{place}: no images in this folder, expected {', '.join(sorted(suffixes))}, found {there}; convert "
                "the files, or give another folder"
            )
        if place.is_dir():
            _warn_of_others(place, suffixes, known)
        for name, file in sorted(inside.items()):
            if not place.is_dir():  # those in a folder are refused when they are read
                refuse_link_or_device(file)
            if name in found and os.path.realpath(found[name]) != os.path.realpath(file):
                raise RepeatedNameError(
                    f"{file} and {found[name]} have the same name, {name}; predict them in separate calls, each into "
                    "a folder of its own"
                )
            found[name] = file
    return found


def _is_there(place: Path) -> bool:
    try:
        return place.exists() or place.is_symlink()
    except OSError as error:
        reason = f"{shortened(str(place))}: cannot be read ({error.strerror})"
        raise UserError(f"{reason}; {FIXES.get(error.errno or 0, 'correct the path')}") from error


def _matching(pattern: Path, suffixes: frozenset[str], kept: frozenset[str]) -> dict[str, Path]:
    """The images that match a pattern, by their paths relative to its part before the first wildcard."""
    base, rest = Path(pattern.anchor), list(pattern.parts[bool(pattern.anchor) :])
    while rest and (base / rest[0]).exists():
        base /= rest.pop(0)
    if not glob.has_magic(str(Path(*rest))):
        raise UserError(f"{pattern}: no such image or folder; give one that exists")
    matches = [Path(found) for found in glob.glob(os.path.join(glob.escape(str(base)), *rest), recursive=True)]
    files = [file for file in matches if not file.is_dir() and file.suffix.lower() in suffixes]
    if not files:
        folders = [match for match in matches if match.is_dir()]
        files = [file for folder in folders for file in files_by_name(folder, suffixes).values()]
    by_name: dict[str, Path] = {}
    for file in sorted(set(files)):
        name = _name(file.relative_to(base), kept)
        if name in by_name:
            raise RepeatedNameError(
                f"{file}: has the same name as {by_name[name].name}, expected one file per name; remove one"
            )
        by_name[name] = file
    if not by_name:
        raise UserError(
            f"{pattern}: no images match, expected {', '.join(sorted(suffixes))}, found "
            f"{min(matches) if matches else 'no file'}; correct the pattern"
        )
    return by_name


def _warn_of_others(folder: Path, suffixes: frozenset[str], known: Callable[[Path], bool]) -> None:
    """Name the files below a folder that their bytes show as pictures, videos or archives, but not their names."""
    left_out = (file for file in _walk(folder) if file.suffix.lower() not in suffixes and not known(file))
    others = [f"{file.relative_to(folder)} ({named(kind)})" for file in left_out if (kind := _other_kind(file))]
    if others:
        more = f" and {len(others) - OTHERS} more" * (len(others) > OTHERS)
        warnings.warn(
            f"{folder}: {len(others)} of its files left out, as their names do not end in "
            f"{', '.join(sorted(suffixes))}: {', '.join(others[:OTHERS])}{more}; save them as such images (a "
            "video as its frames), or rename those that are",
            stacklevel=3,
        )


def _other_kind(file: Path) -> str:
    if file.name.startswith(".") or not file.is_file():
        return ""
    try:
        with file.open("rb") as content:
            start = content.read(64)
    except OSError:  # no permission to read it
        return ""
    kind = kind_of(start)
    text = kind == "web page" or (kind == "BMP" and b"\0" not in start)  # a text may begin with "BM"
    return "" if text else kind
