"""Random inputs for everything that reads a file or a text of a user: see `fuzz.py`.

Each kind is a function `(random, place) -> read`: it makes a wrong or nearly right input from a seeded generator,
writes it below the folder `place` if it is a file, and returns the call that reads it.
"""

from __future__ import annotations

import copy
import io
import json
import os
import shutil
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from recyclelora.data.classes import read_classes
from recyclelora.data.decoding import read_image, read_labels
from recyclelora.data.finding import find_images
from recyclelora.data.label_maps import read_grey
from recyclelora.data.opening import open_domain, parse_spec
from recyclelora.evaluation.report import run_facts
from recyclelora.evaluation.scores import Scores
from recyclelora.files import shipped_recipes
from recyclelora.models.weights import load_weights
from recyclelora.published.importing import read_checkpoint
from recyclelora.recipe import Recipe, changed, make_recipe, read_recipe, read_value
from recyclelora.runs.build import build
from recyclelora.runs.checkpoint import read_state, write_state
from recyclelora.runs.facts import read_metrics
from recyclelora.runs.predictor import load
from recyclelora.runs.run import Run, open_finished, open_run
from recyclelora.runs.seal import FACTS_KEY, FILES_KEY
from recyclelora.study.cell import Cell, CellResult, read_result
from recyclelora.study.summary import summarise

Read = Callable[[], Any]

STRANGE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 0.5, -0.0, 1e-300, 1e300, 2**31, 2**53 + 1, 10**30, float("nan"), float("inf"), "",
    " ", "x", "0", "-1", "032", "1e-3", "nan", "null", "yes", "1:30", "a" * 3000, "(", "[a", "\x1b[31m", "\u202e", "é",
    "a\nb", "..", "/", "~nobody-here/x", [], [[]], [None], [1, -1], ["x", "y"], [True], {}, {"x": 1}, {"": {}},
    [{"data": "streets"}], {"a": {"b": {"c": [1]}}},
)  # fmt: skip
TOKENS = tuple(
    b"\0|\xff|\n|\r\n|\t|: |- |[|]|{|}|&a |*a|!!int |!!python/name:x |'|\"|#|%YAML 1.1|---|1e999|NaN".split(b"|")
)

TINY = {
    "sources": [{"data": "town:folder=town", "images": 3, "weight": 1.0, "rare_classes": 0.01}],
    "targets": ["streets:fog"],
    "backbone": {
        "model": "vit_tiny_patch16_224",
        "weights": "random",
        "model_args": {"img_size": 32, "depth": 1, "embed_dim": 24, "num_heads": 3},
    },
    "adapter": {"r_main": 2, "r_sub": 1},
    "crop": 32,
    "steps": 4,
    "optim": {"lr": 0.01, "warmup": 1},
    "augment": {"scale": [0.5, 2.0]},
    "evaluation": {"window": 32, "scales": [1.0, 0.5]},
}


def other_bytes(random: Random, content: bytes) -> bytes:
    """The content with a few random changes, most often one."""
    made = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        start = random.randint(0, len(made))
        end = min(len(made), start + random.choice((1, 1, 2, 4, 16, 64)))
        way = random.randrange(7)
        if way == 0:
            made[start:end] = random.randbytes(end - start)
        elif way == 1:
            del made[start:end]
        elif way == 2:
            made[start:start] = random.choice(TOKENS)
        elif way == 3:
            made[start:start] = made[start:end] * random.choice((1, 2, 50))
        elif way == 4:
            del made[start:]
        elif way == 5 and start < len(made):
            made[start] ^= 1 << random.randrange(8)
        else:
            made[start:end] = bytes([random.choice((0, 255, 0x7F, 0x80))]) * (end - start)
    return bytes(made)


def other_values(random: Random, values: Any) -> Any:
    """A copy of nested values in which one to three are replaced, removed, repeated or given another name."""
    made = copy.deepcopy(values)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        groups = [group for group in _groups(made) if group]
        if not groups:
            return random.choice(STRANGE)
        group = random.choice(groups)
        key = random.choice(list(group) if isinstance(group, dict) else range(len(group)))
        way = random.randrange(6)
        if way == 0:
            del group[key]
        elif way == 1 and isinstance(group, dict):
            group[random.choice((f"{key}s", "", "method", "data", "\x1b", "a.b"))] = group.pop(key)
        elif way == 2 and isinstance(group, list):
            group.append(copy.deepcopy(group[key]))
        else:
            group[key] = copy.deepcopy(random.choice(STRANGE))
    return made if random.random() > 0.01 else random.choice(STRANGE)


