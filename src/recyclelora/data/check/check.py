"""Checks a data set file by file: what is missing, broken or of the wrong kind, and how its classes are spread.

Training stops at the first fault; the check collects all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float64, Int64

from recyclelora.data.check.faults import Fault, Rules, below, inspect
from recyclelora.data.finding import Pair, RepeatedNameError, image_files, label_files
from recyclelora.data.labelled import absent, unlabelled
from recyclelora.data.labels import IGNORE, Labelling
from recyclelora.data.layouts import explain
from recyclelora.data.opening import BENCHMARKS, Spec, parse_spec
from recyclelora.data.table import Benchmark
from recyclelora.errors import UserError, did_you_mean
from recyclelora.pages.progress import shown
from recyclelora.stopping import leave_signals_to_parent

EXAMPLES = 3
"""How many examples are kept of each problem."""


@dataclass
class Problem:
    """One kind of fault: how often it occurs, how many pixels it concerns if they are counted, and examples."""

    count: int = 0
    pixels: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass
class Spread:
    """How the classes are spread: the pixels of each train class, and the number of labels that hold it.

    `ignored` counts the pixels that are not trained on. Pixels with unknown ids are not counted at all.
    """

    pixels: Int64[np.ndarray, "classes"]
    holding: Int64[np.ndarray, "classes"]
    ignored: int = 0

    @property
    def shares(self) -> Float64[np.ndarray, "classes"]:
        """The share of the labelled pixels that each class has."""
        return np.asarray(self.pixels / max(1, self.pixels.sum()))

    @property
    def ignored_share(self) -> float:
        """The share of all counted pixels that is ignored."""
        return self.ignored / max(1, self.ignored + int(self.pixels.sum()))

    def add(self, other: Spread) -> None:
        """Add the counts of another spread."""
        self.pixels += other.pixels
        self.holding += other.holding
        self.ignored += other.ignored


def no_pixels(classes: int) -> Spread:
    """A spread whose counts are all 0."""
    return Spread(np.zeros(classes, np.int64), np.zeros(classes, np.int64))


@dataclass
class Part:
    """One split, in one domain if the data set has several.

    `official` is the number of images it should have, None if no number is published. The keys of `problems` are the
    kinds of faults, such as "unreadable file".
    """

    split: str
    domain: str
    official: int | None
    spread: Spread
    images: int = 0
    problems: dict[str, Problem] = field(default_factory=dict)
    pairs: list[Pair] = field(default_factory=list, repr=False)

    @property
    def name(self) -> str:
        """The split and the domain, or "all" if there are none."""
        return " ".join(filter(None, (self.split, self.domain))) or "all"

    def add(self, fault: Fault) -> None:
        """Count a fault."""
        problem = self.problems.setdefault(fault.kind, Problem())
        problem.count += 1
        problem.pixels += fault.pixels
        problem.examples += [fault.example] * (len(problem.examples) < EXAMPLES)


@dataclass(frozen=True)
class DataCheck:
    """What the check found in a data set, part by part; `notes` are lines that say how its files are read."""

    name: str
    root: Path
    labelling: Labelling
    parts: tuple[Part, ...]
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The train classes."""
        return self.labelling.train_space.names

    def absent(self) -> dict[str, list[str]]:
        """The classes that no label of a split holds although some could, for each split with labelled pixels."""
        missing = {split: absent(self.labelling, spread.holding) for split, spread in self.spreads().items()}
        return {split: names for split, names in missing.items() if names}

    @property
    def sound(self) -> bool:
        """Whether no problem was found."""
        return not any(part.problems for part in self.parts)

    def spreads(self) -> dict[str, Spread]:
        """How the classes are spread in each split that has labelled pixels, summed over its domains."""
        spreads: dict[str, Spread] = {}
        for part in self.parts:
            spreads.setdefault(part.split or "all", no_pixels(len(self.names))).add(part.spread)
        return {split: spread for split, spread in spreads.items() if spread.pixels.any()}


