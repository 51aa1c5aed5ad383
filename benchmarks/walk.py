"""How long the ways through the code are: files, lines and changes of file of four walks, counted on real calls.

    python benchmarks/walk.py --files        # the table, and the files of each walk with the lines read in each
    python benchmarks/walk.py --functions    # the table, and the functions in the order in which they are entered

A walk is all the functions of the package that a call enters, in its thread and in those that it starts, without code
that runs on import. Lines are those of whole functions, from the first decorator to the last line, docstrings and blank
lines with them; a function written inside an entered one is part of it. A change of file is counted where a function
lies in another file than the one first entered before it. Each walk has a process of its own and finds nothing cached.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import multiprocessing
import os
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from traceback import walk_stack
from types import CodeType, FrameType
from typing import Any

import recyclelora  # before timm, where torch is a CPU build  # isort: skip
import numpy as np
from peft import get_peft_model

from recyclelora.recipe import make_recipe

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from miniatures import TINY, write_folder
from vits import images, tiny_vit

PACKAGE = Path(recyclelora.__file__).parent
IMPORT = "<frozen importlib._bootstrap>"
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.GeneratorExp, ast.ListComp, ast.SetComp, ast.DictComp)
RECIPE = {
    "backbone": TINY, "method": "recyclelora", "adapter": {"r_main": 4, "r_sub": 2}, "head": "linear", "crop": 32,
    "batch_size": 2, "steps": 2, "workers": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Function:
    """A function of the package: its file, relative to the package, and its first and last line."""

    file: str
    name: str
    first: int
    last: int

    def holds(self, other: Function) -> bool:
        return self != other and self.file == other.file and self.first <= other.first and other.last <= self.last


class Recorder:
    """Keeps the functions of a package that each thread enters, between those of the names `since` and `until`."""

    def __init__(self, package: Path, until: str | None, since: str | None) -> None:
        self.inside, self.until, self.since, self.done = f"{package}{os.sep}", until, since, False
        self.entered: dict[int, dict[CodeType, None]] = {}

    def see(self, frame: FrameType, event: str, argument: Any) -> None:
        """The profile function; a thread may call it after the end."""
        code = frame.f_code
        if self.done or not (code.co_filename.startswith(self.inside) and code.co_filename.endswith(".py")):
            return
        if event == "call" and code.co_qualname == self.since:
            self.since = None
        if self.since is not None:
            return
        if event == "call" and code.co_flags & inspect.CO_OPTIMIZED:  # the bodies of modules and classes are not
            mine = self.entered.setdefault(threading.get_ident(), {})
            if code not in mine and all(caller.f_code.co_filename != IMPORT for caller, _ in walk_stack(frame)):
                mine[code] = None
        elif event == "return" and code.co_qualname == self.until:
            self.done = True


def functions_entered(
    call: Callable[[], object], package: Path, until: str | None = None, since: str | None = None
) -> list[Function]:
    """The functions of a package that a call enters, without those that are written inside another of them.

    They are in the order of first entering, those of the calling thread before those of the threads started by it.
    The walk begins where the function of the qualified name `since` is first entered, or else with the call, and ends
    where that of the name `until` first returns, or else with the call.
    """
    recorder, found = Recorder(package, until, since), []
    threading.setprofile(recorder.see)
    sys.setprofile(recorder.see)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
        recorder.done = True
    for code in dict.fromkeys(code for thread in recorder.entered.values() for code in thread):
        file, first = Path(code.co_filename), code.co_firstlineno
        found.append(Function(file.relative_to(package).as_posix(), code.co_qualname, first, last_lines(file)[first]))
    return [each for each in found if not any(other.holds(each) for other in found)]


@cache
def last_lines(file: Path) -> dict[int, int]:
    """The last line of each function, lambda and comprehension of a file by its first, which a decorator may be."""
    lasts: dict[int, int] = {}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, SCOPES):
            first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
            lasts[first] = max(node.end_lineno or first, lasts.get(first, first))
    return lasts


def lines_by_file(functions: Sequence[Function]) -> dict[str, int]:
    """How many lines of each file the functions take; a line that two of them share is counted once."""
    return dict(Counter(file for file, _ in {(f.file, n): None for f in functions for n in range(f.first, f.last + 1)}))


def changes_of_file(functions: Sequence[Function]) -> int:
    return sum(before.file != after.file for before, after in pairwise(functions))


def walk_of_a_weight(folder: Path) -> list[Function]:
    vit, config = tiny_vit(), recyclelora.RecycleLoraConfig(r_main=4, r_sub=2)

    def adapt() -> None:
        model = get_peft_model(vit, config)
        model(images()).square().mean().backward()
        model.merge_and_unload()

    return functions_entered(adapt, PACKAGE)


def walk_to_the_loss(folder: Path, since: str | None = None) -> list[Function]:
    """Leaves its data and its run in the folder, for the walks after it."""
    source = write_folder(folder / "town", classes=("ground", "sky"))
    recipe, train = make_recipe(RECIPE | {"sources": [f"folder={source}"]}), recyclelora.train
    run = folder / f"run{since or ''}"
    return functions_entered(lambda: train(recipe, run), PACKAGE, "Segmenter.loss", since)


def walk_of_a_sample(folder: Path) -> list[Function]:
    return walk_to_the_loss(folder, since="TrainingDataset.__getitem__")


def walk_to_the_scores(folder: Path, since: str | None = None) -> list[Function]:
    evaluate, targets, out = recyclelora.evaluate, [f"folder={folder / 'town'}"], folder / f"scores{since or ''}.json"
    walk = functions_entered(lambda: evaluate(folder / "run", targets, out=out), PACKAGE, since=since)
    if not (out.is_file() and out.with_suffix(".html").is_file()):
        raise RuntimeError("the results file or its page has not been written: the walk is not the whole way")
    return walk


def walk_of_a_scored_image(folder: Path) -> list[Function]:
    return walk_to_the_scores(folder, since="score_domain")


def walk_to_a_prediction(folder: Path) -> list[Function]:
    load, image = recyclelora.load, np.full((40, 56, 3), 128, np.uint8)
    return functions_entered(lambda: load(folder / "run").predict(image), PACKAGE)


Walk = Callable[[Path], list[Function]]
WALKS: dict[str, Walk] = {
    "a weight: get_peft_model -> RRQR -> forward, merge": walk_of_a_weight,
    "an image: train -> loss": walk_to_the_loss,
    "  from its file on, once all is set up": walk_of_a_sample,
    "an image: evaluate -> mIoU in JSON and page": walk_to_the_scores,
    "  from its file on, once the model is loaded": walk_of_a_scored_image,
    "load(RUN).predict": walk_to_a_prediction,
}


def measure(walks: Mapping[str, Walk]) -> dict[str, list[Function]]:
    """The functions of each walk; what the calls print goes to the standard error."""
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as p:
        return {name: p.apply(_measured, (walk, Path(folder))) for name, walk in walks.items()}


def _measured(walk: Walk, folder: Path) -> list[Function]:
    """On one core: of several threads of a pool, now one and now another would be the first."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with redirect_stdout(sys.stderr):
        return walk(folder)


def print_walks(measured: Mapping[str, Sequence[Function]], files: bool = False, functions: bool = False) -> None:
    """A table of all walks; after it, where asked for, the files and the functions of each."""
    width = max(len(name) for name in measured)
    print(f"{'walk':{width}}  files  lines  changes of file")
    for name, walk in measured.items():
        lines = lines_by_file(walk)
        print(f"{name:{width}}  {len(lines):5}  {sum(lines.values()):5}  {changes_of_file(walk):15}")
    for name, walk in measured.items() if files or functions else ():
        print(f"\n{name}")
        for file, count in sorted(lines_by_file(walk).items()) if files else ():
            print(f"  {count:5}  {file}")
        for each in walk if functions else ():
            print(f"  {each.last - each.first + 1:5}  {each.file}:{each.first}  {each.name}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", action="store_true", help="list the files of each walk with their lines")
    parser.add_argument("--functions", action="store_true", help="list the functions of each walk as entered")
    print_walks(measure(WALKS), **vars(parser.parse_args()))
