import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from labelled_files import ids, make_acdc, make_camvid, make_cityscapes, make_gtav, make_town, picture, refused, write
from recyclelora.data.labels import CAMVID, CITYSCAPES, IGNORE
from recyclelora.data.opening import BENCHMARKS, SPLITS, STREET_SEEDS, Spec, manifest, open_domain, parse_spec
from recyclelora.data.scenes import StreetScenes
from recyclelora.recipe import SourceSettings

REAL_CAMVID = Path(os.environ.get("RECYCLELORA_CAMVID", Path(__file__).parents[2] / "shared/data/camvid"))


@pytest.fixture
def camvid(tmp_path):
    return make_camvid(tmp_path / "camvid", "{split}/images", "{split}/labels", ".jpg")


@pytest.fixture
def town(tmp_path):
    return make_town(tmp_path / "town")


# Specifications


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("streets", Spec("streets", "streets", "clear", None)),
        ("streets:fog", Spec("streets:fog", "streets", "fog", None)),
        ("my night:streets:night", Spec("my night", "streets", "night", None)),
        ("plain:streets", Spec("plain", "streets", "clear", None)),
        ("camvid=../data/camvid", Spec("camvid", "camvid", None, Path("../data/camvid"))),
        ("dusk:camvid=/x", Spec("dusk", "camvid", None, Path("/x"))),
        ("2024:dusk:camvid=/x", Spec("2024:dusk", "camvid", None, Path("/x"))),
        ("camvid=/odd=name:x", Spec("camvid", "camvid", None, Path("/odd=name:x"))),
        ("town:folder=C/labelled", Spec("town", "folder", None, Path("C/labelled"))),
        ("folder=C/labelled/", Spec("labelled", "folder", None, Path("C/labelled"))),
        ("folder=C/labelled/../other", Spec("other", "folder", None, Path("C/labelled/../other"))),
        ("gtav=/x", Spec("gtav", "gtav", None, Path("/x"))),
        ("cityscapes", Spec("cityscapes", "cityscapes", None, Path("data/cityscapes"))),
        ("half:mapillary-half", Spec("half", "mapillary-half", None, Path("data/mapillary"))),
        ("camvid", Spec("camvid", "camvid", None, Path("data/camvid"))),
        ("acdc=/x", Spec("acdc", "acdc", None, Path("/x"))),
        ("acdc:fog=/x", Spec("acdc:fog", "acdc", "fog", Path("/x"))),
        ("dark:acdc:night", Spec("dark", "acdc", "night", Path("data/acdc"))),
    ],
)
def test_specifications_parse(text, expected, monkeypatch):
    monkeypatch.delenv("RECYCLELORA_DATA", raising=False)
    assert parse_spec(text) == expected


def test_data_lie_where_the_environment_says(tmp_path, monkeypatch):
    make_gtav(tmp_path / "sets/gtav")
    monkeypatch.setenv("RECYCLELORA_DATA", str(tmp_path / "sets"))
    assert len(open_domain("gtav", "train")) == 2
    assert parse_spec("mapillary-half").root == tmp_path / "sets/mapillary"
    assert parse_spec("gtav=elsewhere").root == Path("elsewhere")
    refused(
        lambda: open_domain("mapillary-half", "val"), tmp_path / "sets/mapillary", "www.mapillary.com",
        "mapillary-half=FOLDER", "RECYCLELORA_DATA to the folder that holds mapillary/",
    )  # fmt: skip
    monkeypatch.setenv("RECYCLELORA_DATA", "")
    assert parse_spec("gtav").root == Path("data/gtav")


