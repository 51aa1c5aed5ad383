"""The picture of the README: one street in five kinds of weather, its labels, and what the demo's two models say.

python benchmarks/readme_picture.py --demo runs/demo
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from recyclelora.data.labels import CITYSCAPES
from recyclelora.demo import METHODS
from recyclelora.runs.predictor import load
from recyclelora.streets import DOMAINS, render

SEED = 2_000_050  # a test scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="folder of a demo")
    parser.add_argument("--seed", type=int, default=0, help="seed of the demo")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "demo.png")
    options = parser.parse_args()
    models = {method: load(options.demo / "runs" / f"{method}--{options.seed}") for method in METHODS}
    with mpl.rc_context({"font.size": 9, "font.family": "sans-serif"}):
        figure = Figure(figsize=(12.8, 5.4), layout="constrained", dpi=100)
        axes = figure.subplots(4, len(DOMAINS))
        for column, domain in zip(axes.T, DOMAINS, strict=True):
            scene = render(SEED, domain)
            pictures = [scene.image, CITYSCAPES.colourise(scene.labels)]
            pictures += [CITYSCAPES.colourise(model.predict(scene.image)) for model in models.values()]
            for place, picture in zip(column, pictures, strict=True):
                place.imshow(np.asarray(picture), interpolation="antialiased")
                place.set(xticks=[], yticks=[])
                place.spines[:].set_visible(False)
            column[0].set_title(f"{domain} ({'trained on' if domain == 'clear' else 'never seen'})")
        for row, name in zip(axes, ("image", "ground truth", *METHODS), strict=True):
            row[0].set_ylabel(name)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(options.out)


if __name__ == "__main__":
    main()