def check_data(spec: str | Spec, splits: str | Sequence[str] | None = None, workers: int = 0) -> DataCheck:
    """Check the files of a data set `NAME[:DOMAIN][=ROOT]` in all of its splits and domains, or in those given.

    Domains that share a folder, such as CamVid's sequences, are checked together.

    `workers` processes read the files; with 0, the calling process reads them.

    Raises:
        UserError: the specification or split is wrong, the root does not exist, or the class list cannot be read.
    """
    spec = parse_spec(spec) if isinstance(spec, str) else spec
    row = BENCHMARKS[spec.name]
    if not row.layouts or spec.root is None:
        raise UserError(f"{spec.name} is rendered; there are no files to check")
    if not spec.root.is_dir():
        raise UserError(f"{spec.root}: no such folder, expected the data of {spec.name}; write {spec.name}=FOLDER")
    row = row.at(spec.root)
    splits = [splits] if isinstance(splits, str) else splits
    for split in splits or ():
        if split not in row.splits:
            known = did_you_mean(split, row.splits) if row.splits else "leave --split out, as it has none"
            raise UserError(f"{spec.name} has no split {split!r}; {known}")
    labelling = row.labelling
    domains = (spec.domain,) if spec.domain and row.domains else row.domains or ("",)
    parts = [
        Part(split, domain, row.count(split, domain or None), no_pixels(len(labelling.train_space)))
        for split in splits or row.splits or ("",)
        for domain in domains
    ]
    for part in parts:
        _find(part, row, spec.root)
    rules = Rules(spec.root, row.reader, labelling.ids | {IGNORE}, row.size, row.stretch)
    _read(parts, rules, labelling, workers)
    return DataCheck(spec.name, spec.root, labelling, tuple(parts), row.notes)


def _find(part: Part, row: Benchmark, root: Path) -> None:
    """Find the pairs of a part, and the files without a counterpart."""
    if row.pairs:
        try:
            part.pairs = row.pairs(part.split)
        except UserError as error:
            part.add(Fault("images not found", str(error)))
        part.images = len(part.pairs)
        return
    layout = next((layout for layout in row.layouts if layout.is_at(root, part.split, part.domain)), None)
    if layout is None:
        part.add(Fault("folders not found", explain(root, row.layouts, part.split, part.domain, row.mistakes)))
        return
    folders = layout.folders(root, part.split, part.domain)
    try:
        images = image_files(layout, folders[0])
        labels = label_files(layout, folders[1])
    except RepeatedNameError as error:
        part.add(Fault("repeated name", str(error)))
        return
    except UserError as error:
        part.add(Fault("folder or link in the way", str(error)))
        return
    for name in sorted(images.keys() - labels.keys()):
        part.add(Fault("image without label", below(root, images[name])))
    for name in sorted(labels.keys() - images.keys()):
        part.add(Fault("label without image", below(root, labels[name])))
    part.pairs = [Pair(name, images[name], labels[name]) for name in sorted(images.keys() & labels.keys())]
    part.images = len(images)
    if part.images != part.official and (part.official is not None or not part.images):
        expected = "" if part.official is None else f", officially {part.official:,}"
        part.add(Fault("number of images", f"{part.images:,} in {below(root, folders[0])}/{expected}"))


def _read(parts: Sequence[Part], rules: Rules, labelling: Labelling, workers: int) -> None:
    """Read all pairs and add what is found to their parts."""
    owners = [part for part in parts for _ in part.pairs]
    findings = _findings([pair for part in parts for pair in part.pairs], rules, workers)
    known = sorted(rules.known)
    for part, (faults, pixels) in shown(zip(owners, findings, strict=True), "checking", "images", len(owners)):
        for fault in faults:
            part.add(fault)
        totals = np.zeros(256, np.int64)
        np.add.at(totals, labelling.to_train[known], pixels[known])
        classes = totals[: len(labelling.train_space)]
        part.spread.add(Spread(classes, (classes > 0).astype(np.int64), int(totals[IGNORE])))
    for part in parts:
        totals = np.zeros(256, np.int64)
        totals[: len(labelling.train_space)], totals[IGNORE] = part.spread.pixels, part.spread.ignored
        if reason := unlabelled(labelling.train_space, totals):
            part.add(Fault("nothing to learn from", reason))


def _findings(
    pairs: Sequence[Pair], rules: Rules, workers: int
) -> Iterator[tuple[list[Fault], Int64[np.ndarray, "ids=256"]]]:
    inspect_pair = functools.partial(inspect, rules=rules)
    if workers == 0:
        yield from map(inspect_pair, pairs)
        return
    with ProcessPoolExecutor(workers, initializer=_start_reader) as pool:
        try:
            yield from pool.map(inspect_pair, pairs, chunksize=4)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_reader() -> None:
    cv2.setNumThreads(0)  # OpenCV's thread pool does not survive a fork
    leave_signals_to_parent()
