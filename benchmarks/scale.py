"""Memory and work of a step, on paper for other machines: the tables of docs/scale.md.

    python benchmarks/scale.py             # measure on this CPU: about half an hour, 24 GiB; then write the tables
    python benchmarks/scale.py --tables    # only write the tables, from benchmarks/results/scale.json

Measured are the bytes of tensors in a step (`recyclelora.training.memory`, what `train --dry-run` prints) and its
floating-point operations (torch's counter), for one and two images. DINOv3-7B does not fit here, so two models of its
width with two and three blocks are measured; its blocks are alike, so the rest follows. Weights are random: neither
figure depends on them. Times are these operations and bytes over what a card and a network can do; no GPU was there.
"""

from __future__ import annotations

import argparse
import gc
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "scale.json"
PAGE = Path(__file__).parent.parent / "docs" / "scale.md"
GIB = 2**30
MODELS = {
    "DINOv2-L": ("vit_large_patch14_dinov2.lvd142m", {"patch_size": 16, "img_size": 512}, 24),
    "DINOv3-7B": ("vit_7b_patch16_dinov3", {"img_size": 512}, 40),
}
"""timm's name, how it is built, and its number of blocks."""
CROP, CLASSES = 512, 19
CARDS = {12: "12 GB", 24: "24 GB", 80: "80 GB"}
RESERVED = 1.5
"""GiB that the driver and the allocator of a GPU take, and what is lost between tensors: an assumption."""
PEAK, SHARE = 989e12, 0.4
"""bfloat16 operations per second of an H100, and the part of it that is reached: an assumption."""
INSIDE, BETWEEN = 300e9, 25e9
"""Bytes per second that a card sends to others in its machine (NVLink), and to another machine (200 Gbit/s)."""
PER_MACHINE = 8


@dataclass(frozen=True)
class Step:
    """What a step takes: bytes that are held and that it takes at its peak, operations, and bytes of its gradients."""

    frozen: float
    trained: float
    step: float
    operations: float
    gradients: float

    def along(self, other: Step, share: float) -> Step:
        """This step, moved by a share of the way to another one."""
        pairs = zip(asdict(self).items(), asdict(other).values(), strict=True)
        return Step(**{key: a + share * (b - a) for (key, a), b in pairs})


