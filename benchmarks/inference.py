"""The time of a prediction: the untouched backbone, the merged one, compiled, in onnxruntime, in int8.

    python benchmarks/inference.py --work runs/inference                     # on from where it stopped
    python benchmarks/inference.py --work runs/inference --heads mask2former --sizes 512 --batches 1
    python benchmarks/inference.py --tables                                  # only docs/performance.md

Each case is a backbone, a head, the side of a window, a batch and a number of threads. The model is a RecycleLoRA with
random weights on a random DINOv2 with patches of 16 pixels, 19 classes: times do not depend on the values. `untouched`
is the backbone as it was before the adapters, with the same head; `eager` is the merged model, by whose time all others
are divided; `onnx` and `int8` are the models that `recyclelora export --format onnx --int8` writes, opened as
`sliding.py` opens them.

A round runs every way once, in turn; every second round goes backwards. Untouched and merged, which have the same
graph, are compared in rounds of their own, so that more of them fit. The result is the median of the rounds' ratios,
with their quartiles. With one thread, its processor time counts, so that other programs disturb less, and two calls
with other cases can run on two cores; with more, the time that passes. Each of the two kinds of rounds takes at most
half of the `--budget`, in seconds that pass. A case of which the least number of `--rounds` does not fit is not
measured, and is tried again by a call with a larger budget or fewer rounds; so is one that takes more than `--memory`,
which all ways of a case share. The table has no quartiles of fewer than three rounds.
Results: benchmarks/results/inference.json.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recyclelora.data.labels import CITYSCAPES
from recyclelora.errors import NO_MEMORY
from recyclelora.exporting import int8, onnx_model, sliding
from recyclelora.exporting.trained import Trained
from recyclelora.files import read_json, write_json
from recyclelora.models.heads import HEADS
from recyclelora.models.segmenter import Segmenter
from recyclelora.recipe import make_recipe
from recyclelora.runs.build import base_of, build
from recyclelora.runs.predictor import Predictor, load
from recyclelora.runs.run import Run, is_run, open_run, versions

BACKBONES = {"small": "vit_small_patch14_dinov2.lvd142m", "base": "vit_base_patch14_dinov2.lvd142m"}
WAYS = {
    "untouched": "untouched",
    "eager": "merged",
    "compiled": "`torch.compile`",
    "onnx": "onnxruntime",
    "int8": "onnxruntime, int8",
}
ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "inference.json", ROOT / "docs" / "performance.md"
Case = tuple[str, str, int, int, int]
"""Backbone, head, side of the window in pixels, batch, threads."""


def name_of(case: Case) -> str:
    backbone, head, size, batch, threads = case
    return f"{backbone} {head} {size} batch {batch} threads {threads}"


def make_run(folder: Path, backbone: str, head: str, size: int) -> Run:
    """The run of a model whose adapters were moved at random, as if it had been trained."""
    settings = {"model": BACKBONES[backbone], "weights": "random", "model_args": {"patch_size": 16, "img_size": size}}
    recipe = make_recipe({"sources": ["streets"], "backbone": settings, "head": head, "crop": size})
    segmenter = build(recipe, len(CITYSCAPES))
    segmenter.head.begin_step(1.0)  # as at the end of a training: `eomt` has no masks then
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in segmenter.backbone.parameters():
            if parameter.requires_grad:
                parameter += 1e-3 * torch.randn(parameter.shape, generator=generator)
    info = {
        "classes": {"names": CITYSCAPES.names, "colours": CITYSCAPES.colours},
        "weights_sha256": segmenter.backbone.weights_sha256,
        "parameters": {"backbone": 0, "adapters": 0, "head": 0},
        "sources": [{"label": "streets", "images": 0, "fingerprint": "of no images"}],
    }
    run = Run(folder, recipe, info)
    run.write()
    run.save_result(segmenter)
    return run


def models(work: Path, backbone: str, head: str, size: int) -> tuple[Segmenter, Predictor, Path]:
    """The untouched and the merged model, and the folder with its exports; what is in `work` is not made again."""
    folder = work / f"{backbone}-{head}-{size}"
    run = open_run(folder / "run") if is_run(folder / "run") else make_run(folder / "run", backbone, head, size)
    merged, untouched = load(run.path, device="cpu"), base_of(run)
    untouched.head = merged.segmenter.head
    exports = folder / "onnx"
    if not (exports / int8.NAME).is_file():
        exports.mkdir(parents=True, exist_ok=True)
        onnx_model.write(Trained(merged, run), exports)
        with onnx_model.quiet():
            int8.write(exports / sliding.MODEL, exports / int8.NAME)
    return untouched, merged, exports


def ways_of(work: Path, case: Case) -> dict[str, Callable[[], Any]]:
    """Each way as a function that predicts the same random windows; all have run once."""
    backbone, head, size, batch, threads = case
    untouched, merged, exports = models(work, backbone, head, size)
    windows = np.random.default_rng(0).integers(0, 256, (batch, 3, size, size), dtype=np.uint8)
    images = torch.from_numpy(windows)
    torch.compiler.reset()
    compiled = torch.compile(merged.segmenter, dynamic=False)
    own, quantised = (sliding.open_model(exports / name, threads) for name in (sliding.MODEL, int8.NAME))

    def in_torch(model: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], torch.Tensor]:
        return torch.inference_mode()(lambda: model(images))

    for model in (untouched, merged.segmenter):
        torch.inference_mode()(model)(images[:1])
    in_torch(compiled)()  # a graph is of its batch
    for model in (own, quantised):
        model(windows[:1])
    return {
        "untouched": in_torch(untouched), "eager": in_torch(merged.segmenter), "compiled": in_torch(compiled),
        "onnx": lambda: own(windows), "int8": lambda: quantised(windows),
    }  # fmt: skip


def seconds_of(way: Callable[[], Any], threads: int) -> float:
    clock = time.process_time if threads == 1 else time.perf_counter
    started = clock()
    way()
    return clock() - started


def measured_within(memory: float | None, *arguments: Any) -> dict[str, Any]:
    """What `measured` gives, or that the case takes more memory, in GiB; this process is limited to it."""
    if memory is None:
        return measured(*arguments)
    limit = int(memory * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    try:
        return measured(*arguments)
    except Exception as error:
        if not isinstance(error, MemoryError) and not NO_MEMORY.search(str(error)):
            raise
        return {"not_measured": f"takes more than {memory:g} GiB", "memory": memory}


def measured(work: Path, case: Case, budget: float, rounds: tuple[int, int], expected: float) -> dict[str, Any]:
    """The result of a case, or why there is none; `expected` is the time of a round in seconds, if known."""
    least = rounds[0]
    if least * expected > budget / 2:
        return not_measured(expected, budget / least)
    torch.set_num_threads(case[-1])
    ways = ways_of(work, case)
    load_before = os.getloadavg()[0]
    pair = {name: ways[name] for name in ("untouched", "eager")}
    del ways["untouched"]
    times = in_turn(ways, case[-1], budget / 2, rounds)
    if isinstance(times, float):
        return not_measured(times, budget / least)
    pairs = in_turn(pair, case[-1], budget / 2, rounds)
    if isinstance(pairs, float):
        return not_measured(pairs, budget / least)
    return summary(pairs, times) | {"load": round(load_before, 1)}


def in_turn(
    ways: dict[str, Callable[[], Any]], threads: int, budget: float, rounds: tuple[int, int]
) -> dict[str, list[float]] | float:
    """The times of each way in rounds that take about `budget` seconds; that of one round if too few fit.

    Each way is dropped after its last turn, so that the next ones can have the memory that it holds.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    started, order = time.perf_counter(), list(ways)
    least, most = rounds
    for done in range(1, 1 + most):
        for name in order:
            times[name].append(seconds_of(ways[name] if done < most else ways.pop(name), threads))
        order.reverse()
        a_round = (time.perf_counter() - started) / done
        if least * a_round > budget:
            return a_round
        if (done + 1) * a_round > budget:
            break
    return times


