"""The overlay of a video decodes to what is drawn of its frames, and a stopped prediction goes on at its frame."""

import io
import zipfile
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from labelled_files import refused
from recyclelora.data.label_maps import CITYSCAPES_IDS
from recyclelora.data.labels import LabelSpace
from recyclelora.data.video import examined, frames
from recyclelora.runs import film, predictor
from recyclelora.runs.overlay import overlay, with_legend
from recyclelora.runs.predict import predict
from recyclelora.runs.predictor import load
from tiny_methods import made_run, tiny_recipe
from videos import as_opencv_reads, filmed, scene, turned


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return made_run(tmp_path_factory.mktemp("runs") / "run", tiny_recipe("lora"))[0]


def archived(path):
    with zipfile.ZipFile(path) as archive:
        return {name: np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in archive.namelist()}


@pytest.mark.parametrize("legend", [True, False])
def test_labels_and_overlay_are_those_of_each_frame(run, legend, tmp_path):
    file = filmed(tmp_path / "north" / "a.mp4", count=4, rate=12.5)
    made = predict(run.path, [tmp_path / "north"], tmp_path / "out", legend=legend)
    assert made.written == [tmp_path / "out" / "a_labels.zip", tmp_path / "out" / "a_overlay.mp4"]
    model, video = load(run.path), examined(file)
    labels = archived(made.written[0])
    assert list(labels) == [f"{number:06d}.png" for number in range(4)]
    for (_, image), found in zip(frames(video), labels.values(), strict=True):
        np.testing.assert_array_equal(found, model.predict(image))
    occurring = np.unique(np.stack(list(labels.values())))
    for (_, image), each, shown in zip(frames(video), labels.values(), as_opencv_reads(made.written[1]), strict=True):
        picture = overlay(image, each, model.space, 0.6)
        picture = with_legend(picture, occurring[None], model.space) if legend else picture
        assert shown.shape[0] == picture.shape[0] + picture.shape[0] % 2
        cut = shown[: picture.shape[0], : picture.shape[1]].astype(int)
        assert np.abs(cut - picture).mean() < 6  # colours have half the resolution
    written = examined(made.written[1])
    assert written.count == 4
    assert [t * written.unit for t, _ in frames(written)] == [t * video.unit for t, _ in frames(video)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".lock", "a_labels.zip", "a_overlay.mp4", "predictions.jsonl",
    ]  # fmt: skip


def test_a_turned_video_is_predicted_upright(run, tmp_path):
    predict(run.path, [turned(filmed(tmp_path / "a.mp4", count=1), 90)], tmp_path / "out")
    assert archived(tmp_path / "out" / "a_labels.zip")["000000.png"].shape == (64, 48)


def test_an_odd_size_gets_its_last_pixels_twice(tmp_path):
    shots = [scene(number, (33, 47)) for number in range(2)]
    film.write_video(tmp_path / "a.mp4", enumerate(shots), Fraction(5), Fraction(1, 5))
    for shown, shot in zip(as_opencv_reads(tmp_path / "a.mp4"), shots, strict=True):
        assert shown.shape == (34, 48, 3)
        expected = np.pad(shot, ((0, 1), (0, 1), (0, 0)), mode="edge")
        assert np.abs(shown.astype(int) - expected).mean() < 4


def test_a_size_that_the_encoder_refuses_is_one_line(tmp_path):
    shots = enumerate([np.zeros((2, 16400, 3), np.uint8)])
    refused(lambda: film.write_video(tmp_path / "a.mp4", shots, Fraction(5), Fraction(1, 5)), "a.mp4: could not be")


def stopped_at(number, monkeypatch):
    """Predictions are stopped at a frame, the first being 0; counts the frames that are predicted."""
    plain, seen = predictor.Predictor.predict, []

    def counted(self, image, dataset=""):
        if len(seen) == number:
            raise KeyboardInterrupt
        seen.append(image)
        return plain(self, image, dataset)

    monkeypatch.setattr(predictor.Predictor, "predict", counted)
    return seen


