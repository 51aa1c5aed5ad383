"""The int8 model is compared with the float model on images, on labels of a source, and in time."""

import shutil

import numpy as np
import pytest
import torch

import recyclelora
from labelled_files import refused
from miniatures import TINY, write_folder
from recyclelora.data.opening import open_domain
from recyclelora.evaluation.scores import score_domain
from recyclelora.exporting import int8, sliding
from recyclelora.exporting.int8 import Int8, add_int8
from recyclelora.exporting.trained import Trained
from recyclelora.runs.predictor import load
from tiny_methods import NAMES, made_run, tiny_recipe

PICTURE = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.fixture
def town(tmp_path):
    return write_folder(tmp_path / "town", count=5, size=(70, 80), classes=NAMES)


@pytest.fixture
def trained(town, tmp_path):
    values = {"backbone": {**TINY, "weights": "random"}, "sources": [f"folder={town}"], "crop": 64}
    run, _ = made_run(tmp_path / "run", tiny_recipe("recyclelora", **values))
    return Trained(load(run.path, device="cpu"), run)


@pytest.fixture
def models(trained, tmp_path, monkeypatch):
    """A folder of two models, of which the second takes the class before in some rows of a window."""
    rows = slice(0)

    def opened(file, threads=0):
        def forward(windows):
            with torch.no_grad():
                logits = trained.model.segmenter(torch.from_numpy(windows)).numpy()
            if file.name == sliding.INT8_MODEL:
                logits[:, :, rows] = np.roll(logits[:, :, rows], -1, 1)
            return logits

        return forward

    def with_rows(changed):
        nonlocal rows
        rows = slice(20, 20 + changed)
        folder = tmp_path / "models"
        folder.mkdir()
        (folder / sliding.MODEL).write_bytes(bytes(100))
        return folder

    monkeypatch.setattr(int8.sliding, "open_model", opened)
    monkeypatch.setattr(int8, "write", lambda _, target: target.write_bytes(bytes(30)))
    return with_rows


def test_the_two_models_are_compared(trained, models, town):
    folder = models(3)
    made = add_int8(trained, folder, "out", [PICTURE], "a picture")
    assert made.agreement == pytest.approx(61 / 64)
    assert made.images == "a picture"
    assert made.size == 0.3
    assert made.spread[0] <= made.time <= made.spread[1]
    assert made.labelled.startswith("1 image of town (split train, which were trained on; at their own size")
    held = open_domain(f"folder={town}", "train")
    forward = int8.sliding.open_model(folder / sliding.INT8_MODEL)

    def with_changes(image):
        return sliding.scores(forward, image, 64, 42).argmax(0).astype(np.uint8)

    pairs = [
        [score_domain(predict, trained.model.space, held.only([index])).miou for index in range(len(held))]
        for predict in (with_changes, trained.model.predict)
    ]
    assert (made.miou, made.float_miou) in zip(*pairs, strict=True)
    assert made.miou != made.float_miou
    for part in (f"mIoU {100 * made.miou:.2f} % (float {100 * made.float_miou:.2f} %)", "95.31 % of pixels", "0.30 of"):
        assert part in str(made)


def test_an_int8_model_that_changes_one_pixel_of_twenty_is_refused(trained, models):
    folder = models(4)
    refused(lambda: add_int8(trained, folder, "out", [PICTURE], "a picture"), "out: the int8", "93.75 %", "95 %")


def test_without_labels_there_is_no_miou(trained, models, town):
    shutil.rmtree(town)
    made = add_int8(trained, models(1), "out", [PICTURE], "a picture")
    assert (made.labelled, made.miou, made.float_miou) == (None, None, None)
    assert str(made).startswith("mIoU not measured, because no labels of a source could be opened; 98.44 %")


def test_images_that_were_held_out_are_scored(town):
    own = tiny_recipe("recyclelora", sources=[f"folder={town}"], validation={"every": 1, "images": 2, "share": 0.5})
    (held,) = int8._labelled(own)
    assert (held.split, len(held.domain)) == ("train", 2)
    (streets,) = int8._labelled(tiny_recipe("recyclelora", sources=["streets"], limit=4))
    assert (streets.split, len(streets.domain)) == ("val", int8.IMAGES)


@pytest.mark.parametrize("format", ["merged", "peft", "lora", "torch"])
def test_other_formats_have_no_int8_model(format, tmp_path):
    fix = ("--int8", f"format {format}", "--format onnx")
    refused(lambda: recyclelora.export(tmp_path / "run", tmp_path / "out", format, int8=True), *fix)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_says_what_int8_costs(trained, tmp_path, monkeypatch, capsys):
    from recyclelora import cli

    asked = {}
    made = Int8("a picture", 0.99, 0.1, 0.5, (0.4, 0.6), 2, 0.3, None, None, None)
    plain = recyclelora.export(trained.files.path, tmp_path / "out")

    def export(*_, **options):
        asked.update(options)
        return type(plain)(plain.path, "onnx", plain.files, plain.parity, None, made)

    monkeypatch.setattr(recyclelora, "export", export)
    arguments = ["export", str(trained.files.path), "--to", str(tmp_path / "other"), "--format", "onnx", "--int8"]
    cli.app(arguments, standalone_mode=False)
    assert asked["int8"] is True
    assert capsys.readouterr().out.splitlines()[-1] == f"int8: {made}"