def not_measured(round_seconds: float, budget: float) -> dict[str, Any]:
    """A round takes longer than half of `budget`, the seconds for one."""
    return {"not_measured": f"a round takes about {round_seconds:.0f} s", "budget": budget}


def summary(pairs: Mapping[str, list[float]], times: Mapping[str, list[float]]) -> dict[str, Any]:
    """For each way the median and the quartiles of its ratio to `eager`, and the shortest time in seconds."""
    ways = {}
    for name in WAYS:
        own = pairs if name == "untouched" else times
        low, middle, high = np.quantile(np.divide(own[name], own["eager"]), [0.25, 0.5, 0.75])
        ways[name] = {
            "ratio": round(float(middle), 3), "quartiles": [round(float(low), 3), round(float(high), 3)],
            "seconds": round(min(own[name]), 4),
        }  # fmt: skip
    return {"pairs": len(pairs["eager"]), "rounds": len(times["eager"]), "ways": ways}


def table(cases: Mapping[str, Mapping[str, Any]], threads: int) -> str:
    """All cases with so many threads, in the order of the arguments."""
    rows = ["| model | window | batch | merged | " + " | ".join(v for k, v in WAYS.items() if k != "eager") + " |"]
    rows.append("|---" * (3 + len(WAYS)) + "|")
    for (backbone, head), size, batch in product(product(BACKBONES, HEADS), (512, 1024), (1, 8)):
        found = cases.get(name_of((backbone, head, size, batch, threads)))
        if found is None:
            continue
        row = f"| ViT-{backbone[0].upper()}, {head} | {size} | {batch} | "
        if "ways" not in found:
            rows.append(f"{row}not measured: {found['not_measured']} |" + " |" * (len(WAYS) - 1))
            continue
        ratios = []
        for name, way in found["ways"].items():
            if name != "eager":
                low, high = way["quartiles"]
                rounds = found["pairs" if name == "untouched" else "rounds"]
                ratios.append(f"{way['ratio']:.2f}" + (f" ({low:.2f} to {high:.2f})" if rounds >= 3 else ""))
        rows.append(f"{row}{found['ways']['eager']['seconds']:.2f} s | {' | '.join(ratios)} |")
    return "\n".join(rows)


