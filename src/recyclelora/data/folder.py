"""How a user's own folder is arranged, and how its labels are read; what may be meant in two ways is refused.

    ROOT/images     + ROOT/labels          one set for every split
    ROOT/SPLIT/images + ROOT/SPLIT/labels  splits: train, val (or valid, validation), test
    ROOT/images/SPLIT + ROOT/labels/SPLIT  the same

`masks` may stand for `labels`. A label has the name of its image, with or without one of the `SUFFIXES`. Without a
folder of labels, files of COCO annotations are looked for; see `coco_labels`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from recyclelora.data.classes import FILE, find_classes, read_classes
from recyclelora.data.coco import read_coco
from recyclelora.data.coco_labels import CocoPairs, annotation_files, category_classes
from recyclelora.data.colour_labels import PALETTE, RGB, RGBA, ColourLabels, colour_type
from recyclelora.data.files import FromFile, Reader
from recyclelora.data.finding import Pair, image_files, label_files
from recyclelora.data.labels import CITYSCAPES, Labelling, LabelSpace, unchanged
from recyclelora.data.layouts import Layout
from recyclelora.errors import UserError

IMAGES = "images"
LABELS = ("labels", "masks")
"""The names of the folder of labels; the first that has labels is read."""

SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
"""The names of the folder of each split."""

FLAT = Layout(IMAGES, LABELS[0])

BY_COLOURS = f"labels are read by the colours of {FILE}"
BY_INDICES = f"labels are read by the indices of their palettes, or by the colours of {FILE} if an index is no id"

SUFFIXES = ("_mask", "_masks", "_label", "_labels", "_gt")
"""What the name of a label may have behind that of its image."""


@dataclass(frozen=True)
class OwnFolder:
    """The arrangement of a folder: its splits, none if it is one set, and lines that say how it is read.

    `pairs` finds the pairs of a split where no layout does. `reading` changes with how labels are read, if not as ids.
    """

    labelling: Labelling
    layouts: tuple[Layout, ...]
    splits: tuple[str, ...]
    reader: Reader
    reading: str
    notes: tuple[str, ...]
    pairs: Callable[[str], list[Pair]] | None = None


def open_folder(root: Path) -> OwnFolder:
    """Find out how a folder is arranged.

    Raises:
        UserError: images lie both inside and outside of splits, one split has two folders or files, labels have two
            kinds of names, or the list of classes or a file of annotations cannot be read.
    """
    words = _split_folders(root)
    layout, notes = _layout(root, words)
    annotations = annotation_files(root, _named_as_splits(root))
    if annotations and not (layout and _has_labels(layout.folders(root, next(iter(words), ""))[1])):
        return _annotated(root, annotations)
    if layout is None:
        return _unknown(root, words)
    if annotations:
        notes.append(f"{next(iter(annotations.values())).relative_to(root)} is not read, as there are labels")
    if words:
        places = {split: layout.folders(root, split) for split in words}
        parts = (f"{split} in {' + '.join(f'{f.relative_to(root)}/' for f in pair)}" for split, pair in places.items())
        notes.append(f"splits: {', '.join(parts)}")
    images, labels = _names(layout, layout.folders(root, next(iter(words), "")))
    if suffix := _suffix(images, labels):
        layout = replace(layout, label=f"*{suffix}")
        notes.append(f"the label of NAME is NAME{suffix}.png")
    space, reader, how = _classes(root, labels[min(labels)] if labels else None)
    reading = repr(reader.colours) * bool(how and how != [BY_INDICES])
    return OwnFolder(unchanged(space), (layout,), tuple(words), FromFile(reader), reading, (*notes, *how))


def _annotated(root: Path, files: dict[str, Path]) -> OwnFolder:
    space, reader, notes = category_classes(root, [read_coco(file) for file in files.values()])
    splits = tuple(split for split in SPLIT_FOLDERS if split in files)
    pairs = CocoPairs(root, files)
    return OwnFolder(unchanged(space), (FLAT,), splits, reader, repr(reader), tuple(notes), pairs)


def _unknown(root: Path, words: dict[str, str]) -> OwnFolder:
    """A folder without labels: what looks for its pairs names all that was expected."""
    space, reader, _ = _classes(root, None)
    in_splits = Layout("{split}/" + IMAGES, "{split}/" + LABELS[0], splits=words)
    return OwnFolder(unchanged(space), (FLAT, in_splits), (), FromFile(reader), "", ())


def _names(layout: Layout, folders: tuple[Path, Path]) -> tuple[dict[str, Path], dict[str, Path]]:
    try:
        return image_files(layout, folders[0]), label_files(layout, folders[1])
    except UserError:  # what is in the way is named when the pairs are found
        return {}, {}


def _split_folders(root: Path) -> dict[str, str]:
    """The folder of each split, relative to the root; empty if there are no splits."""
    outside, inside = _named_as_splits(root, IMAGES), _named_as_splits(root / IMAGES)
    within = [e for e in (root / IMAGES).iterdir() if not e.name.startswith(".")] if (root / IMAGES).is_dir() else []
    others = [entry for entry in within if entry.name not in inside.values()]
    if outside and within:
        raise UserError(
            f"{root}: images are in {IMAGES}/ and in {next(iter(outside.values()))}/{IMAGES}/, expected all of them in "
            "splits or none; move them into one arrangement"
        )
    if len(inside) > 1 and others:
        raise UserError(
            f"{root / IMAGES}: {others[0].name} lies beside the splits {' and '.join(inside.values())}, expected only "
            "splits in it; move it into one of them"
        )
    return outside or ({} if others else inside)


def _named_as_splits(folder: Path, below: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for split, words in SPLIT_FOLDERS.items():
        there = [word for word in words if (folder / word / below).is_dir()]
        if len(there) > 1:
            raise UserError(f"{folder}: {there[0]}/ and {there[1]}/ are both the split {split}; merge them")
        if there:
            found[split] = there[0]
    return found


def _layout(root: Path, words: dict[str, str]) -> tuple[Layout | None, list[str]]:
    """The layout of a folder with pictures as labels, and lines on the folders of labels."""
    images, labels = IMAGES, "{labels}"
    word = next(iter(words.values()), "")
    if words:
        inside = (root / IMAGES / word).is_dir()
        images, labels = (f"{name}/{{split}}" if inside else f"{{split}}/{name}" for name in (images, labels))
    places = {name: root / labels.format(labels=name, split=word) for name in LABELS}
    there = [name for name, place in places.items() if place.is_dir()]
    if not there or not (root / images.format(split=word)).is_dir():
        return None, []
    name = next((name for name in there if _has_labels(places[name])), there[0])
    left = [f"{other}/ is not read" for other in there if other != name]
    notes = [f"labels are in {name}/{'; '.join(['', *left])}"] if left or name != LABELS[0] else []
    return Layout(images, labels.replace("{labels}", name), splits=words), notes


def _has_labels(folder: Path) -> bool:
    return any(folder.rglob("*.[pP][nN][gG]"))


def _suffix(images: dict[str, Path], labels: dict[str, Path]) -> str:
    """What labels have behind the names of their images; empty if most likely nothing."""
    if images.keys() <= labels.keys():
        return ""
    found = {}
    for suffix in ("", *SUFFIXES):
        named = [name for name in labels if name.endswith(suffix) and name.removesuffix(suffix) in images]
        if named:
            found[suffix] = labels[min(named)]
    if len(found) > 1:
        one, other = list(found.values())[:2]
        raise UserError(
            f"{one}: label beside {other.name}, which has another kind of name, expected one kind in all labels; "
            "rename them alike, or move those that are not meant to another folder"
        )
    return next(iter(found), "")


def _classes(root: Path, first: Path | None) -> tuple[LabelSpace, ColourLabels, list[str]]:
    """The classes, what reads the labels, and a line on how; `first` is one of the labels."""
    file = find_classes(root)
    if file is None:
        why = f"there is no {FILE} in {root}"
        return CITYSCAPES, ColourLabels(CITYSCAPES.names, (), why, expected=False), []
    classes = read_classes(file)
    kind = colour_type(first) if first and classes.colours else None
    colours, notes = tuple(classes.colours.items()), []
    reader = ColourLabels(classes.space.names, colours, classes.why, expected=kind in (RGB, RGBA))
    if reader.expected:
        notes = [BY_COLOURS]
    elif kind == PALETTE and first:
        notes = [BY_COLOURS if reader.shows_colours(first) else BY_INDICES]
    return classes.space, reader, notes