def test_home_and_current_folder_are_understood(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_spec("folder=.").label == tmp_path.name
    assert parse_spec("camvid=~/camvid").root == Path.home() / "camvid"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("camvd=/x", ["camvd", "did you mean 'camvid'?"]),
        ("", ["''", "camvid, cityscapes, folder"]),
        ("streets:snw", ["'snw'", "did you mean 'snow'?"]),
        ("streets:", ["unknown domain ''", "clear, fog, night, rain, snow"]),
        ("camvid:fog=/x", ["unknown domain 'fog' of camvid", "day, dusk"]),
        ("folder", ["folder needs the folder", "folder=FOLDER"]),
        ("town:folder=", ["folder needs the folder", "town:folder=FOLDER"]),
        ("dusk:camvid=", ["no folder after '='", "dusk:camvid=FOLDER"]),
        ("acdc:fogg=/x", ["unknown domain 'fogg' of acdc", "did you mean 'fog'?"]),
        ("fog:acdc=/x", ["looks like a domain", "write acdc:fog"]),
        ("gtav:fog=/x", ["unknown data set 'fog'"]),
        ("streets=", ["no folder after '='", "streets=FOLDER"]),
        (":camvid=/x", ["empty label"]),
        ("fog:streets", ["looks like a domain", "write streets:fog"]),
    ],
)
def test_wrong_specifications_name_the_fix(text, parts):
    refused(lambda: parse_spec(text), text, *parts)


def test_missing_root_and_unknown_split_are_named(tmp_path, camvid):
    refused(lambda: open_domain(f"camvid={tmp_path}/none", "val"), tmp_path / "none", "no such folder", "camvid=FOLDER")
    refused(lambda: open_domain(f"camvid={camvid}", "vall"), "'vall'", "did you mean 'val'?")


# CamVid


@pytest.mark.parametrize(
    ("images", "labels", "suffix"),
    [("{split}/images", "{split}/labels", ".jpg"), ("{split}", "{split}annot", ".png")],
)
def test_both_camvid_layouts_open(tmp_path, images, labels, suffix):
    root = make_camvid(tmp_path / "data", images, labels, suffix)
    for split in SPLITS:
        domain = open_domain(f"camvid={root}", split)
        assert len(domain) == 2
        assert [domain.name(i) for i in range(2)] == [f"0001TP_{split}{n}" for n in range(2)]
        assert domain.label == "camvid"


def test_camvid_is_trained_in_19_classes_and_scored_in_its_own(camvid):
    domain = open_domain(f"dusk:camvid={camvid}", "train")
    assert domain.label == "dusk"
    assert domain.train_space is CITYSCAPES
    assert domain.score_space is CAMVID
    stored = ids(classes=12)
    image, trained = domain.read(0)
    scored_image, scored = domain.read_scored(0)
    decoded = cv2.imread(str(camvid / "train/images/0001TP_train0.jpg"))
    assert np.abs(image.astype(int) - decoded[..., ::-1]).max() <= 3  # decoders differ in the last bits
    assert (image == scored_image).all()
    assert (domain.image(0) == image).all()
    assert trained.dtype == scored.dtype == np.uint8
    assert (trained[stored == CAMVID.id("bicyclist")] == CITYSCAPES.id("rider")).all()
    assert (scored == np.where(stored == 11, IGNORE, stored)).all()
    # A perfect prediction in the train ids is a perfect one in the scored ids.
    assert (domain.to_score_predictions[trained] == scored).all()


