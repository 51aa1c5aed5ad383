"""Forward and backward of a ViT with adapters: time and activations kept, as ratios to a plain LoRA of PEFT.

    python benchmarks/adapter.py                                          # ViT-S, B, L; batch 1 and 4; float32
    python benchmarks/adapter.py --modes bf16 checkpointing compile --models base --batch 1

The plain LoRA has the same total rank (32 + 4) on the same layers. Rounds go through all ways in turn; medians are of
all rounds, ratios are medians of each round's own ratio. `merged` is the forward pass of the merged model over that of
the untouched timm model. Results: benchmarks/results/adapter.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
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

from recyclelora.run import versions, write_json

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


def measure(model: str, batch: int, mode: str, size: int, rounds: int, device: str) -> dict[str, Any]:
    """Of every way: median seconds and their ratio to plain LoRA, bytes kept and their ratio."""
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    made = {}
    for way, adapt in WAYS.items():
        whole = adapt(base(model, size)).train().to(device)
        plain = whole.base_model.model if hasattr(whole, "base_model") else whole
        plain.set_grad_checkpointing("checkpointing" in mode)
        made[way] = whole
    kept = {
        way: saved_bytes(whole, lambda whole=whole: forward(whole, images, mode))
        for way, whole in made.items()
        if way != "frozen"
    }
    if "compile" in mode:
        made = {way: torch.compile(whole) for way, whole in made.items()}
    seconds: dict[str, list[float]] = {way: [] for way in made}
    for count in range(rounds + 2):
        for way, whole in made.items():
            taken = step(whole, images, mode)
            if count >= 2:
                seconds[way].append(taken)
    first = next(iter(WAYS))
    return {
        way: {
            "seconds": statistics.median(times),
            "over_plain": statistics.median(a / b for a, b in zip(times, seconds[first], strict=True)),
            "kept_mib": kept.get(way, 0) / 2**20,
            "kept_over_plain": kept.get(way, 0) / kept[first],
        }
        for way, times in seconds.items()
    }


def merged(model: str, size: int, rounds: int, device: str) -> float:
    """Median ratio of the merged model's forward pass to the untouched timm model's, round by round."""
    images = torch.randn(1, 3, size, size).to(device)
    models = [ours(base(model, size)).merge_and_unload().eval().to(device), base(model, size).to(device)]
    ratios = []
    with torch.no_grad():
        for count in range(3 * rounds + 2):
            seconds = []
            for one in models:
                _wait(images)
                started = time.perf_counter()
                one(images)
                _wait(images)
                seconds.append(time.perf_counter() - started)
            if count >= 2:
                ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["small", "base", "large"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["float32"])
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels, a multiple of 14")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    results = json.loads(options.results.read_text()) if options.results.is_file() else {}
    here = results.setdefault(name, {})
    print(
        f"{name}\n{'model':6} {'batch':>5} {'mode':18} {'way':12} {'ms':>9} {'ratio':>6} {'kept MiB':>9} {'ratio':>6}"
    )
    for model in options.models:
        for batch in options.batch:
            for mode in options.modes:
                row = measure(model, batch, mode, options.size, options.rounds, device)
                here[f"{model}, {options.size} px, batch {batch}, {mode}"] = row
                for way, found in row.items():
                    print(
                        f"{model:6} {batch:>5} {mode:18} {way:12} {1e3 * found['seconds']:9.1f} "
                        f"{found['over_plain']:6.3f} {found['kept_mib']:9.1f} {found['kept_over_plain']:6.3f}",
                        flush=True,
                    )
        ratio = merged(model, options.size, options.rounds, device)
        here[f"{model}, {options.size} px, merged over untouched"] = ratio
        print(f"{model:6} merged over untouched {ratio:.3f}", flush=True)
        results["versions"] = versions()
        write_json(options.results, results)


if __name__ == "__main__":
    main()
