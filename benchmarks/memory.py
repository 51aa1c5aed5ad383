"""The peak memory of `recyclelora predict` and `evaluate` on one large image, beyond that on a tiny one.

    python benchmarks/memory.py
    python benchmarks/memory.py --ways predict evaluate

The large image is a rendered street, brought to 8000 x 6000 pixels with noise of half a grey level, as a PNG; the model
is a random ViT of two blocks with a linear head for 19 classes and windows of 512 pixels, four at once. Each command
runs in a process of its own, whose peak is its largest resident memory as the kernel states it. The same command on a
street of 64 x 48 pixels has all that does not depend on the image: Python, its libraries and the model.
Results: benchmarks/results/memory.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# This process stays small: a process starts with the peak of the one that starts it.

SIZES = {"large": (8000, 6000), "tiny": (64, 48)}
WAYS = {
    "predict": ["predict"],
    "evaluate": ["evaluate"],
    "evaluate, flip": ["evaluate", "--flip"],
    "evaluate, scales 0.75 1 1.25": ["evaluate", "--scales", "0.75,1,1.25"],
}
RECIPE = {
    "sources": ["streets"],
    "method": "frozen",
    "backbone": {
        "model": "vit_tiny_patch16_224",
        "weights": "random",
        "model_args": {"img_size": 512, "depth": 2, "embed_dim": 48, "num_heads": 3},
    },
    "crop": 512,
}
RESULTS = Path(__file__).parent / "results" / "memory.json"


def make_run(folder: Path) -> None:
    """A run of the model, which was never trained."""
    from recyclelora.data.labels import CITYSCAPES
    from recyclelora.recipe import make_recipe
    from recyclelora.runs.build import build
    from recyclelora.runs.run import Run

    recipe = make_recipe(RECIPE)
    segmenter = build(recipe, len(CITYSCAPES))
    info = {
        "classes": {"names": CITYSCAPES.names, "colours": CITYSCAPES.colours},
        "weights_sha256": segmenter.backbone.weights_sha256,
        "parameters": {
            "backbone": sum(p.numel() for p in segmenter.backbone.parameters()),
            "adapters": 0,
            "head": sum(p.numel() for p in segmenter.head.parameters()),
        },
        "sources": [{"label": "streets", "images": 0, "fingerprint": "of no images"}],
    }
    run = Run(folder, recipe, info)
    run.write()
    run.save_result(segmenter)


def make_data(root: Path, size: tuple[int, int]) -> None:
    """A folder with one image of a size (width, height) and its label."""
    import cv2
    import numpy as np

    from recyclelora.data.labels import CITYSCAPES
    from recyclelora.data.opening import open_domain

    image, labels = open_domain("streets:clear", "val", 1).read(0)
    image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    image = np.clip(np.rint(image + np.random.default_rng(0).normal(0, 0.5, image.shape)), 0, 255).astype(np.uint8)
    labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
    for kind, pixels in (("images", image[..., ::-1]), ("labels", labels)):
        (root / kind).mkdir(parents=True)
        cv2.imwrite(str(root / kind / "street.png"), pixels)
    (root / "classes.txt").write_text("\n".join(CITYSCAPES.names))


def make_inputs(root: Path) -> None:
    """The run, and a folder of data for each size."""
    make_run(root / "run")
    for name, size in SIZES.items():
        make_data(root / name, size)


def facts() -> dict[str, Any]:
    """What the figures depend on."""
    from recyclelora.runs.run import versions

    threads = os.environ.get("OMP_NUM_THREADS")
    return {"size": SIZES["large"], "window": RECIPE["crop"], "cores": os.cpu_count(), "threads": threads} | {
        "versions": versions()
    }


def arguments_of(way: str, root: Path, size: str, out: Path) -> list[str]:
    """The command line of a way; `out` does not exist."""
    verb, *options = WAYS[way]
    if verb == "predict":
        return [verb, str(root / "run"), str(root / size / "images"), "--out", str(out), *options]
    return [verb, str(root / "run"), "--target", f"folder={root / size}", "--out", f"{out}.json", *options]


def measure(arguments: list[str]) -> tuple[float, float]:
    """Peak resident memory in MB and seconds of a command in a process of its own.

    Raises:
        RuntimeError: the command failed.
    """
    started = time.perf_counter()
    command = subprocess.Popen([sys.executable, "-m", "recyclelora", *arguments], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(command.pid, 0)
    command.returncode = os.waitstatus_to_exitcode(status)
    if command.returncode:
        raise RuntimeError(f"recyclelora {' '.join(arguments)}: exit status {command.returncode}")
    return used.ru_maxrss * 1024 / 1e6, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make_inputs(options.make)
        return
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        subprocess.run([sys.executable, __file__, "--make", folder], check=True)
        megabytes = (root / "large/images/street.png").stat().st_size / 1e6
        for number, way in enumerate(options.ways):
            tiny, _ = measure(arguments_of(way, root, "tiny", root / f"tiny-{number}"))
            large, seconds = measure(arguments_of(way, root, "large", root / f"large-{number}"))
            rows[way] = {"beyond_mb": round(large - tiny), "tiny_mb": round(tiny), "seconds": round(seconds, 1)}
            print(way, rows[way], flush=True)
    content = facts() | {"png_mb": round(megabytes), "ways": rows}
    options.results.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