@pytest.mark.skipif(not REAL_CAMVID.is_dir(), reason=f"needs CamVid in {REAL_CAMVID} or in $RECYCLELORA_CAMVID")
def test_real_camvid():
    for split, count in (("train", 367), ("val", 101), ("test", 233)):
        domain = open_domain(f"camvid={REAL_CAMVID}", split)
        assert len(domain) == count
        for index in (0, count // 2, count - 1):
            image, labels = domain.read(index)
            assert image.shape == (360, 480, 3)
            road = image[labels == CITYSCAPES.id("road")].astype(int)
            assert np.ptp(road.mean(axis=0)) < 40  # roads are grey in whatever order of channels ...
            sky = image[labels == CITYSCAPES.id("sky")].astype(int)
            assert sky.mean() > road.mean()  # ... and darker than the sky


# Folders


def test_folder_holds_cityscapes_train_ids_for_every_split(town):
    for split in SPLITS:
        domain = open_domain(f"folder={town}", split)
        assert [domain.name(i) for i in range(len(domain))] == ["b", "north/a"]
        assert domain.label == "town"
        assert domain.train_space is domain.score_space is CITYSCAPES
        assert (domain.read(0)[1] == ids(classes=19, seed=1)).all()
        assert (domain.read(0)[0] == picture(seed=1)).all()


def test_folder_with_classes_of_its_own(town):
    (town / "classes.txt").write_text("background\nrail 255 0 0\n")
    label = ids(classes=2)
    label[0] = IGNORE
    write(town / "labels/b.png", label)
    domain = open_domain(f"folder={town}", "val")
    assert domain.score_space.names == domain.train_space.names == ("background", "rail")
    assert (domain.read_scored(0)[1] == label).all()
    refused(lambda: domain.read(1), town / "labels/north/a.png", "expected 0 to 1 or 255", "list of classes")


# Limits and fingerprints


def test_limit_takes_an_even_subset(tmp_path):
    root = make_camvid(tmp_path / "data", "{split}/images", "{split}/labels", ".png", count=10)
    full = open_domain(f"camvid={root}", "train")
    domain = open_domain(f"camvid={root}", "train", limit=4)
    assert [domain.name(i) for i in range(len(domain))] == [full.name(i) for i in (0, 2, 5, 7)]
    assert len(open_domain(f"camvid={root}", "train", limit=99)) == 10
    refused(lambda: open_domain(f"camvid={root}", "train", limit=0), "0", "at least 1")


def test_fingerprint_follows_names_and_sizes_but_not_the_place(town, tmp_path):
    def fingerprint(root, **options):
        return open_domain(f"folder={root}", "val", **options).fingerprint()

    first = fingerprint(town)
    assert len(first) == 64
    shutil.copytree(town, tmp_path / "copy")
    assert fingerprint(tmp_path / "copy") == first
    assert fingerprint(town, limit=1) != first
    (town / "labels/b.png").rename(town / "labels/c.png")
    (town / "images/b.png").rename(town / "images/c.png")
    renamed = fingerprint(town)
    assert renamed != first
    write(town / "images/c.png", np.zeros((24, 32, 3), np.uint8))
    assert fingerprint(town) not in (first, renamed)


# Streets


def test_streets_are_scenes_of_their_domain_and_split(tmp_path):
    domain = open_domain(f"streets:fog={tmp_path}", "val", limit=3)
    assert domain.source == StreetScenes("fog", [STREET_SEEDS["val"][i] for i in (0, 33, 66)], tmp_path)
    assert domain.train_space is domain.score_space is CITYSCAPES
    assert open_domain("streets", "train").source == StreetScenes("clear", list(STREET_SEEDS["train"]))


def test_street_splits_share_no_seed():
    assert set(STREET_SEEDS) == set(SPLITS)
    seeds = [seed for split in SPLITS for seed in STREET_SEEDS[split]]
    assert len(seeds) == len(set(seeds))


def test_real_streets_are_known_classes():
    image, labels = open_domain("streets:night", "test", limit=1).read(0)
    assert image.shape == (*labels.shape, 3)
    assert set(np.unique(labels)) <= {*range(19), IGNORE}


# Splits, domains and draws


def test_a_split_without_public_labels_is_refused(tmp_path):
    gtav, cityscapes = make_gtav(tmp_path / "gtav"), make_cityscapes(tmp_path / "cityscapes")
    refused(lambda: open_domain(f"gtav={gtav}", "val"), "no labelled split 'val', only train (24,966 images)")
    refused(lambda: open_domain(f"cityscapes={cityscapes}", "test"), "'test'", "train (2,975 images) and val (500")


def test_acdc_is_one_kind_of_weather_or_all(tmp_path):
    root = make_acdc(tmp_path)
    night = open_domain(f"acdc:night={root}", "val")
    assert manifest(night) == ["GOPR00/GOPR00_frame_000001", "GOPR01/GOPR01_frame_000001"]
    whole = manifest(open_domain(f"acdc={root}", "val"))
    kinds = ("fog", "night", "rain", "snow")
    assert whole == [f"{kind}/GOPR0{n}/GOPR0{n}_frame_000001" for kind in kinds for n in range(2)]
    shutil.rmtree(root / "gt/rain/val")
    refused(lambda: open_domain(f"acdc={root}", "val"), "rgb_anon/rain/val/ + gt/rain/val/")
    assert len(open_domain(f"acdc:snow={root}", "val")) == 2


def test_a_domain_knows_its_data_set(tmp_path):
    assert open_domain(f"night:acdc:night={make_acdc(tmp_path)}", "val").dataset == "acdc"
    assert open_domain("streets:fog", "val").dataset == "streets"


def test_images_are_drawn_from_the_seed(tmp_path):
    root = make_gtav(tmp_path, count=12, size=(8, 8))

    def drawn(images, **options):
        return manifest(open_domain(f"gtav={root}", "train", images=images, **options))

    names = drawn(None)
    assert names == [f"{number:05d}" for number in range(1, 13)]
    expected = np.random.default_rng(3).permutation(12)[:5]
    assert drawn(5, seed=3) == [names[i] for i in sorted(expected)]
    assert drawn(5) != drawn(5, seed=3)
    assert set(drawn(5)) < set(drawn(6))
    assert drawn(12) == names
    assert drawn(6, limit=2) == [drawn(6)[0], drawn(6)[3]]
    refused(lambda: drawn(13), "gtav: 13 images wanted, but it has 12")
    refused(lambda: drawn(0), "0 images wanted")
    seeds = open_domain("streets", "val", images=4, seed=1).source.seeds
    assert seeds == sorted(seeds)
    assert set(seeds) < set(STREET_SEEDS["val"])
    assert len(seeds) == 4


# docs/data.md


PAGE = Path(__file__).parents[2] / "docs/data.md"


def block(language):
    text = PAGE.read_text(encoding="utf-8")
    return re.search(f"```{language}\n(.*?)```", text, re.DOTALL)[1]


def test_the_example_in_python_runs():
    names = {}
    exec(block("python"), names)
    assert names["image"].shape == (256, 512, 3)
    assert names["labels"].shape == (256, 512)
    assert len(names["names"]) == 2


def test_the_sources_of_the_example_exist():
    sources = [SourceSettings(**source) for source in yaml.safe_load(block("yaml"))["sources"]]
    assert [parse_spec(source.data).name for source in sources] == ["gtav", "synthia", "folder"]
    assert sources[0].images < BENCHMARKS["gtav"].count("train")


def test_every_row_stands_in_the_docs_with_its_numbers():
    text = PAGE.read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    for name, row in BENCHMARKS.items():
        (line,) = (line for line in rows if f"`{name}`" in line)
        counts = {row.count(split, domain) for split in row.splits for domain in row.domains or [None]}
        assert all(f"{count:,}" in line for count in counts), line
        assert row.size is None or f"{row.size[0]} x {row.size[1]}" in line


def test_the_sequences_of_camvid_are_domains_recognised_by_names(camvid):
    for split in ("train", "test"):
        for sequence in ("0006R0", "Seq05VD"):
            write(camvid / split / "images" / f"{sequence}_1.jpg", picture())
            write(camvid / split / "labels" / f"{sequence}_1.png", ids(classes=12))
    whole, day, dusk = (open_domain(f"{name}={camvid}", "test") for name in ("camvid", "camvid:day", "camvid:dusk"))
    assert manifest(day) == ["0006R0_1", "Seq05VD_1"]
    assert manifest(dusk) == ["0001TP_test0", "0001TP_test1"]
    assert sorted(manifest(day) + manifest(dusk)) == sorted(manifest(whole))
    assert (day.label, dusk.dataset) == ("camvid:day", "camvid")
    refused(lambda: open_domain(f"camvid:day={camvid}", "val"), "camvid:day", "begins with 0006R0", "another split")