def test_a_stopped_prediction_goes_on_at_its_frame(run, tmp_path, monkeypatch):
    file = filmed(tmp_path / "a.mov", count=6)
    whole = predict(run.path, [file], tmp_path / "whole").written
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stopped_at(4, patch)
        with pytest.raises(KeyboardInterrupt):
            predict(run.path, [file], out)
    assert not list(out.glob("a_*"))
    with monkeypatch.context() as patch:
        seen = stopped_at(99, patch)
        made = predict(run.path, [file], out)
    assert len(seen) == 2
    assert [path.read_bytes() for path in made.written] == [path.read_bytes() for path in whole]
    assert not list(out.glob(".a*"))
    assert predict(run.path, [file], out).kept == made.written


def test_labels_that_are_there_are_not_predicted_again(run, tmp_path, monkeypatch):
    file, out = filmed(tmp_path / "a.mp4", count=3), tmp_path / "out"
    labels, shown = predict(run.path, [file], out).written
    whole = shown.read_bytes()
    shown.unlink()
    with monkeypatch.context() as patch:
        seen = stopped_at(99, patch)
        assert predict(run.path, [file], out).written == [shown]
    assert (seen, shown.read_bytes()) == ([], whole)
    labels.write_bytes(labels.read_bytes()[:-50])
    shown.unlink()
    assert predict(run.path, [file], out).written == [shown]
    assert shown.read_bytes() == whole


def test_labels_of_other_bytes_or_settings_are_not_used(run, tmp_path, monkeypatch):
    file, out = filmed(tmp_path / "a.mp4", count=3), tmp_path / "out"
    with monkeypatch.context() as patch:
        stopped_at(2, patch)
        with pytest.raises(KeyboardInterrupt):
            predict(run.path, [file], out)
    filmed(file, count=3, scenes=lambda number, size: 255 - scene(number, size))
    with monkeypatch.context() as patch:
        seen = stopped_at(2, patch)
        with pytest.raises(KeyboardInterrupt):
            predict(run.path, [file], out)
    assert len(seen) == 2
    assert len(list(out.glob(".a*"))) == 1
    with monkeypatch.context() as patch:
        seen = stopped_at(99, patch)
        predict(run.path, [file], out, blend="hann", overwrite=True)
    assert len(seen) == 3
    assert not list(out.glob(".a*"))


def test_a_broken_video_leaves_nothing_and_the_others_are_predicted(run, tmp_path):
    for name in "ab":
        filmed(tmp_path / "videos" / f"{name}.avi", count=2)
    broken = tmp_path / "videos" / "a.avi"
    broken.write_bytes(broken.read_bytes()[:-60])
    made = predict(run.path, [tmp_path / "videos"], tmp_path / "out")
    assert [path.name for path in made.written] == ["b_labels.zip", "b_overlay.mp4"]
    assert list(made.failed) == [broken]
    assert "it is cut off" in made.failed[broken]
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name.startswith((".a", "a"))]


def test_an_archive_of_cityscapes_ids(tmp_path):
    names = ["road", "car", "sky"]
    video = examined(filmed(tmp_path / "a.mp4", count=2))
    held = film.Film(video, tmp_path / "work")
    for number in range(2):
        labels = np.full(video.size, number + 1, np.uint8)
        film.write_bytes(held.labels_of(number), film.png(labels))
    style = film.Style(LabelSpace(tuple(names), ((0, 0, 0), (1, 1, 1), (2, 2, 2))), 0.5, False)
    film.writers(held, style, False)["cityscapes-ids"](tmp_path / "ids.zip")
    found = [np.unique(each).tolist() for each in archived(tmp_path / "ids.zip").values()]
    assert found == [[CITYSCAPES_IDS["car"]], [CITYSCAPES_IDS["sky"]]] == [[26], [23]]
