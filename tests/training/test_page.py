"""The page of a run while it trains and afterwards: what it shows, and that it needs nothing else."""

import json
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image

import recyclelora
from html_pages import LOADING, Page
from in_memory import in_memory
from labelled_files import refused
from miniatures import TINY, write_folder
from recyclelora.data.labels import LabelSpace, unchanged
from recyclelora.pages.pictures import percent
from recyclelora.recipe import make_recipe
from recyclelora.runs.facts import read_metrics, read_validations
from recyclelora.runs.run import Run, open_run
from recyclelora.training import page, recorder
from recyclelora.training.held_out import HeldOut
from recyclelora.training.page import picture_file, pictured_images, spread, write_run_page
from recyclelora.training.train import open_sources, train
from recyclelora.training.validation import write_picture

BASE = {
    "backbone": TINY, "adapter": {"r_main": 4, "r_sub": 2}, "crop": 32, "batch_size": 2, "steps": 12, "workers": 0,
    "optim": {"lr": 0.01}, "validation": {"every": 2, "images": 5}, "checkpoint_every": 6,
}  # fmt: skip
CLASSES = ("<b>ground</b>", "sky & sea")
LABEL = "<i>town</i>"


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    """Train and val with odd names of classes and images."""
    root = tmp_path_factory.mktemp("data") / "town"
    write_folder(root / "train", 6)
    write_folder(root / "val", 5, seed=1)
    for kind, suffix in (("images", "jpg"), ("labels", "png")):
        (root / "val" / kind / f"00.{suffix}").rename(root / "val" / kind / f"<u>0.{suffix}")
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


@pytest.fixture(scope="module")
def pages():
    """The text of every page that a training wrote, with its state."""
    return []


