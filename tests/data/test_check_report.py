"""The check of a data set, read back from the terminal and from the page."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from recyclelora.data.check.check import DataCheck, Part, Problem, Spread
from recyclelora.data.check.report import cases, number, percent, print_check, times, write_check
from recyclelora.data.labels import LabelSpace, unchanged


def part(split, pixels, ignored, **changes):
    spread = Spread(np.array(pixels), (np.array(pixels) > 0).astype(int), ignored)
    return Part(split, "", 1234, spread, images=1234, **changes)


@pytest.fixture
def check():
    problems = {
        "image without label": Problem(5, 0, ["a<b>.png", "b.png", "c.png"]),
        "unknown label id 37": Problem(4, 62_996, ["d.png", "e.png", "f.png"]),
    }
    parts = (part("train", [600, 200, 0], 200, problems=problems), part("val", [1, 99_998, 1], 0))
    return DataCheck(
        "town",
        Path("data/town"),
        unchanged(LabelSpace(("road", "<sky>", "rare"), ((1, 1, 1), (2, 2, 2), (3, 3, 3)))),
        parts,
    )


@pytest.fixture
def terminal(capsys):
    """What the check prints."""

    def printed(check):
        capsys.readouterr()
        print_check(check)
        return capsys.readouterr().out

    return printed


def test_terminal_shows_counts_problems_and_classes(check, terminal):
    text = terminal(check)
    rows = [re.findall(r"[^│\s][^│]*[^│\s]|[^│\s]", line) for line in text.splitlines() if "│" in line]
    assert ["train", "1,234", "1,234", "9"] in rows
    assert ["val", "1,234", "1,234", "0"] in rows
    assert ["road", "75.00", "1", "<0.01", "1"] in rows
    assert ["rare", "–", "0", "<0.01", "1"] in rows
    assert ["ignored, of all", "20.00", "–"] in rows
    assert "train: image without label (5)\n  a<b>.png\n  b.png\n  c.png\n  and 2 more\n" in text
    assert "train: unknown label id 37 (62,996 pixels in 4 labels)\n  d.png" in text


def test_page_shows_the_same_and_needs_no_other_file(check, tmp_path):
    page = write_check(tmp_path / "new" / "check.html", check).read_text()
    for text in ("There are problems", "a&lt;b&gt;.png", "and 2 more", "(62,996 pixels in 4 labels)", "&lt;sky&gt;"):
        assert text in page
    assert "<b>" not in page
    assert "<td>99,998</td>" in page
    svg = page[page.index("<svg") : page.index("</svg>") + 6]
    texts = {element.text for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")}
    assert {"road", "<sky>", "rare", "train", "val"} <= texts
    assert re.findall(r'(?:href|src)="(?!#)[^"]*"', page) == []


def test_sound_data_are_reported_and_without_labels_there_is_no_plot(check, tmp_path, terminal):
    sound = DataCheck(check.name, check.root, check.labelling, check.parts[1:])
    page = write_check(tmp_path / "check.html", sound).read_text()
    assert "Nothing is wrong" in page
    assert "Problems" not in page
    empty = DataCheck(check.name, check.root, check.labelling, (part("val", [0, 0, 0], 0),))
    page = write_check(tmp_path / "check.html", empty).read_text()
    assert "<svg" not in page
    assert "road" not in page
    assert "road" not in terminal(empty)


def test_figures_are_short():
    assert [percent(share) for share in (0.0, 4e-5, 0.12345, 1.0)] == ["–", "<0.01", "12.35", "100.00"]
    assert [number(value) for value in (None, 0, 24_966)] == ["–", "0", "24,966"]
    assert times(Problem(1, 0, ["a"])) == ""
    assert times(Problem(1, 7, ["a"])) == " (7 pixels in 1 label)"
    assert cases(Problem(1, 0, ["a"])) == ["a"]
