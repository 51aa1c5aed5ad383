"""Labels in the colours of their classes are read exactly, and what may be meant in two ways is refused."""

import numpy as np
import pytest
from PIL import Image

from labelled_files import picture, refused, write
from recyclelora.data.check.check import check_data
from recyclelora.data.class_counts import class_counts
from recyclelora.data.folder import BY_COLOURS, BY_INDICES
from recyclelora.data.labels import IGNORE
from recyclelora.data.opening import open_domain

CLASSES = "ground 200 150 100\nsky 0 0 255\nrail #ff0000\n"
COLOURS = np.zeros((256, 3), np.uint8)
COLOURS[:3] = (200, 150, 100), (0, 0, 255), (255, 0, 0)
COLOURS[IGNORE] = 0, 0, 0
IDS = np.random.default_rng(0).integers(0, 3, (24, 32), dtype=np.uint8)


def folder(root, label, classes=CLASSES, **options):
    """A folder with one image, whose label is an array or a Pillow image."""
    write(root / "images/a.png", picture())
    (root / "labels").mkdir(exist_ok=True)
    (label if isinstance(label, Image.Image) else Image.fromarray(label)).save(root / "labels/a.png", **options)
    (root / "classes.txt").write_text(classes)
    return root


def read(root):
    domain = open_domain(f"folder={root}", "val")
    return domain.read(0)[1], domain.notes


def palette(indices, colours):
    image = Image.frombytes("P", indices.shape[::-1], indices.tobytes())
    image.putpalette(np.asarray(colours, np.uint8).ravel().tolist())
    return image


def test_rgb_labels_are_read_by_their_colours(tmp_path):
    labels, notes = read(folder(tmp_path, COLOURS[IDS]))
    assert labels.dtype == np.uint8
    assert (labels == IDS).all()
    assert notes == (BY_COLOURS,) == ("labels are read by the colours of classes.txt",)
    found = check_data(f"folder={tmp_path}")
    assert found.sound
    assert found.notes == notes
    assert found.parts[0].spread.pixels.tolist() == np.bincount(IDS.ravel(), minlength=3).tolist()


def test_opaque_labels_with_four_channels_are_read_and_transparent_ones_refused(tmp_path):
    label = np.dstack([COLOURS[IDS], np.full(IDS.shape, 255, np.uint8)])
    assert (read(folder(tmp_path, label))[0] == IDS).all()
    label[4, 7, 3] = 254
    refused(lambda: read(folder(tmp_path, label)), "labels/a.png", "transparent at row 4, column 7")


def test_only_colours_that_are_declared_as_ignored_are_ignored(tmp_path):
    ids = IDS.copy()
    ids[5:7, 9:12] = IGNORE
    refused(
        lambda: read(folder(tmp_path, COLOURS[ids])), "labels/a.png: the colour (0, 0, 0) at row 5, column 9",
        "(6 such pixels)", "export the label again as a PNG",
    )  # fmt: skip
    assert (read(folder(tmp_path, COLOURS[ids], CLASSES + "ignored 0 0 0\n"))[0] == ids).all()
    other = COLOURS.copy()
    other[IGNORE] = 9, 9, 9
    both = np.concatenate([COLOURS[ids], other[ids]])
    write(tmp_path / "images/a.png", picture(48, 32))
    Image.fromarray(both).save(tmp_path / "labels/a.png")
    (tmp_path / "classes.txt").write_text(CLASSES + "Ignored 9 9 9\nignored #000000\n")
    domain = open_domain(f"folder={tmp_path}", "val")
    assert (domain.read(0)[1] == np.concatenate([ids, ids])).all()
    assert domain.train_space.names == ("ground", "sky", "rail")


def test_colour_of_a_smooth_edge_is_named_with_the_nearest_class(tmp_path):
    label = COLOURS[IDS]
    label[3, 5] = 250, 4, 9
    label[23, 31] = 1, 2, 3
    refused(
        lambda: read(folder(tmp_path, label)),
        "(250, 4, 9) at row 3, column 5", "2 such pixels", "nearest is (255, 0, 0), 'rail'", "smoothing mix colours",
    )  # fmt: skip
    assert list(check_data(f"folder={tmp_path}").parts[0].problems) == ["unreadable file"]


@pytest.mark.parametrize(
    ("classes", "why"),
    [
        ("ground 200 150 100\nsky\nrail #ff0000", "classes.txt gives no colour to 'sky'"),
        ("ground 200 150 100\nsky #ff0000\nrail #ff0000", "gives 'sky' and 'rail' the same colour"),
    ],
)
def test_labels_in_colours_without_a_colour_for_each_class_are_refused(tmp_path, classes, why):
    refused(lambda: read(folder(tmp_path, COLOURS[IDS], classes)), "mode 'RGB' (3 channels)", "class ids", why)
    (tmp_path / "classes.txt").unlink()
    refused(lambda: read(tmp_path), "mode 'RGB'", f"there is no classes.txt in {tmp_path}")


def test_grey_labels_are_read_by_their_ids_whatever_the_colours(tmp_path):
    labels, notes = read(folder(tmp_path, IDS))
    assert (labels == IDS).all()
    assert notes == ()


