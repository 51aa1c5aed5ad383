"""`peft` and `lora`: the adapter alone, for the base weights that it was trained on.

DIR/adapter_config.json, adapter_model.safetensors    for PEFT's `from_pretrained`
    head.safetensors                                  the head

`peft` keeps the method's own form, `lora` is a LoRA that PEFT loads without this package.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from peft import PeftModel

from recyclelora.adapter import RecycleLoraLayer, to_lora
from recyclelora.errors import UserError
from recyclelora.exporting.trained import Scores, Trained
from recyclelora.files import read_json
from recyclelora.methods import get_method
from recyclelora.methods.reading import ADAPTER, CONFIG, load_adapter
from recyclelora.runs.build import base_of
from recyclelora.runs.predictor import load_head

HEAD = "head.safetensors"
FILES = (CONFIG, ADAPTER, HEAD)


def write_peft(trained: Trained, folder: Path) -> Scores:
    """Write the adapter in the form of its method.

    Raises:
        UserError: the method has no adapter of PEFT, the run holds a merged backbone, or the base weights are missing.
    """
    _adapter_of(trained).save_pretrained(str(folder))
    return _finished(trained, folder)


def write_lora(trained: Trained, folder: Path) -> Scores:
    """Write the adapter as a LoRA.

    Raises:
        UserError: as `write_peft`.
    """
    model = _adapter_of(trained)
    if any(isinstance(module, RecycleLoraLayer) for module in model.modules()):
        to_lora(model, folder, overwrite=True)
    else:
        model.save_pretrained(str(folder))
    return _finished(trained, folder)


def facts(folder: Path) -> dict[str, Any]:
    """What `export.json` says of an adapter: PEFT's name of its kind. Nothing if there is none in the folder."""
    return {"peft_type": read_json(folder / CONFIG)["peft_type"]} if (folder / CONFIG).is_file() else {}


def _adapter_of(trained: Trained) -> PeftModel:
    """The base model with the trained adapter beside its weights."""
    run, files = trained.model.run, trained.files
    if files.is_merged:
        raise UserError(
            f"{run.path}: it holds a merged backbone and no adapter; export it with --format merged, onnx or torch, or "
            "export the run that it was made from"
        )
    method = get_method(run.recipe.method)
    return method.adapter(base_of(run, trained.weights).backbone, run.recipe.adapter, files.adapter)


def _finished(trained: Trained, folder: Path) -> Scores:
    """Add the head; what is returned computes with the files."""
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    shutil.copyfile(trained.files.head, folder / HEAD)
    segmenter = base_of(trained.model.run, trained.weights)
    segmenter.backbone.model = load_adapter(segmenter.backbone.model, folder, {}).get_base_model()
    load_head(segmenter, trained.files)
    return trained.scores(segmenter.eval())
