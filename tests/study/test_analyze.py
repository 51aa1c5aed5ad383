"""The analysis of runs: figures, features and the page."""

import html
import json

import numpy as np
import pytest
import torch

import recyclelora
from labelled_files import refused
from miniatures import TINY, write_folder
from recyclelora.data.opening import open_domain
from recyclelora.methods.update import Update
from recyclelora.recipe import make_recipe
from recyclelora.runs.build import base_of
from recyclelora.runs.predictor import load
from recyclelora.study.analyze import (
    MEASURES,
    analyze,
    block_features,
    feature_drift,
    layer_grid,
    measure,
    measure_all,
    print_analysis,
    with_role,
)
from recyclelora.study.updates import layer_updates
from recyclelora.training.train import train


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "town")


@pytest.fixture(scope="module")
def runs(town, tmp_path_factory):
    made = {}
    for method, adapter in (("recyclelora", {"r_main": 4, "r_sub": 2}), ("lora", {"rank": 4}), ("full", {})):
        values = {
            "sources": [f"folder={town}"], "method": method, "backbone": TINY, "adapter": adapter, "crop": 32,
            "batch_size": 2, "steps": 2, "workers": 0, "optim": {"lr": 0.01},
        }  # fmt: skip
        made[method] = train(make_recipe(values), tmp_path_factory.mktemp("runs") / method)
    return made


def test_figures_of_a_known_update():
    A, B = torch.eye(2, 6), torch.eye(5, 2)
    update = Update(
        "blocks.0.a", "main", torch.eye(5, 6) * torch.arange(6.0, 0, -1), 3 * B @ A, B, A, torch.tensor([0, 1])
    )
    found = measure(update, torch.linalg.svd(update.base.double(), full_matrices=False))
    assert found["effective_rank"] == pytest.approx(2)
    assert found["rank_efficiency"] == pytest.approx(1)
    assert found["cosine_A"] == found["cosine_B"] == 0
    assert found["norm"] == pytest.approx((18 / (36 + 25 + 16 + 9 + 4)) ** 0.5)
    assert found["top_alignment"] == pytest.approx(1)
    assert found["top_distance"] == pytest.approx(0, abs=1e-6)
    assert sum(found["energy"]) == pytest.approx(1)


def test_directions_are_told_apart_by_where_they_lie():
    """Of a diagonal base, major first: an update at its top, one at its bottom, spaces at 45 and 90 degrees."""
    base, unit = torch.diag(torch.arange(40.0, 0, -1)), torch.eye(40)
    tilted = torch.stack([(unit[0] + unit[38]) / 2**0.5, unit[39]], 1)
    updates = [
        Update("a", "main", base, unit[:, :2] @ unit[:2], unit[:, :2], unit[:2]),
        Update("a", "sub", base, tilted @ unit[38:], tilted, unit[38:]),
    ]
    main, sub = measure_all(updates)
    assert main["top_alignment"] == pytest.approx(1)
    assert main["top_distance"] == pytest.approx(0, abs=1e-6)
    assert sub["top_alignment"] == pytest.approx(0, abs=1e-12)
    assert sub["top_distance"] == pytest.approx((0.5**2 / 2 + 1 / 2) ** 0.5)  # of 45 and 90 degrees
    for row in (main, sub):
        assert row["main_sub_angle"] == pytest.approx(45)
        assert row["main_sub_distance"] == pytest.approx((0.5**2 / 2 + 1 / 2) ** 0.5)
    (alone,) = measure_all(updates[:1])
    assert alone["main_sub_angle"] is None


