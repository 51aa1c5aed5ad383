"""All figures of a GPU in one run: what is computed there is checked first, then it is timed.

    python benchmarks/gpu.py                 # about ten minutes on one card; results/gpu_CARD.json
    python benchmarks/gpu.py --only check    # whether factors, a step and a training are those of the CPU

Timed are the factorisation of all weights of DINOv2-L and of DINOv3-7B (benchmarks/rrqr.py), an adapted step against
one of a plain LoRA (adapter.py), and a training step of g2cbm as published, in bfloat16 and compiled, with three heads
and in parts (train.py). Each script can also be called alone. Without a GPU only the check runs, on the CPU.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from recyclelora.adapter import RecycleLoraConfig
from recyclelora.adapter.draw import draw_factors
from recyclelora.adapter.layer import RecycleLoraLinear
from recyclelora.files import write_json
from recyclelora.recipe import make_recipe
from recyclelora.runs.build import build
from recyclelora.runs.run import versions
from recyclelora.training.module import SegmentationModule

HERE = Path(__file__).parent
SHAPES = [(1024, 1024), (3072, 1024), (4096, 1024), (1024, 4096)]
"""The weights of a block of DINOv2-L."""
TRAININGS = {
    "mask2former": ["--ways", "published", "bf16", "bf16, compile", "bf16, checkpointing"],
    "mask2former, 4 parts": ["--ways", "published", "bf16", "--set", "accumulate=4"],
    "linear": ["--ways", "published", "bf16", "bf16, compile", "--set", "head=linear"],
    "eomt": ["--ways", "published", "bf16", "bf16, compile", "--set", "head=eomt", "--set", "head_args={blocks: 4}"],
}


def check(device: str) -> dict[str, float | bool]:
    """Pivots, a step of an adapted layer, and the loss and gradients of a model, on a device against the CPU."""
    return {"same pivots": same_pivots(device), **layer_errors(device), **training_errors(device)}


def same_pivots(device: str, shapes: list[tuple[int, int]] = SHAPES) -> bool:
    """Whether the factorisation on a device finds the directions that the CPU finds."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        str(number): torch.randn(shape, generator=generator) * torch.randn(shape[1], generator=generator).exp()
        for number, shape in enumerate(shapes)
    }
    config = RecycleLoraConfig(r_main=32, r_sub=4)
    there = draw_factors({key: weight.to(device) for key, weight in weights.items()}, config)
    here = draw_factors(weights, config)
    return all(torch.equal(there[key].index.cpu(), here[key].index) for key in weights)  # type: ignore[union-attr]


def layer_errors(device: str) -> dict[str, float]:
    """The largest error of an adapted layer's output and gradient in float32, over the largest value in float64."""
    torch.manual_seed(0)
    weight, x, up = torch.randn(256, 192), torch.randn(64, 192), torch.randn(64, 256)
    config = RecycleLoraConfig(r_main=32, r_sub=4)
    factors = draw_factors({"layer": weight}, config)["layer"]
    base = nn.Linear(192, 256, bias=False).requires_grad_(False)
    base.weight.copy_(weight)
    layer = RecycleLoraLinear(base, "default", config, config.of_layer("layer"), factors)
    for parameter in layer.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.02)
    delta = layer.get_delta_weight("default").detach().double()
    input_of = x.double().requires_grad_()
    expected = F.linear(input_of, weight.double() + delta)
    expected.backward(up.double())
    layer, there = layer.to(device), x.to(device).requires_grad_()
    found = layer(there)
    found.backward(up.to(device))
    pairs = {"output": (found, expected), "gradient": (there.grad, input_of.grad)}
    return {name: _error(one, other) for name, (one, other) in pairs.items()}


def training_errors(device: str) -> dict[str, float]:
    """The error of a small model's loss, and the largest of a gradient over the largest gradient."""
    model = {"model": "vit_tiny_patch16_224", "weights": "random", "model_args": {"depth": 2, "img_size": 64}}
    recipe = make_recipe({"sources": ["streets"], "backbone": model, "crop": 64, "evaluation": {"window": 64}})
    generator = torch.Generator().manual_seed(0)
    batch = {
        "image": torch.randint(256, (2, 3, 64, 64), generator=generator, dtype=torch.uint8),
        "labels": torch.randint(5, (2, 64, 64), generator=generator),
        "size": torch.full((2, 2), 64),
        "number": torch.arange(2),
    }
    losses, gradients = [], []
    for place in ("cpu", device):
        module = SegmentationModule(build(recipe, 5), recipe).train().to(place)
        loss = module({key: value.to(place) for key, value in batch.items()})  # type: ignore[arg-type]
        loss.backward()
        losses.append(loss)
        gradients.append(torch.cat([p.grad.flatten().cpu() for p in module.trained().values() if p.grad is not None]))
    return {"loss": _error(losses[1], losses[0]), "gradients": _error(gradients[1], gradients[0])}


def _error(found: torch.Tensor | None, expected: torch.Tensor | None) -> float:
    assert found is not None
    assert expected is not None
    one, other = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((one - other).abs().max() / other.abs().max())


def wrong(found: dict[str, float | bool]) -> list[str]:
    """What is not as on the CPU, to the rounding of float32."""
    return [name for name, value in found.items() if not (value if isinstance(value, bool) else value < 1e-4)]


def times() -> dict[str, Any]:
    """All that is timed, by its script."""
    from rrqr import GPU_CASES, on_gpu

    found: dict[str, Any] = {"factorisation": {name: on_gpu(name) for name in GPU_CASES}}
    print(found, flush=True)
    steps = ["--models", "large", "--batch", "4", "--modes", "float32", "bf16", "compile", "bf16 compile"]
    found["adapted step"] = of_script("adapter.py", *steps)
    found["training"] = {name: of_script("train.py", "--rounds", "2", *words) for name, words in TRAININGS.items()}
    return found


def of_script(name: str, *words: str) -> Any:
    """The results of another script, which prints its table."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.json"
        subprocess.run([sys.executable, HERE / name, *words, "--results", file], check=True)
        return json.loads(file.read_text())


def results_file(card: str) -> Path:
    """Where the results of a card lie."""
    return HERE / "results" / f"gpu_{re.sub(r'[^A-Za-z0-9]+', '_', card).strip('_')}.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["check"], help="do not time anything")
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    there = torch.cuda.is_available()
    card = torch.cuda.get_device_name() if there else "CPU"
    found = check("cuda" if there else "cpu")
    print(f"{card}: {found}", flush=True)
    if faults := wrong(found):
        raise SystemExit(f"{card}: not as on the CPU: {', '.join(faults)}")
    if options.only or not there:
        return
    file = results_file(card)
    write_json(file, {"card": card, "check": found, "versions": versions()} | times())
    print(f"written: {file}")


if __name__ == "__main__":
    main()
