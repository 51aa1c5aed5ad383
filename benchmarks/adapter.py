"""Forward and backward of a ViT with adapters: time and activations kept, as ratios to a plain LoRA of PEFT.

    python benchmarks/adapter.py                                          # ViT-S, B, L; batch 1 and 4; float32
    python benchmarks/adapter.py --modes bf16 checkpointing compile --models base --batch 1

The plain LoRA has the same total rank (32 + 4) on the same layers. Every way is measured beside it, step by step in
turn; medians are of all rounds, ratios are medians of each round's own ratio. `merged` is the forward pass of the
merged model over that of the untouched timm model. Results: benchmarks/results/adapter.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import recyclelora  # before timm, where torch is a CPU build  # isort: skip
import timm
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from recyclelora.files import write_json
from recyclelora.runs.run import versions

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from saved import saved_bytes

RANKS = (32, 4)
TARGETS = r"blocks\..*\.(qkv|proj|fc1|fc2)"
RESULTS = Path(__file__).parent / "results" / "adapter.json"
MODES = ("float32", "bf16", "checkpointing", "compile", "bf16 compile", "bf16 checkpointing")


def base(model: str, size: int) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(f"vit_{model}_patch14_dinov2", img_size=size, num_classes=0).eval()


def frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False)


def full(model: nn.Module) -> nn.Module:
    return model.requires_grad_(True)


def plain_lora(model: nn.Module) -> nn.Module:
    return get_peft_model(model, LoraConfig(r=sum(RANKS), target_modules=TARGETS))


def two_loras(model: nn.Module) -> nn.Module:
    adapted = get_peft_model(model, LoraConfig(r=RANKS[0], target_modules=TARGETS), "main")
    adapted.add_adapter("sub", LoraConfig(r=RANKS[1], target_modules=TARGETS))
    adapted.base_model.set_adapter(["main", "sub"])
    return adapted


def ours(model: nn.Module) -> nn.Module:
    return get_peft_model(model, recyclelora.RecycleLoraConfig(r_main=RANKS[0], r_sub=RANKS[1]))


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain LoRA": plain_lora, "recyclelora": ours, "two LoRAs": two_loras, "frozen": frozen, "full": full,
}  # fmt: skip


def forward(model: nn.Module, images: torch.Tensor, mode: str) -> torch.Tensor:
    with torch.autocast(images.device.type, torch.bfloat16, enabled="bf16" in mode):
        return model(images).float().square().mean()


def step(model: nn.Module, images: torch.Tensor, mode: str) -> float:
    """Seconds of one forward and backward pass."""
    model.zero_grad(set_to_none=True)
    _wait(images)
    started = time.perf_counter()
    if any(p.requires_grad for p in model.parameters()):
        forward(model, images, mode).backward()
    else:
        with torch.no_grad():
            forward(model, images, mode)
    _wait(images)
    return time.perf_counter() - started


def _wait(images: torch.Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize()


def prepared(model: str, way: str, mode: str, size: int, images: torch.Tensor) -> tuple[nn.Module, float]:
    """A model that is ready to step, and the MiB that its forward pass keeps for the backward pass."""
    whole = WAYS[way](base(model, size)).train().to(images.device)
    plain = whole.base_model.model if hasattr(whole, "base_model") else whole
    plain.set_grad_checkpointing("checkpointing" in mode)
    stepped = torch.compile(whole) if "compile" in mode else whole
    if "compile" in mode:
        step(stepped, images, mode)  # compiled now, not under the hooks that count
    kept = 0 if way == "frozen" else saved_bytes(whole, lambda: forward(stepped, images, mode))
    return stepped, kept / 2**20


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """A way beside plain LoRA: median seconds of both and of their ratio, MiB kept by both."""
    device = _device()
    images = torch.randn(job["batch"], 3, job["size"], job["size"], generator=torch.Generator().manual_seed(0)).to(
        device
    )
    arguments = (job["mode"], job["size"], images)
    reference, kept_plain = prepared(job["model"], next(iter(WAYS)), *arguments)
    whole, kept = prepared(job["model"], job["way"], *arguments)
    turns = range(job["rounds"] + 2)
    pairs = [(step(reference, images, job["mode"]), step(whole, images, job["mode"])) for _ in turns][2:]
    return {
        "seconds": statistics.median(b for _, b in pairs),
        "plain_seconds": statistics.median(a for a, _ in pairs),
        "over_plain": statistics.median(b / a for a, b in pairs),
        "kept_mib": kept,
        "kept_over_plain": kept / kept_plain,
    }


def merged(job: dict[str, Any]) -> dict[str, Any]:
    """Median ratio of the merged model's forward pass to the untouched timm model's, turn by turn."""
    images = torch.randn(1, 3, job["size"], job["size"]).to(_device())
    models = [ours(base(job["model"], job["size"])).merge_and_unload(), base(job["model"], job["size"])]
    ratios = []
    with torch.no_grad():
        for _ in range(4 * job["rounds"] + 2):
            seconds = []
            for one in models:
                one.to(images.device)
                _wait(images)
                started = time.perf_counter()
                one(images)
                _wait(images)
                seconds.append(time.perf_counter() - started)
            ratios.append(seconds[0] / seconds[1])
    return {"over_untouched": statistics.median(ratios[2:])}


def _device() -> str:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return "cuda" if torch.cuda.is_available() else "cpu"


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """A job in a process of its own, so that its memory goes back."""
    done = subprocess.run(
        [sys.executable, __file__, "--job", json.dumps(job)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"killed by signal {-done.returncode}"]
        return {"error": lines[-1][:200]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["small", "base", "large"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["float32"])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS)[1:], default=list(WAYS)[1:])
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels, a multiple of 14")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        job = json.loads(options.job)
        print(json.dumps(merged(job) if job["way"] == "merged" else measure(job)))
        return
    name = torch.cuda.get_device_name() if _device() == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    results = json.loads(options.results.read_text()) if options.results.is_file() else {}
    here = results.setdefault(name, {})
    print(f"{name}; tokens: {(options.size // 14) ** 2 + 1} an image")
    figures = f"{'ms':>9} {'plain':>9} {'ratio':>6} {'kept MiB':>9} {'ratio':>6}"
    print(f"{'model':6} {'batch':>5} {'mode':18} {'way':12} {figures}")
    for model, batch, mode, way in itertools.product(options.models, options.batch, options.modes, options.ways):
        job = {"model": model, "batch": batch, "mode": mode, "way": way, "size": options.size, "rounds": options.rounds}
        found = here[f"{model}, {options.size} px, batch {batch}, {mode}, {way}"] = run_job(job)
        here["versions"] = versions()
        write_json(options.results, results)
        if "error" in found:
            print(f"{model:6} {batch:>5} {mode:18} {way:12} {found['error']}", flush=True)
            continue
        milliseconds = f"{1e3 * found['seconds']:9.1f} {1e3 * found['plain_seconds']:9.1f} {found['over_plain']:6.3f}"
        kept = f"{found['kept_mib']:9.1f} {found['kept_over_plain']:6.3f}"
        print(f"{model:6} {batch:>5} {mode:18} {way:12} {milliseconds} {kept}", flush=True)
    for model in options.models:
        job = {"model": model, "way": "merged", "size": options.size, "rounds": options.rounds}
        found = here[f"{model}, {options.size} px, merged"] = run_job(job)
        print(f"{model:6} merged over untouched: {found}", flush=True)
    write_json(options.results, results)


if __name__ == "__main__":
    main()