def _groups(values: Any) -> list[Any]:
    inner = values.values() if isinstance(values, dict) else values if isinstance(values, list) else None
    return [] if inner is None else [values, *(group for value in inner for group in _groups(value))]


def _text_of(random: Random, values: Any) -> bytes:
    """Values as YAML or JSON; one time in three with changed bytes."""
    as_yaml = random.random() < 0.5
    text = yaml.safe_dump(values) if as_yaml else json.dumps(values)
    content = text.encode(errors="surrogatepass")
    return other_bytes(random, content) if random.random() < 1 / 3 else content


# Texts


@cache
def _recipes() -> list[dict[str, Any]]:
    return [TINY, *(yaml.safe_load(file.read_text()) for file in shipped_recipes().values())]


def _whole(recipe: Recipe) -> None:
    """A recipe that was read is read again from what is written, and its data sets are named or refused."""
    assert make_recipe(read_value("recipe", recipe.to_yaml())) == recipe
    for text in [source.data for source in recipe.sources] + recipe.targets:
        parse_spec(text)


def recipe(random: Random, place: Path) -> Read:
    file = place / "recipe.yaml"
    values = random.choice(_recipes())
    file.write_bytes(
        _text_of(random, other_values(random, values))
        if random.random() < 0.6
        else other_bytes(random, yaml.safe_dump(values, default_flow_style=random.random() < 0.3).encode())
    )
    return lambda: _whole(read_recipe(file))


def setting(random: Random, place: Path) -> Read:
    values = random.choice(_recipes())
    keys = [*Recipe.model_fields, "optim.lr", "adapter.r_main", "backbone.model_args.depth", "evaluation.scales", "a.b"]
    key = random.choice(keys)
    if random.random() < 0.2:
        key = other_bytes(random, key.encode()).decode(errors="surrogateescape")
    text = str(random.choice(STRANGE)).encode(errors="surrogatepass")
    text = other_bytes(random, text) if random.random() < 0.3 else text
    return lambda: _whole(make_recipe(changed(values, {key: read_value(key, text.decode(errors="surrogateescape"))})))


def target(random: Random, place: Path) -> Read:
    known = ("streets:fog", "gtav=x", "night:acdc:night=y", "folder=x", "a:folder=~/x", "camvid", "mapillary-half=z")
    chosen = random.choice(known).encode()
    text = (other_bytes(random, chosen) if random.random() < 0.9 else chosen).decode(errors="surrogateescape")
    text = text.replace("\0", "")
    split = random.choice(("train", "val", "test", "x", ""))
    limit = random.choice((None, 0, 1, -1, 10**30))
    return lambda: open_domain(parse_spec(text), split, limit, random.choice((None, 1, 10**9)))


def classes(random: Random, place: Path) -> Read:
    lists = ("ground\nsky 70 130 180\n", "# c\nroad #804080\n70 70 70 building\n", "a\nb\nc", "name,r,g,b\n")
    file = place / "classes.txt"
    content = random.choice(lists).encode(random.choice(("utf-8", "utf-8-sig", "utf-16")))
    file.write_bytes(other_bytes(random, content))
    return lambda: read_classes(file)


# Pictures


