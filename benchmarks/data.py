"""What one worker makes of PNGs a second: this package, and Pillow that rescales the whole image before it crops.

    python benchmarks/data.py

Images: rendered streets of 512 x 256, brought bicubically to 1914 x 1052 (GTAV) and 2048 x 1024 (Cityscapes), with
noise of half a grey level: PNGs of 2.2 MB, about the size of those of the two data sets; labels as palette PNGs. Both
ways draw the same scales, crops and distortions; they take turns on each image, and in who is first. One process,
OpenCV with one thread, files in the page cache. Pillow's way does less: it converts the ids of its crop alone and does
not look for unknown ones.
Results: benchmarks/results/data.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from recyclelora.data.dataset import TrainingDataset
from recyclelora.data.domain import Domain
from recyclelora.data.files import LabelledFiles
from recyclelora.data.label_maps import CITYSCAPES_IDS
from recyclelora.data.labels import CITYSCAPES, IGNORE
from recyclelora.data.opening import open_domain
from recyclelora.data.transforms import Augment, distort, rescaled_window
from recyclelora.files import write_json
from recyclelora.runs.run import versions

SIZES = {"gtav": (1914, 1052), "cityscapes": (2048, 1024)}
RESULTS = Path(__file__).parent / "results" / "data.json"
Stages = dict[str, list[float]]


def make_data(root: Path, size: tuple[int, int], count: int) -> Domain:
    """A folder in the layout of GTAV."""
    to_ids = np.zeros(256, np.uint8)
    to_ids[: len(CITYSCAPES)] = [CITYSCAPES_IDS[name] for name in CITYSCAPES.names]
    colours = np.random.default_rng(0).integers(0, 256, 768).tolist()
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    streets = open_domain("streets:clear", "train", count)
    for index in range(count):
        image, labels = streets.read(index)
        image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
        noise = np.random.default_rng(index).normal(0, 0.5, image.shape)
        image = np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / f"images/{index + 1:05d}.png")
        labels = cv2.resize(to_ids[labels], size, interpolation=cv2.INTER_NEAREST)
        palette = Image.frombytes("P", size, labels.tobytes())
        palette.putpalette(colours)
        palette.save(root / f"labels/{index + 1:05d}.png")
    return open_domain(f"gtav={root}", "train")


@contextmanager
def timed(stages: Stages, name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    stages.setdefault(name, []).append(1000 * (time.perf_counter() - start))


def ours_in_stages(domain: Domain, index: int, augment: Augment, rng: np.random.Generator, stages: Stages) -> None:
    """What `TrainingDataset` does for one sample, a stage after the other."""
    source = domain.source
    assert isinstance(source, LabelledFiles)
    with timed(stages, "decode, check and convert ids"):
        image, labels = domain.read(index)
    with timed(stages, "window"):
        size = augment.draw_size(image.shape[0], image.shape[1], rng)
        window, labels = augment.draw_window(labels, size, rng)
        image = rescaled_window(image, size, window)
    with timed(stages, "flip, distort"):
        if rng.random() < augment.flip:
            image, labels = cv2.flip(image, 1), cv2.flip(labels, 1)
        distort(image, rng)


def pillow(domain: Domain, index: int, augment: Augment, rng: np.random.Generator, stages: Stages) -> torch.Tensor:
    """One sample by Pillow: decode, rescale all, pad, draw a crop, flip, distort."""
    source = domain.source
    assert isinstance(source, LabelledFiles)
    pair = source.pairs[index]
    with timed(stages, "decode"):
        picture, ids = Image.open(pair.image).convert("RGB"), Image.open(pair.label)
        ids.load()
    with timed(stages, "rescale, crop"):
        height, width = augment.draw_size(picture.height, picture.width, rng)
        whole = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
        whole_ids = np.asarray(ids.resize((width, height), Image.Resampling.NEAREST))
        bottom, right = max(0, augment.height - height), max(0, augment.width - width)
        if bottom or right:
            whole = np.pad(whole, ((0, bottom), (0, right), (0, 0)))
            whole_ids = np.pad(whole_ids, ((0, bottom), (0, right)), constant_values=IGNORE)
        image, labels = pillow_crop(domain, whole, whole_ids, augment, rng)
    with timed(stages, "flip, distort"):
        if rng.random() < augment.flip:
            image, labels = image[:, ::-1], labels[:, ::-1]
        image = distort(np.ascontiguousarray(image), rng)
    with timed(stages, "to tensors"):
        torch.from_numpy(labels.astype(np.int64))
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def pillow_crop(
    domain: Domain, image: np.ndarray, ids: np.ndarray, augment: Augment, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A crop in which no class covers too much, drawn as `Augment` does: 10 are tried, an 11th is taken as it is."""
    for attempt in range(11):
        top = int(rng.integers(ids.shape[0] - augment.height + 1))
        left = int(rng.integers(ids.shape[1] - augment.width + 1))
        window = slice(top, top + augment.height), slice(left, left + augment.width)
        labels = domain.labelling.to_train.astype(np.uint8)[ids[window]]
        counts = np.bincount(labels.ravel(), minlength=256)[:IGNORE]
        mixed = np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < augment.cat_max_ratio
        if attempt == 10 or mixed:
            break
    return image[window], labels


def compare(domain: Domain, samples: int, crop: int) -> dict[str, object]:
    """Milliseconds a sample, images a second, their ratio, and milliseconds of each stage: medians."""
    augment = Augment(crop)
    data = TrainingDataset([domain], augment)
    stages: dict[str, Stages] = {"ours": {}, "pillow": {}}
    times: Stages = {}

    def ours(number: int) -> None:
        with timed(times, "ours"):
            data[number, number % len(data)]

    def theirs(number: int) -> None:
        with timed(times, "pillow"):
            pillow(domain, number % len(data), augment, np.random.default_rng((0, number)), stages["pillow"])

    ways: list[Callable[[int], None]] = [ours, theirs]
    for number in range(-len(data), samples):
        if number == 0:  # all files have been read once
            times.clear()
            stages["pillow"].clear()
        for way in ways[:: 1 if number % 2 else -1]:
            way(abs(number))
        ours_in_stages(domain, number % len(data), augment, np.random.default_rng((0, abs(number))), stages["ours"])
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "milliseconds": {name: round(value, 2) for name, value in medians.items()},
        "images_per_second": {name: round(1000 / value, 1) for name, value in medians.items()},
        "ratio": round(medians["pillow"] / medians["ours"], 3),
        "stages": {
            way: {name: round(statistics.median(values), 2) for name, values in parts.items()}
            for way, parts in stages.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--crop", type=int, default=512)
    options = parser.parse_args()
    cv2.setNumThreads(0)
    result: dict[str, object] = {
        "samples": options.samples,
        "crop": options.crop,
        "cores": os.cpu_count(),
        "versions": versions() | {"pillow": version("pillow")},
    }
    for name, size in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            domain = make_data(Path(folder) / "data", size, options.images)
            megabytes = statistics.mean(file.stat().st_size for file in Path(folder).rglob("images/*.png")) / 1e6
            result[name] = {"size": size, "png_megabytes": round(megabytes, 2)} | compare(
                domain, options.samples, options.crop
            )
        print(name, result[name], flush=True)
    write_json(RESULTS, result)


if __name__ == "__main__":
    main()