def test_one_role_alone_and_both_make_the_trained_features(runs, town):
    run = runs["recyclelora"]
    base, updates = base_of(run), layer_updates(run)
    crops = [np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8)]
    whole = block_features(load(run.path, device="cpu").segmenter, crops)
    both = block_features(with_role(with_role(base, updates, "main"), updates, "sub"), crops)
    main, start = block_features(with_role(base, updates, "main"), crops), block_features(base, crops)
    assert len(whole) == 2
    for a, b, c, d in zip(whole, both, main, start, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(c, d, atol=1e-4)
        assert not torch.allclose(c, a, atol=1e-4)


def test_drift_is_none_for_the_base_itself_and_tells_of_both_adapters(runs, town):
    domain = open_domain(f"folder={town}", "test")
    drift = feature_drift(runs["recyclelora"], layer_updates(runs["recyclelora"]), [domain], 2)
    (values,) = drift.cka.values()
    assert len(values) == 2
    assert all(0 < value < 1 for value in values)
    (shown,) = drift.pictures.values()
    assert [title for title, _ in shown] == ["image", "base", "change", "change by main", "change by sub"]
    assert all(picture.shape == (32, 32, 3) for _, picture in shown)


def test_a_page_with_figures_maps_and_pictures(runs, town, tmp_path, capsys):
    result = analyze([run.path for run in runs.values()], str(tmp_path / "page.html"), [f"folder={town}"], images=2)
    assert recyclelora.analyze is analyze
    assert capsys.readouterr() == ("", "")
    assert json.loads((tmp_path / "page.json").read_text()) == result
    assert {name: run["method"] for name, run in result.items()} == {name: name for name in runs}
    assert list(result["recyclelora"]["means"]) == ["main", "sub"]
    assert 0 <= result["recyclelora"]["means"]["main"]["main_sub_distance"] <= 1
    assert 0 <= result["recyclelora"]["means"]["main"]["main_sub_angle"] <= 90
    assert result["lora"]["means"]["lora"]["main_sub_distance"] is None
    assert result["full"]["means"]["full"]["rank_efficiency"] is None
    page = html.unescape((tmp_path / "page.html").read_text())
    for title in MEASURES.values():
        assert f"<td>{title}</td>" in page
        assert f"<h2>{title[0].upper()}{title[1:]}</h2>" in page
    assert page.count("<svg") >= 6
    assert page.count("data:image/jpeg") >= 5 + 3 + 3


def test_layers_are_laid_out_by_kind_and_block():
    rows = [{"layer": f"blocks.{i}.attn.qkv", "x": i} for i in (0, 2)] + [{"layer": "patch_embed.proj", "x": 9}]
    assert layer_grid(rows, "x") == {"attn.qkv": [0, None, 2], "patch_embed.proj": [9, None, None]}


def test_two_runs_of_one_name_are_refused(runs, tmp_path):
    refused(lambda: analyze([runs["lora"].path] * 2, tmp_path / "page.html"), "folders of the same name")
    refused(lambda: analyze([], tmp_path / "page.html"), "no runs to analyse")


def test_one_run_needs_no_list(runs, tmp_path):
    assert list(analyze(runs["lora"].path, tmp_path / "page.html")) == ["lora"]


def test_files_that_are_there_are_replaced_only_if_asked(runs, tmp_path):
    page = tmp_path / "page.html"
    refused(lambda: analyze([runs["lora"].path], tmp_path / "page.txt"), "page.txt", "ending in .html")
    for there in (page, page.with_suffix(".json")):
        there.write_text("of an earlier call")
        refused(lambda: analyze([runs["lora"].path], page), f"{there} exists", "--overwrite")
        assert there.read_text() == "of an earlier call"
        there.unlink()
    page.write_text("of an earlier call")
    result = analyze([runs["lora"].path], page, overwrite=True)
    assert json.loads(page.with_suffix(".json").read_text()) == result
    assert page.read_text() != "of an earlier call"
    assert result["lora"]["cka"] == {}


def test_the_table_of_the_terminal_has_one_row_per_measure_and_one_column_per_role(capsys):
    means = {"main": dict.fromkeys(MEASURES, 0.12345), "sub": dict.fromkeys(MEASURES)}
    print_analysis({"ours": {"means": means}, "full": {"means": {"full": dict.fromkeys(MEASURES, 2.0)}}})
    lines = [line.replace("┃", "│").strip("│").split("│") for line in capsys.readouterr().out.splitlines()]
    header, *rows = [[part.strip() for part in line] for line in lines if len(line) > 1]
    assert header == ["mean over layers", "ours: main", "ours: sub", "full"]
    assert rows == [[title, "0.123", "–", "2"] for title in MEASURES.values()]