@pytest.fixture(scope="module")
def run(town, tmp_path_factory, pages):
    recipe = make_recipe({**BASE, "sources": [f"{LABEL}:folder={town}"]})
    written = recorder.write_run_page

    def kept(run, held, state, seconds_left=None):
        pages.append((state, seconds_left, written(run, held, state, seconds_left).read_text()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder, "write_run_page", kept)
        return train(recipe, tmp_path_factory.mktemp("out") / "run <1>")


# What is taken


@pytest.mark.parametrize(
    ("count", "taken"),
    [(0, []), (1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (4, [0, 2, 3]), (10, [1, 5, 8]), (100, [16, 50, 83])],
)
def test_three_evenly_spaced_images_have_pictures(count, taken):
    assert pictured_images(count) == taken


@pytest.mark.parametrize(
    ("items", "taken"),
    [("", ""), ("a", "a"), ("abcd", "abcd"), ("abcde", "abde"), ("abcdefghij", "adgj"), ("abcdefg", "aceg")],
)
def test_the_first_the_last_and_some_between_are_shown(items, taken):
    assert "".join(spread(items, 4)) == taken


@pytest.mark.parametrize("length", range(2, 60))
def test_what_is_shown_of_many_is_in_order_and_spread(length):
    found = spread(range(length), 4)
    assert (found[0], found[-1]) == (0, length - 1)
    assert len(found) == len(set(found)) == min(length, 4)
    gaps = np.diff(found)
    assert gaps.min() > 0
    assert gaps.max() - gaps.min() <= 1


# How far it is


def validations(*scores, every=10):
    return [{"step": every * (i + 1), "miou": miou, "sources": {}} for i, miou in enumerate(scores)]


def progress(metrics=(), lines=(), left=None):
    run = Run(None, make_recipe({"sources": ["streets"], "steps": 4000, "batch_size": 3}), {})
    shown = page._progress(run, list(metrics), list(lines), left)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", shown.pop("written"))
    return shown


def test_before_the_first_step_only_its_number_is_known():
    assert progress() == {"step": "0 of 4,000"}


def test_progress_has_the_recent_loss_and_the_median_pace():
    seconds = np.cumsum([100.0, *[0.5] * 900, *[60.0] * 2, *[0.25] * 97])  # pauses for validations do not count
    metrics = [{"step": i, "loss": float(i), "seconds": s} for i, s in enumerate(seconds.tolist(), 1)]
    assert progress(metrics, validations(0.25, 0.5, 0.4375), 7500.0) == {
        "step": "1,000 of 4,000",
        "time left": "about 2 h 5 min",
        "loss": "990.500",
        "time so far": "12 min",
        "pace": "12 images/s",
        "mIoU, last validation": "43.8 % (step 30)",
        "mIoU, best validation": "50.0 % (step 20)",
    }


def test_a_validation_without_a_score_has_a_dash_and_is_not_the_best():
    shown = progress(lines=validations(None))
    assert shown == {"step": "0 of 4,000", "mIoU, last validation": "– % (step 10)"}
    assert progress(lines=validations(0.5, 0.5))["mIoU, best validation"] == "50.0 % (step 10)"


def test_the_best_validation_has_a_row_even_where_it_is_not_one_of_those_shown():
    lines = [
        {
            "step": step,
            "sources": {"a": {"miou": miou, "iou": {"sky": miou}}, "b": {"miou": None, "iou": {"sky": None}}},
        }
        for step, miou in ((2, 0.25), (4, 0.5), (6, 0.375))
    ]
    rows = page._score_rows([lines[0], lines[2]], lines[1])
    assert [row["step"] for row in rows["a"]] == [row["step"] for row in rows["b"]] == [2, 4, 6]
    assert rows["a"][1] == {"step": 4, "miou": 0.5, "iou": {"sky": 0.5}}


def test_a_curve_of_the_mean_is_drawn_for_several_sources():
    line = {"step": 2, "miou": 0.375, "sources": {"a": {"miou": 0.25}, "b": {"miou": 0.5}}}
    one = {"step": 2, "miou": 0.25, "sources": {"a": {"miou": 0.25}}}
    empty = {"step": 4, "miou": None, "sources": {"a": {"miou": None}}}
    assert page._score_curves([line]) == {"a": ([2], [0.25]), "b": ([2], [0.5]), "mean of sources": ([2], [0.375])}
    assert page._score_curves([one, empty]) == {"a": ([2], [0.25])}


# A page


def test_a_finished_page_shows_state_steps_and_every_setting(run):
    text = run.page.read_text()
    shown = Page(text)
    assert shown.texts["title"] == ["run <1>: finished"]
    assert "".join(shown.texts["h1"]).strip() == "run <1>"
    assert "finished" in shown.texts["span"]
    facts = dict(row for row in shown.tables[0] if len(row) == 2)
    assert facts["step"] == "12 of 12"
    assert "time left" not in facts
    assert facts["loss"] == f"{np.mean([line['loss'] for line in read_metrics(run.metrics)]):.3f}"
    assert ["steps × batch", "12 × 2, crop 32"] in shown.tables[-1]
    assert "".join(shown.texts["pre"]) == run.recipe.to_yaml()
    assert "--resume" not in text


def test_the_scores_of_the_page_are_those_of_the_validations(run):
    lines = read_validations(run.validations)
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    shown = Page(run.page.read_text())
    (table,) = [table for table in shown.tables if table[0][:2] == ["step", "mIoU"]]
    assert table[0] == ["step", "mIoU", *CLASSES]
    best = max(lines, key=lambda line: line["miou"])["step"]
    expected = []
    for line in lines:
        if line["step"] in (2, 6, 8, 12, best):
            scores = line["sources"][LABEL]
            name = f"{line['step']} best" if line["step"] == best else f"{line['step']}"
            expected.append([name, percent(scores["miou"]), *map(percent, scores["iou"].values())])
    assert table[1:] == expected
    assert LABEL in shown.texts["h3"]
    assert {"validation mIoU (%)", "training loss", LABEL} <= {part.strip() for part in shown.texts["text"]}


def test_pictures_are_those_of_the_steps_with_a_legend(run):
    shown = Page(run.page.read_text())
    alts = [attributes["alt"] for tag, attributes in shown.tags if tag == "img"]
    steps = [f"step {line['step']}" for line in spread(read_validations(run.validations), 4)]
    _, (held,) = open_sources(run.recipe)
    assert alts == [part for name in ("01", "03", "<u>0") for part in (name, "ground truth", *steps)]
    space, pictures = held.domain.score_space, shown.images()
    for row, index in enumerate((0, 2, 4)):
        image, truth = held.domain.read_scored(index)
        first, second, *predictions = pictures[6 * row : 6 * row + 6]
        assert np.abs(first.astype(int) - image).mean() < 8
        np.testing.assert_array_equal(second, space.colourise(truth))
        for step, picture in zip(steps, predictions, strict=True):
            ids = cv2.imread(str(picture_file(run, int(step.split()[1]), row)), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(picture, space.colourise(ids))
    legend = [text for text in shown.texts["span"] if text in (*CLASSES, "void")]
    assert legend == [*CLASSES, "void"]


def test_the_page_needs_nothing_else_and_names_are_text(run):
    text = run.page.read_text()
    shown = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "base", "u"} & {tag for tag, _ in shown.tags}
    sources = [value for _, attributes in shown.tags for name, value in attributes.items() if name in LOADING]
    assert sources
    assert all(source.startswith(("data:image/", "#")) for source in sources)
    assert "@import" not in text
    assert text.count("url(") == text.count("url(#")
    for name in (*CLASSES, LABEL, "<u>0", "run <1>"):
        assert name not in text


def test_while_it_trains_the_page_renews_itself_and_says_how_far_it_is(pages, run):
    assert {state for state, _, _ in pages} == {"training"}
    steps = [dict(Page(text).tables[0])["step"] for _, _, text in pages]
    assert steps[0] == "0 of 12"
    assert steps == sorted(steps, key=lambda text: int(text.split()[0]))
    assert {"2 of 12", "6 of 12", "12 of 12"} <= set(steps)
    assert all(refreshes(text) for _, _, text in pages)
    for _, left, text in pages:
        assert ("time left" in text) == (left is not None)
    assert pages[-1][1] == 0
    assert "No scores yet: the first validation comes after step 2." in pages[0][2]
    assert not refreshes(run.page.read_text())


def refreshes(text):
    return any(tag == "meta" and attributes.get("http-equiv") == "refresh" for tag, attributes in Page(text).tags)


@pytest.mark.parametrize("state", ["stopped", "diverged", "finished"])
def test_a_page_that_does_not_change_any_more_does_not_renew_itself(state, run):
    _, held = open_sources(run.recipe)
    before = run.page.read_text()
    text = write_run_page(run, held, state).read_text()
    assert not refreshes(text)
    assert ("--resume" in text) == (state == "stopped")
    assert Page(text).texts["title"] == [f"run <1>: {state}"]
    run.page.write_text(before)


def test_a_training_that_diverges_or_stops_says_so_in_its_page(town, tmp_path, monkeypatch):
    values = {**BASE, "sources": [f"{LABEL}:folder={town}"], "validation": None}
    wild = make_recipe({**values, "method": "full", "adapter": {}, "optim": {"lr": 1e30}})
    refused(lambda: train(wild, tmp_path / "wild"), "step")
    assert Page((tmp_path / "wild/index.html").read_text()).texts["title"] == ["wild: diverged"]

    def power_cut(*_):
        raise RuntimeError("power cut")

    monkeypatch.setattr(recorder.RunRecorder, "saved", power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        train(make_recipe(values), tmp_path / "cut")
    text = (tmp_path / "cut/index.html").read_text()
    assert Page(text).texts["title"] == ["cut: stopped"]
    assert "recyclelora train --resume" in text
    assert "this recipe sets no validation" in text
    assert "<img" not in text


# Pictures


@pytest.mark.parametrize("content", [b"", b"no picture", "cut", "colours", None])
def test_a_damaged_picture_is_left_out(content, run):
    _, held = open_sources(run.recipe)
    file = picture_file(run, 12, 0)
    whole, before = file.read_bytes(), run.page.read_text()
    if content is None:
        file.unlink()
    elif content == "colours":
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(file)
    else:
        file.write_bytes(whole[:40] if content == "cut" else content)
    try:
        shown = Page(write_run_page(run, held, "training").read_text())
        alts = [attributes["alt"] for tag, attributes in shown.tags if tag == "img"]
        assert len(alts) == 17
        assert alts.count("step 12") == 2
    finally:
        file.write_bytes(whole)
        run.page.write_text(before)


def test_an_image_without_any_picture_is_not_shown(run, tmp_path):
    other = Run(tmp_path, run.recipe, run.info)
    _, held = open_sources(run.recipe)
    assert "<img" not in write_run_page(other, held, "training").read_text()


def test_large_pictures_have_the_width_of_pages(tmp_path):
    space = LabelSpace(("a", "b"), ((10, 20, 30), (200, 100, 50)))
    labels = np.zeros((100, 960), np.uint8)
    labels[50:] = 1
    held = HeldOut(in_memory("wide", unchanged(space), [labels]), "val")
    recipe = make_recipe({**BASE, "sources": ["streets"]})
    facts = {"parameters": {"adapters": 1, "head": 1}, "sources": [], "weights_sha256": ""}
    run = Run(tmp_path, recipe, facts)
    line = {"step": 2, "seconds": 1.0, "miou": 0.5, "sources": {"wide": {"images": 1, "miou": 0.5, "iou": {"a": 0.5}}}}
    run.validations.write_text(json.dumps(line) + "\n")
    write_picture(run, 2, 0, labels)
    pictures = Page(write_run_page(run, [held], "training").read_text()).images()
    assert [picture.shape for picture in pictures] == [(50, 480, 3)] * 3
    np.testing.assert_array_equal(pictures[1], pictures[2])
    np.testing.assert_array_equal(pictures[1], space.colourise(labels[::2, ::2]))


def assert_pictures_are_predictions(run):
    """The pictures of the last step show what the finished model predicts for the first, third and fifth image."""
    _, (held,) = open_sources(run.recipe)
    model = recyclelora.load(run.path)
    step = run.recipe.steps
    assert len(list(run.pictures.glob(f"{step:06d}_*.png"))) == 3
    for number, index in enumerate((0, 2, 4)):
        ids = cv2.imread(str(picture_file(run, step, number)), cv2.IMREAD_UNCHANGED)
        assert (ids == model.predict(held.domain.image(index), "folder")).mean() > 0.99


def test_pictures_are_what_the_model_predicts_for_their_images(run):
    assert_pictures_are_predictions(run)


@pytest.mark.slow
def test_two_processes_picture_the_images_of_one(town, tmp_path):
    values = {**BASE, "sources": [f"{LABEL}:folder={town}"], "devices": 2}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "recyclelora", "train", "--recipe", tmp_path / "recipe.yaml"]
    done = subprocess.run([*command, "--out", tmp_path / "two"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert_pictures_are_predictions(open_run(tmp_path / "two"))
