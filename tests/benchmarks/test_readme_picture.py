"""The picture of the README is of the models that a demo leaves."""

import numpy as np
from PIL import Image

import readme_picture
from recyclelora.demo import METHODS, demo_recipe
from recyclelora.study.cell import Cell


class Roads:
    """A model that sees nothing but roads."""

    def predict(self, image):
        return np.zeros(image.shape[:2], np.uint8)


def test_the_picture_shows_the_models_of_a_demo(tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(readme_picture, "load", lambda run: loaded.append(run) or Roads())
    out = tmp_path / "a" / "b.png"
    monkeypatch.setattr("sys.argv", ["", "--demo", str(tmp_path), "--seed", "3", "--out", str(out)])
    readme_picture.main()
    names = [Cell(method, demo_recipe(method, 1, "random", 3), ()).name for method in METHODS]
    assert loaded == [tmp_path / "runs" / name for name in names]
    with Image.open(out) as picture:
        assert picture.size == (1280, 540)
