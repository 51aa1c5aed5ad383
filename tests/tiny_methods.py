"""Every method at a tiny size, with every head, and runs made without training."""

import json

import torch

from miniatures import SMALL_EOMT, SMALL_HEAD, TINY
from recyclelora.methods import METHODS
from recyclelora.recipe import make_recipe
from recyclelora.runs.build import build
from recyclelora.runs.run import Run, versions

NAMES, COLOURS = ["ground", "sky", "tree"], [[90, 90, 90], [60, 120, 220], [0, 160, 40]]
HEADS = {"linear": {}, "concat": {"width": 12, "hidden": 8}, "mask2former": SMALL_HEAD, "eomt": SMALL_EOMT}

ADAPTERS = {method: {"rank": 4, "alpha": 4.0} for method in METHODS}
ADAPTERS |= {"frozen": {}, "full": {}, "rein": {"tokens": 4, "rank": 2}, "qr-lora": {"rank": 6}}
ADAPTERS |= {"recyclelora": {"r_main": 4, "r_sub": 2}, "recyclelora-main": {"r_main": 4}}
ADAPTERS |= {"recyclelora-sub": {"r_sub": 3}}
"""Settings of each method that fit the tiny model."""


def tiny_recipe(method, head="linear", **values):
    """A recipe of the tiny model; `adapter` adds to the settings of the method."""
    adapter = ADAPTERS[method] | values.pop("adapter", {})
    own = {
        "sources": ["streets"], "method": method, "backbone": TINY, "adapter": adapter, "head": head,
        "head_args": HEADS[head], "crop": 64 if head == "mask2former" else 32, "batch_size": 2, "steps": 2,
        "workers": 0, "optim": {"lr": 0.01},
    }  # fmt: skip
    return make_recipe(own | values)


def images(count=2, side=64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def learn(segmenter, steps=3):
    """Change all trained weights by a few real training steps, far enough to change the outputs."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(len(NAMES), (2, 8, 8), generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
    optimizer = torch.optim.Adam([p for p in segmenter.parameters() if p.requires_grad], lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        segmenter.loss(images(), labels, keys=[0, 1]).backward()
        optimizer.step()


def outputs(segmenter):
    """The outputs of the backbone and of the whole model for two images."""
    with torch.no_grad():
        return [*segmenter.backbone((images() - segmenter.mean) / segmenter.std), segmenter(images())]


def made_run(folder, recipe):
    """A finished run of a model that learnt a little, and the model itself."""
    segmenter = build(recipe, len(NAMES))
    learn(segmenter)
    facts = {
        "classes": {"names": NAMES, "colours": COLOURS},
        "weights_sha256": segmenter.backbone.weights_sha256,
        "sources": [{"label": "town", "images": 4, "fingerprint": "of the town"}],
        "parameters": {"backbone": 1, "adapters": 1, "head": 1},
        "versions": versions(),
    }
    run = Run(folder, recipe, facts)
    run.write()
    run.save_result(segmenter)
    return run, segmenter


def unsealed(run):
    """Make a run one of version 0.1, whose `run.json` has no hashes."""
    file = run.path / "run.json"
    facts = json.loads(file.read_text())
    file.write_text(json.dumps({key: facts[key] for key in facts if key not in ("files_sha256", "facts_sha256")}))
