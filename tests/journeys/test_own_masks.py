"""Masks as people have them: each form is checked, trained on and scored through the command line, which says how."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from miniatures import write_folder
from recyclelora.data.opening import open_domain
from recyclelora.runs.run import open_run

LIST = "ground 90 90 90\nsky 60 120 220\nignored 0 0 0\n"
COLOURS = np.zeros((256, 3), np.uint8)
COLOURS[:2] = (90, 90, 90), (60, 120, 220)


def labels_of(folder):
    return {file: np.array(Image.open(file)) for file in sorted(folder.glob("*.png"))}


def colours(root):
    for file, labels in labels_of(root / "labels").items():
        Image.fromarray(COLOURS[labels]).save(file)


def palettes(root):
    for file, labels in labels_of(root / "labels").items():
        image = Image.fromarray(np.array([9, 7, 5], np.uint8)[np.minimum(labels, 2)]).convert("P")
        image.putdata(np.array([9, 7, 5])[np.minimum(labels, 2)].ravel().tolist())
        image.putpalette([200] * 15 + [0, 0, 0, 1, 1, 1, 60, 120, 220, 2, 2, 2, 90, 90, 90])
        image.save(file)


def splits(root):
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            shutil.copytree(root / kind, root / split / kind)
    for kind in ("images", "labels"):
        shutil.rmtree(root / kind)


def suffix(root):
    for file in labels_of(root / "labels"):
        file.rename(file.with_name(f"{file.stem}_mask.png"))


def annotations(root):
    """The sky as a polygon, and the ignored corner as no annotation."""
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "sky"}, {"id": 5, "name": "ground"}]}
    for number, (file, labels) in enumerate(labels_of(root / "labels").items()):
        height, width = labels.shape
        content["images"].append({"id": number, "file_name": f"{file.stem}.jpg", "height": height, "width": width})
        horizon = int((labels[:, 0] == 1).sum())
        for category, (top, bottom) in ((1, (0, horizon)), (5, (horizon, height - 2))):
            outline = [[0, top, width, top, width, bottom, 0, bottom]]
            entry = {"id": 2 * number + category, "image_id": number, "category_id": category, "segmentation": outline}
            content["annotations"].append(entry)
        ground = [[4, height - 2, width, height - 2, width, height, 4, height]]
        content["annotations"].append(
            {"id": 100 + number, "image_id": number, "category_id": 5, "segmentation": ground, "iscrowd": 0}
        )
    shutil.rmtree(root / "labels")
    (root / "annotations.json").write_text(json.dumps(content))


FORMS = {
    colours: ["labels are read by the colours of classes.txt"],
    palettes: ["labels are read by the colours of classes.txt"],
    suffix: ["the label of NAME is NAME_mask.png"],
    splits: ["splits: train in train/images/ + train/labels/, val in val/images/ + val/labels/"],
    annotations: [
        "labels are drawn from annotations.json; the classes are those of classes.txt",
        "pixels without annotation are ignored, as classes.txt lists no background; a smaller annotation lies over a "
        "larger one",
    ],
}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_each_form_of_masks_is_checked_trained_on_and_scored(command, recipe, tmp_path, form):
    plain = write_folder(tmp_path / "plain", classes=LIST.splitlines())
    town = shutil.copytree(plain, tmp_path / "own")
    form(town)
    expected, found = (open_domain(f"folder={root}", "train") for root in (plain, town))
    for index in range(4):
        assert (found.read(index)[1] == expected.read(index)[1]).all()

    code, out, err = command("data", "check", f"folder={town}", "--workers", "0", "--out", tmp_path / "check.html")
    assert (code, err) == (0, "")
    page = (tmp_path / "check.html").read_text()
    for line in FORMS[form]:
        assert line in " ".join(out.split())
        assert line in page

    run = tmp_path / "run"
    source = ("--set", f"sources=[home:folder={town}]", "--set", "steps=2", "--set", "checkpoint_every=1")
    code, out, err = command("train", "--recipe", recipe, "--out", run, *source)
    assert code == 0
    assert [line.split()[0] for line in err.splitlines()] == ["training"]  # the line at the start
    for line in FORMS[form]:
        assert out.count(f"home: {line}\n") == 1
    assert open_run(run).info["reading"] == {"home": FORMS[form]}
    (run / "head.safetensors").unlink()
    assert command("train", "--recipe", recipe, "--out", run, *source, "--resume")[0] == 0

    code, out, err = command("evaluate", run, "--target", f"folder={town}", "--out", tmp_path / "scores.json")
    assert (code, err) == (0, "")
    for line in FORMS[form]:
        assert out.count(f"own: {line}\n") == 1
    target = json.loads((tmp_path / "scores.json").read_text())["protocol"]["targets"]["own"]
    assert target["reading"] == FORMS[form]
    assert target["split"] == ("val" if form is splits else "test")


def test_plain_labels_need_no_line(command, recipe, town, tmp_path):
    code, out, _ = command("train", "--recipe", recipe, "--out", tmp_path / "run", "--set", "steps=1")
    assert code == 0
    assert len(out.splitlines()) == 1
    assert "reading" not in open_run(tmp_path / "run").info
