"""The verb predict writes two pictures for each image."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from labelled_files import picture, refused, write
from recyclelora import cli
from recyclelora.runs import predictor
from recyclelora.runs.predict import predict
from recyclelora.runs.predictor import load
from tiny_methods import made_run, tiny_recipe
from videos import filmed


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return made_run(tmp_path_factory.mktemp("runs") / "run", tiny_recipe("lora"))[0]


@pytest.fixture
def photos(tmp_path):
    for number, name in enumerate(("a.png", "north/b.png")):
        write(tmp_path / "photos" / name, picture(40, 56 + number, seed=number))
    return tmp_path / "photos"


def test_labels_and_an_overlay_of_each_image(run, photos, tmp_path):
    written = predict(run.path, [photos], tmp_path / "out", opacity=1.0).written
    names = ["a_labels.png", "a_overlay.png", "north/b_labels.png", "north/b_overlay.png"]
    assert written == [tmp_path / "out" / name for name in names]
    there = [p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert sorted(there) == [".lock", *names[:2], *names[2:], "predictions.jsonl"]
    model = load(run.path)
    for image, labels, coloured in zip(sorted(photos.rglob("*.png")), written[::2], written[1::2], strict=True):
        expected = model.predict(np.asarray(Image.open(image)))
        found = np.asarray(Image.open(labels))
        assert found.dtype == np.uint8
        assert np.array_equal(found, expected)
        drawn = np.asarray(Image.open(coloured))
        assert np.array_equal(drawn[: found.shape[0], : found.shape[1]], model.space.colourise(expected))
        legend = {tuple(colour) for colour in drawn[found.shape[0] :].reshape(-1, 3).tolist()}
        assert {model.space.colours[identity] for identity in np.unique(found)} <= legend


def test_a_merged_model_predicts_the_same_pictures(run, photos, tmp_path):
    saved = load(run.path, device="cpu").save(tmp_path / "saved")
    one = predict(run.path, [photos], tmp_path / "one").written
    two = predict(saved.path, [photos], tmp_path / "two").written
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in two]


def test_nothing_is_overwritten_unless_asked(run, photos, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a_labels.png").write_text("mine")
    (out / "notes.txt").write_text("mine")
    refused(lambda: predict(run.path, [photos], out), out, "is not empty", "--overwrite")
    assert (out / "a_labels.png").read_text() == "mine"
    predict(run.path, [photos / "a.png"], out, overwrite=True)
    assert np.asarray(Image.open(out / "a_labels.png")).shape == (40, 56)
    assert (out / "notes.txt").read_text() == "mine"
    refused(lambda: predict(run.path, [photos / "none.png"], out, overwrite=True), "no such image or folder")


def test_a_folder_that_cannot_be_written_is_named(run, photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a_labels.png").mkdir()
    refused(lambda: predict(run.path, [photos / "a.png"], tmp_path / "out", overwrite=True), "a_labels.png", "written")


def lines(out):
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def contents(out):
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.rglob("*.png")}


def test_called_again_it_makes_what_is_missing_and_only_that(run, photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    whole = contents_of(predict(run.path, [photos], tmp_path / "whole").written, tmp_path / "whole")
    stopped = predictor.Predictor.predict

    def stop_at_the_second(self, image, dataset=""):
        if (out / "a_overlay.png").exists():
            raise KeyboardInterrupt
        return stopped(self, image, dataset)

    with monkeypatch.context() as patch:
        patch.setattr(predictor.Predictor, "predict", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            predict(run.path, [photos], out)
    before = contents(out)
    assert sorted(before) == ["a_labels.png", "a_overlay.png"]
    made = predict(run.path, [photos], out)
    assert [len(made.written), len(made.kept), made.failed] == [2, 2, {}]
    assert {name: contents(out)[name] for name in before} == before
    assert contents_of(sorted(out.rglob("*.png")), out) == whole
    # An image that has changed is predicted again, even if it looks older than its pictures.
    write(photos / "a.png", picture(40, 56, seed=7))
    os.utime(photos / "a.png", (0, 0))
    made = predict(run.path, [photos], out)
    assert made.written == [out / "a_labels.png", out / "a_overlay.png"]
    expected = load(run.path).predict(picture(40, 56, seed=7))
    assert np.array_equal(np.asarray(Image.open(out / "a_labels.png")), expected)
    (out / "a_labels.png").unlink()
    assert predict(run.path, [photos], out).written == [out / "a_labels.png"]


def contents_of(files, below):
    return {file.relative_to(below).as_posix(): file.read_bytes() for file in files}


def test_other_settings_or_another_model_do_not_go_on(run, photos, tmp_path):
    out, other = tmp_path / "out", made_run(tmp_path / "other", tiny_recipe("dora"))[0]
    predict(run.path, [photos], out)
    refused(lambda: predict(run.path, [photos], out, opacity=0.5), out, "differ in opacity", "--overwrite")
    refused(lambda: predict(other.path, [photos], out), out, "differ in trained_sha256", "--overwrite")
    made = predict(other.path, [photos], out, overwrite=True)
    assert [len(made.written), len(made.kept)] == [4, 0]
    assert lines(out)[0]["trained_sha256"] == other.trained_sha256


def test_a_bad_image_is_counted_and_the_others_are_predicted(run, photos, tmp_path, capsys):
    def command(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.app(list(map(str, arguments)))
        return stop.value.code, *capsys.readouterr()

    (photos / "broken.png").write_bytes((photos / "a.png").read_bytes()[:-30])
    (photos / "gone.png").symlink_to(tmp_path / "nothing.png")
    code, out, err = command("predict", run.path, photos, "--out", tmp_path / "out")
    assert code == 1
    assert f"written: 4 pictures in {tmp_path / 'out'}" in out
    assert [line.split(":")[1].strip() for line in err.splitlines()] == [
        str(photos / "broken.png"), str(photos / "gone.png"),
    ]  # fmt: skip
    assert all(line.startswith("error: ") for line in err.splitlines())
    write(photos / "broken.png", picture(30, 30))
    (photos / "gone.png").unlink()
    code, out, err = command("predict", run.path, photos, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert "written: 2 pictures" in out
    assert "4 were there" in out


@pytest.mark.parametrize("where", [".", "north", "out"])
def test_pictures_are_never_taken_for_images(where, run, photos, tmp_path):
    out = photos / where
    for _ in range(2):
        predict(run.path, [photos], out, overwrite=True)
    made = predict(run.path, [photos], out)
    assert [len(made.written), len(made.kept)] == [0, 4]
    assert len(list(photos.rglob("*.png"))) == 6


def test_pictures_in_another_folder_are_not_taken_for_images_either(run, photos):
    predict(run.path, [photos], photos / "north" / "first", save=["labels", "confidence"])
    write(photos / "north/first/c.png", picture())
    write(photos / "predictions.jsonl.png", picture())
    (photos / "predictions.jsonl").write_text('{"answer": "of another program"}\n[]\n')
    made = predict(run.path, [photos], photos / "second", save=["labels"])
    names = ["a_labels.png", "north/b_labels.png", "north/first/c_labels.png", "predictions.jsonl_labels.png"]
    assert [file.relative_to(photos / "second").as_posix() for file in made.written] == names
    refused(lambda: predict(run.path, [photos / "second"], photos / "third"), "second: holds nothing but pictures")


def test_paths_from_the_home_folder_are_understood(run, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(photos)
    (tmp_path / "sky.txt").write_text("sky 1 2 3\n")
    run_here = f"~/{os.path.relpath(run.path, tmp_path)}"
    made = predict(run_here, ["~/photos"], "~/one", colours="~/sky.txt")
    assert made.written[0] == tmp_path / "one" / "a_labels.png"
    with pytest.raises(SystemExit, match="0"):
        cli.app(["predict", run_here, "~/photos/a.png", "--out=~/two"])
    assert (tmp_path / "two" / "a_labels.png").is_file()
    assert sorted(file.name for file in photos.iterdir()) == ["a.png", "north"]


def test_an_image_is_not_overwritten_by_the_pictures_of_another(run, photos):
    write(photos / "a_labels.png", picture(8, 8))
    before = (photos / "a_labels.png").read_bytes()
    refused(lambda: predict(run.path, [photos], photos, overwrite=True), "a_labels.png", "would be overwritten")
    assert (photos / "a_labels.png").read_bytes() == before


def test_nothing_is_written_through_a_link(run, photos, tmp_path):
    for name in ("out", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "out" / "north").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "mine.png").write_text("mine")
    (tmp_path / "out" / "a_labels.png").symlink_to(tmp_path / "mine.png")
    refused(lambda: predict(run.path, [photos], tmp_path / "out", overwrite=True), tmp_path / "out/north", "a link")
    assert not any((tmp_path / "elsewhere").iterdir())
    assert (tmp_path / "mine.png").read_text() == "mine"
    assert not (tmp_path / "out" / "a_labels.png").is_symlink()


# What is saved


def test_another_call_makes_only_the_kinds_that_are_missing(run, photos, tmp_path):
    out = tmp_path / "out"
    first = predict(run.path, [photos], out).written
    before = contents(out)
    made = predict(run.path, [photos], out, save=["overlay", "confidence"])
    assert made.written == [out / "a_confidence.png", out / "north" / "b_confidence.png"]
    assert made.kept == [out / "a_overlay.png", out / "north" / "b_overlay.png"]
    assert {name: contents(out)[name] for name in before} == before
    assert predict(run.path, [photos], out).kept == first
    (photos / "north" / "b.png").unlink()
    (out / "a_confidence.png").write_bytes(b"")
    (out / "a_confidence.png").unlink()
    assert predict(run.path, [photos], out, save=["confidence"]).written == [out / "a_confidence.png"]


def test_files_of_another_model_or_image_do_not_stay_beside_new_ones(run, photos, tmp_path):
    out, other = tmp_path / "out", made_run(tmp_path / "other", tiny_recipe("dora"))[0]
    predict(run.path, [photos / "a.png"], out, save=["labels", "confidence", "probabilities"])
    predict(other.path, [photos / "a.png"], out, save=["labels"], overwrite=True)
    assert sorted(path.name for path in out.glob("a_*")) == ["a_labels.png"]
    predict(other.path, [photos / "a.png"], out, save=["confidence"])
    write(photos / "a.png", picture(40, 56, seed=9))
    made = predict(other.path, [photos / "a.png"], out, save=["labels"])
    assert made.written == [out / "a_labels.png"]
    assert sorted(path.name for path in out.glob("a_*")) == ["a_labels.png"]
    assert lines(out)[-1]["saved"] == ["labels"]


def test_an_image_and_a_video_may_be_called_alike(run, tmp_path):
    filmed(tmp_path / "in" / "clip.mp4", count=1)
    write(tmp_path / "in" / "clip.png", picture(40, 56))
    made = predict(run.path, [tmp_path / "in"], tmp_path / "in" / "out").written
    names = ["clip_labels.png", "clip_labels.zip", "clip_overlay.mp4", "clip_overlay.png"]
    assert sorted(path.name for path in made) == names
    write(tmp_path / "in" / "clip.png", picture(40, 56, seed=1))
    again = predict(run.path, [tmp_path / "in" / "clip.png"], tmp_path / "in" / "out")
    assert sorted(path.name for path in again.written) == [names[0], names[3]]
    assert sorted(path.name for path in (tmp_path / "in" / "out").glob("clip*")) == names
    again = predict(run.path, [tmp_path / "in"], tmp_path / "in" / "out")
    assert (again.written, len(again.kept)) == ([], 4)
    filmed(tmp_path / "in" / "clip.avi", count=1)
    refused(
        lambda: predict(run.path, [tmp_path / "in"], tmp_path / "in" / "out"), "clip.mp4", "clip.avi", "the same name"
    )


def test_an_image_that_is_called_as_a_picture_is_one(run, photos):
    write(photos / "a_confidence.png", picture(40, 56))
    for _ in range(2):
        made = predict(run.path, [photos], photos, overwrite=True)
        assert photos / "a_confidence_labels.png" in made.written
        assert len(made.written) == 6


def test_no_kind_of_picture_is_taken_for_an_image(run, photos):
    predict(run.path, [photos], photos, save=["confidence", "overlay"], overwrite=True)
    made = predict(run.path, [photos], photos)
    assert sorted({path.name for path in (*made.written, *made.kept)}) == [
        "a_labels.png", "a_overlay.png", "b_labels.png", "b_overlay.png",
    ]  # fmt: skip


def test_windows_are_blended_as_asked(run, tmp_path):
    image = picture(70, 90)
    write(tmp_path / "a.png", image)
    predict(run.path, [tmp_path / "a.png"], tmp_path / "out", save=["labels", "probabilities"], blend="hann")
    expected = load(run.path).with_evaluation(blend="hann")(image).probabilities()
    found = np.load(tmp_path / "out" / "a_probabilities.npy")
    np.testing.assert_allclose(found, expected, atol=2**-11)
    assert np.abs(found - load(run.path)(image).probabilities()).max() > 0.01
    refused(lambda: predict(run.path, [tmp_path / "a.png"], tmp_path / "out"), "differ in evaluation")


def test_own_colours_replace_those_of_the_classes_that_they_name(run, photos, tmp_path):
    (tmp_path / "mine.txt").write_text("# mine\nsky 1 2 3\n")
    predict(run.path, [photos / "a.png"], tmp_path / "out", opacity=1.0, colours=tmp_path / "mine.txt", legend=False)
    found = np.asarray(Image.open(tmp_path / "out" / "a_overlay.png"))
    labels = np.asarray(Image.open(tmp_path / "out" / "a_labels.png"))
    table = np.array([(90, 90, 90), (1, 2, 3), (0, 160, 40)])
    assert len(np.unique(labels)) > 1
    np.testing.assert_array_equal(found, table[labels])
    refused(lambda: predict(run.path, [photos], tmp_path / "out", opacity=1.0, legend=False), "differ in colours")
    refused(lambda: predict(run.path, [photos], tmp_path / "out", opacity=1.0), "differ in legend, colours")


def test_patterns_folders_and_files_are_predicted_and_nothing_is_printed(run, photos, tmp_path, capsys):
    made = predict(run.path, [str(photos / "**" / "*.png")], tmp_path / "out")
    assert [path.relative_to(tmp_path / "out").as_posix() for path in made.written[::2]] == [
        "a_labels.png", "north/b_labels.png",
    ]  # fmt: skip
    assert predict(run.path, str(photos), tmp_path / "one", save="labels").written == [
        tmp_path / "one/a_labels.png", tmp_path / "one/north/b_labels.png",
    ]  # fmt: skip
    assert capsys.readouterr() == ("", "")


def test_the_opacity_is_a_share(run, photos, tmp_path):
    refused(lambda: predict(run.path, [photos], tmp_path / "out", opacity=1.5), "opacity 1.5: expected 0")


def test_of_a_video_no_probabilities_are_saved(run, tmp_path):
    filmed(tmp_path / "a.mp4", count=1)
    call = lambda kinds: predict(run.path, [tmp_path / "a.mp4"], tmp_path / "out", save=kinds)  # noqa: E731
    refused(lambda: call(["labels", "confidence", "probabilities"]), "a.mp4: of a video no confidence and no")
    assert not (tmp_path / "out").exists()


def test_the_command_takes_all_settings(run, photos, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("sky 1 2 3\n")
    settings = ["--save", "labels, overlay,probabilities", "--blend", "hann", "--no-legend", "--opacity", "1"]
    arguments = ["predict", run.path, photos / "*.png", "--out", tmp_path / "out", *settings]
    with pytest.raises(SystemExit) as stop:
        cli.app([*map(str, arguments), "--colours", str(tmp_path / "mine.txt")])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"written: 3 files in {tmp_path / 'out'}\n"
    made = predict(
        run.path, [photos / "a.png"], tmp_path / "same", 1.0, save=["labels", "overlay", "probabilities"],
        blend="hann", colours=tmp_path / "mine.txt", legend=False,
    ).written  # fmt: skip
    for file in made:
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    assert lines(tmp_path / "out")[0] == lines(tmp_path / "same")[0]
