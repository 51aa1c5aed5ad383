"""A run is exported for other programs, which compute what the model computes; else nothing is written."""

import json
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

import recyclelora
from labelled_files import refused
from miniatures import TINY, write_folder
from recyclelora import files
from recyclelora.errors import UserError
from recyclelora.exporting import export as verb
from recyclelora.exporting.check import compared
from recyclelora.exporting.trained import Trained
from recyclelora.models.backbone import Backbone
from recyclelora.runs.predictor import load
from tiny_methods import images, made_run, tiny_recipe

RUN_FILES = ["backbone.safetensors", "export.json", "head.safetensors", "recipe.yaml", "run.json"]
SLOW = ("linear", "mask2former")
ADAPTER_FILES = ["adapter_config.json", "adapter_model.safetensors", "export.json", "head.safetensors"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    torch.manual_seed(3)
    file = tmp_path_factory.mktemp("base") / "base.safetensors"
    save_file(Backbone(TINY["model"], "random", model_args=TINY["model_args"]).model.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def run_of(base, tmp_path_factory):
    """Finished runs of each method and head, made once."""
    made, town = {}, write_folder(tmp_path_factory.mktemp("source") / "town", size=(60, 80))

    def get(method="recyclelora", head="linear"):
        if (method, head) not in made:
            values = {"backbone": {**TINY, "weights": str(base)}, "sources": [f"folder={town}"]}
            recipe = tiny_recipe(method, head, **values)
            made[method, head], _ = made_run(tmp_path_factory.mktemp(method) / "run", recipe)
        return made[method, head]

    return get


def facts(folder):
    return json.loads((folder / "export.json").read_text())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def plain_base(base, folder):
    """The base as timm alone builds it, by what `export.json` says."""
    model = timm.create_model(**facts(folder)["timm"])
    model.load_state_dict(load_file(base))
    return model.eval()


def features(model, side=32):
    with torch.no_grad():
        return model.forward_features(torch.linspace(-2, 2, 2 * 3 * side**2).view(2, 3, side, side))


def named_folders(folder):
    """The files that name the folder of this package or of another, or of a test."""
    own = [str(file).encode() for file in (Path(recyclelora.__file__).parent, Path(timm.__file__).parent.parent)]
    return [file.name for file in folder.iterdir() if any(name in file.read_bytes() for name in own)]


@pytest.fixture
def picture(tmp_path):
    folder = write_folder(tmp_path / "town", count=1, size=(70, 90))
    return folder / "images" / "00.jpg"


@pytest.mark.parametrize("method", ["recyclelora", "full"])
def test_plain_timm_loads_the_backbone_of_a_merged_export(method, run_of, tmp_path):
    made = recyclelora.export(run_of(method).path, tmp_path / "out")
    assert names(made.path) == made.files == RUN_FILES
    backbone = timm.create_model(**facts(made.path)["timm"])
    backbone.load_state_dict(load_file(made.path / "backbone.safetensors"), strict=True)
    model = load(run_of(method).path, device="cpu")
    for side in (32, 64):
        assert torch.equal(features(backbone.eval(), side), features(model.segmenter.backbone.model, side))
    again = recyclelora.load(made.path, device="cpu")
    image = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    assert np.array_equal(again.predict(image), model.predict(image))


def test_a_merged_export_names_no_folder(base, tmp_path):
    town = write_folder(tmp_path / "town")
    sources = [f"folder={town}", {"data": f"a:folder={town}", "images": 2}, "streets:fog=scenes"]
    targets = ["streets", f"gtav={tmp_path}", "camvid"]
    values = {"backbone": {**TINY, "weights": str(base)}, "sources": sources, "targets": targets}
    run, _ = made_run(tmp_path / "run", tiny_recipe("recyclelora", **values))
    made = recyclelora.export(run.path, tmp_path / "out")
    assert not [file.name for file in made.path.iterdir() if str(tmp_path.parent).encode() in file.read_bytes()]
    recipe = recyclelora.load(made.path).run.recipe
    assert [source.data for source in recipe.sources] == ["folder=town", "a:folder=town", "streets:fog"]
    assert (recipe.sources[1].images, recipe.targets) == (2, ["streets", "gtav", "camvid"])
    assert recipe.backbone.weights == base.name
    assert load(run.path).run.recipe.targets == targets


def test_an_export_that_timm_cannot_build_says_so(run_of, tmp_path):
    made = recyclelora.export(run_of("rein").path, tmp_path / "out")
    assert facts(made.path)["timm"] is None
    assert recyclelora.load(made.path).run.recipe.method == "rein"


@pytest.mark.parametrize(
    ("method", "format"),
    [("recyclelora", "peft"), ("recyclelora", "lora"), ("soma", "lora"), ("dora", "lora"), ("qr-lora", "peft")],
)
def test_peft_itself_loads_an_adapter(method, format, run_of, base, tmp_path):
    run = run_of(method)
    made = recyclelora.export(run.path, tmp_path / "out", format)
    assert names(made.path) == made.files == ADAPTER_FILES
    config = json.loads((made.path / "adapter_config.json").read_text())
    own = format == "peft" and method in ("recyclelora", "soma")
    assert config["peft_type"] == facts(made.path)["peft_type"] == ("RECYCLELORA" if own else "LORA")
    untrained = features(plain_base(base, made.path))
    adapted = PeftModel.from_pretrained(plain_base(base, made.path), made.path)
    expected = features(load(run.path, device="cpu").segmenter.backbone.model)
    torch.testing.assert_close(features(adapted.get_base_model()), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(untrained, expected, atol=1e-3)
    head = load_file(made.path / "head.safetensors")
    assert {key: value.tolist() for key, value in head.items()} == {
        key: value.tolist() for key, value in load_file(run.head).items()
    }


@pytest.mark.parametrize(("method", "format"), [("frozen", "peft"), ("full", "lora"), ("rein", "lora")])
def test_a_method_without_an_adapter_is_refused(method, format, run_of, tmp_path):
    fix = "--format merged, onnx or torch"
    refused(lambda: recyclelora.export(run_of(method).path, tmp_path / "out", format), f"method {method} has no", fix)
    assert names(tmp_path) == []


def test_a_merged_run_has_no_adapter_to_export(run_of, tmp_path):
    saved = recyclelora.export(run_of().path, tmp_path / "saved").path
    refused(lambda: recyclelora.export(saved, tmp_path / "out", "lora"), saved, "no adapter", "--format merged")
    assert names(tmp_path) == ["saved"]
    assert recyclelora.export(saved, tmp_path / "twice").parity.difference == 0


def test_the_checkpoint_of_a_training_that_is_not_finished_is_exported(base, tmp_path):
    town = write_folder(tmp_path / "town", classes=("ground", "sky"))
    values = {"sources": [f"folder={town}"], "validation": {"every": 1, "images": 1}}
    recipe = tiny_recipe("recyclelora", backbone={**TINY, "weights": str(base)}, **values)
    run = recyclelora.train(recipe, tmp_path / "run")
    best = recyclelora.export(run.path, tmp_path / "best", "lora", checkpoint="best-source")
    assert (facts(best.path)["checkpoint"], facts(best.path)["step"]) == (
        "best-source",
        load(run.path, checkpoint="best-source").run.step,
    )
    assert "images of town" in best.parity.images


@pytest.mark.parametrize("head", ["concat", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_program_of_torch_takes_any_number_of_windows(head, run_of, tmp_path):
    made = recyclelora.export(run_of("recyclelora", head).path, tmp_path / "out", "torch", window=64)
    assert names(made.path) == made.files == ["export.json", "model.pt2"]
    assert not named_folders(made.path)
    program = torch.export.load(made.path / "model.pt2").module()
    model = load(run_of("recyclelora", head).path, device="cpu").segmenter
    for count in (1, 3):
        with torch.no_grad():
            torch.testing.assert_close(program(images(count, 64)), model(images(count, 64)), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no limit of a file's size")
def test_a_full_disk_is_one_line_and_ends_no_process(run_of, tmp_path):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    try:
        refused(lambda: recyclelora.export(run_of().path, tmp_path / "out", "torch"), tmp_path / "out" / "model.pt2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == []


ALONE = """
import sys
sys.modules.update(dict.fromkeys(("recyclelora", "timm", "peft", "transformers", "cv2")))  # importing them fails
import torch
program = torch.export.load(sys.argv[1]).module()
torch.save(program(torch.load(sys.argv[2])), sys.argv[3])
"""


@pytest.mark.slow
def test_a_program_of_torch_runs_with_torch_alone(run_of, tmp_path):
    made = recyclelora.export(run_of("recyclelora", "mask2former").path, tmp_path / "out", "torch", window=64)
    torch.save(images(3, 64), tmp_path / "images.pt")
    arguments = [made.path / "model.pt2", tmp_path / "images.pt", tmp_path / "logits.pt"]
    subprocess.run([sys.executable, "-c", ALONE, *arguments], check=True, cwd=tmp_path)
    with torch.no_grad():
        expected = load(run_of("recyclelora", "mask2former").path, device="cpu").segmenter(images(3, 64))
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, atol=1e-5, rtol=1e-5)


def test_what_torch_cannot_write_is_one_line(run_of, tmp_path, monkeypatch):
    def export(*_, **options):
        raise RuntimeError("many\nlines") from NotImplementedError("no such\noperator")

    monkeypatch.setattr(torch.export, "export", export)
    words = ("vit_tiny_patch16_224 with the head linear (NotImplementedError: no such operator)", "another --format")
    refused(lambda: recyclelora.export(run_of().path, tmp_path / "out", "torch"), *words)
    assert names(tmp_path) == []


# The check


def test_an_export_is_checked_on_images_of_the_source(run_of, tmp_path):
    parity = recyclelora.export(run_of().path, tmp_path / "out", "lora").parity
    assert facts(tmp_path / "out")["check"]["images"] == parity.images == "4 images of town"
    assert 0 < parity.difference < parity.logits < 1e-5 < parity.largest
    assert parity.agreement == 1
    assert parity.pixels == 4 * (32 + 21) ** 2  # window and stride


def test_an_export_is_checked_on_given_images(run_of, picture, tmp_path):
    parity = recyclelora.export(run_of().path, tmp_path / "out", images=[picture], window=48, stride=16).parity
    assert (parity.images, parity.pixels) == ("00.jpg", (48 + 16) ** 2)
    settings = facts(tmp_path / "out")
    assert (settings["window"], settings["stride"]) == (48, 16)
    assert recyclelora.load(tmp_path / "out").plan().stride == 16


def with_fault(added, order=(0, 1, 2)):
    """A writer whose export adds this to the logits of the first class, and mixes up the classes."""

    def write(trained, folder):
        own = trained.scores()
        (folder / "half").write_text("written")
        return lambda image: (own(image) + np.array([added, 0, 0], np.float32)[:, None, None])[list(order)]

    return write


@pytest.mark.parametrize("write", [with_fault(0.02), with_fault(np.nan), with_fault(0, (1, 0, 2))])
def test_an_export_that_is_not_the_model_is_refused(write, run_of, tmp_path, monkeypatch):
    monkeypatch.setitem(verb.WRITERS, "torch", write)
    refused(lambda: recyclelora.export(run_of().path, tmp_path / "out", "torch"), "is not the model", "4 images of")
    assert names(tmp_path) == []


def test_a_difference_counts_by_what_it_does_to_probabilities(run_of):
    trained = Trained(load(run_of().path, device="cpu"), run_of())
    logits = np.tile(np.array([40.0, 38.0], np.float32)[:, None, None], (1, 8, 8))
    images = [np.zeros((8, 8, 3), np.uint8)]
    for added, sound in ((2e-3, True), (2e-2, False)):
        other = logits + np.array([added, 0], np.float32)[:, None, None]
        parity = compared(
            lambda image: logits, lambda image, other=other: other, trained.probabilities, images, "zeros"
        )
        slope = np.exp(2) / (1 + np.exp(2)) ** 2  # of the probability by the logit
        assert parity.difference == pytest.approx(added * slope, rel=0.02)
        assert parity.logits == pytest.approx(added, rel=1e-2)
        assert (parity.agreement, parity.sound) == (1, sound)


@pytest.mark.parametrize("change", [{"blend": "hann"}, {"flip": True}, {"scales": [1.0, 1.5]}])
def test_an_export_takes_one_view_whose_windows_count_alike(change, run_of):
    run = run_of()
    model, image = load(run.path, device="cpu"), np.random.default_rng(0).integers(0, 256, (96, 120, 3), np.uint8)
    plain, changed = (Trained(each, run) for each in (model, model.with_evaluation(**change)))
    assert changed.model.plan() != changed.plan
    assert changed.plan.window < 96  # several windows, which overlap
    assert np.array_equal(plain.scores()(image), changed.scores()(image))


def test_a_change_of_classes_is_refused_however_small_it_is():
    even = np.zeros((2, 10, 100), np.float32)
    other = even.copy()
    images = [np.zeros((10, 100, 3), np.uint8)]
    for changed, sound in ((1, True), (2, False)):  # of 1,000 pixels
        other[1, 0, :changed] = 1e-6
        parity = compared(lambda image: even, lambda image: other, lambda logits: logits, images, "zeros")
        assert (parity.agreement, parity.sound) == (1 - changed / 1000, sound)


# Where it is written


def test_nothing_is_overwritten_unless_asked(run_of, tmp_path):
    out = tmp_path / "out"
    recyclelora.export(run_of().path, out, "peft")
    (out / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in out.iterdir()}
    refused(lambda: recyclelora.export(run_of().path, out), out, "--overwrite", "--to")
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    recyclelora.export(run_of().path, out, overwrite=True)
    assert names(out) == sorted([*RUN_FILES, "notes.txt"])
    recyclelora.load(out)
    recyclelora.export(run_of().path, out, "lora", overwrite=True)
    assert names(out) == sorted([*ADAPTER_FILES, "notes.txt"])
    assert facts(out)["files"] == ADAPTER_FILES


def test_only_what_an_export_wrote_is_replaced(run_of, tmp_path):
    training = made_run(tmp_path / "training", run_of().recipe)[0].path
    project = tmp_path / "project"
    project.mkdir()
    (project / "README.md").write_text("mine")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    for place, name, options in (
        (training, "head.safetensors", {"format": "merged"}),
        (project, "README.md", {"format": "lora", "to_hub": "me/streets"}),
    ):
        with pytest.raises(UserError, match="no export wrote this file") as found:
            recyclelora.export(run_of().path, place, overwrite=True, **options)
        assert str(found.value).startswith(f"{place / name}: ")
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    recyclelora.export(run_of().path, project, "lora", overwrite=True)
    refused(lambda: recyclelora.export(run_of().path, project, "lora", overwrite=True, to_hub="me/x"), "README.md")
    recyclelora.export(run_of().path, project, "peft", overwrite=True)
    assert (project / "README.md").read_text() == "mine"


def test_an_export_that_was_stopped_while_it_took_its_place_is_replaced(run_of, tmp_path, monkeypatch):
    out = tmp_path / "out"
    recyclelora.export(run_of().path, out)
    unlisted = {key: value for key, value in facts(out).items() if key != "files"}  # as once written
    (out / "export.json").write_text(json.dumps(unlisted))
    with monkeypatch.context() as patch:
        real = files.os.replace

        def replace(source, target):
            if Path(target).name == "head.safetensors" and Path(target).parent == out:
                raise KeyboardInterrupt
            real(source, target)

        patch.setattr(files.os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            recyclelora.export(run_of().path, out, "lora", overwrite=True)
    assert names(out) == ["adapter_config.json", "adapter_model.safetensors", "export.json"]
    recyclelora.export(run_of().path, out, "merged", overwrite=True)
    assert names(out) == RUN_FILES


@pytest.mark.parametrize("format", ["merged", "lora"])
def test_the_run_itself_is_never_replaced(format, run_of):
    run = run_of()
    for place in (".", "adapter"):
        refused(lambda: recyclelora.export(run.path, run.path / place, format, overwrite=True), "the run itself")  # noqa: B023
    assert load(run.path).run.recipe.method == "recyclelora"
    for overwrite in (False, True):
        recyclelora.export(run.path, run.path / f"exported-{format}", format, overwrite=overwrite)
    assert load(run.path).run.recipe.method == "recyclelora"


def test_the_present_folder_can_be_named(run_of, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    recyclelora.export(run_of().path, ".", "lora")
    assert names(tmp_path / "out") == ADAPTER_FILES
    assert names(tmp_path) == ["out"]


def test_the_command_line_offers_all_formats():
    from recyclelora import cli

    (offered, _) = typing.get_args(typing.get_type_hints(cli.export, include_extras=True)["format"])
    assert typing.get_args(offered) == typing.get_args(verb.Format) == tuple(verb.WRITERS)


def test_an_unknown_format_is_named(run_of, tmp_path):
    refused(lambda: recyclelora.export(run_of().path, tmp_path / "out", "onx"), "onx", "did you mean 'onnx'")


def test_an_export_is_no_run(run_of, tmp_path):
    recyclelora.export(run_of().path, tmp_path / "out", "lora")
    refused(lambda: recyclelora.load(tmp_path / "out"), tmp_path / "out", "--format merged")


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_before_anything_is_computed(name, run_of, tmp_path, monkeypatch):
    from recyclelora.exporting import onnx_model

    monkeypatch.setattr(onnx_model, "find_spec", lambda asked: None if asked == name else object())
    refused(lambda: recyclelora.export(run_of().path, tmp_path / "out", "onnx"), name, "recyclelora[export]")
    assert names(tmp_path) == []


def test_the_verb_prints_what_was_written_and_checked(run_of, tmp_path, monkeypatch, capsys):
    from recyclelora.cli import app

    app(["export", str(run_of().path), "--to", str(tmp_path / "out")], standalone_mode=False)
    written, checked = capsys.readouterr().out.splitlines()
    assert written == f"written: {', '.join(RUN_FILES)} in {tmp_path / 'out'}"
    assert checked.startswith("checked on 4 images of town: largest difference 0.0e+00 of probabilities")
    assert "100.00 % of 11,236 pixels have the same class" in checked
