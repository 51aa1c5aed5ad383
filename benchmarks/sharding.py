"""Memory of each process, and time of a step, with the strategies `ddp` and `fsdp`: two processes on this machine.

    python benchmarks/sharding.py                    # ViT-L, random weights, linear head, one image of 224 each

Of each process: bytes of tensors by their parts (`recyclelora.training.memory`), and what the system says: its resident
memory after the steps, and the peak during them, both without what it had before the model was built.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

STEPS = 3
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "131072"}
"""With a threshold that stays, large tensors go back to the system at once; otherwise holes between them count too."""
RESULTS = Path(__file__).parent / "results" / "sharding.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="vit_large_patch14_dinov2.lvd142m")
    parser.add_argument("--head", default="linear")
    parser.add_argument("--crop", type=int, default=224)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--worker", choices=("ddp", "fsdp"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(given)
        return
    found: dict[str, Any] = {"model": given.model, "head": given.head, "crop": given.crop, "cores": os.cpu_count()}
    for strategy in ("ddp", "fsdp"):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={given.processes}"]
            command += [__file__, *sys.argv[1:], "--worker", strategy, "--out", folder]
            subprocess.run(command, check=True, env=os.environ | ENVIRONMENT)
            found[strategy] = [json.loads(file.read_text()) for file in sorted(Path(folder).iterdir())]
    for key in ("held", "tensors", "resident", "peak"):
        ddp, fsdp = (max(each[key] for each in found[strategy]) for strategy in ("ddp", "fsdp"))
        found[f"{key} ratio"] = round(fsdp / ddp, 3)
        print(f"{key:10} ddp {ddp / 2**20:8.0f} MiB   fsdp {fsdp / 2**20:8.0f} MiB   ratio {fsdp / ddp:.3f}")
    given.out.write_text(json.dumps(found, indent=1) + "\n")


def work(given: argparse.Namespace) -> None:
    """One process: build, train for a few steps, and write down its memory."""
    import torch

    import recyclelora  # noqa: F401  comes before torch's own modules
    from recyclelora.recipe import make_recipe
    from recyclelora.runs.build import build
    from recyclelora.runs.processes import launched, shared_by_processes
    from recyclelora.training.memory import Peak, memory_of
    from recyclelora.training.module import SegmentationModule
    from recyclelora.training.sharding import shard_base

    recipe = shared_by_processes(
        make_recipe(
            {
                "sources": ["streets"],
                "backbone": {"model": given.model, "weights": "random"},
                "head": given.head,
                "crop": given.crop,
                "batch_size": given.processes,
                "strategy": given.worker,
            }
        )
    )
    fabric = launched(recipe)
    before = resident()
    module = SegmentationModule(build(recipe, 19, draw=True), recipe).train()
    if given.worker == "fsdp":
        shard_base(fabric, module, module.segmenter.backbone)
    trained, optimizer = fabric.setup_module(module), module.optimizer()
    batch = {
        "image": torch.randint(256, (1, 3, given.crop, given.crop), dtype=torch.uint8),
        "labels": torch.randint(19, (1, given.crop, given.crop)),
        "size": torch.full((1, 2), given.crop),
        "number": torch.zeros(1, dtype=torch.int64),
    }

    def step() -> None:
        fabric.backward(trained(batch, module.amounts(batch["labels"])))
        optimizer.step()
        optimizer.zero_grad()

    step()  # what is set up at first use
    release()
    seconds = []
    with Watch() as watch:
        for _ in range(STEPS):
            begun = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - begun)
    peak = watch.highest - before
    release()
    held = resident() - before
    observed = Peak()
    observed.start()
    step()
    observed.stop()
    memory = memory_of(module, observed.found)
    facts = {
        **vars(memory),
        "held": memory.frozen + memory.trained,
        "tensors": memory.total,
        "resident": held,
        "peak": peak,
        "step_seconds": min(seconds),
    }
    (given.out / f"{fabric.global_rank}.json").write_text(json.dumps(facts))
    del trained
    gc.collect()
    torch.distributed.destroy_process_group()


class Watch:
    """Looks at the memory of this process every 5 ms."""

    def __enter__(self) -> Watch:
        self.highest, self.over = 0, threading.Event()
        self.thread = threading.Thread(target=self.look)
        self.thread.start()
        return self

    def look(self) -> None:
        while not self.over.wait(0.005):
            self.highest = max(self.highest, resident())

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()


def release() -> None:
    """Give back what is free."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def resident() -> int:
    """The memory of this process that is not in use by others too, nor of files, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) * 1024


if __name__ == "__main__":
    main()