def test_grey_labels_among_coloured_ones_are_refused_and_the_other_way_round(tmp_path):
    root = folder(tmp_path, COLOURS[IDS])
    write(root / "images/b.png", picture())
    write(root / "labels/b.png", IDS)
    domain = open_domain(f"folder={root}", "val")
    refused(lambda: domain.read(1), "b.png", "mode 'L' among labels in colours", "in one way")
    write(root / "labels/a.png", IDS)
    write(root / "labels/b.png", COLOURS[IDS])
    domain = open_domain(f"folder={root}", "val")
    assert (domain.read(0)[1] == IDS).all()
    refused(lambda: domain.read(1), "b.png", "mode 'RGB'", "other labels of the folder are not in colours")


# Palettes


def test_palette_with_colours_of_no_class_is_read_by_its_indices(tmp_path):
    arbitrary = np.arange(768).reshape(256, 3) * 7 % 256
    labels, notes = read(folder(tmp_path, palette(IDS, arbitrary)))
    assert (labels == IDS).all()
    assert notes == (BY_INDICES,)
    unlisted = IDS.copy()
    unlisted[0, 0] = 7
    refused(lambda: read(folder(tmp_path, palette(unlisted, arbitrary))), "unknown label id 7 at row 0, column 0")


def test_palette_in_the_order_of_the_classes_means_the_same_in_both_ways(tmp_path):
    assert (read(folder(tmp_path, palette(IDS, COLOURS)))[0] == IDS).all()


def test_palette_whose_indices_are_no_ids_is_read_by_its_colours(tmp_path):
    order = np.array([40, 7, 3], np.uint8)  # the indices of ground, sky and rail
    colours = np.full((256, 3), 77)
    colours[order] = COLOURS[:3]
    labels, notes = read(folder(tmp_path, palette(order[IDS], colours)))
    assert (labels == IDS).all()
    assert notes == (BY_COLOURS,)
    colours[7] = 0, 0, 254
    refused(lambda: read(folder(tmp_path, palette(order[IDS], colours))), "unknown label id")


def test_palette_in_another_order_is_refused_with_both_ways_out(tmp_path):
    turned = palette(2 - IDS, COLOURS[2::-1])
    refused(
        lambda: read(folder(tmp_path, turned)), "labels/a.png: its palette shows index 0 in the colour of 'rail'",
        "expected that of 'ground'", "save it as a grey PNG", "as RGB PNGs",
    )  # fmt: skip
    assert (read(folder(tmp_path, turned.convert("RGB")))[0] == IDS).all()
    write(tmp_path / "images/b.png", picture())
    turned.save(tmp_path / "labels/b.png")  # among labels in colours it is clear
    assert (open_domain(f"folder={tmp_path}", "val").read(1)[1] == IDS).all()
    folder(tmp_path, turned, "ground\nsky\nrail")
    assert (read(tmp_path)[0] == 2 - IDS).all()  # without colours only the indices can be meant


def test_unknown_colour_of_a_palette_among_labels_in_colours_is_named(tmp_path):
    root = folder(tmp_path, COLOURS[IDS])
    write(root / "images/b.png", picture())
    palette(IDS, [*COLOURS[:2], (9, 9, 9)]).save(root / "labels/b.png")
    row, column = np.argwhere(IDS == 2)[0]
    refused(
        lambda: open_domain(f"folder={root}", "val").read(1),
        f"b.png: the colour (9, 9, 9) at row {row}, column {column}",
    )


# What depends on the colours


def test_new_colours_change_fingerprint_and_counts(tmp_path, monkeypatch):
    monkeypatch.setenv("RECYCLELORA_CACHE", str(tmp_path / "cache"))
    root = folder(tmp_path / "town", COLOURS[IDS])
    first = open_domain(f"folder={root}", "val")
    (root / "classes.txt").write_text(CLASSES.replace("0 0 255", "#ff0000").replace("rail #ff0000", "rail 0 0 255"))
    second = open_domain(f"folder={root}", "val")
    assert first.fingerprint() != second.fingerprint()
    assert class_counts(first).tolist() == [np.bincount(IDS.ravel()).tolist()]
    assert class_counts(second).tolist() == [np.bincount(IDS.ravel())[[0, 2, 1]].tolist()]
    grey = folder(tmp_path / "grey", IDS)
    plain = open_domain(f"folder={grey}", "val").fingerprint()
    (grey / "classes.txt").write_text("ground\nsky\nrail")
    assert open_domain(f"folder={grey}", "val").fingerprint() == plain  # the colours do not matter there


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("ignored 0 0 0\nground 1 1 1\nsky 2 2 2", "line 2 names the class 'ground' behind 'ignored'"),
        ("ground 1 1 1\nsky 2 2 2\nignored", "line 3 is 'ignored' without a colour"),
        ("ground 1 1 1\nsky 2 2 2\nignored 1 1 1", "ignores the colour (1, 1, 1) of the class 'ground'"),
        ("ground 1 1 1\nignored 1 1 2", "lists 1 classes"),
    ],
)
def test_wrong_lines_of_ignored_colours_are_named(tmp_path, lines, message):
    refused(lambda: read(folder(tmp_path, IDS, lines)), tmp_path / "classes.txt", message)
