"""The script beside an ONNX model takes the windows of the plan, and runs where there is no torch."""

import json
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import recyclelora
from miniatures import TINY, write_folder
from recyclelora.exporting import sliding
from recyclelora.models.plan import Plan
from recyclelora.models.sliding import summed_scores
from recyclelora.runs.predictor import load
from tiny_methods import NAMES, images, made_run, tiny_recipe

ROOT = Path(__file__).parents[2]
PACKAGES = ("numpy", "pillow", "onnxruntime")


def picture(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def forward(windows):
    """Two logits per pixel, which depend on its colour and on its place in the window."""
    place = np.arange(windows[0][0].size, dtype=np.float32).reshape(windows[0][0].shape)
    first = windows.astype(np.float32).mean(1) + place / 7
    return np.stack([first, windows[:, 0] - place / 3], 1)


@pytest.mark.parametrize("size", [(32, 32), (33, 71), (80, 64), (100, 33)])
@pytest.mark.parametrize(("window", "stride", "batch_size"), [(32, 21, 4), (32, 32, 1), (32, 7, 3)])
def test_windows_and_their_average_are_those_of_the_model(size, window, stride, batch_size):
    image = picture(size)
    plan = Plan("full", window, stride, batch_size=batch_size)
    expected = summed_scores(lambda windows: torch.from_numpy(forward(windows.numpy())), image, plan, 16, "cpu")
    found = sliding.scores(forward, image, window, stride, batch_size)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("size", [(20, 50), (50, 20), (7, 9)])
def test_a_small_image_is_extended_to_a_window(size):
    image = picture(size)
    height, width = (max(32, side) for side in size)
    extended = image[np.minimum(np.arange(height), size[0] - 1)][:, np.minimum(np.arange(width), size[1] - 1)]
    expected = sliding.scores(forward, extended, 32, 21)[:, : size[0], : size[1]]
    assert np.array_equal(sliding.scores(forward, image, 32, 21), expected)


def test_images_are_read_upright_as_rgb(tmp_path):
    grey = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    grey.save(tmp_path / "a.png", exif=exif)
    found = sliding.read_image(tmp_path / "a.png")
    assert np.array_equal(found[..., 0], np.rot90(np.asarray(grey), -1))
    assert found.shape == (4, 3, 3)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_grey_values_of_more_than_8_bits_are_refused(dtype, tmp_path):
    Image.fromarray(np.full((3, 4), 200, dtype)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif: an image of mode .*, expected 8 bits per channel"):
        sliding.read_image(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("image", "options", "words"),
    [
        ("gone.png", [], "gone.png"),
        ("text.png", [], "cannot identify image file"),
        ("deep.png", [], "expected 8 bits per channel"),
        ("a.png", ["--int8"], "model-int8.onnx is missing; export it with --int8"),
    ],
)
def test_the_script_names_what_is_wrong_in_one_line(image, options, words, tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("hello")
    Image.fromarray(np.full((3, 4), 200, np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(picture((3, 4))).save(tmp_path / "a.png")
    (tmp_path / "export.json").write_text('{"window": 32, "stride": 21, "batch_size": 1}')
    (tmp_path / "model.onnx").write_bytes(b"")
    monkeypatch.setattr(sliding, "__file__", str(tmp_path / "sliding.py"))
    monkeypatch.setattr(sliding, "open_model", lambda file: forward)
    monkeypatch.setattr(sys, "argv", ["sliding.py", str(tmp_path / image), str(tmp_path / "labels.png"), *options])
    with pytest.raises(SystemExit, match=words) as found:
        sliding.main()
    assert str(found.value).startswith("error: ")
    assert "\n" not in str(found.value)
    assert not (tmp_path / "labels.png").exists()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("source") / "town", size=(90, 120), classes=NAMES)


def exported(head, method, source, folder, **options):
    values = {"backbone": {**TINY, "weights": "random"}, "sources": [f"folder={source}"]}
    values |= {"evaluation": {"blend": "hann"}} if head == "concat" else {}  # which is not exported
    recipe = tiny_recipe(method, head, **values)
    run, _ = made_run(folder / "run", recipe)
    made = recyclelora.export(run.path, folder / "out", "onnx", window=64, **options)
    return load(run.path, device="cpu").with_evaluation(window=64), made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "method"),
    [
        ("linear", "recyclelora"),
        ("concat", "lora"),
        ("mask2former", "recyclelora"),
        ("mask2former", "rein"),
        ("eomt", "dora"),
        ("eomt", "rein"),
    ],
)
def test_every_head_is_exported_for_any_number_of_windows(head, method, source, tmp_path, capfd):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, made = exported(head, method, source, tmp_path)
    assert capfd.readouterr() == ("", "")
    assert made.files == ["export.json", "model.onnx", "sliding.py"]
    assert made.parity.logits < 1e-5
    assert made.parity.agreement == 1
    content = (made.path / "model.onnx").read_bytes()
    assert not [place for place in (ROOT, Path(torch.__file__).parent) if str(place).encode() in content]
    stored = onnx.load(made.path / "model.onnx")
    assert {each.domain: each.version for each in stored.opset_import}[""] == 20
    session = runtime.InferenceSession(made.path / "model.onnx")
    (given,), (given_back,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape[1:]) == ("images", "tensor(uint8)", [3, 64, 64])
    assert (given_back.name, given_back.type) == ("logits", "tensor(float)")
    for count in (1, 5):
        found = session.run(None, {"images": images(count, 64, seed=count).numpy()})[0]
        with torch.no_grad():
            expected = model.segmenter(images(count, 64, seed=count)).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_attention_of_three_dimensions_is_exported(source, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    sizes = {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3}
    backbone = {"model": "samvit_base_patch16", "weights": "random", "model_args": sizes, "norm": False}
    recipe = tiny_recipe("lora", backbone=backbone, sources=[f"folder={source}"], crop=64)
    run, _ = made_run(tmp_path / "run", recipe)
    made = recyclelora.export(run.path, tmp_path / "out", "onnx")
    assert made.parity.logits < 1e-5
    given = images(3, 64, seed=3)
    with torch.no_grad():
        expected = load(run.path, device="cpu").segmenter(given).numpy()
    found = sliding.open_model(made.path / "model.onnx")(given.numpy())
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "mask2former"])
def test_products_with_weights_are_of_8_bits(head, source, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, made = exported(head, "recyclelora", source, tmp_path, int8=True)
    assert made.files == ["export.json", "model-int8.onnx", "model.onnx", "sliding.py"]
    settings = json.loads((made.path / "export.json").read_text())
    assert settings["int8"]["text"] == str(made.int8)
    assert made.int8.labelled.startswith("1 image of town (split train, which were trained on")
    assert made.int8.size < 0.7
    graph = onnx.load(made.path / "model-int8.onnx").graph
    weights = {each.name for each in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    assert not [node.name for node in products if node.input[1] in weights]  # only activations by activations
    wide = [node for node in graph.node if node.op_type == "MatMulInteger"]
    assert len(wide) >= 2 * 4 + (head == "mask2former") * 10  # four per block, and those of the decoders
    forward = sliding.open_model(made.path / "model-int8.onnx", threads=1)
    given = images(3, 64, seed=5)
    with torch.no_grad():
        expected = model.segmenter(given).numpy()
    found = forward(given.numpy())
    assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()
    again = recyclelora.export(tmp_path / "run", tmp_path / "out", "onnx", window=64, overwrite=True)
    assert again.files == ["export.json", "model.onnx", "sliding.py"]
    assert sorted(file.name for file in made.path.iterdir()) == again.files


@pytest.mark.slow
def test_the_script_runs_without_torch_and_finds_what_the_model_finds(source, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, made = exported("mask2former", "recyclelora", source, tmp_path, int8=True)
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    install = [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", *PACKAGES]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no package index: {done.stderr.strip().splitlines()[-1]}")
    there = [python, "-c", "import importlib.util as u; print([n for n in ('torch', 'timm', 'cv2') if u.find_spec(n)])"]
    assert subprocess.check_output(there, text=True).strip() == "[]"
    for number, size in enumerate([(64, 64), (101, 150), (64, 200)]):
        image = picture(size, seed=number)
        Image.fromarray(image).save(tmp_path / "image.png")
        script = [python, made.path / "sliding.py", tmp_path / "image.png", tmp_path / "labels.png"]
        subprocess.run(script, check=True, cwd=tmp_path / "env")
        labels = np.asarray(Image.open(tmp_path / "labels.png"))
        expected = model.predict(image)
        assert labels.shape == expected.shape
        assert (labels == expected).mean() > 0.999
        subprocess.run([*script, "--int8"], check=True, cwd=tmp_path / "env")
        quantised = np.asarray(Image.open(tmp_path / "labels.png"))
        assert 0.9 < (quantised == expected).mean() < 1
        assert len(np.unique(expected)) > 1
