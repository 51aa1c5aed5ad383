"""Where data sets keep their files, and how to fix a folder that is arranged differently."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PLACES = 300
"""At most this many folders are searched to explain a wrong layout."""

ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".rar", ".7z")


@dataclass(frozen=True)
class Layout:
    """Where a data set keeps its images and labels below its root.

    In the folders `images` and `labels`, `{split}` stands for the split, renamed by `splits`, and `{domain}` for the
    domain. An image and its label have the same path below these folders, except for the suffix and for what the
    patterns `image` and `label` add to their names; `*` stands for the part of the name that they share. Labels whose
    name ends in `left_alone` are those that other toolkits write beside the published ones.
    """

    images: str
    labels: str
    image: str = "*"
    label: str = "*"
    splits: Mapping[str, str] = field(default_factory=dict)
    left_alone: str = ""

    def folders(self, root: Path, split: str, domain: str = "") -> tuple[Path, Path]:
        """The folder of images and the folder of labels."""
        words = {"split": self.splits.get(split, split), "domain": domain}
        return root / self.images.format(**words), root / self.labels.format(**words)

    def is_at(self, root: Path, split: str, domain: str = "") -> bool:
        """Whether both folders exist."""
        return all(folder.is_dir() for folder in self.folders(root, split, domain))


def shared_name(stem: str, pattern: str) -> str | None:
    """What `*` of a pattern stands for in a file's name without suffix; None if the pattern does not fit."""
    before, after = pattern.split("*")
    fits = stem.startswith(before) and stem.endswith(after) and len(stem) > len(before) + len(after)
    return stem[len(before) : len(stem) - len(after)] if fits else None


def explain(root: Path, layouts: Sequence[Layout], split: str, domain: str, mistakes: Mapping[str, str]) -> str:
    """What is wrong with a root in which no layout is found: what was expected, what is there, and how to fix it.

    `mistakes` maps a path below the root that shows a known mistake to how to fix it.
    """
    known = " or ".join(
        " + ".join(f"{folder.relative_to(root)}/" for folder in layout.folders(root, split, domain))
        for layout in layouts
    )
    names = sorted(entry.name + "/" * entry.is_dir() for entry in root.iterdir())
    found = f"{', '.join(names[:8]) or 'an empty folder'}{', ...' * (len(names) > 8)}"
    return f"{root}: expected {known}, found {found}; {_way_out(root, layouts, split, domain, mistakes)}"


def _way_out(root: Path, layouts: Sequence[Layout], split: str, domain: str, mistakes: Mapping[str, str]) -> str:
    places = list(_near(root))
    for place in places:
        if any(layout.is_at(place, split, domain) for layout in layouts):
            return f"give {place}, which has them"
    for path, advice in mistakes.items():
        if (root / path).exists():
            return advice
    for layout in layouts:
        if moves := _moves([root, *places], layout.folders(root, split, domain), root):
            return moves
    if packed := sorted(entry.name for entry in root.iterdir() if entry.suffix.lower() in ARCHIVES):
        return f"unpack {', '.join(packed[:3])}{', ...' * (len(packed) > 3)}"
    return "rename the folders or give the folder that holds them"


def _near(root: Path) -> Iterator[Path]:
    """The folder above and the folders up to two levels below; a data set may have been unpacked there."""
    yield Path(os.path.abspath(root)).parent
    below = _folders(root)
    yield from below
    yield from [inner for outer in below for inner in _folders(outer)][:PLACES]


def _folders(place: Path) -> list[Path]:
    try:
        return sorted(entry for entry in place.iterdir() if entry.is_dir() and not entry.name.startswith("."))[:PLACES]
    except OSError:  # no permission to read it
        return []


def _moves(places: Iterable[Path], wanted: tuple[Path, Path], root: Path) -> str:
    """How to move both folders of a layout below the root; empty if one of them is not in the places."""
    moves = []
    for folder in wanted:
        path = folder.relative_to(root)
        there = next((place / path for place in places if (place / path).is_dir()), None)
        if there is None:
            return ""
        if there != folder:
            moves.append(f"move {there} to {folder}")
    return " and ".join(moves)
