"""A user's folder with data, runs and results, and more than a hundred kinds of wrong input for it.

Each row: what it is called, how it is made in the folder, the call, and words of the message (where, what was found,
what was expected).
"""

import io
import json
import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from miniatures import TINY, write_folder
from recyclelora.recipe import make_recipe
from recyclelora.runs.build import build
from recyclelora.runs.run import Run, versions
from tiny_methods import unsealed
from videos import filmed

RECIPE = {
    "sources": ["town:folder=town"],
    "backbone": TINY,
    "adapter": {"r_main": 8, "r_sub": 2},
    "crop": 32, "batch_size": 2, "steps": 6, "workers": 0, "optim": {"lr": 0.003},
}  # fmt: skip
LAUGHS = "\n".join(["a: &b0 [1]", *(f"b{i}: &b{i + 1} [{', '.join([f'*b{i}'] * 10)}]" for i in range(9))])
METRICS = "".join(f'{{"step": {i}, "loss": 1.5, "lr": 0.1, "seconds": {i}.0}}\n' for i in range(1, 7))


def write_workspace(place):
    """All that a row may spoil: data, a recipe, a run as it is and one as of version 0.1, photos, notes."""
    write_folder(place / "town", classes=("ground", "sky 60 120 220"))
    (place / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (place / "notes.txt").write_text("mine")
    (place / "photos").mkdir()
    for name in ("a.jpg", "b.jpg"):
        shutil.copy(place / "town" / "images" / "00.jpg", place / "photos" / name)
    segmenter = build(make_recipe(RECIPE), 2)
    facts = {
        "classes": {"names": ["ground", "sky"], "colours": [[0, 0, 0], [60, 120, 220]]},
        "weights_sha256": segmenter.backbone.weights_sha256,
        "sources": [{"label": "town", "images": 4, "fingerprint": "x"}],
        "parameters": {"backbone": 1, "adapters": 1, "head": 1},
        "versions": versions(),
    }
    for name in ("run", "old"):
        run = Run(place / name, make_recipe(RECIPE), facts)
        run.write()
        run.save_result(segmenter)
        run.metrics.write_text(METRICS)
    unsealed(Run(place / "old", make_recipe(RECIPE), {}))


# How an input is made wrong


def nothing(place):
    """The folder as it is."""


def writes(name, content):
    """A file with this content, in place of what is there."""

    def make(place):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def removes(name):
    return lambda place: (place / name).unlink()


def facts(**changes):
    """`run.json` of the old run with other values; None removes a key."""

    def make(place):
        file = place / "old" / "run.json"
        values = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))

    return make


def old_recipe(**changes):
    def make(place):
        file = place / "old" / "recipe.yaml"
        file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **changes}))

    return make


def adapter_settings(**changes):
    def make(place):
        file = place / "old" / "adapter" / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return make


def tensors(name, change):
    """A file of tensors in which each is changed."""

    def make(place):
        save_file({key: change(value) for key, value in load_file(place / name).items()}, place / name)

    return make


def renamed(name, other):
    return lambda place: (place / name).rename(place / other)


def cut_video(name):
    return lambda place: filmed(place / name) and os.truncate(place / name, 800)


def truncated(name, size):
    return lambda place: (place / name).write_bytes((place / name).read_bytes()[:size])


def link(name, goal):
    return lambda place: (place / name).symlink_to(goal)


def pipe(name):
    def make(place):
        (place / name).unlink(missing_ok=True)
        os.mkfifo(place / name)

    return make


def folder(name):
    def make(place):
        (place / name).unlink(missing_ok=True)
        (place / name).mkdir(parents=True)

    return make


def picture(name, array, **options):
    def make(place):
        Image.fromarray(array).save(place / name, **options)

    return make


def pickled(name, content):
    return lambda place: torch.save(content, place / name)


class Harmful:
    """Unpickling it would write a file."""

    def __reduce__(self):
        return Path.write_text, (Path("harm"), "done")