@cache
def _pictures() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    found = []
    for kind, options in (
        ("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("BMP", {}), ("WEBP", {}), ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}), ("GIF", {}),
    ):  # fmt: skip
        for mode in ("RGB", "L", "1", "P", "RGBA"):
            file = io.BytesIO()
            try:
                Image.fromarray(pixels).convert(mode).save(file, kind, **options)
            except OSError:  # a kind that has not this mode
                continue
            found.append(file.getvalue())
    return found


def _with_checksums(content: bytes) -> bytes:
    """A PNG whose checksums are right whatever its chunks hold; any other content as it is."""
    made, start = bytearray(content), 8
    while content.startswith(b"\x89PNG") and start + 12 <= len(made):
        end = start + 8 + int.from_bytes(made[start : start + 4])
        if end + 4 > len(made):
            break
        made[end : end + 4] = zlib.crc32(made[start + 4 : end]).to_bytes(4)
        start = end + 4
    return bytes(made)


def _picture(random: Random, place: Path, read: Callable[[Path], Any]) -> Read:
    file = place / "picture.png"
    content = random.choice([made for made in _pictures() if read is read_image or made.startswith(b"\x89PNG")])
    made = other_bytes(random, content)
    if random.random() < 0.3:  # the headers are at the start
        made = other_bytes(random, content[:40]) + content[40:]
    made = _with_checksums(made) if random.random() < 0.5 else made
    file.write_bytes(made)
    return lambda: read(file)


def image(random: Random, place: Path) -> Read:
    return _picture(random, place, read_image)


def label(random: Random, place: Path) -> Read:
    return _picture(random, place, random.choice((read_labels, read_grey)))


def name(random: Random, place: Path) -> Read:
    folder = place / "photos"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for _ in range(3):
        stem = random.randbytes(random.randint(1, 12)).replace(b"/", b"_").replace(b"\0", b"_")
        suffix = random.choice((b".png", b".jpg", b".PNG", b".txt", b""))
        if stem + suffix not in (b".", b".."):
            (folder / os.fsdecode(stem + suffix)).write_bytes(_pictures()[0])
    return lambda: [read_image(file) for file in find_images([folder]).values()]


# Runs


@cache
def _run(place: Path, method: str) -> tuple[Path, dict[str, bytes]]:
    """A finished run of a tiny model, and its files by their names."""
    adapter = {
        "recyclelora": {"r_main": 2, "r_sub": 1},
        "lora": {"rank": 2},
        "full": {},
        "rein": {"tokens": 3, "rank": 2},
    }
    own = make_recipe({**TINY, "method": method, "adapter": adapter[method]})
    segmenter = build(own, 2)
    facts = {
        "classes": {"names": ["ground", "sky"], "colours": [[0, 0, 0], [9, 9, 9]]},
        "weights_sha256": segmenter.backbone.weights_sha256,
        "sources": [{"label": "town", "images": 3, "fingerprint": "x"}],
        "parameters": {"backbone": 1, "adapters": 1, "head": 1},
        "versions": {"python": "3"},
    }
    run = Run(place / method, own, facts)
    run.write()
    run.save_result(segmenter)
    run.metrics.write_text("".join(f'{{"step": {i}, "loss": 1.5, "lr": 0.1, "seconds": {i}.25}}\n' for i in range(4)))
    return run.path, {
        str(file.relative_to(run.path)): file.read_bytes() for file in run.path.rglob("*") if file.is_file()
    }


def _changed_run(random: Random, place: Path, method: str, changed_file: str, content: bytes, sealed: bool) -> Path:
    """A run one file of which is another; without its hashes it is one of version 0.1."""
    path, files = _run(place, method)
    facts = json.loads(files["run.json"])
    if not sealed:
        facts = {key: value for key, value in facts.items() if key not in (FILES_KEY, FACTS_KEY)}
    for file, own in {**files, "run.json": json.dumps(facts).encode(), changed_file: content}.items():
        (path / file).write_bytes(own)
    return path


def run_json(random: Random, place: Path) -> Read:
    facts = json.loads(_run(place, "lora")[1]["run.json"])
    if sealed := random.random() < 0.2:
        path = _changed_run(random, place, "lora", "run.json", _text_of(random, other_values(random, facts)), sealed)
        return lambda: open_finished(path)
    old = {key: value for key, value in facts.items() if key not in (FILES_KEY, FACTS_KEY)}
    old |= random.choice(({}, {"step": 3}, {"imported": {"file": "x", "file_sha256": "0", "note": "", "unused": []}}))
    content = json.dumps(other_values(random, old)).encode()
    content = other_bytes(random, content) if random.random() < 0.3 else content
    path = _changed_run(random, place, "lora", "run.json", content, sealed)

    def read() -> None:
        run = open_run(path)
        run.space.colourise(np.zeros((2, 2), np.uint8))
        run_facts(run)

    return read


def run_recipe(random: Random, place: Path) -> Read:
    values = yaml.safe_load(_run(place, "lora")[1]["recipe.yaml"])
    content = _text_of(random, other_values(random, values))
    path = _changed_run(random, place, "lora", "recipe.yaml", content, sealed=random.random() < 0.2)
    return lambda: open_run(path)


def metrics(random: Random, place: Path) -> Read:
    lines = [json.loads(line) for line in _run(place, "lora")[1]["metrics.jsonl"].splitlines()]
    file = place / "metrics.jsonl"
    lines[random.randrange(4)] = other_values(random, lines[0])
    content = "\n".join(map(json.dumps, lines)).encode()
    file.write_bytes(other_bytes(random, content) if random.random() < 0.5 else content)
    return lambda: read_metrics(file)


def weights_of_run(random: Random, place: Path) -> Read:
    method = random.choice(("recyclelora", "lora", "full", "rein"))
    files = _run(place, method)[1]
    file = random.choice([name for name in files if name.endswith(".safetensors")])
    content = other_bytes(random, files[file])
    if random.random() < 0.6:  # what the tensors are called, and their shapes, is at the start
        size = int.from_bytes(files[file][:8], "little")
        header = other_values(random, json.loads(files[file][8 : 8 + size]))
        text = json.dumps(header).encode()
        content = len(text).to_bytes(8, "little") + text + files[file][8 + size :]
    path = _changed_run(random, place, method, file, content, sealed=random.random() < 0.1)
    return lambda: load(path)


def adapter_config(random: Random, place: Path) -> Read:
    method = random.choice(("recyclelora", "lora"))
    own = "adapter/adapter_config.json"
    values = other_values(random, json.loads(_run(place, method)[1][own]))
    content = json.dumps(values).encode()
    content = other_bytes(random, content) if random.random() < 0.2 else content
    path = _changed_run(random, place, method, own, content, sealed=False)
    return lambda: load(path)


# Other files


@cache
def _result() -> dict[str, Any]:
    cell = Cell("lora", make_recipe({**TINY, "method": "lora", "adapter": {}}), ("streets:fog",))
    scores = Scores("streets:fog", 2, "x", 0.5, {"road": 0.5, "sky": None}, [], [0.4, 0.6], "test")
    result = CellResult(
        "lora", 0, cell.settings(), 1.0, 1, {"python": "3"}, None, {"backbone": 1, "adapters": 1, "head": 1}, "w",
        [{"label": "town", "images": 3, "fingerprint": "x"}], 0.1, 0.2, 1.5, "full", (scores,), 1.0,
    )  # fmt: skip
    return dict(json.loads(json.dumps(result.to_json())))


def result(random: Random, place: Path) -> Read:
    file = place / "result.json"
    content = json.dumps(other_values(random, _result())).encode()
    file.write_bytes(other_bytes(random, content) if random.random() < 0.3 else content)

    def read() -> None:
        found = read_result(file)
        summarise([found], found.variant, [])

    return read


@cache
def _checkpoint(place: Path) -> bytes:
    file = place / "checkpoint.safetensors"
    state = {"state_dict": {"a": torch.ones(3)}, "optimizer_states": [{"x": (1, None, 2.5)}], "global_step": 3}
    write_state(file, state)
    return file.read_bytes()


def checkpoint(random: Random, place: Path) -> Read:
    file = place / "changed.safetensors"
    file.write_bytes(other_bytes(random, _checkpoint(place)))
    return lambda: read_state(file)


@cache
def _pickled() -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": {"backbone.a": torch.ones(2), "b": torch.zeros(1)}, "meta": {"iter": 3}}, file)
    return file.getvalue()


def pickled(random: Random, place: Path) -> Read:
    file = place / "weights.pth"
    file.write_bytes(other_bytes(random, _pickled()))
    if random.random() < 0.5:
        return lambda: load_weights("vit_tiny_patch16_224", str(file))
    return lambda: read_checkpoint(file)


KINDS: dict[str, tuple[Callable[[Random, Path], Read], int]] = {
    "recipe": (recipe, 25), "setting": (setting, 20), "target": (target, 12), "classes": (classes, 12),
    "image": (image, 10), "label": (label, 8), "name": (name, 2), "run_json": (run_json, 3),
    "run_recipe": (run_recipe, 2), "metrics": (metrics, 2), "result": (result, 2), "checkpoint": (checkpoint, 1),
    "pickled": (pickled, 1),
}  # fmt: skip
"""Each kind with its share of the inputs, in percent."""
SLOW: dict[str, Callable[[Random, Path], Read]] = {"weights_of_run": weights_of_run, "adapter_config": adapter_config}
"""Kinds that build a model each time: a thousandth of the inputs each, and 20 at least."""
