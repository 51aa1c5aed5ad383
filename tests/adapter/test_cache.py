"""Factors kept on disk: they are read again, and computed again if an entry is damaged."""

import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from matrices import matrix
from recyclelora import UserError
from recyclelora.adapter.cache import cache_folder, entry_of, factors_folder, load_factors, save_factors, through_cache
from recyclelora.adapter.factors import Factors, initial_factors

SETTINGS = (4, 2, "rrqr")
WEIGHT = matrix((16, 12))


def counted(weights, folder, settings=SETTINGS):
    """The factors, and how many of them were computed."""
    made = []

    def make(missing):
        made.extend(missing)
        return [initial_factors(weight, *settings) for weight in missing]

    return through_cache(folder, weights, settings, make), len(made)


def assert_same(a: Factors, b: Factors):
    for name in ("basis", "index", "rows"):
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None) == (y is None)
        assert x is None or torch.equal(x, y)


@pytest.mark.parametrize("decomposition", ["rrqr", "svd"])
def test_nothing_is_computed_the_second_time(tmp_path, decomposition):
    settings = (4, 2, decomposition)
    weights = [matrix((16, 12), seed) for seed in range(3)]
    first, made = counted(weights[:2], tmp_path, settings)
    assert made == 2
    again, made = counted(weights, tmp_path, settings)
    assert made == 1
    for weight, found, earlier in zip(weights, again, [*first, again[2]], strict=True):
        assert_same(found, earlier)
        assert_same(found, initial_factors(weight, *settings))


def test_each_weight_type_shape_rank_and_decomposition_has_an_entry(tmp_path):
    changed = WEIGHT.clone()
    changed[3, 4] += 1e-6
    weights = [WEIGHT, changed, WEIGHT.double(), WEIGHT.T, WEIGHT.T.contiguous().view(16, 12)]
    others = [(WEIGHT, (2, 4, "rrqr")), (WEIGHT, (4, 2, "svd"))]
    entries = [entry_of(tmp_path, weight, SETTINGS) for weight in weights]
    entries += [entry_of(tmp_path, weight, settings) for weight, settings in others]
    assert len(set(entries)) == len(entries)
    assert entry_of(tmp_path, WEIGHT.T.contiguous().T, SETTINGS) == entries[0]  # the same values in another order


def damaged(entry, how):
    content = entry.read_bytes()
    if how == "truncated":
        entry.write_bytes(content[: len(content) // 2])
    if how == "empty":
        entry.write_bytes(b"")
    if how == "one bit":
        entry.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    if how == "another weight's":
        other = matrix((16, 12), 7)
        save_factors(entry_of(entry.parent, other, SETTINGS), initial_factors(other, *SETTINGS))
        os.replace(entry_of(entry.parent, other, SETTINGS), entry)
    if how == "another program's":
        save_file(load_file(entry), entry)


@pytest.mark.parametrize("how", ["truncated", "empty", "one bit", "another weight's", "another program's"])
def test_a_damaged_or_foreign_entry_is_computed_again_and_replaced(tmp_path, how):
    (expected,), _ = counted([WEIGHT], tmp_path)
    (entry,) = tmp_path.iterdir()
    damaged(entry, how)
    with pytest.warns(UserWarning, match=f"{entry.name}: .*the factors are computed again"):
        (found,), made = counted([WEIGHT], tmp_path)
    assert made == 1
    assert_same(found, expected)
    assert_same(load_factors(entry), expected)
    assert [file.name for file in tmp_path.iterdir()] == [entry.name]


def test_the_cache_is_off_by_default(monkeypatch, tmp_path):
    monkeypatch.setenv("RECYCLELORA_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    assert factors_folder(asked=False) is None
    assert factors_folder(asked=True) == tmp_path / "factors"
    for value, on in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv("RECYCLELORA_CACHE_FACTORS", value)
        assert (factors_folder(asked=False) is not None) == on


def test_a_folder_that_cannot_be_written_to_is_an_error_with_its_fix(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="set RECYCLELORA_CACHE to a folder that you can write to"):
        counted([WEIGHT], tmp_path / "file")
