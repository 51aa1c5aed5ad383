"""Opens a data set from its specification `[LABEL:]NAME[:DOMAIN][=ROOT]`.

    cityscapes    gtav=/data/gtav    acdc:fog    night:acdc:night=/data/acdc    streets:fog    town:folder=/data/town

Without a root, the files of a data set are expected in `$RECYCLELORA_DATA/NAME`, by default `data/NAME`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from recyclelora.data.domain import Domain, Source
from recyclelora.data.files import LabelledFiles
from recyclelora.data.finding import Pair, find_pairs
from recyclelora.data.scenes import StreetScenes
from recyclelora.data.table import BENCHMARKS, SPLITS, STREET_SEEDS, Benchmark
from recyclelora.errors import UserError, did_you_mean, shortened
from recyclelora.files import user_path

__all__ = ["BENCHMARKS", "SPLITS", "STREET_SEEDS", "Benchmark", "Spec", "manifest", "open_domain", "parse_spec"]

Item = TypeVar("Item")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Spec:
    """Which data set to open: its label in results, its name, its domain if it has several, and its root if any."""

    label: str
    name: str
    domain: str | None
    root: Path | None


def parse_spec(text: str) -> Spec:
    """Read `[LABEL:]NAME[:DOMAIN][=ROOT]`, where NAME is a row of `BENCHMARKS` and DOMAIN one of its domains.

    The default label is NAME and DOMAIN as written; for `folder` it is the name of the root. Without a domain, a
    rendered data set uses its first domain, and a data set of files uses all of its domains.

    Raises:
        UserError: the name or domain is unknown, the label is empty or a domain's name, or the root is missing.
    """
    left, equals, root = text.partition("=")
    shown = shortened(text)
    parts = left.split(":")
    domain = None
    if (
        parts[-1] not in BENCHMARKS
        and len(parts) > 1
        and parts[-2] in BENCHMARKS
        and BENCHMARKS[parts[-2]].known_domains
    ):
        domain = parts.pop()
    name = parts.pop()
    if name not in BENCHMARKS:
        raise UserError(
            f"{shown}: unknown data set {shortened(name)!r}, expected [LABEL:]NAME[:DOMAIN][=ROOT]; "
            + did_you_mean(name, BENCHMARKS)
        )
    row = BENCHMARKS[name]
    if domain is not None and domain not in row.known_domains:
        raise UserError(
            f"{shown}: unknown domain {shortened(domain)!r} of {name}; {did_you_mean(domain, row.known_domains)}"
        )
    if name == "folder" and not root:
        raise UserError(f"{shown}: {name} needs the folder of the data; write {shortened(left)}=FOLDER")
    if equals and not root:
        without = f"for the data in {default_root(name)}" if row.layouts else "to render without keeping the scenes"
        raise UserError(f"{shown}: no folder after '='; write {shortened(left)} {without}, or {shortened(left)}=FOLDER")
    default = Path(os.path.abspath(os.path.expanduser(root))).name if name == "folder" else left
    label = ":".join(parts) if parts else default
    if not label:
        raise UserError(f"{shown}: empty label before ':{name}'; write LABEL:{name} or only {name}")
    if domain is None and label in row.domains:
        raise UserError(f"{shown}: {shortened(label)!r} as a label of {name} looks like a domain; write {name}:{label}")
    if domain is None and not row.layouts:
        domain = row.domains[0]
    place = user_path(root) if root else default_root(name) if row.layouts else None
    return Spec(label, name, domain, place)


def default_root(name: str) -> Path:
    """Where a data set is if no root is given: `NAME` in the folder `$RECYCLELORA_DATA`, or in `data`."""
    return Path(os.path.expanduser(os.environ.get("RECYCLELORA_DATA") or "data")) / (BENCHMARKS[name].folder or name)


def open_domain(
    spec: str | Spec, split: str, limit: int | None = None, images: int | None = None, seed: int = 0
) -> Domain:
    """The images of a split of a data set, or a part of them.

    `images` takes this many, drawn at random from `seed`; `limit` then takes this many, evenly spaced. If a data set
    has no splits, every split is the whole data set. How its files are read, if their names do not show it, is logged
    at the level INFO.

    Raises:
        UserError: the specification, split, number or folder is wrong; see `parse_spec` and `find_pairs`.
    """
    spec = parse_spec(spec) if isinstance(spec, str) else spec
    row = BENCHMARKS[spec.name]
    if split not in SPLITS:
        raise UserError(f"{spec.label}: unknown split {split!r}; {did_you_mean(split, SPLITS)}")
    root = _existing_root(spec) if row.layouts else None
    if root is not None:
        row = row.at(root)
    if row.splits and split not in row.splits:
        known = " and ".join(f"{name} ({count:,} images)" if count else name for name, count in row.splits.items())
        raise UserError(
            f"{spec.label}: {spec.name} has no labelled split {split!r}, only {known}; choose another split"
        )
    if root is None:
        seeds = _evenly_spaced(_drawn(STREET_SEEDS[split], images, seed, spec.label), limit)
        scenes = StreetScenes(spec.domain or row.domains[0], seeds, spec.root)
        return Domain(spec.label, scenes, row.labelling, spec.name)
    pairs = _evenly_spaced(_drawn(_pairs(row, spec, root, split), images, seed, spec.label), limit)
    for note in row.notes:
        _log.info("%s: %s", spec.label, note)
    source: Source = LabelledFiles(root, pairs, row.labelling.ids, row.reader, row.stretch, row.halved, row.reading)
    return Domain(spec.label, source, row.labelling, spec.name, row.notes)


def evaluated_split(spec: Spec) -> str:
    """The split that a data set is usually scored on.

    Raises:
        UserError: its root does not exist, or cannot be read.
    """
    row = BENCHMARKS[spec.name]
    return row.at(_existing_root(spec)).evaluated if row.of_root else row.evaluated


def splits_of(spec: Spec) -> tuple[str, ...]:
    """The labelled splits of a domain; none if every split is the whole folder.

    Raises:
        UserError: its root does not exist, or cannot be read.
    """
    row = BENCHMARKS[spec.name]
    row = row.at(_existing_root(spec)) if row.of_root else row
    return tuple(row.domain_splits.get(spec.domain or "", row.splits))


def manifest(domain: Domain) -> list[str]:
    """The names of the images of a domain, in its order."""
    return [domain.name(index) for index in range(len(domain))]


def _existing_root(spec: Spec) -> Path:
    assert spec.root is not None  # parse_spec gives one to data sets of files
    if spec.root.is_dir():
        return spec.root
    row, name = BENCHMARKS[spec.name], spec.name
    folder = f", or set RECYCLELORA_DATA to the folder that holds {row.folder or name}/" * (name != "folder")
    site = f" (from {row.site})" * bool(row.site)
    raise UserError(f"{spec.root}: no such folder, expected the data of {name}{site}; write {name}=FOLDER{folder}")


def _pairs(row: Benchmark, spec: Spec, root: Path, split: str) -> list[Pair]:
    if row.pairs:
        return row.pairs(split)
    if row.sequences:
        found = find_pairs(root, row.layouts, split, "", row.mistakes)
        beginnings = row.sequences.get(spec.domain or "", ("",))
        pairs = [pair for pair in found if pair.name.startswith(beginnings)]
        if not pairs:
            raise UserError(
                f"{spec.label}: no image of {spec.name} {split} in {root} begins with {' or '.join(beginnings)}; "
                "choose another split or domain"
            )
        return pairs
    if spec.domain or not row.domains:
        return find_pairs(root, row.layouts, split, spec.domain or "", row.mistakes)
    return [
        Pair(f"{domain}/{pair.name}", pair.image, pair.label)
        for domain in row.domains
        for pair in find_pairs(root, row.layouts, split, domain, row.mistakes)
    ]


def _drawn(items: Sequence[Item], images: int | None, seed: int, label: str) -> Sequence[Item]:
    """`images` of the items, drawn at random from the seed, in their original order."""
    if images is None:
        return items
    if not 1 <= images <= len(items):
        raise UserError(f"{label}: {images} images wanted, but it has {len(items)}; take 1 to {len(items)}")
    return [items[index] for index in sorted(np.random.default_rng(seed).permutation(len(items))[:images])]


def _evenly_spaced(items: Sequence[Item], limit: int | None) -> list[Item]:
    if limit is not None and limit < 1:
        raise UserError(f"limit of images is {limit}, expected at least 1")
    count = len(items) if limit is None else min(limit, len(items))
    return [items[index * len(items) // count] for index in range(count)]
