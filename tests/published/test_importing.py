"""Published checkpoints become runs with the weights that short references compute; wrong files are refused."""

import hashlib
import json
import os
import pickletools
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import published_files as files
from labelled_files import make_cityscapes, refused, shot, write
from recyclelora.evaluation.evaluate import evaluate
from recyclelora.models.weights import weights_hash
from recyclelora.published.importing import import_checkpoint, read_checkpoint
from recyclelora.runs.predict import predict
from recyclelora.runs.predictor import load
from recyclelora.runs.run import remove_run
from recyclelora.study.analyze import analyze
from recyclelora.training.train import train


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return files.base_weights(tmp_path_factory.mktemp("base") / "base.pth")


@pytest.fixture(scope="module")
def head():
    return files.random_head()


@pytest.fixture(scope="module")
def whole(base, head):
    """The state of a RecycleLoRA file, and the backbone it stands for."""
    state, expected = files.recyclelora_state(base)
    return state | files.published_head(head), expected


CLASSIFIER = {"weight": slice(None), "bias": 0}


def of_run(run):
    return load_file(run.path / "backbone.safetensors"), load_file(run.path / "head.safetensors")


def differ(one, other):
    return {name for name in one if not torch.allclose(one[name], other[name], atol=1e-5)}


@pytest.mark.parametrize("given", [False, True])
def test_recyclelora_is_residual_plus_scaled_products(given, base, whole, head, tmp_path):
    state, expected = whole
    path = files.save(tmp_path / "model.pth", state, prefix="module." if given else "")
    run = import_checkpoint(path, "recyclelora", tmp_path / "run", str(base) if given else None)
    backbone, heads = of_run(run)
    assert backbone.keys() == expected.keys()
    assert not differ(expected, backbone)
    assert not differ(dict(head.state_dict()), heads)
    facts = run.info["imported"]
    assert facts["unused"] == ["backbone.mask_token", "decode_head.loss_cls.class_weight"]
    assert (run.step, run.recipe.method, facts["file"]) == (40000, "recyclelora", "model.pth")
    assert run.recipe.sources == []
    assert facts["file_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert run.info["backbone_sha256"] == weights_hash(backbone)
    assert ("--base would check" in facts["note"]) != given
    assert (run.recipe.crop, run.recipe.backbone.model_args["patch_size"]) == (64, 16)


def test_weights_merged_before_saving_are_detected_with_the_base(base, whole, head, tmp_path):
    merged, expected = files.recyclelora_state(base, merged=True)
    path = files.save(tmp_path / "merged.pth", merged | files.published_head(head))
    run = import_checkpoint(path, "recyclelora", tmp_path / "run", str(base))
    assert not differ(expected, of_run(run)[0])
    assert "12 layers hold merged weights" in run.info["imported"]["note"]
    without = import_checkpoint(path, "recyclelora", tmp_path / "other")
    assert differ(expected, of_run(without)[0])


def test_weights_of_another_base_are_refused(whole, tmp_path):
    path = files.save(tmp_path / "model.pth", whole[0])
    other = files.base_weights(tmp_path / "other.pth", seed=9)
    refused(
        lambda: import_checkpoint(path, "recyclelora", tmp_path / "run", str(other)),
        path, "not trained from --base", "expected at most 7",
    )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_soma_adds_its_product_to_each_projection(base, head, tmp_path):
    state = files.soma_state(base)
    path = files.save(tmp_path / "soma.pth", state | files.published_head(head))
    run = import_checkpoint(path, "soma", tmp_path / "run", str(base))
    args = {**files.ARGS, "img_size": 512}
    own = files.Backbone(files.MODEL, str(base), norm=False, model_args=args, resample="published").model.state_dict()

    def merged(layer, rows=slice(None), place=None):
        up, down = (state[f"backbone.model.{layer}.lora_{side}.weight"].double().numpy() for side in "BA")
        return own[f"{place or layer}.weight"].double().numpy()[rows] + up @ down

    expected = {name: value.clone() for name, value in own.items()}
    for block in (1, 2):
        attention, c = f"blocks.{block}.attn", files.WIDTH
        parts = {part: slice(i * c, i * c + c) for i, part in enumerate("qkv")}
        fused = [merged(f"{attention}.{part}", rows, f"{attention}.qkv") for part, rows in parts.items()]
        expected[f"{attention}.qkv.weight"] = torch.tensor(np.concatenate(fused))
        expected[f"{attention}.qkv.bias"] = torch.cat([state[f"backbone.model.{attention}.{p}.bias"] for p in "qkv"])
        for layer in (f"{attention}.proj", f"blocks.{block}.mlp.fc1", f"blocks.{block}.mlp.fc2"):
            expected[f"{layer}.weight"] = torch.tensor(merged(layer))
            expected[f"{layer}.bias"] = state[f"backbone.model.{layer}.bias"]
    backbone = of_run(run)[0]
    assert not differ({name: value.float() for name, value in expected.items()}, backbone)
    assert differ(dict(own), backbone)
    assert run.info["imported"]["unused"] == ["backbone.model.mask_token", "decode_head.loss_cls.class_weight"]


def swapped(state, one, other):
    return {**state, one: state[other], other: state[one]}


def test_a_wrong_permutation_gives_another_model(base, head, tmp_path):
    state = files.soma_state(base) | files.published_head(head)
    right = of_run(import_checkpoint(files.save(tmp_path / "a.pth", state), "soma", tmp_path / "a", str(base)))
    place = "backbone.model.blocks.1.attn.{}.lora_B.weight"
    wrong = swapped(state, place.format("q"), place.format("k"))
    fused = "decode_head.transformer_decoder.layers.0.self_attn.attn.in_proj_weight"
    wrong[fused] = torch.cat([wrong[fused].chunk(3)[i] for i in (1, 0, 2)])
    other = of_run(import_checkpoint(files.save(tmp_path / "b.pth", wrong), "soma", tmp_path / "b", str(base)))
    assert differ(right[0], other[0]) == {"blocks.1.attn.qkv.weight"}
    attention = "transformer_module.decoder.layers.0.self_attn"
    assert differ(right[1], other[1]) == {f"{attention}.q_proj.weight", f"{attention}.k_proj.weight"}


def test_the_run_predicts_what_backbone_and_head_say(base, whole, head, tmp_path):
    from recyclelora.models.backbone import Backbone, pyramid_indices
    from recyclelora.models.segmenter import Segmenter

    state, expected = whole
    path = files.save(tmp_path / "model.pth", state)
    model = load(import_checkpoint(path, "recyclelora", tmp_path / "run").path, device="cpu")
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = load(tmp_path / "moved", device="cpu")
    backbone = Backbone(files.MODEL, "random", indices=pyramid_indices, norm=False, model_args=files.ARGS)
    backbone.model.load_state_dict(expected)
    own = Segmenter(backbone, head).eval()
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    with torch.no_grad():
        scores = own(torch.from_numpy(image).permute(2, 0, 1)[None])[0]
    assert np.mean(model.predict(image) == scores.argmax(0).numpy()) > 0.999
    assert np.array_equal(moved.predict(image), model.predict(image))
    assert model.plan("cityscapes").name == "soma-2048"


@pytest.mark.parametrize(
    ("spoil", "kind", "parts"),
    [
        (lambda s: s.pop("backbone.blocks.1.mlp.fc1.lora_B_sub"), "recyclelora", ["incomplete", "fc1.lora_B_sub"]),
        (lambda s: s.pop("backbone.blocks.1.mlp.fc1.lora_A_sub"), "recyclelora", ["incomplete", "fc1.lora_B_sub"]),
        (lambda s: s.pop("backbone.norm.weight"), "recyclelora", ["missing below backbone.: norm.weight"]),
        (lambda s: s.pop("backbone.pos_embed"), "recyclelora", ["no backbone.pos_embed"]),
        (lambda s: s.pop("decode_head.cls_embed.weight"), "recyclelora", ["head lacks 'class_predictor.weight'"]),
        (lambda s: s.pop("decode_head.query_embed.weight"), "recyclelora", ["missing below decode_head."]),
        (lambda s: [s.pop(n) for n in [*s] if "lora" in n], "recyclelora", ["no factors of RecycleLoRA"]),
        (lambda s: [s.pop(n) for n in [*s] if n.startswith("decode")], "recyclelora", ["holds no head"]),
        (
            lambda s: s.update({f"decode_head.cls_embed.{n}": torch.ones(9, 32)[:, i] for n, i in CLASSIFIER.items()}),
            "recyclelora", ["8 classes, expected the 19"],
        ),
        (lambda s: s, "soma", ["no soma backbone", "no name starts with backbone.model."]),
        (lambda s: s, "rein", ["kind 'rein'", "recyclelora, soma"]),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(spoil, kind, parts, whole, base, tmp_path):
    state = dict(whole[0])
    spoil(state)
    path = files.save(tmp_path / "model.pth", state)
    refused(lambda: import_checkpoint(path, kind, tmp_path / "run", str(base)), *parts)
    assert not (tmp_path / "run").exists()


def test_soma_needs_its_base_and_all_of_its_factors(base, head, tmp_path):
    state = files.soma_state(base) | files.published_head(head)
    path = files.save(tmp_path / "soma.pth", state)
    refused(lambda: import_checkpoint(path, "soma", tmp_path / "run"), path, "--base")
    state.pop("backbone.model.blocks.2.attn.v.bias")
    path = files.save(tmp_path / "soma.pth", state)
    refused(lambda: import_checkpoint(path, "soma", tmp_path / "run", str(base)), "blocks.2.attn.v.bias missing")
    state = {name: value for name, value in state.items() if not name.endswith("lora_A.weight")}
    path = files.save(tmp_path / "soma.pth", state)
    refused(lambda: import_checkpoint(path, "soma", tmp_path / "run", str(base)), "no factors of SoMA")


class Attack:
    def __reduce__(self):
        return os.system, ("touch attacked",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path, monkeypatch, whole):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": whole[0], "meta": Attack()}, tmp_path / "attack.pth")
    refused(lambda: read_checkpoint(tmp_path / "attack.pth"), "attack.pth", "it would make or run", "system")
    assert not (tmp_path / "attacked").exists()
    torch.load("attack.pth", weights_only=False)  # the file does hold the call
    assert (tmp_path / "attacked").exists()


TRAINING = """
import sys
import recyclelora  # before torchvision, which mmengine imports, where torch is a CPU build
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner

class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
    def forward(self, inputs, data_samples=None, mode="loss"):
        return {"loss": self.layer(torch.stack(inputs)).square().mean()}

Runner(
    Model(), sys.argv[1], log_level="ERROR",
    train_dataloader=dict(dataset=[{"inputs": torch.ones(2)}] * 4, batch_size=2, num_workers=0,
                          sampler=dict(type="DefaultSampler", shuffle=False)),
    train_cfg=dict(type="IterBasedTrainLoop", max_iters=2),
    optim_wrapper=dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3)),
    param_scheduler=[dict(type="PolyLR", by_epoch=False, end=2)],
    default_hooks=dict(checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=2),
                       logger=dict(type="LoggerHook", interval=1)),
).train()
"""


def test_a_file_that_mmengines_runner_wrote_is_read(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", TRAINING, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    file = tmp_path / "iter_2.pth"
    assert "getattr" in {op[1].split()[-1] for op in globals_of(file)}  # why such files were refused once
    state, step = read_checkpoint(file)
    assert step == 2
    assert {name: tuple(value.shape) for name, value in state.items()} == {"layer.weight": (2, 2), "layer.bias": (2,)}
    assert not torch.equal(state["layer.bias"], torch.zeros(2))


def globals_of(file):
    """What the pickle of a checkpoint names."""
    with zipfile.ZipFile(file) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        return [op for op in ((o.name, a) for o, a, _ in pickletools.genops(archive.read(name))) if op[0] == "GLOBAL"]


def test_a_getattr_in_a_file_looks_nothing_up(tmp_path, whole, monkeypatch):
    class Reaching:
        def __reduce__(self):
            return getattr, (torch.zeros(1), "data")

    torch.save({"state_dict": whole[0], "meta": {"iter": 3, "reached": Reaching()}}, tmp_path / "reaching.pth")
    looked_up = []
    monkeypatch.setattr(torch.Tensor, "data", property(looked_up.append))
    state, step = read_checkpoint(tmp_path / "reaching.pth")
    assert step == 3
    assert len(state) == len(whole[0])
    assert not looked_up


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"no checkpoint", ["not loaded"]),
        ({"weights": {}}, ["keys weights", "state_dict"]),
        ({"state_dict": {"a": 3}}, ["expected tensors in `state_dict`"]),
        (torch.ones(3), ["found Tensor"]),
    ],
)
def test_a_file_that_is_not_a_checkpoint_is_refused(content, parts, tmp_path):
    path = tmp_path / "file.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    refused(lambda: read_checkpoint(path), path, *parts)
    refused(lambda: read_checkpoint(tmp_path / "none.pth"), "no such file")


def test_nothing_is_overwritten_or_trained_on_unless_asked(whole, tmp_path):
    path = files.save(tmp_path / "model.pth", whole[0])
    run = import_checkpoint(path, "recyclelora", tmp_path / "run")
    refused(lambda: import_checkpoint(path, "recyclelora", run.path), "exists", "--overwrite")
    (run.path / "notes.txt").write_text("mine")
    import_checkpoint(path, "recyclelora", run.path, overwrite=True)
    assert (run.path / "notes.txt").read_text() == "mine"
    for how in ({"resume": True}, {"overwrite": True}, {}):
        refused(lambda how=how: train(run.recipe, run.path, **how), "sources", "at least 1")
    assert run.backbone.is_file()
    json.loads((run.path / "run.json").read_text())
    remove_run(run.path)
    assert [each.name for each in run.path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("kind", ["recyclelora", "soma"])
def test_an_imported_model_is_used_and_saved_like_any_other(kind, base, head, tmp_path):
    """It loads without its base, is evaluated, predicts and is saved again; only what needs a training is refused."""
    mine = tmp_path / "base.pth"
    mine.write_bytes(base.read_bytes())
    state = files.soma_state(base) if kind == "soma" else files.recyclelora_state(base)[0]
    file = files.save(tmp_path / "model.pth", state | files.published_head(head))
    run = import_checkpoint(file, kind, tmp_path / "run", str(mine))
    assert sorted(p.name for p in run.path.iterdir()) == [
        "backbone.safetensors", "head.safetensors", "recipe.yaml", "run.json",
    ]  # fmt: skip
    mine.unlink()
    file.unlink()
    model = load(run.path, device="cpu")
    target = f"cityscapes={make_cityscapes(tmp_path / 'cityscapes', count=1)}"
    settings = {"protocol": "full", "window": 64}
    scores = evaluate(run.path, [target], tmp_path / "scores.json", **settings)
    written = json.loads((tmp_path / "scores.json").read_text())
    assert (written["method"], written["step"]) == (kind, 40000)
    assert "model.pth" in (tmp_path / "scores.html").read_text()
    write(tmp_path / "new" / "a.png", shot(3, (64, 48)))
    assert len(predict(run.path, [tmp_path / "new"], tmp_path / "pictures").written) == 2

    saved = model.save(tmp_path / "again")
    assert (saved.step, saved.info["imported"]) == (40000, run.info["imported"])
    again = load(saved.path, device="cpu")
    assert again.run.trained_sha256 == model.run.trained_sha256
    image = shot(5, (80, 64))
    assert np.array_equal(again.predict(image), model.predict(image))
    repeated = evaluate(saved.path, [target], **settings)
    assert repeated.scores[0].to_json() == scores.scores[0].to_json()

    refused(lambda: analyze([run.path], tmp_path / "analysis.html"), run.path, "merged", "analyze the run of the")
    assert not (tmp_path / "analysis.html").exists()
    refused(lambda: train(run.recipe, tmp_path / "more"), "sources", "at least 1")
    assert not (tmp_path / "more").exists()


def test_a_step_that_the_file_does_not_say_stays_unknown(whole, tmp_path):
    path = files.save(tmp_path / "model.pth", whole[0], meta={"epoch": 3})
    run = import_checkpoint(path, "recyclelora", tmp_path / "run")
    assert run.step is None
    assert load(run.path, device="cpu").save(tmp_path / "again").step is None
