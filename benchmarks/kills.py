"""Kills trainings, evaluations and predictions at every change of a file, and goes on afterwards.

    python benchmarks/kills.py

A process is forked for each trial and kills itself, as `kill -9` would, before the n-th change of a file or a folder,
or when half of a file's bytes are written. Then the same call is made again, with `resume` for a training, and a
training is also started again with `overwrite`. What there is in the end must be, byte for byte, what there is without
a kill (only times may differ), with nothing left over. Results: benchmarks/results/kills.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from recyclelora import files
from recyclelora.evaluation.evaluate import evaluate
from recyclelora.files import read_json, write_json
from recyclelora.recipe import Recipe, make_recipe
from recyclelora.runs.checkpoint import read_state
from recyclelora.runs.film import write_video
from recyclelora.runs.predict import predict
from recyclelora.runs.run import versions
from recyclelora.training.train import train

RESULTS = Path(__file__).parent / "results" / "kills.json"
CHANGES = ("replace", "fsync", "unlink", "mkdir", "rmdir", "chmod")


# A process that kills itself


@dataclass
class Killer:
    """Counts what changes files, and kills the process at the n-th of them."""

    at: int = 0
    count: int = 0

    def due(self) -> bool:
        """Whether this is the change to be killed at."""
        self.count += 1
        return self.count == self.at

    def before(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def killing(*args: Any, **kwargs: Any) -> Any:
            if self.due():
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*args, **kwargs)

        return killing

    def halfway(self, write: Callable[..., Any], path_of: Callable[..., Path]) -> Callable[..., Any]:
        def killing(*args: Any, **kwargs: Any) -> Any:
            if not self.due():
                return write(*args, **kwargs)
            path = path_of(*args, **kwargs)
            before = path.stat().st_size if path.exists() else 0
            write(*args, **kwargs)
            size = path.stat().st_size
            os.truncate(path, size - (size - before * (size > before) + 1) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

        return killing

    def patches(self) -> Iterator[Any]:
        for name in CHANGES:
            yield patch.object(os, name, self.before(getattr(os, name)))
        saved = self.halfway(safetensors.torch.save_file, lambda tensors, path, *_, **__: Path(path))
        yield patch.object(safetensors.torch, "save_file", saved)
        yield patch("peft.peft_model.safe_save_file", saved)
        yield patch.object(Path, "write_bytes", self.halfway(Path.write_bytes, lambda path, *_: path))
        line = self.halfway(files.append_line, lambda path, *_: path)
        for module in ("recyclelora.training.recorder", "recyclelora.runs.record"):
            yield patch(f"{module}.append_line", line)


def killed(call: Callable[[], Any], at: int) -> bool:
    """Make a call in a process that is killed at a change; whether it lived that long."""
    status = _forked(call, Killer(at))
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the call failed"
    return os.WIFSIGNALED(status)


def made(call: Callable[[], Any]) -> bool:
    """Make a call in a process; whether it succeeded."""
    return _forked(call, None) == 0


def _forked(call: Callable[[], Any], killer: Killer | None) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for each in killer.patches() if killer else ():
                each.start()
            call()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


# What is killed


@dataclass(frozen=True)
class Trial:
    """Work in a folder `out` that was prepared: the call that is killed, and the calls that are made afterwards."""

    name: str
    prepare: Callable[[Path], Any]
    call: Callable[[Path], Any]
    ways_on: Sequence[Callable[[Path], Any]]


def trials(place: Path) -> list[Trial]:
    """The kinds of work, on a folder of images that is made in `place`."""
    town = f"folder={write_town(place / 'town')}"
    mine, other = (_recipe(town, seed=seed) for seed in (0, 1))
    run = train(mine, place / "run").path
    shots = np.random.default_rng(0).integers(0, 256, (3, 40, 48, 3), dtype=np.uint8)
    write_video(place / "drive.mp4", enumerate(shots), Fraction(5), Fraction(1, 5))

    def nothing(out: Path) -> None:
        out.mkdir(parents=True)

    def finished(out: Path) -> None:
        train(other, out)
        (out / "notes.txt").write_text("mine")

    def stopped(out: Path) -> None:
        killed(lambda: train(mine, out), 60)

    def started(out: Path) -> None:
        train(mine, out)

    def resumed(out: Path) -> None:
        train(mine, out, resume=True)

    def replaced(out: Path) -> None:
        train(mine, out, overwrite=True)

    def evaluated(out: Path) -> None:
        evaluate(run, [f"a:{town}", f"b:{town}"], out / "scores.json", pictures=1)

    def predicted(out: Path) -> None:
        predict(run, [place / "town" / "images"], out)

    def predicted_video(out: Path) -> None:
        predict(run, [place / "drive.mp4"], out)

    def predicted_otherwise(out: Path) -> None:  # into the folder of images, where pictures could be taken for images
        shutil.copytree(place / "town" / "images", out)
        predict(run, [out], out, opacity=0.3, overwrite=True)

    def predicted_anew(out: Path) -> None:
        predict(run, [out], out, overwrite=True)

    return [
        Trial("train", nothing, started, (resumed, replaced)),
        Trial("train --overwrite", finished, replaced, (resumed, replaced)),
        Trial("train --resume", stopped, resumed, (resumed, replaced)),
        Trial("evaluate", nothing, evaluated, (evaluated,)),
        Trial("predict", nothing, predicted, (predicted,)),
        Trial("predict a video", nothing, predicted_video, (predicted_video,)),
        Trial("predict --overwrite", predicted_otherwise, predicted_anew, (predicted_anew,)),
    ]


def _recipe(town: str, **settings: Any) -> Recipe:
    sizes = {"img_size": 32, "depth": 1, "embed_dim": 24, "num_heads": 3}
    backbone = {"model": "vit_tiny_patch16_224", "weights": "random", "model_args": sizes}
    values = {"sources": [town], "backbone": backbone, "adapter": {"r_main": 4, "r_sub": 2}, "crop": 32}
    values |= {"batch_size": 2, "steps": 5, "checkpoint_every": 2, "workers": 0, "optim": {"lr": 0.003}}
    values |= {"validation": {"every": 3, "images": 1, "share": 0.4}}
    return make_recipe(values | settings)


def write_town(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    (root / "classes.txt").write_text("ground\nsky\n")
    for number in range(3):
        labels = np.repeat(rng.integers(0, 2, (40, 1), dtype=np.uint8), 48, axis=1)
        image = np.stack([labels * 90 + 60] * 3, axis=-1) + rng.integers(0, 40, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"{number}.png")
        Image.fromarray(labels).save(root / "labels" / f"{number}.png")
    return root


TIMES = re.compile(rb"<tr><td>(time left|time so far|training time|pace|written)</td><td>.*</td></tr>|<(title|h1)>.*</")
"""The parts of a run's page that say how long something took, when it was, or what the run's folder is called."""


def found_in(out: Path) -> dict[str, Any]:
    """What a folder holds, without times."""
    found: dict[str, Any] = {}
    for file in sorted(out.rglob("*")):
        name = file.relative_to(out).as_posix()
        if file.is_dir() or name == files.LOCK:
            continue
        content: Any = file.read_bytes()
        if name in ("metrics.jsonl", "validation.jsonl"):
            content = [{key: line[key] for key in line if key != "seconds"} for line in files.read_lines(file)]
        elif name == "predictions.jsonl":
            first, *lines = files.read_lines(file) or [None]
            content = first, {line["image"]: line["sha256"] for line in lines}
        elif file.parent.name == "checkpoints" and file.suffix == ".safetensors":
            content = _plain(read_state(file))
        elif name == "index.html":
            content = TIMES.sub(b"", content)
        elif name == "scores.html":
            content = content.rstrip().endswith(b"</html>")
        found[name] = content
    return found


def _plain(value: Any) -> Any:
    """Nested values with bytes in place of tensors, which can be compared; the order of keys does not matter."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def try_out(trial: Trial, place: Path, every: int = 1, first: int = 1) -> Counter[str]:
    """Kill the work of a trial at every `every`-th change from the `first` on, and count what came of it."""
    expected, prepared = place / "expected", place / "prepared"
    trial.prepare(prepared)
    shutil.copytree(prepared, expected)
    assert made(lambda: trial.call(expected))
    before, wanted, counts, at = found_in(prepared), found_in(expected), Counter[str](), first
    while True:
        torn = place / f"killed at {at}"
        shutil.copytree(prepared, torn)
        if not killed(lambda torn=torn: trial.call(torn), at):  # type: ignore[misc]
            return counts
        counts["kills"] += 1
        found = {name: content for name, content in found_in(torn).items() if not name.endswith((".part", ".lock"))}
        if found in (before, wanted):
            counts["before anything was changed" if found == before else "after all was done"] += 1
            shutil.rmtree(torn)
            at += every
            continue
        counts["of these half-way in a write"] += any(torn.rglob(".*.part")) or _half_written(torn)
        for number, way_on in enumerate(trial.ways_on):
            again = place / f"again {at} {number}"
            shutil.copytree(torn, again)
            counts["calls afterwards"] += 1
            wrong = ["the call failed"] * (not made(lambda again=again, way_on=way_on: way_on(again)))  # type: ignore[misc]
            wrong += _differing(found_in(again), wanted)
            counts["right"] += not wrong
            if wrong:
                print(f"{trial.name}, killed at change {at}, way {number}: wrong in {', '.join(wrong)}", flush=True)
            shutil.rmtree(again)
        shutil.rmtree(torn)
        at += every


