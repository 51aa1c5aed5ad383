"""Labels of a user's own folder that are annotations in COCO JSON instead of pictures.

The classes are those of `classes.txt`, found by their names, or else `background` and the categories in the order of
their ids. Pixels without annotation are background, or ignored if `classes.txt` lists no background. Where annotations
overlap, the smaller lies over the larger; of equal ones the later.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from recyclelora.data.classes import find_classes, read_classes
from recyclelora.data.coco import Coco, Id, read_coco
from recyclelora.data.colours import distinct_colours
from recyclelora.data.finding import IMAGE_SUFFIXES, Pair
from recyclelora.data.labels import IGNORE, LabelSpace
from recyclelora.data.stored import refuse_link_or_device
from recyclelora.errors import UserError

BACKGROUNDS = ("background", "_background_", "__background__")
"""The names of a class of all that is not annotated, in small letters."""

FILES = ("_annotations.coco.json", "annotations.json", "coco.json", "dataset.json", "result.json", "instances*.json")
"""The names of files beside images: those of Roboflow, Label Studio and labelme2coco, and frequent others."""

OTHER_TASKS = ("captions", "person_keypoints", "panoptic", "image_info", "stuff")
"""How the names of COCO's files begin that hold something else."""

_SPLIT = re.compile(r"(?:^|[_.-])(train|val|valid|validation|test|testing|training)(?:\d{4})?$", re.IGNORECASE)


@dataclass(frozen=True)
class CocoLabels:
    """Draws labels from annotations: the id of each category, and that of pixels without annotation."""

    ids: tuple[tuple[Id, int], ...]
    rest: int

    def __call__(self, pair: Pair) -> UInt8[np.ndarray, "h w"]:
        """The ids of an image, whose label is the file of annotations."""
        image, ids = read_coco(pair.label).images[pair.name], dict(self.ids)
        drawn = [(each.mask(image.height, image.width), ids[each.category]) for each in image.annotations]
        labels = np.full((image.height, image.width), self.rest, np.uint8)
        for mask, identity in sorted(drawn, key=lambda one: -int(one[0].pixels.sum())):
            height, width = mask.pixels.shape
            labels[mask.row : mask.row + height, mask.column : mask.column + width][mask.pixels] = identity
        return labels


def annotation_files(root: Path, folders: dict[str, str]) -> dict[str, Path]:
    """The COCO files below a root by their splits; the split is empty for one that is of all images.

    `folders` are the folders of splits below the root.

    Raises:
        UserError: two files are of one split, or some are of a split and others are not.
    """
    found: dict[str, Path] = {}
    for split, folder in [*folders.items(), ("", ".")]:
        here = [file for name in FILES for file in sorted((root / folder).glob(name))]
        for file in [*here, *sorted((root / folder / "annotations").glob("*.json"))]:
            if file.name.startswith((*OTHER_TASKS, ".")):
                continue
            named = _SPLIT.search(file.stem)
            which = split or (_split_of(named[1]) if named else "")
            if which in found:
                raise UserError(
                    f"{file}: holds annotations as {found[which]} does, expected one file"
                    f"{f' of the split {which}' * bool(which)}; remove one"
                )
            found[which] = file
    if "" in found and len(found) > 1:
        other = next(file for split, file in found.items() if split)
        raise UserError(
            f"{found['']}: of no split, while {other} is of one, expected splits or none; remove one of them"
        )
    return found


def _split_of(word: str) -> str:
    return next(split for split in ("train", "val", "test") if word.lower().startswith(split))


