"""The table of data sets, and the opening of one from its specification `[LABEL:]NAME[=ROOT]`.

    streets:fog    streets:fog=kept/scenes    camvid=../data/camvid    dusk:camvid=/data/dusk    town:folder=/data/town

A new data set is a row of `BENCHMARKS`; a new way of arranging folders is a `Layout` in its row.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from recyclelora.data import streets
from recyclelora.data.domain import Domain, Source
from recyclelora.data.folders import LabelledFiles, Layout, find_pairs
from recyclelora.data.labels import CAMVID_LABELLING, CITYSCAPES, Labelling, read_classes, unchanged
from recyclelora.data.scenes import StreetScenes
from recyclelora.errors import UserError, did_you_mean

Item = TypeVar("Item")

SPLITS = ("train", "val", "test")

STREET_SEEDS = {"train": range(1000), "val": range(1_000_000, 1_000_100), "test": range(2_000_000, 2_000_200)}
"""The seeds of the rendered scenes of each split: disjoint, and the same in every domain."""


@dataclass(frozen=True)
class Benchmark:
    """One data set: how its labels are read, and either the layouts of its folders or the domains it is rendered in.

    With `own_classes` a `classes.txt` in the root replaces the classes of `labelling`.
    """

    labelling: Labelling
    layouts: tuple[Layout, ...] = ()
    domains: tuple[str, ...] = ()
    own_classes: bool = False


BENCHMARKS: dict[str, Benchmark] = {
    "camvid": Benchmark(
        CAMVID_LABELLING,
        # The second layout is that of the SegNet tutorial (Kendall et al., 2015), which published the 11 classes.
        layouts=(Layout("{split}/images", "{split}/labels"), Layout("{split}", "{split}annot")),
    ),
    "folder": Benchmark(unchanged(CITYSCAPES), layouts=(Layout("images", "labels"),), own_classes=True),
    "streets": Benchmark(unchanged(CITYSCAPES), domains=streets.DOMAINS),
}


@dataclass(frozen=True)
class Spec:
    """Which data set to open: the label it has in results, its name, its domain if it has several, its root if any."""

    label: str
    name: str
    domain: str | None
    root: Path | None


def parse_spec(text: str) -> Spec:
    """Read `[LABEL:]NAME[=ROOT]`, where NAME is a row of `BENCHMARKS`, for rendered data sets followed by `:DOMAIN`.

    The label is NAME as written if none is given, and for `folder` the name of the root.

    Raises:
        UserError: on an unknown name or domain, an empty label, a missing root, or a root where none is taken.
    """
    left, equals, root = text.partition("=")
    parts = left.split(":")
    domain = None
    if parts[-1] not in BENCHMARKS and len(parts) > 1 and parts[-2] in BENCHMARKS and BENCHMARKS[parts[-2]].domains:
        domain = parts.pop()
    name = parts.pop()
    if name not in BENCHMARKS:
        raise UserError(
            f"{text}: unknown data set {name!r}, expected [LABEL:]NAME[=ROOT]; {did_you_mean(name, BENCHMARKS)}"
        )
    row = BENCHMARKS[name]
    if domain is not None and domain not in row.domains:
        raise UserError(f"{text}: unknown domain {domain!r} of {name}; {did_you_mean(domain, row.domains)}")
    if row.layouts and not root:
        raise UserError(f"{text}: {name} needs the folder of the data; write {left}=FOLDER")
    if equals and not root:
        raise UserError(f"{text}: no folder after '='; write {left} to render without keeping, or {left}=FOLDER")
    default = Path(os.path.abspath(Path(root).expanduser())).name if name == "folder" else left
    label = ":".join(parts) if parts else default
    if not label:
        raise UserError(f"{text}: empty label before ':{name}'; write LABEL:{name} or {name} alone")
    if domain is None and label in row.domains:
        raise UserError(f"{text}: {label!r} as a label of {name} looks like a domain; write {name}:{label}")
    first = row.domains[0] if row.domains else None
    return Spec(label, name, domain or first, Path(root).expanduser() if root else None)


def open_domain(spec: str | Spec, split: str, limit: int | None = None) -> Domain:
    """The images of a split of a data set, or `limit` of them spaced evenly over it.

    `folder` has no splits: the whole folder stands for each of them.

    Raises:
        UserError: on a specification, split, limit, or folder that is wrong; see `parse_spec` and `find_pairs`.
    """
    spec = parse_spec(spec) if isinstance(spec, str) else spec
    if split not in SPLITS:
        raise UserError(f"{spec.label}: unknown split {split!r}; {did_you_mean(split, SPLITS)}")
    row = BENCHMARKS[spec.name]
    if row.domains:
        seeds = _evenly_spaced(STREET_SEEDS[split], limit)
        return Domain(spec.label, StreetScenes(spec.domain or row.domains[0], seeds, spec.root), row.labelling)
    assert spec.root is not None  # parse_spec asks for it
    if not spec.root.is_dir():
        raise UserError(f"{spec.root}: no such folder, expected the data of {spec.name}; write {spec.name}=FOLDER")
    classes = spec.root / "classes.txt"
    labelling = unchanged(read_classes(classes)) if row.own_classes and classes.exists() else row.labelling
    pairs = _evenly_spaced(find_pairs(spec.root, row.layouts, split), limit)
    source: Source = LabelledFiles(spec.root, pairs, labelling.ids)
    return Domain(spec.label, source, labelling)


def _evenly_spaced(items: Sequence[Item], limit: int | None) -> list[Item]:
    if limit is not None and limit < 1:
        raise UserError(f"limit of images is {limit}, expected at least 1")
    count = len(items) if limit is None else min(limit, len(items))
    return [items[index * len(items) // count] for index in range(count)]
