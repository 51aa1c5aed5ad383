"""Labels that can teach a model nothing are named by the check, and refused by a training."""

import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from labelled_files import ids, make_synthia, make_town, picture, refused, write
from recyclelora.cli import app, run
from recyclelora.data.check.check import check_data
from recyclelora.data.check.report import print_check
from recyclelora.data.labelled import check_labelled
from recyclelora.data.opening import open_domain
from recyclelora.recipe import Recipe
from recyclelora.training.train import train


def town(root, labels, classes=None):
    for number, label in enumerate(labels):
        write(root / f"images/{number}.png", picture(*label.shape))
        write(root / f"labels/{number}.png", label.astype(np.uint8))
    if classes:
        (root / "classes.txt").write_text("\n".join(classes))
    return root


def problems(root):
    return [
        example for part in check_data(f"folder={root}").parts for p in part.problems.values() for example in p.examples
    ]


IGNORED, ZERO = np.full((6, 8), 255), np.zeros((6, 8))
MASK = np.where(np.arange(48).reshape(6, 8) < 20, 255, 0)
TWO, THREE = ("background", "car"), ("a", "b", "c")

USELESS = {
    "nothing labelled, 19 classes": ([IGNORED, IGNORED], None, "no pixel is labelled"),
    "nothing labelled, two classes": ([IGNORED], TWO, "no pixel is labelled"),
    "masks of 255": ([MASK, ZERO], TWO, "write 1 (car) instead of 255"),
}


@pytest.mark.parametrize("name", USELESS)
def test_labels_that_teach_nothing_are_named_and_refused(tmp_path, name):
    labels, classes, hint = USELESS[name]
    root = town(tmp_path / "town", labels, classes)
    [found] = problems(root)
    assert hint in found
    refused(lambda: check_labelled(open_domain(f"folder={root}", "train")), "town:", hint, "expected")
    recipe = Recipe(sources=[f"folder={root}"], crop=252)
    refused(lambda: train(recipe, tmp_path / "run"), "town:", hint)
    assert not (tmp_path / "run").exists()


USEFUL = {
    "one labelled pixel in the last label": ([IGNORED, np.where(np.arange(48).reshape(6, 8) == 7, 1, 255)], TWO),
    "only background, nothing ignored": ([ZERO], TWO),
    "one class of many, with ignored pixels": ([np.where(MASK == 255, 255, 2)], THREE),
    "masks of 0 and 1": ([np.minimum(MASK, 1)], TWO),
    "ids and ignored pixels": ([MASK, np.minimum(MASK, 1)], TWO),
}


@pytest.mark.parametrize("name", USEFUL)
def test_labels_that_teach_something_are_not_refused(tmp_path, name):
    root = town(tmp_path, *USEFUL[name])
    check_labelled(open_domain(f"folder={root}", "train"))
    assert problems(root) == []


def test_masks_of_255_without_a_list_of_classes_are_named(tmp_path):
    [found] = problems(town(tmp_path, [MASK]))
    assert "list the two classes in classes.txt" in found


def test_only_as_many_labels_are_read_as_are_needed(tmp_path):
    root = town(tmp_path, [np.minimum(MASK, 1), ZERO], TWO)
    (root / "labels/1.png").write_text("broken")
    check_labelled(open_domain(f"folder={root}", "train"))


def test_class_that_no_label_holds_is_named_but_no_fault(tmp_path, capsys):
    root = town(tmp_path, [np.where(MASK == 255, 255, 2)], THREE)
    found = check_data(f"folder={root}")
    assert found.sound
    assert found.absent() == {"all": ["a", "b"]}
    print_check(found)
    assert "all: no label holds a, b; " in capsys.readouterr().out
    assert check_data(f"folder={make_town(tmp_path / 'whole')}").absent() == {}


def test_classes_that_a_data_set_cannot_hold_are_not_missed(tmp_path):
    missing = check_data(f"synthia={make_synthia(tmp_path)}").absent().get("train", [])
    assert not {"terrain", "truck", "train"} & set(missing)


NAMES = ("[/] road", "sky [bold]", "[red]x[/red]", ":smile:")


@pytest.mark.parametrize("name", ["[/]", "[bold]town", "tow\x1b[31mn", "a\rb", "a\x9b31m"])
def test_names_reach_the_terminal_as_they_are_and_never_as_commands(tmp_path, name):
    # Names of classes, of folders, and of files.
    root = town(tmp_path / name, [ids(6, 8, classes=4)], NAMES)
    write(root / "images" / f"{name.replace('/', '')}.png", picture())
    result = CliRunner().invoke(app, ["data", "check", f"folder={root}", "--workers", "0"])
    assert result.exit_code == 1, result.output
    assert not isinstance(result.exception, ValueError)
    shown = "".join(result.output.split())
    for text in (*NAMES, name):
        assert "".join(text.encode("unicode_escape").decode().split()) in shown
    assert not {"\x1b", "\r", "\x9b"} & set(result.output)


def test_errors_reach_the_terminal_without_commands_of_their_file_names(tmp_path, monkeypatch, capsys):
    place = tmp_path / "a\x1b[31m[bold]"
    monkeypatch.setattr(sys, "argv", ["recyclelora", "data", "check", f"folder={place}"])
    with pytest.raises(SystemExit):
        run()
    shown = capsys.readouterr().err
    assert r"a\x1b[31m[bold]: no such folder" in shown
    assert "\x1b" not in shown
