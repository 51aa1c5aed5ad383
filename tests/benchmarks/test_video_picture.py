"""The picture of a video shows frames above the same frames of the overlay."""

import numpy as np
from PIL import Image

import video_picture
from recyclelora.streets import DOMAINS, render
from tiny_methods import made_run, tiny_recipe


def test_frames_of_a_pan_stand_above_their_overlays(tmp_path, monkeypatch):
    monkeypatch.setattr(video_picture, "FRAMES_PER_DOMAIN", 1)
    run = made_run(tmp_path / "run", tiny_recipe("lora"))[0]
    out = tmp_path / "a" / "video.png"
    monkeypatch.setattr("sys.argv", ["", str(run.path), "--out", str(out)])
    video_picture.main()
    with Image.open(out) as picture:
        found = np.asarray(picture, np.float32)
    assert found.shape[1] == 256 * len(DOMAINS)
    assert found.shape[0] > 2 * 128  # and the legend
    first = render(video_picture.SEED, DOMAINS[0], (341, 682)).image[42 : 42 + 256, :512]
    small = first.reshape(128, 2, 256, 2, 3).mean((1, 3))
    assert np.abs(found[:128, :256] - small).mean() < 4  # H.264 loses a little
    assert np.abs(found[128:256, :256] - small).mean() > 10  # colours lie over it