def measure(model: str, head: str, precision: str, checkpointing: bool, images: int, blocks: int | None) -> Step:
    """A step on this CPU, with AdamW's averages there, as from the second step on."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    import recyclelora  # noqa: F401  comes before torch's own modules
    from recyclelora.recipe import make_recipe
    from recyclelora.runs.build import build
    from recyclelora.runs.processes import launched
    from recyclelora.training.memory import Peak, memory_of
    from recyclelora.training.module import SegmentationModule

    name, args, _ = MODELS[model]
    settings = {"model": name, "weights": "random", "grad_checkpointing": checkpointing}
    settings["model_args"] = args | ({"depth": blocks} if blocks else {})
    recipe = make_recipe(
        {
            "sources": ["streets"], "backbone": settings, "head": head, "crop": CROP, "batch_size": images,
            "precision": precision, "evaluation": {"window": CROP},
        }
    )  # fmt: skip
    module = SegmentationModule(build(recipe, CLASSES, draw=False), recipe).train()
    for key, value in [*module.named_parameters(), *module.named_buffers()]:
        if ".recycle_" in key and "scale" not in key:
            value.detach().zero_()  # factors, which need not be computed for this
    fabric = launched(recipe)
    trained, optimizer = fabric.setup_module(module), module.optimizer()
    generator = torch.Generator().manual_seed(0)
    batch = {
        "image": torch.randint(256, (images, 3, CROP, CROP), generator=generator, dtype=torch.uint8),
        "labels": torch.randint(CLASSES, (images, 8, 8), generator=generator)
        .repeat_interleave(CROP // 8, 1)
        .repeat_interleave(CROP // 8, 2),
        "size": torch.full((images, 2), CROP),
        "number": torch.arange(images),
    }

    for parameter in module.trained().values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    peak = Peak()
    peak.start()
    fabric.backward(trained(batch, module.amounts(batch["labels"])))
    optimizer.step()
    optimizer.zero_grad()
    peak.stop()
    operations = 0
    if images == 1:  # two have twice as many
        with FlopCounterMode(display=False) as counter:
            fabric.backward(trained(batch, module.amounts(batch["labels"])))
        operations = counter.get_total_flops()
    memory = memory_of(module, peak.found)
    gradients = sum(4 * parameter.numel() for parameter in module.trained().values())
    return Step(memory.frozen, memory.trained, memory.step, operations, gradients)


def settings() -> list[tuple[str, str, str, bool]]:
    """What is measured: model, head, precision, and whether activations are computed again in the backward pass."""
    found = []
    for model in MODELS:
        for head in ("linear", "mask2former"):
            found += [(model, head, "32-true", False)] if model == "DINOv2-L" else []
            found += [(model, head, "bf16-mixed", False), (model, head, "bf16-mixed", True)]
    return found


def measure_all(found: dict[str, Any]) -> None:
    """Measure what is not there yet, and write each result down at once."""
    for key in settings():
        model = key[0]
        for images, blocks in ((1, None), (2, None)) if model == "DINOv2-L" else ((1, 2), (2, 2), (1, 3), (2, 3)):
            name = cell(key, images, blocks)
            if name not in found:
                found[name] = asdict(measure(*key, images, blocks))
                RESULTS.write_text(json.dumps(found, indent=1) + "\n")
                print(name, {k: f"{v:.3g}" for k, v in found[name].items()}, flush=True)
                gc.collect()


def cell(key: tuple[str, str, str, bool], images: int, blocks: int | None) -> str:
    """The name of a result."""
    model, head, precision, checkpointing = key
    many = f"{blocks} blocks" if blocks else "all blocks"
    return f"{model}, {head}, {precision}{', recomputed' * checkpointing}, {images} images, {many}"


def step_of(found: dict[str, Any], key: tuple[str, str, str, bool], images: float) -> Step:
    """A step of the whole model, from what was measured; linear in the images and in the blocks."""

    def at(count: int, blocks: int | None) -> Step:
        return Step(**found[cell(key, count, blocks)])

    def whole(count: int) -> Step:
        if key[0] == "DINOv2-L":
            return at(count, None)
        return at(count, 2).along(at(count, 3), MODELS[key[0]][2] - 2)

    return whole(1).along(whole(2), images - 1)


def one_block(found: dict[str, Any], key: tuple[str, str, str, bool]) -> float:
    """Bytes of the frozen weights of a block."""
    return step_of(found, key, 1).frozen / MODELS[key[0]][2]


def needed(found: dict[str, Any], key: tuple[str, str, str, bool], images: int, devices: int) -> float:
    """GiB of a device; with several, the frozen base is spread over them, and three blocks are whole at a time."""
    step = step_of(found, key, images)
    spread = step.frozen / devices + (3 * one_block(found, key) if devices > 1 else 0)
    return (spread + step.trained + step.step) / GIB


def most_images(found: dict[str, Any], key: tuple[str, str, str, bool], card: int, devices: int) -> str:
    """The largest number of images per step and device that a card has room for."""
    images = 0
    while needed(found, key, images + 1, devices) + RESERVED <= card * 1e9 / GIB and images < 64:
        images += 1
    return str(images) if images else "–"


def label(key: tuple[str, str, str, bool]) -> str:
    model, head, precision, checkpointing = key
    kind = {"32-true": "float32", "bf16-mixed": "bfloat16"}[precision]
    return f"{model} | {head} | {kind}{', recomputed' if checkpointing else ''}"


def memory_table(found: dict[str, Any]) -> str:
    lines = [
        "| model | head | precision | base | trained | a step: 1 image | each more | operations per image |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key in settings():
        one, two = step_of(found, key, 1), step_of(found, key, 2)
        cells = [one.frozen, one.trained, one.step, two.step - one.step]
        row = " | ".join(f"{cell / GIB:.2f}" for cell in cells)
        lines.append(f"| {label(key)} | {row} | {one.operations / 1e12:.2f} T |")
    return "\n".join(lines)


def fit_table(found: dict[str, Any]) -> str:
    spread = [f"{name} × 8, `fsdp`" for name in CARDS.values()]
    lines = [f"| model | head | precision | {' | '.join([*CARDS.values(), *spread])} |", "|---" * 9 + "|"]
    for key in settings():
        row = [most_images(found, key, card, devices) for devices in (1, 8) for card in CARDS]
        lines.append(f"| {label(key)} | {' | '.join(row)} |")
    return "\n".join(lines)


def time_table(found: dict[str, Any]) -> str:
    lines = [
        "| model | head | devices, strategy | computing | sent per device | sending | images/s |",
        "|---|---|---|---|---|---|---|",
    ]
    images = 4
    for model in MODELS:
        for head in ("linear", "mask2former"):
            step = step_of(found, (model, head, "bf16-mixed", True), 1)
            computing = images * step.operations / (PEAK * SHARE)
            for devices in (1, 8, 64):
                strategies = ("ddp",) if devices == 1 else ("ddp", "fsdp")
                for strategy in strategies:
                    sent = sending(step, devices, strategy)
                    seconds = sent / (INSIDE if devices <= PER_MACHINE else BETWEEN)
                    name = "1" if devices == 1 else f"{devices}, `{strategy}`"
                    pace = devices * images / max(computing, seconds)
                    size = f"{sent / 1e9:.2f} GB" if sent else "–"
                    time = f"{1000 * seconds:.0f} ms" if sent else "–"
                    number = f"{pace:,.0f}" if pace >= 100 else f"{pace:.1f}"
                    lines.append(
                        f"| {model} | {head} | {name} | {1000 * computing:.0f} ms | {size} | {time} | {number} |"
                    )
    return "\n".join(lines)


def sending(step: Step, devices: int, strategy: str) -> float:
    """Bytes that a device sends in a step, by rings: gradients are summed and passed on, shares of the base passed on.

    The base is gathered twice, for the forward and for the backward pass.
    """
    others = (devices - 1) / devices
    return others * (2 * step.gradients + (2 * step.frozen if strategy == "fsdp" else 0))


def write_tables(found: dict[str, Any]) -> None:
    """Put the tables between their marks in the page."""
    text = PAGE.read_text()
    for name, table in (("memory", memory_table), ("fit", fit_table), ("time", time_table)):
        begin, end = f"<!-- {name}: benchmarks/scale.py -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        _, mark, after = rest.partition(end)
        if not mark:
            raise SystemExit(f"{PAGE}: the marks of the table {name} are missing")
        text = f"{before}{begin}{table(found)}\n{end}{after}"
    PAGE.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tables", action="store_true", help="only write the tables of docs/scale.md")
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    if not parser.parse_args().tables:
        measure_all(found)
    write_tables(found)


if __name__ == "__main__":
    main()