def write_tables(results: Mapping[str, Any], page: Path) -> None:
    """Put the tables between their marks in the page."""
    begin, end = "<!-- inference: benchmarks/inference.py -->\n", "<!-- end of inference -->"
    before, _, rest = page.read_text().partition(begin)
    _, mark, after = rest.partition(end)
    if not mark:
        raise SystemExit(f"{page}: the marks of the table are missing")
    numbers = sorted({int(name.split()[-1]) for name in results["cases"]})
    titles = {number: f"{number} thread{'s' * (number > 1)}" for number in numbers}
    parts = [f"With {titles[number]}:\n\n{table(results['cases'], number)}\n" for number in numbers]
    page.write_text(f"{before}{begin}\n{chr(10).join(parts)}\n{end}{after}")


def results_in(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {"cases": {}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/inference"), help="where models and exports are kept")
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--sizes", nargs="+", type=int, choices=(512, 1024), default=[512, 1024])
    parser.add_argument("--batches", nargs="+", type=int, choices=(1, 8), default=[1, 8])
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--budget", type=float, default=120, help="seconds for the rounds of a case")
    parser.add_argument("--rounds", type=int, nargs=2, default=(3, 24), help="the fewest that make a result; the most")
    parser.add_argument("--memory", type=float, help="most GiB of addresses for this process; no limit if not given")
    parser.add_argument("--again", action="store_true", help="measure also what has been measured")
    parser.add_argument("--tables", action="store_true", help="only write the tables of docs/performance.md")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    chosen = product(options.threads, options.backbones, options.sizes, options.heads, sorted(options.batches))
    for threads, backbone, size, head, batch in [] if options.tables else chosen:
        case = (backbone, head, size, batch, threads)
        results = results_in(options.results)
        before = results["cases"].get(name_of(case), {})
        tried = before.get("budget", -1) >= options.budget / options.rounds[0]
        tried |= before.get("memory", -1) >= (options.memory or np.inf)
        if not options.again and ("ways" in before or tried):
            continue
        single = results["cases"].get(name_of((backbone, head, size, 1, threads)), {}).get("ways", {})
        expected = batch * sum(way["seconds"] for way in single.values()) if batch > 1 else 0.0
        found = measured_within(options.memory, options.work, case, options.budget, tuple(options.rounds), expected)
        print(f"{name_of(case)}: {found}", flush=True)
        results = results_in(options.results)  # another call may have added cases
        results["cases"][name_of(case)] = found
        write_json(options.results, results | {"cores": os.cpu_count(), "versions": versions()})
    write_tables(results_in(options.results), PAGE)


if __name__ == "__main__":
    main()
