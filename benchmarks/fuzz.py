"""Reads random inputs of every kind: each is read, or refused with one line that a user can act on.

    python benchmarks/fuzz.py --inputs 4000                        a minute
    python benchmarks/fuzz.py --inputs 400000 --processes 2 --out benchmarks/results/fuzz.json
    python benchmarks/fuzz.py --again recipe:17                    one input, with its traceback

Every input follows from its kind and number alone. The exit code is 1 if an input led to any other error.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import torch

from fuzz_inputs import KINDS, SLOW
from recyclelora.errors import UserError, explained

SECONDS = 30
"""An input that takes longer is a fault."""
LONGEST = 4000
"""A line of more characters is a fault: nobody reads it."""


def numbers_of_inputs(total: int) -> dict[str, int]:
    """How many inputs there are of each kind."""
    slow = dict.fromkeys(SLOW, max(20, total // 1000))
    return {name: total * share // 100 for name, (_, share) in KINDS.items()} | slow


def outcome(kind: str, number: int, place: Path) -> str:
    """What reading an input came to: "read", "refused", or the fault that it shows."""
    make = KINDS[kind][0] if kind in KINDS else SLOW[kind]
    read = make(Random(f"{kind}:{number}"), place)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read()
    except Exception as error:
        line = explained(error)
        told = isinstance(error, UserError | OSError | MemoryError)
        if line is None or not told or len(line) > LONGEST:
            return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return "refused"
    finally:
        signal.alarm(0)
    return "read"


def _too_slow(*_: Any) -> None:
    raise AssertionError(f"more than {SECONDS} s")


def run(total: int, part: int = 0, parts: int = 1) -> dict[str, Any]:
    """Read one of several parts of so many inputs; returns counts per kind, and faults with their inputs."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _too_slow)
    kinds: dict[str, Counter[str]] = {}
    faults: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, count in numbers_of_inputs(total).items():
            found = kinds[kind] = Counter()
            for number in range(part, count, parts):
                came_to = outcome(kind, number, Path(folder))
                fault = came_to not in ("read", "refused")
                found["faults" if fault else came_to] += 1
                if fault:
                    faults[f"{kind}:{number}"] = came_to
    return {"kinds": kinds, "faults": faults}


def run_all(total: int, processes: int) -> dict[str, Any]:
    """As `run`, in several processes."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        parts = list(pool.map(partial(run, total, parts=processes), range(processes)))
    return {
        "kinds": {kind: dict(sum((part["kinds"][kind] for part in parts), Counter())) for kind in parts[0]["kinds"]},
        "faults": {where: fault for part in parts for where, fault in part["faults"].items()},
    }


def main() -> None:
    """Read inputs, print what they came to, and write it down if a file is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=4000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--again", metavar="KIND:NUMBER")
    arguments = parser.parse_args()
    if arguments.again:
        kind, _, number = arguments.again.partition(":")
        make = KINDS[kind][0] if kind in KINDS else SLOW[kind]
        with tempfile.TemporaryDirectory() as folder:
            print(make(Random(f"{kind}:{int(number)}"), Path(folder))())
        return
    started = time.perf_counter()
    found = run_all(arguments.inputs, arguments.processes)
    total = sum(sum(counts.values()) for counts in found["kinds"].values())
    packages = ("torch", "timm", "peft", "pydantic", "PyYAML", "pillow", "opencv-python-headless", "safetensors")
    facts = {
        "inputs": total,
        "seconds": round(time.perf_counter() - started, 1),
        "processes": arguments.processes,
        "cores": os.cpu_count(),
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in packages}},
    }
    for kind, counts in found["kinds"].items():
        print(f"{kind:16} " + ", ".join(f"{count:,} {what}" for what, count in sorted(counts.items())))
    for where, fault in list(found["faults"].items())[:200]:
        print(f"{where}: {fault}")
    print(f"{total:,} inputs in {facts['seconds']} s, {len(found['faults'])} faults")
    if arguments.out:
        arguments.out.write_text(json.dumps(facts | found, indent=1) + "\n")
    sys.exit(1 if found["faults"] else 0)


if __name__ == "__main__":
    main()
