"""The picture of docs/prediction.md: frames of a video, and the same frames of the overlay that `predict` writes.

    python benchmarks/video_picture.py RUN

The video pans over one rendered street while the weather changes; the frames shown are those of five times.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

import recyclelora
from recyclelora.runs.film import write_video
from recyclelora.streets import DOMAINS, render

SEED = 2_000_050  # a test scene
FRAMES_PER_DOMAIN, RATE = 8, 8
HEIGHT, WIDTH = 256, 512


def panned() -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
    """The frames: a view of 512 x 256 pixels which moves over a street of 682 x 341."""
    wide = [render(SEED, domain, (HEIGHT * 4 // 3, WIDTH * 4 // 3)).image for domain in DOMAINS]
    below, beside = wide[0].shape[0] - HEIGHT, wide[0].shape[1] - WIDTH
    count = FRAMES_PER_DOMAIN * len(wide)
    for number in range(count):
        left = round(beside * number / (count - 1))
        picture = wide[number // FRAMES_PER_DOMAIN]
        yield number, picture[below // 2 : below // 2 + HEIGHT, left : left + WIDTH]


def shown_frames(video: Path) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """The frame in the middle of each kind of weather."""
    with av.open(str(video)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return pictures[FRAMES_PER_DOMAIN // 2 :: FRAMES_PER_DOMAIN]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "video.png")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        video = Path(folder) / "drive.mp4"
        write_video(video, panned(), Fraction(RATE), Fraction(1, RATE))
        recyclelora.predict(options.run, video, Path(folder) / "out")
        above, below = [np.hstack(shown_frames(each)) for each in (video, Path(folder) / "out" / "drive_overlay.mp4")]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    small = cv2.resize(np.vstack([above, below]), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    Image.fromarray(small).save(options.out)


if __name__ == "__main__":
    main()
