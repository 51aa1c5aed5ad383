"""Checkpoints come back as they were, are whole or absent, and hold nothing that runs."""

import errno
import json
import os
import random
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from labelled_files import refused
from recyclelora.errors import UserError
from recyclelora.runs.checkpoint import read_state, write_state

FLIPS = int(os.environ.get("RECYCLELORA_FLIPS", "100"))
"""Bits flipped in a checkpoint."""

STATE = {"weight": torch.arange(6.0).reshape(2, 3), "step": 3}


def same(a, b):
    """Whether two nested values are equal in value and type."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        pairs = zip(a.items(), b.items(), strict=False)
        return len(a) == len(b) and all(same(k, m) and same(v, w) for (k, v), (m, w) in pairs)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def back(value, path):
    write_state(path, value)
    return read_state(path)


tensors = st.builds(
    lambda shape, dtype, seed: (9 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(
        [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
    ),
    st.integers(0, 99),
)
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text('aé"\\\n{') | tensors
keys = st.integers() | st.text("abc.", max_size=4)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.dictionaries(keys, inner, max_size=3) | st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple)
    ),
    max_leaves=12,
)


@given(st.dictionaries(keys, trees, max_size=4))
@settings(max_examples=100, deadline=None)
def test_nested_values_come_back_with_their_types_and_bits(tmp_path_factory, state):
    assert same(back(state, tmp_path_factory.getbasetemp() / "state.safetensors"), state)


def test_an_optimiser_goes_on_from_its_checkpoint(tmp_path):
    def optimiser():
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        return model, torch.optim.AdamW([{"params": [p], "name": n} for n, p in model.named_parameters()], lr=0.1)

    def step(model, optimizer):
        optimizer.zero_grad()
        model(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()

    model, optimizer = optimiser()
    step(model, optimizer)
    loaded = back({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "a")
    step(model, optimizer)
    other, resumed = optimiser()
    other.load_state_dict(loaded["model"])
    resumed.load_state_dict(loaded["optimizer"])
    step(other, resumed)
    assert same(dict(other.state_dict()), dict(model.state_dict()))


def test_views_of_one_storage_come_back_each_with_its_own_values(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    state = {"whole": whole, "again": whole, "row": whole[1], "turned": whole.T, "strided": whole[:, ::2]}
    assert same(back(state, tmp_path / "a"), state)


def test_what_is_kept_is_the_value_and_not_the_graph(tmp_path):
    weight = nn.Parameter(torch.ones(2))
    loaded = back({"weight": weight, "sum": weight.sum()}, tmp_path / "a")
    assert not any(value.requires_grad for value in loaded.values())
    assert loaded["weight"].tolist() == [1, 1]


def test_types_and_devices_are_kept_as_their_names(tmp_path):
    assert back({"dtype": torch.bfloat16, "device": torch.device("cpu")}, tmp_path / "a") == {
        "dtype": "torch.bfloat16", "device": "cpu",
    }  # fmt: skip


def test_infinity_and_nan_come_back(tmp_path):
    best, worst = back({"scores": [float("inf"), float("nan")]}, tmp_path / "a")["scores"]
    assert best == float("inf")
    assert worst != worst


# The file


def test_folders_are_made_and_a_checkpoint_is_replaced(tmp_path):
    path = tmp_path / "runs" / "checkpoints" / "last.safetensors"
    write_state(path, {"step": 1})
    assert back(STATE, path).keys() == STATE.keys()
    assert list(path.parent.iterdir()) == [path]


def test_the_file_is_json_and_bytes_of_tensors_and_nothing_else(tmp_path):
    path = tmp_path / "a.safetensors"
    write_state(path, {"state": [STATE], "note": "text"})
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    skeleton = json.loads(header.pop("__metadata__")["skeleton"])
    assert "text" in json.dumps(skeleton)
    (name,) = header
    assert content[8 + length :] == STATE["weight"].numpy().tobytes()
    with safe_open(path, "pt") as file:
        assert torch.equal(file.get_tensor(name), STATE["weight"])


def half_written(tensors, path, metadata):
    path.write_bytes(b"half a file")
    raise OSError(errno.ENOSPC, "disk full")


def not_renamed(source, target):
    raise OSError(errno.ENOSPC, "disk full")


@pytest.mark.parametrize(
    ("step", "failing"), [("safetensors.torch.save_file", half_written), ("recyclelora.files.os.replace", not_renamed)]
)
def test_a_failure_while_writing_leaves_the_old_checkpoint_or_none(tmp_path, monkeypatch, step, failing):
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    write_state(old, STATE)
    with monkeypatch.context() as patch:
        patch.setattr(step, failing)
        for path in (old, new):
            refused(lambda path=path: write_state(path, {"step": 4}), path, "disk full", "free disk space")
    assert same(read_state(old), STATE)
    assert list(tmp_path.glob("*.safetensors")) == [old]
    assert [back({"step": 5}, path) for path in (old, new)] == [{"step": 5}] * 2
    assert set(tmp_path.iterdir()) == {old, new}


class Home(nn.Module):
    def __reduce__(self):
        return print, ("runs while loading",)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"callbacks": [1, {"best": Home()}]}, r"cannot hold Home \(at /callbacks/1/best\)"),
        ({"loops": ({1, 2},)}, r"cannot hold set \(at /loops/0\)"),
        ({"bytes": b"x"}, r"cannot hold bytes \(at /bytes\)"),
        ({"a": {frozenset(): 1}}, r"cannot hold frozenset \(at /a\)"),
        (Home(), r"cannot hold Home \(at its top\)"),
    ],
)
def test_other_objects_are_refused_and_the_old_checkpoint_stays(tmp_path, state, message):
    path = tmp_path / "a.safetensors"
    write_state(path, STATE)
    with pytest.raises(TypeError, match=message):
        write_state(path, state)
    assert same(read_state(path), STATE)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("damage", [b"", b"no checkpoint at all", b"\0" * 64])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "a.safetensors"
    path.write_bytes(damage)
    refused(lambda: read_state(path), path, "not a checkpoint of this program", "--overwrite")


def test_a_cut_file_is_named(tmp_path):
    path = tmp_path / "a.safetensors"
    write_state(path, STATE)
    path.write_bytes(path.read_bytes()[:-1])
    refused(lambda: read_state(path), path, "not a checkpoint of this program")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"skeleton": "{"}])
def test_another_safetensors_file_is_not_a_checkpoint(tmp_path, metadata):
    path = tmp_path / "head.safetensors"
    save_file({"weight": torch.ones(2)}, path, metadata=metadata)
    refused(lambda: read_state(path), path, "not a checkpoint of this program")


def test_every_flipped_bit_is_noticed_or_harmless(tmp_path):
    path = tmp_path / "a.safetensors"
    state = {"state_dict": {"weight": torch.randn(9, 7), "bias": torch.arange(5)}, "loops": [1, (2.5, "text")]}
    write_state(path, state)
    content, rng, noticed = path.read_bytes(), random.Random(0), 0
    for _ in range(FLIPS):
        changed, position = bytearray(content), rng.randrange(8 * len(content))
        changed[position // 8] ^= 1 << position % 8
        path.write_bytes(changed)
        try:
            assert same(read_state(path), state)
        except UserError as error:
            assert str(path) in str(error)  # noqa: PT017  the other outcome is right as well
            noticed += 1
    print(FLIPS, noticed)
    assert noticed > 0.9 * FLIPS


def test_a_checkpoint_states_its_own_hash(tmp_path):
    path = tmp_path / "a.safetensors"
    write_state(path, STATE)
    with safe_open(path, "pt") as file:
        skeleton, weights = file.metadata()["skeleton"], {"0": file.get_tensor("0")}
    save_file(weights, path, {"skeleton": skeleton})
    refused(lambda: read_state(path), path, "not a checkpoint of this program", "sha256")
    save_file({"0": weights["0"] + 1}, path, {"skeleton": skeleton, "sha256": "0" * 64})
    refused(lambda: read_state(path), path, "damaged", "it states 000000000000")


@pytest.mark.parametrize(
    "state", [{1: torch.zeros(1), "1": torch.ones(1)}, {"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}}]
)
def test_keys_that_look_alike_keep_their_own_tensors(tmp_path, state):
    write_state(tmp_path / "a", state)
    assert str(read_state(tmp_path / "a")) == str(state)


def test_a_skeleton_without_its_tensors_is_named(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "a"
    save_file({"x": torch.ones(1)}, path, metadata={"skeleton": json.dumps({"tensor": "/y"})})
    refused(lambda: read_state(path), path, "not a checkpoint")
