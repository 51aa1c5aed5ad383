"""One training step of a recipe: seconds, images a second, and peak memory, as published and in faster ways.

    python benchmarks/train.py                                       # on a GPU: DINOv2-L, batch 4, all ways
    python benchmarks/train.py --models small base large --batch 1 --ways published --rounds 1      # on a CPU

`published` is float32 in eager mode. Every (model, way, round) runs in a process of its own, so that its peak memory is
its own; rounds go through all ways in turn. Weights are random and images noise: neither changes the time of a step.
Results: benchmarks/results/train.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

WAYS = {
    "published": {},
    "bf16": {"precision": "bf16-mixed"},
    "checkpointing": {"backbone.grad_checkpointing": "true"},
    "compile": {"compile": "true"},
    "bf16, checkpointing": {"precision": "bf16-mixed", "backbone.grad_checkpointing": "true"},
    "bf16, compile": {"precision": "bf16-mixed", "compile": "true"},
    "bf16, compile, checkpointing": {
        "precision": "bf16-mixed", "compile": "true", "backbone.grad_checkpointing": "true",
    },
}  # fmt: skip
ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "train.json"


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each step after the warm-up, the last loss, and the peak memory of the whole, in GiB."""
    import torch

    from recyclelora.adapter.optim import param_groups
    from recyclelora.recipe import read_recipe
    from recyclelora.runs.build import build

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    changes = {
        "backbone.weights": "random", "backbone.model": f"vit_{job['model']}_patch14_dinov2.lvd142m",
        "batch_size": str(job["batch"]), **job["changes"],
    }  # fmt: skip
    recipe = read_recipe(ROOT / "recipes" / job["recipe"], changes)
    segmenter = build(recipe, 19, draw=False).to(device)
    with torch.no_grad():
        for name, value in segmenter.state_dict().items():
            if "recycle_" in name and value.is_floating_point():
                value.normal_(std=1e-3)  # in place of the factorisation, which takes longer than the steps
    optimizer = torch.optim.AdamW(param_groups(segmenter, recipe.optim.lr, recipe.optim.weight_decay))
    generator = torch.Generator().manual_seed(0)
    shape = (job["batch"], 3, recipe.crop, recipe.crop)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8).to(device)
    blocks = torch.randint(19, (job["batch"], 8, 8), generator=generator)
    labels = blocks.repeat_interleave(recipe.crop // 8, 1).repeat_interleave(recipe.crop // 8, 2).to(device)
    seconds = []
    for step in range(job["warmup"] + job["steps"]):
        started = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16-mixed"):
            loss = segmenter.loss(images, labels, keys=[job["batch"] * step + i for i in range(job["batch"])])
        loss.backward()
        optimizer.step()
        last = loss.item()  # waits for the device
        seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 1024 * _peak_kib()
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return {"seconds": seconds[job["warmup"] :], "loss": last, "peak_gib": peak / 2**30, "device": name}


def _peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """A job in a process of its own; what it prints last, or the last line of its error."""
    done = subprocess.run(
        [sys.executable, __file__, "--job", json.dumps(job)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"killed by signal {-done.returncode}"])[-1][:200]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over all rounds of one way."""
    errors = [row["error"] for row in rows if "error" in row]
    if errors:
        return {"error": errors[0]}
    seconds = statistics.median(s for row in rows for s in row["seconds"])
    peak = max(row["peak_gib"] for row in rows)
    return {"seconds": seconds, "peak_gib": peak, "loss": rows[-1]["loss"], "device": rows[0]["device"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="g2cbm.yaml")
    parser.add_argument("--models", nargs="+", default=["large"], help="small, base or large")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of the recipe")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(measure(json.loads(options.job))))
        return
    from recyclelora.files import write_json
    from recyclelora.runs.run import versions

    extra = dict(change.split("=", 1) for change in options.set)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _ in range(options.rounds):
        for model in options.models:
            for way in options.ways:
                job = {
                    "recipe": options.recipe, "model": model, "batch": options.batch, "steps": options.steps,
                    "warmup": options.warmup, "changes": WAYS[way] | extra,
                }  # fmt: skip
                found.setdefault((model, way), []).append(run_job(job))
                print(f"{model}, {way}: {found[model, way][-1]}", flush=True)
    results = json.loads(options.results.read_text()) if options.results.is_file() else {}
    print(f"\n{'model':8} {'way':30} {'batch':>5} {'s/step':>8} {'images/s':>9} {'peak GiB':>9} {'times':>6}")
    for (model, way), rows in found.items():
        row = summary(rows) | {"batch": options.batch, "rounds": options.rounds, "steps": options.steps}
        if "error" in row:
            print(f"{model:8} {way:30} {options.batch:>5} {row['error']}")
        else:
            base = summary(found[model, options.ways[0]])
            row |= {"images_per_second": options.batch / row["seconds"], "over_first": base["seconds"] / row["seconds"]}
            print(
                f"{model:8} {way:30} {options.batch:>5} {row['seconds']:8.3f} {row['images_per_second']:9.2f} "
                f"{row['peak_gib']:9.2f} {row['over_first']:6.2f}"
            )
        device = row.pop("device", "none")
        key = f"{options.recipe} {model} batch {options.batch}: {way}"
        results.setdefault(device, {})[key] = row
    write_json(options.results, results | {"versions": versions(), "cores": os.cpu_count()})


if __name__ == "__main__":
    main()