def _differing(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    return sorted(name for name in {**found, **wanted} if found.get(name) != wanted.get(name))


def _half_written(folder: Path) -> bool:
    lines = [file for file in folder.rglob("*.jsonl") if not file.read_bytes().endswith(b"\n")]
    tensors = (folder / "adapter").glob("*.safetensors")
    return bool(lines) or any(not _whole(file) for file in tensors)


def _whole(file: Path) -> bool:
    try:
        safetensors.torch.load_file(file)
    except safetensors.SafetensorError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="kill at every so many changes of files")
    parser.add_argument("--only", nargs="+", help="these kinds of work; the results of the others stay")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)  # a process with threads cannot be forked
    result: dict[str, Any] = read_json(options.results) if options.only else {}
    with tempfile.TemporaryDirectory() as folder:
        for number, trial in enumerate(trials(Path(folder))):
            if options.only and trial.name not in options.only:
                continue
            place = Path(folder) / str(number)
            place.mkdir()
            began = time.monotonic()
            counts = dict(try_out(trial, place, options.every))
            result[trial.name] = counts | {"seconds": round(time.monotonic() - began)}
            print(f"{trial.name}: {json.dumps(result[trial.name])}", flush=True)
    total = Counter[str]()
    for name in result.keys() - {"all", "cores", "versions"}:
        total.update(result[name])
    print(f"all: {json.dumps(dict(total))}", flush=True)
    facts = {"all": dict(total), "cores": os.cpu_count(), "versions": versions()}
    write_json(options.results, result | facts)
    if total["right"] < total["calls afterwards"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