def big_png():
    """A PNG whose header promises 100,000 x 100,000 pixels."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(file, "PNG")
    content = file.getvalue()
    header = b"IHDR" + (100_000).to_bytes(4, "big") * 2 + content[24:29]
    return content[:12] + header + zlib.crc32(header).to_bytes(4, "big") + content[33:]


# The files and calls

ADAPTER, CONFIG = "old/adapter/adapter_model.safetensors", "old/adapter/adapter_config.json"
LABEL, RESULT = "town/labels/01.png", "out/cells/frozen--0.json"
GREY3, SEVENS = np.ones((40, 56, 3), np.uint8), np.full((40, 56), 7, np.uint8)
EMBEDDING = ("cls_token", "pos_embed", "patch_embed.proj.weight")

TRAIN = ["train", "--recipe", "recipe.yaml", "--out", "out"]
PREDICT = ["predict", "old", "photos", "--out", "out"]
SEALED = ["predict", "run", "photos", "--out", "out"]
EVALUATE = ["evaluate", "old", "--target", "folder=town", "--out", "out.json"]
COMPARE = ["compare", "--recipe", "recipe.yaml", "--methods", "frozen", "--target", "folder=town", "--out", "out"]
ANALYZE = ["analyze", "old", "--out", "out.html"]
CHECK = ["data", "check", "folder=town", "--workers", "0"]
IMPORT = ["import-checkpoint", "file.pth", "--kind", "recyclelora", "--out", "out"]
DEMO = ["demo", "--out", "out", "--weights", "random"]


def recipe(name, content, *words):
    return name, writes("recipe.yaml", content), TRAIN, ["recipe.yaml: ", *words]


def setting(text, *words):
    return f"--set {text}"[:60], nothing, [*TRAIN, "--set", text], words


def settings(texts, *words):
    return " ".join(texts)[:60], nothing, [*TRAIN, *(part for text in texts for part in ("--set", text))], words


ROWS = [
    # the text of a recipe
    recipe("empty recipe", "", "found NoneType, expected a mapping"),
    recipe("recipe of comments", "# nothing", "expected a mapping"),
    recipe("recipe is a list", "- streets", "found list, expected a mapping"),
    recipe("recipe is a number", "5", "found int"),
    recipe("recipe is a word", "streets", "found str"),
    recipe("bracket not closed", "sources: [", "not valid YAML: line 1"),
    recipe("tab", "optim:\n\tlr: 1", "not valid YAML: line 2", "\\t"),
    recipe("key twice", "steps: 3\ncrop: 32\nsteps: 4", "line 3: the key 'steps' for a second time"),
    recipe("key twice in a group", "optim: {lr: 1, lr: 2}", "line 1: the key 'lr' for a second time"),
    recipe("billion laughs", LAUGHS, "more than 20,000 values"),
    recipe("ten thousand brackets", "a: " + "[" * 10_000, "more than 20 levels"),
    recipe("alias to itself", "sources: &a [*a]", "more than 20 levels"),
    recipe("alias to nothing", "sources: *a", "undefined alias 'a'"),
    recipe("tag of Python", "sources: !!python/object/apply:os.system [ls]", "line 1: the tag"),
    recipe("two documents", "steps: 3\n---\nsteps: 4", "line 2", "single document"),
    recipe("photo as a recipe", b"\xff\xd8\xff\xe0\0\x10JFIF", "not text in UTF-8"),
    recipe("zero byte", "steps: 3\0", "not valid YAML", "#x0000"),
    recipe("large file", "#" * 2_000_000, "2,000,000 bytes, expected settings of at most"),
    recipe("number as a key", "1: 2", "the key 1, expected text"),
    recipe("nothing as a key", "~: 2", "the key None, expected text"),
    recipe("number of 5,000 digits", f"steps: {'9' * 5000}", "5000 digits"),
    recipe("number beyond floats", "optim: {lr: 1e999}", "line 1: the number 1e999 is too large"),
    recipe("merge key", "<<: {steps: 3}", "unknown key '<<'"),
    recipe("misspelt key", "stepps: 3", "unknown key 'stepps'; did you mean 'steps'"),
    recipe("misspelt in a source", "sources: [{data: a, imges: 3}]", "'sources.0.imges'; did you mean 'images'"),
    recipe("misspelt in rare_classes", "sources: [{data: a, rare_classes: {min_pixel: 3}}]", "mean 'min_pixels'"),
    recipe("sources is text", "sources: streets", "sources: ", "list", "found 'streets'"),
    recipe("sources is null", "sources:", "sources: ", "list", "found None"),
    recipe("sources is a group", "sources: {data: a}", "sources: ", "list"),
    recipe("source is a number", "sources: [5]", "sources.0: ", "found 5"),
    recipe("source without data", "sources: [{images: 3}]", "sources.0.data: Field required"),
    recipe("list for a name", "sources: [{data: [a]}]", "sources.0.data: ", "string", "found ['a']"),
    recipe("backbone is text", "backbone: dinov2", "backbone: ", "found 'dinov2'"),
    recipe("optim is a list", "optim: [1]", "optim: ", "found [1]"),
    recipe("no in place of a name", "backbone: {model: no}", "backbone.model: ", "string", "found False"),
    # values of single keys
    setting("steps=", "steps: ", "found None"),
    setting("steps=true", "steps: found True, expected another value"),
    setting("steps=-1", "steps: ", "greater than 0", "found -1"),
    setting("steps=1.5", "steps: ", "found 1.5"),
    setting("steps=1:30", "steps: ", "found '1:30'"),
    setting("steps=0x10", "steps: ", "found '0x10'"),
    setting("steps=2020-01-01", "steps: ", "found '2020-01-01'"),
    setting("steps=[1]", "steps: ", "found [1]"),
    setting("steps={a: 1}", "steps: ", "integer"),
    setting("steps=1000000000000000000000000000000", "steps: ", "too large"),
    setting("steps=!!python/name:os.system x", "--set steps=", "not valid YAML"),
    setting("seed=2147483648", "seed: ", "less than 2147483648"),
    setting("seed=-1", "seed: ", "greater than or equal to 0"),
    setting("crop=0", "crop: ", "greater than 0", "found 0"),
    setting("crop=1000000000", "crop: ", "less than or equal to 8192"),
    setting("crop=33", "crop 33 is not a multiple of the patch 16", "32 or 48"),
    setting("batch_size=0", "batch_size: ", "found 0"),
    setting("workers=1000000", "workers: ", "less than or equal to 256"),
    setting("devices=3", "batch_size 2 cannot be shared by 3 devices"),
    setting("accumulate=3", "2 images per device cannot be split into 3 equal parts"),
    setting("optim.lr=.inf", "optim.lr: ", "finite", "found inf"),
    setting("optim.lr=yes", "lr: found True"),
    setting("optim.lr=[a", "--set optim.lr=[a: not valid YAML", "line 1"),
    setting("optim.lr", "--set optim.lr: expected KEY=VALUE"),
    setting("optim.warmup=6", "a warmup of 6 steps leaves none"),
    setting("augment.scale=[2, 1]", "augment: scale (2.0, 1.0) is not a range"),
    setting("augment.scale=[1]", "augment.scale.1: ", "required"),
    setting("augment.scale=[1, 1e9]", "must be at most 16"),
    setting("augment.scale=[0.51, 0.52]", "expected two multiples of 0.1"),
    setting("augment.flip=2", "augment.flip: ", "less than or equal to 1"),
    setting("precision=16", "precision: ", "'bf16-mixed'", "found 16"),
    setting("head=linaer", "unknown head 'linaer'", "'linear'"),
    setting("head_args={width: 8}", "head linear does not take head_args", "width"),
    setting("head_args=5", "head_args: ", "found 5"),
    settings(["head=concat", "head_args={width: 1000000000}"], "width is 1000000000, expected", "65,536"),
    settings(["head=concat", "head_args={hidden: 0}"], "hidden is 0, expected a whole number from 1"),
    settings(["head=mask2former", "head_args={queries: 0}"], "queries is 0, expected a whole number"),
    settings(["head=mask2former", "head_args={encoder_layers: 1000000}"], "encoder_layers is 1000000", "1 to 100"),
    settings(["head=mask2former", "head_args={width: 30}"], "head mask2former does not take", "30"),
    settings(["head=eomt", "head_args={queries: 0}"], "queries is 0, expected a whole number"),
    settings(["head=eomt", "head_args={blocks: 2}"], "join the last 2 blocks", "has 2", "blocks to at most 1"),
    settings(["head=eomt", "head_args={upsampling_layers: 60}"], "upsampling_layers is 60, expected at most 5"),
    settings(["head=eomt", "head_args={width: 8}"], "head eomt does not take head_args", "width"),
    setting("backbone.model=vit_tini_patch16_224", "timm has no model", "vit_tiny_patch16_224"),
    setting("backbone.model=resnet18", "backbone resnet18: "),
    setting("backbone.model_args={img_size: 0}", "timm cannot build it with {'img_size': 0}", "correct model_args"),
    setting("backbone.model_args={img_size: -32}", "img_size", "correct model_args"),
    setting("backbone.model_args={img_size: many}", "img_size", "correct model_args"),
    setting("backbone.model_args={img_size: [32]}", "img_size", "correct model_args"),
    setting("backbone.model_args={depth: 1000000000}", "depth 1000000000, expected at most 512"),
    setting("backbone.model_args={depth: many}", "depth", "correct model_args"),
    setting("backbone.model_args={depth: 0}", "backbone vit_tiny_patch16_224: "),
    setting("backbone.model_args={num_heads: 0}", "num_heads", "correct model_args"),
    setting("backbone.model_args={patch_size: 0}", "patch_size", "correct model_args"),
    setting("backbone.model_args={embed_dim: 1000000000000}", "embed_dim", "correct model_args"),
    setting("backbone.model_args={nonsense: 1}", "nonsense", "correct model_args"),
    setting("backbone.model_args={mlp_ratio: .nan}", "backbone.model_args.mlp_ratio: found nan"),
    setting(r'backbone.model_args={"a\udcff": 1}', r"backbone.model_args: found the key 'a\udcff'"),
    setting("backbone.model_args={pretrained: true}", "model_args has 'pretrained'"),
    setting("backbone.weights=missing.pth", "missing.pth: no such file"),
    setting("backbone.weights=notes.txt", "notes.txt", "neither a known name nor"),
    setting("backbone.weights=~nobody-here/w.pth", "~nobody-here/w.pth: no such file"),
    ("weights of garbage", writes("w.pth", b"garbage"), [*TRAIN, "--set", "backbone.weights=w.pth"], ["w.pth: cannot"]),
    ("weights of a list", pickled("w.pth", [1]), [*TRAIN, "--set", "backbone.weights=w.pth"], ["w.pth"]),
    ("weights with code", pickled("w.pth", {"a": Harmful()}), [*TRAIN, "--set", "backbone.weights=w.pth"], ["w.pth"]),
    (
        "weights of other shapes",
        pickled("w.pth", {"cls_token": torch.ones(1, 1, 7)}),
        [*TRAIN, "--set", "backbone.weights=w.pth"],
        ["w.pth: they do not fit vit_tiny_patch16_224"],
    ),
    settings(["adapter.r_main=0", "adapter.r_sub=0"], "r_main and r_sub must not both be 0"),
    setting("adapter.r_main=60", "rank 62 (r_main 60 + r_sub 2) exceeds min(out, in) = 48"),
    setting("adapter.target_modules=(", "target_modules is not a valid regular expression", "position 0"),
    settings(["method=lora", "adapter.target_modules='*'"], "target_modules is not a valid regular expression"),
    setting("adapter.target_modules=nothing", "nothing"),
    setting("adapter.target_modules=[5]", "adapter.target_modules", "found 5"),
    setting("adapter.layers_to_transform=[99]", "recyclelora on vit_tiny_patch16_224", "layers_to_transform"),
    setting("adapter=5", "adapter: expected settings of the method"),
    settings(["method=lora", "adapter.rank=9000000000000000"], "not enough memory"),
    setting("method=recicle", "unknown method 'recicle'"),
    setting("evaluation.window=0", "evaluation.window: ", "found 0"),
    setting("evaluation.scales=[1e9]", "must be at most 16"),
    setting("evaluation.protocol=cityscape", "unknown protocol 'cityscape'"),
    setting("=5", "unknown key ''"),
    setting("optim..lr=5", "unknown key 'optim.'"),
    setting("steps.lr=5", "--set steps.lr: 'steps' is not a group of settings"),
    setting("sources.0.images=5", "'sources' is not a group of settings"),
    setting("sources=[]", "sources: at least 1 is required"),
    setting("sources=[folder]", "folder needs the folder of the data"),
    setting('sources=["folder=a\\0b"]', "which no name can have"),
    setting("sources=[folder=~nobody-here]", "~nobody-here: no such folder"),
    setting("sources=[streets:fogg]", "unknown domain 'fogg'", "'fog'"),
    setting(f"sources=[{'x' * 3000}]", "x...: unknown data set"),
    setting("limit=0", "limit: ", "greater than 0"),
    # places
    ("recipe is a folder", folder("recipe.yaml"), TRAIN, ["recipe.yaml: a folder, expected a recipe file"]),
    ("recipe is a pipe", pipe("recipe.yaml"), TRAIN, ["recipe.yaml: a pipe", "expected a recipe file"]),
    ("recipe is missing", removes("recipe.yaml"), TRAIN, ["recipe.yaml: no such recipe", "g2cbm"]),
    ("recipe below a file", nothing, ["train", "--recipe", "notes.txt/a", "--out", "out"], ["no such recipe"]),
    ("recipe name too long", nothing, ["train", "--recipe", "a" * 300, "--out", "out"], ["File name too long; give a"]),
    ("out below a file", nothing, [*TRAIN[:-1], "notes.txt/run"], ["notes.txt", "Not a directory", "another path"]),
    ("out is a file", nothing, [*TRAIN[:-1], "notes.txt"], ["notes.txt is a file, expected a folder"]),
    ("out name too long", nothing, [*TRAIN[:-1], "a" * 300], ["File name too long; give a shorter name"]),
    ("out is a device", nothing, [*TRAIN[:-1], "/dev/null"], ["/dev/null: File exists", "remove it, or choose"]),
    ("out is a dangling link", link("out", "gone"), TRAIN, ["out: File exists", "another path"]),
    ("out is not UTF-8", nothing, [*TRAIN[:-1], os.fsdecode(b"r\xff")], [r"r\udcff: a path that is not UTF-8"]),
    ("out is a pipe", pipe("out"), TRAIN, ["out: File exists"]),
    ("out in loops", link("out", "out"), TRAIN, ["out: "]),
    ("out has something", writes("out/mine", "mine"), TRAIN, ["out exists and is not empty", "--resume"]),
    ("results below a file", nothing, [*EVALUATE[:-1], "notes.txt/a.json"], ["notes.txt/a.json: Not a directory"]),
    ("results with a wrong ending", nothing, [*EVALUATE[:-1], "a.txt"], ["a.txt", "ending in .json"]),
    ("results that exist", writes("out.json", "mine"), EVALUATE, ["out.json exists", "--overwrite"]),
    ("pictures below a file", nothing, [*PREDICT[:-1], "notes.txt/a"], ["notes.txt/a: Not a directory"]),
    ("pictures in a file", nothing, [*PREDICT[:-1], "notes.txt"], ["notes.txt exists and is not empty"]),
    ("analysis with a wrong ending", nothing, [*ANALYZE[:-1], "a.pdf"], ["a.pdf", "ending in .html"]),
    ("check page below a file", nothing, [*CHECK, "--out", "notes.txt/a.html"], ["notes.txt/a.html: Not a directory"]),
    ("comparison below a file", nothing, [*COMPARE[:-1], "notes.txt/a"], ["notes.txt/a: Not a directory"]),
    ("demo in a file", nothing, ["demo", "--out", "notes.txt"], ["notes.txt is a file, expected a folder"]),
    # a run and its files
    ("run is missing", nothing, ["predict", "gone", "photos", "--out", "out"], ["gone: no such run folder"]),
    ("run is a file", nothing, ["predict", "notes.txt", "photos", "--out", "out"], ["notes.txt: no such run folder"]),
    ("run is other data", nothing, ["predict", "town", "photos", "--out", "out"], ["town: not a run"]),
    ("run.json is empty", writes("old/run.json", ""), PREDICT, ["run.json: damaged, it is not JSON"]),
    ("run.json is not UTF-8", writes("old/run.json", b'{"a": "\xff"}'), PREDICT, ["run.json: damaged", "utf-8"]),
    ("run.json is a list", writes("old/run.json", "[]"), PREDICT, ["run.json: damaged: it holds a list"]),
    ("run.json is deep", writes("old/run.json", "[" * 100_000), PREDICT, ["run.json: damaged", "nested too deeply"]),
    ("run.json with NaN", writes("old/run.json", '{"a": NaN}'), PREDICT, ["run.json: damaged", "NaN"]),
    ("run.json is a folder", folder("old/run.json"), PREDICT, ["run.json: Is a directory"]),
    ("run.json without classes", facts(classes=None), PREDICT, ["run.json: damaged: it lacks classes"]),
    ("run.json without parameters", facts(parameters=None), ANALYZE, ["run.json: damaged: it lacks parameters"]),
    ("classes are a list", facts(classes=["a"]), PREDICT, ["run.json: damaged: classes: "]),
    ("classes without colours", facts(classes={"names": ["a"]}), PREDICT, ["it lacks classes.colours"]),
    ("a class twice", facts(classes={"names": ["a", "a"], "colours": [[0, 0, 0]] * 2}), PREDICT, ["different names"]),
    ("a colour beyond 255", facts(classes={"names": ["a"], "colours": [[0, 0, 256]]}), PREDICT, ["colours.0.2: "]),
    ("sources are a number", facts(sources=5), EVALUATE, ["run.json: damaged: sources: "]),
    ("a source without label", facts(sources=[{"images": 3}]), EVALUATE, ["it lacks sources.0.label"]),
    ("parameters are text", facts(parameters={"backbone": "a"}), EVALUATE, ["run.json: damaged"]),
    ("weights' hash is a number", facts(weights_sha256=5), PREDICT, ["run.json: damaged: weights_sha256: "]),
    ("another base", facts(weights_sha256="0" * 64), PREDICT, ["trained on base weights 000000000000"]),
    ("recipe of a run is gone", removes("old/recipe.yaml"), PREDICT, ["old: not a run, recipe.yaml is missing"]),
    ("recipe of a run is a list", writes("old/recipe.yaml", "[1]"), PREDICT, ["recipe.yaml: damaged: found list"]),
    ("recipe of a run is bytes", writes("old/recipe.yaml", b"\xff"), PREDICT, ["recipe.yaml: damaged: not text"]),
    ("recipe of a run with a wrong key", old_recipe(stepps=1), PREDICT, ["recipe.yaml: unknown key 'stepps'"]),
    ("recipe of a run with another head", old_recipe(head="concat"), PREDICT, ["head.safetensors: not the concat"]),
    ("sealed recipe changed", writes("run/recipe.yaml", "a: 1"), SEALED, ["recipe.yaml: damaged, or not the file"]),
    ("sealed facts changed", writes("run/run.json", "{}"), SEALED, ["run.json: damaged"]),
    ("sealed head changed", truncated("run/head.safetensors", 50), SEALED, ["head.safetensors: damaged"]),
    ("head is gone", removes("old/head.safetensors"), PREDICT, ["old: the training is not finished", "--resume"]),
    ("head is garbage", writes("old/head.safetensors", b"garbage"), PREDICT, ["head.safetensors: not the linear head"]),
    ("head is cut", truncated("old/head.safetensors", 100), PREDICT, ["head.safetensors: not the linear head"]),
    ("head of other shapes", tensors("old/head.safetensors", lambda t: t[:1].clone()), PREDICT, ["size mismatch"]),
    ("head of NaN", tensors("old/head.safetensors", lambda t: t * float("nan")), PREDICT, ["holds NaN or infinity"]),
    (
        "adapter of other shapes",
        tensors(ADAPTER, lambda t: t.flatten()[:1].clone()),
        PREDICT,
        ["old/adapter: not an adapter for vit_tiny_patch16_224"],
    ),
    (
        "adapter is gone",
        removes(ADAPTER),
        PREDICT,
        ["adapter_model.safetensors is missing"],
    ),
    (
        "adapter is garbage",
        writes(ADAPTER, b"x" * 99),
        PREDICT,
        ["old/adapter: not an"],
    ),
    (
        "adapter settings are gone",
        removes(CONFIG),
        PREDICT,
        ["adapter_config.json is missing"],
    ),
    ("adapter settings are garbage", writes(CONFIG, b"\xff{"), PREDICT, ["it is not JSON"]),
    ("adapter settings are a list", writes(CONFIG, "[]"), PREDICT, ["holds a list"]),
    ("adapter of another rank", adapter_settings(r_main=3), PREDICT, ["says r_main 3, but the recipe of this run"]),
    ("adapter of another kind", adapter_settings(peft_type="X"), PREDICT, ["says peft_type 'X'"]),
    ("adapter with a wrong pattern", adapter_settings(target_modules="("), PREDICT, ["old/adapter: not an adapter"]),
    ("adapter with a number for names", adapter_settings(target_modules=5), PREDICT, ["old/adapter: not an adapter"]),
    ("adapter with unknown layers", adapter_settings(target_modules=["x"]), PREDICT, ["old/adapter: not an adapter"]),
    ("metrics are damaged", writes("old/metrics.jsonl", METRICS + "{\n"), EVALUATE, ["metrics.jsonl: damaged, line 7"]),
    (
        "metrics without loss",
        writes("old/metrics.jsonl", '{"step": 1}\n'),
        EVALUATE,
        ["metrics.jsonl: line 1 is damaged"],
    ),
    # images and labels
    ("photo is missing", nothing, ["predict", "old", "gone.jpg", "--out", "out"], ["gone.jpg: no such image"]),
    ("photo is nothing", nothing, ["predict", "old", "", "--out", "out"], ["an empty path", "the current folder"]),
    (
        "photo's name is long",
        nothing,
        ["predict", "old", "x" * 300, "--out", "out"],
        ["x...: cannot be read (File name"],
    ),
    (
        "photo is called a video",
        renamed("photos/a.jpg", "photos/a.mp4"),
        PREDICT,
        ["a.mp4: cannot be read", "holds a JPEG"],
    ),
    (
        "two videos of one name",
        lambda place: [filmed(place / "photos" / name) for name in ("v.mkv", "v.avi")],
        PREDICT,
        ["photos/v.mkv and photos/v.avi have the same name", "folders of their own"],
    ),
    ("photo is text", writes("photos/a.jpg", "hello"), PREDICT, ["photos/a.jpg: cannot be read as an image"]),
    ("photo is empty", writes("photos/a.jpg", ""), PREDICT, ["photos/a.jpg: cannot be read as an image (an empty"]),
    ("photo is cut", truncated("photos/a.jpg", 300), PREDICT, ["photos/a.jpg: cannot be read as an image"]),
    ("photo is a link to nothing", link("photos/c.jpg", "gone"), PREDICT, ["photos/c.jpg: a link to gone"]),
    ("photo is a pipe", pipe("photos/a.jpg"), PREDICT, ["photos/a.jpg: a pipe, expected a file"]),
    ("photo is a folder", folder("photos/c.jpg"), PREDICT, ["photos/c.jpg: a folder, expected a file"]),
    ("photo of 16 bits", picture("photos/c.png", np.ones((9, 9), np.uint16)), PREDICT, ["c.png", "expected 8 bits"]),
    ("photo is a pattern without match", nothing, [*PREDICT[:2], "photos/*.tif", *PREDICT[3:]], ["no images match"]),
    ("video is text", writes("photos/v.mp4", "hello"), PREDICT, ["photos/v.mp4: cannot be read as a video"]),
    ("video is a photo", renamed("photos/b.jpg", "photos/v.mov"), PREDICT, ["photos/v.mov: cannot be read as a video"]),
    ("video is cut", cut_video("photos/v.mkv"), PREDICT, ["photos/v.mkv: cannot be read as a video (it is cut off)"]),
    ("video is a link to nothing", link("photos/v.mp4", "gone"), PREDICT, ["photos/v.mp4: a link to gone"]),
    (
        "probabilities of a video",
        writes("photos/v.mp4", "hello"),
        [*PREDICT, "--save", "probabilities"],
        ["photos/v.mp4: of a video no probabilities can be saved", "labels"],
    ),
    ("nothing of this name is saved", nothing, [*PREDICT, "--save", "labels,overlays"], ["'overlays'", "'overlay'"]),
    ("nothing is saved", nothing, [*PREDICT, "--save", ""], ["save: '' is nothing that is saved"]),
    ("classes without Cityscapes ids", nothing, [*PREDICT, "--save", "cityscapes-ids"], ["old: ", "no id", "ground"]),
    ("own colours are missing", nothing, [*PREDICT, "--colours", "mine.txt"], ["mine.txt: cannot be read"]),
    (
        "own colour of no class",
        writes("mine.txt", "# mine\nskies 1 2 3"),
        [*PREDICT, "--colours", "mine.txt"],
        ["mine.txt: line 2 names 'skies', which is no class of the model", "'sky'"],
    ),
    ("own colour of two numbers", writes("mine.txt", "sky 1 2"), [*PREDICT, "--colours", "mine.txt"], ["line 1 names"]),
    (
        "photo of 10 gigapixels",
        writes("photos/c.png", big_png()),
        PREDICT,
        ["c.png: an image of 10,000,000,000 pixels"],
    ),
    (
        "photo with a name of bytes",
        writes(os.fsdecode(b"photos/\xff.jpg"), "x"),
        PREDICT,
        [r"photos/\udcff.jpg: cannot"],
    ),
    ("photo named in escapes", writes("photos/\x1b[31m.jpg", "x"), PREDICT, [r"photos/\x1b[31m.jpg: cannot"]),
    ("label is missing", removes("town/labels/02.png"), TRAIN, ["town/images/02.jpg: image without label"]),
    (
        "label of colours",
        picture(LABEL, GREY3),
        TRAIN,
        ["01.png: label of mode"],
    ),
    (
        "label of an unknown id",
        picture(LABEL, SEVENS),
        TRAIN,
        ["01.png: unknown"],
    ),
    (
        "label of another size",
        picture(LABEL, np.ones((9, 9), np.uint8)),
        TRAIN,
        ["01.png: label of 9 x 9"],
    ),
    ("classes.txt of bytes", writes("town/classes.txt", b"\xff\xfe\xff"), TRAIN, ["classes.txt: not UTF-8"]),
    ("classes.txt of one class", writes("town/classes.txt", "sky"), CHECK, ["classes.txt: lists 1 classes"]),
    ("classes.txt is a folder", folder("town/classes.txt"), CHECK, ["classes.txt: a folder, expected a file"]),
    # targets and options
    ("unknown target", nothing, [*EVALUATE, "--target", "foldr=x"], ["unknown data set 'foldr'", "'folder'"]),
    ("target twice", nothing, [*EVALUATE, "--target", "folder=town"], ["two targets are called 'town'"]),
    ("target of other classes", removes("town/classes.txt"), EVALUATE, ["19 classes", "trained on 2 classes"]),
    ("unknown split", nothing, [*EVALUATE, "--split", "tset"], ["unknown split 'tset'", "'test'"]),
    ("window that does not fit", nothing, [*EVALUATE, "--window", "40"], ["window 40 is not a multiple"]),
    ("window of 0", nothing, [*EVALUATE, "--window", "0"], ["evaluation.window: ", "found 0"]),
    ("stride of 99", nothing, [*EVALUATE, "--stride", "99"], ["stride 99 leaves gaps"]),
    ("scales of words", nothing, [*EVALUATE, "--scales", "a,b"], ["--scales a,b: expected numbers"]),
    ("scales of nan", nothing, [*EVALUATE, "--scales", "nan"], ["evaluation.scales.0: found nan"]),
    ("limit of 0", nothing, [*EVALUATE, "--limit", "0"], ["limit of images is 0"]),
    ("unknown method", nothing, [*COMPARE, "--methods", "frozn"], ["unknown method 'frozn'"]),
    ("seeds of words", nothing, [*COMPARE, "--seeds", "a"], ["--seeds a: expected whole numbers"]),
    ("a seed twice", nothing, [*COMPARE, "--seeds", "1,1"], ["two trainings of this name"]),
    ("a seed too large", nothing, [*COMPARE, "--seeds", "99999999999"], ["seed: ", "less than"]),
    ("unknown baseline", nothing, [*COMPARE, "--baseline", "lora"], ["--baseline lora: none of frozen"]),
    ("data set that is rendered", nothing, ["data", "check", "streets"], ["streets is rendered"]),
    ("data set that is missing", nothing, ["data", "check", "folder=gone"], ["gone: no such folder"]),
    # results and published files
    ("result is damaged", writes(RESULT, "{"), COMPARE, ["frozen--0.json: damaged"]),
    (
        "result is a list",
        writes(RESULT, "[]"),
        COMPARE,
        ["frozen--0.json: damaged (it holds a list"],
    ),
    ("result of bytes", writes(RESULT, b"\xff"), COMPARE, ["frozen--0.json: damaged"]),
    ("result without settings", writes(RESULT, "{}"), COMPARE, ["frozen--0.json: damaged"]),
    ("demo.json is damaged", writes("out/demo.json", "{"), DEMO, ["demo.json: damaged"]),
    ("demo.json is a list", writes("out/demo.json", "[]"), DEMO, ["demo.json: damaged, it holds no settings"]),
    ("demo in other data", writes("out/mine", "x"), DEMO, ["out is not empty and holds no demo"]),
    ("checkpoint is missing", nothing, IMPORT, ["file.pth: no such file"]),
    ("checkpoint is garbage", writes("file.pth", b"garbage"), IMPORT, ["file.pth: not loaded"]),
    ("checkpoint with code", pickled("file.pth", {"state_dict": Harmful()}), IMPORT, ["file.pth: not loaded"]),
    ("checkpoint without weights", pickled("file.pth", {"meta": {}}), IMPORT, ["found keys meta, expected tensors"]),
    (
        "checkpoint of other names",
        pickled("file.pth", {"state_dict": {"a": torch.ones(1)}}),
        IMPORT,
        ["no recyclelora"],
    ),
    (
        "checkpoint without a patch embedding",
        pickled(
            "file.pth", {"state_dict": dict.fromkeys((f"backbone.{name}" for name in EMBEDDING[:2]), torch.ones(()))}
        ),
        IMPORT,
        ["file.pth: it has no backbone.patch_embed.proj.weight"],
    ),
    (
        "checkpoint of scalars",
        pickled(
            "file.pth",
            {
                "state_dict": {
                    f"backbone.{n}": torch.ones(()) for n in ("cls_token", "pos_embed", "patch_embed.proj.weight")
                }
            },
        ),
        IMPORT,
        ["file.pth: its weights do not have the shapes of a recyclelora model"],
    ),
    ("checkpoint of an unknown kind", nothing, [*IMPORT, "--kind", "rein"], ["kind 'rein': no such kind"]),
]