def category_classes(root: Path, files: list[Coco]) -> tuple[LabelSpace, CocoLabels, list[str]]:
    """The classes of these files, how labels are drawn, and lines that say so.

    Raises:
        UserError: the files have different categories, two categories have one name, or one with annotations is not
            listed in `classes.txt`.
    """
    first = files[0]
    for other in files[1:]:
        if other.categories != first.categories:
            raise UserError(f"{other.path}: has other categories than {first.path}; export them together")
    used = set[Id]().union(*(file.used for file in files))
    left = first.parents - used
    categories = {identity: name for identity, name in first.categories.items() if identity not in left}
    list_file = find_classes(root)
    if list_file:
        space = read_classes(list_file).space
        missing = next((i for i, name in categories.items() if i in used and name not in space.names), None)
        if missing is not None:
            raise UserError(
                f"{list_file}: does not list {categories[missing]!r}, a category of {first.path} with annotations; add "
                "it, or remove its annotations"
            )
        ids = {i: space.id(name) for i, name in categories.items() if name in space.names}
        source = "the classes are those of classes.txt"
    else:
        space, ids = _space(first.path, categories)
        source = f"the {len(space)} classes are those of its categories: {', '.join(space.names)}"
    rest = next((i for i, name in enumerate(space.names) if name.casefold() in BACKGROUNDS), IGNORE)
    what = "ignored, as classes.txt lists no background" if rest == IGNORE else f"{space.names[rest]} ({rest})"
    bare = sum(not image.annotations for file in files for image in file.images.values())
    read = ", ".join(file.path.relative_to(root).as_posix() for file in files)
    notes = [
        f"labels are drawn from {read}; {source}",
        f"pixels without annotation are {what}; a smaller annotation lies over a larger one",
        *([f"images without any annotation: {bare}"] if bare else []),
    ]
    if left:
        names = ", ".join(repr(first.categories[identity]) for identity in sorted(left, key=str))
        notes.append(f"{names} only groups other categories and has no annotation: it is no class")
    return space, CocoLabels(tuple(ids.items()), rest), notes


def _space(path: Path, categories: dict[Id, str]) -> tuple[LabelSpace, dict[Id, int]]:
    """The categories in the order of their ids as classes, with a background before them if there is none."""
    order = sorted(categories, key=lambda identity: (isinstance(identity, str), identity))
    names = [categories[identity] for identity in order]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated or not names:
        raise UserError(
            f"{path}: {f'two categories are called {repeated!r}' if repeated else 'has no category'}; "
            "export it again with the names of the classes"
        )
    if not any(name.casefold() in BACKGROUNDS for name in names):
        names.insert(0, BACKGROUNDS[0])
    if len(names) > IGNORE:
        raise UserError(f"{path}: has {len(names)} classes with background, expected at most {IGNORE}; list fewer")
    space = LabelSpace(tuple(names), tuple(distinct_colours([], len(names))))
    return space, {identity: space.id(categories[identity]) for identity in order}


@dataclass(frozen=True)
class CocoPairs:
    """Finds the images of each split; `files` are the files of annotations by split, "" for one of all images."""

    root: Path
    files: dict[str, Path]

    def __call__(self, split: str) -> list[Pair]:
        """The images that the file of a split lists, by name, each with the file as its label.

        Raises:
            UserError: an image is not there, or there are no images.

        Warns:
            UserWarning: beside them are images that no file lists.
        """
        coco = read_coco(self.files.get(split) or self.files[""])
        if not coco.images:
            raise UserError(f"{coco.path}: lists no images; export it again")
        place = self._place(coco)
        pairs = []
        for name, image in sorted(coco.images.items()):
            file = place / image.file
            if not file.exists() and not file.is_symlink():
                raise UserError(f"{file}: not there, but listed in {coco.path}; put it there, or export the file again")
            refuse_link_or_device(file)
            pairs.append(Pair(name, file, coco.path))
        listed = {place / image.file for file in self.files.values() for image in read_coco(file).images.values()}
        more = sorted(
            file
            for folder in {file.parent for file in listed if file.parent.is_dir()}
            for file in folder.iterdir()
            if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") and file not in listed
        )
        if more:
            warnings.warn(
                f"{coco.path}: {len(more)} images beside those that it lists are left out, such as {more[0]}; export "
                "it again if they have annotations",
                stacklevel=2,
            )
        return pairs

    def _place(self, coco: Coco) -> Path:
        """The folder to which the paths of the images are relative."""
        first, folder = next(iter(coco.images.values())).file, coco.path.parent
        tail = coco.path.stem.removeprefix("instances_")
        below = ("", "images", tail, f"images/{tail}")
        places = [folder, folder / "images", *(self.root / name for name in below)]
        for place in places:
            if (place / first).exists():
                return place
        known = ", ".join(f"{place}/" for place in dict.fromkeys(places[:5]))
        raise UserError(f"{coco.path}: lists {first}, which is not in {known}; put the images there")
