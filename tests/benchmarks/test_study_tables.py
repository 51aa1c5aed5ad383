"""The tables of the study's document are those of its records."""

import json
from pathlib import Path

import pytest

import study
import study_tables
from recyclelora.evaluation.scores import Scores
from recyclelora.study.cell import CellResult

ROOT = Path(__file__).parents[2]


def test_the_document_and_its_plots_say_what_the_records_say(tmp_path):
    copy = tmp_path / "study.md"
    text = study_tables.DOCUMENT.read_text()
    copy.write_text(text)
    filled = study_tables.write_tables(copy)
    assert {"streets core", "streets ablations", "streets options", "streets weights", "claims"} <= set(filled)
    assert text.count("<!-- end -->") == len(filled)
    assert copy.read_text() == text
    drawn = {path.name: path.read_text() for path in (tmp_path / "study").iterdir()}
    assert drawn == {path.name: path.read_text() for path in (ROOT / "docs" / "study").glob("*.svg")}


@pytest.fixture
def records(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def record(records, variant, seed, miou):
    """Write the record of a training with this mIoU, all resamples equal to it."""
    made = CellResult(
        variant,
        seed,
        settings={"method": "lora", "optim.lr": 1e-3},
        scale=1 / 36,
        step_seconds=0.5,
        peak_gib=1.0,
        wall_seconds=90.0,
        protocol="full",
        targets=tuple(Scores(label, 2, "", miou, {}, resampled=[miou] * 3) for label in ("clear", "fog")),
        parameters={"adapters": 10 if variant == "frozen" else 1000, "head": 2, "backbone": 100},
    )
    folder = records / "streets"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{variant.replace('/', '_')}--{seed}.json").write_text(json.dumps(made.to_json()))


def test_tables_compare_the_same_seeds(records, tmp_path):
    assert study_tables.tables("streets", tmp_path) == {}
    record(records, "frozen", 0, 0.30)
    record(records, "lora", 0, 0.34)
    record(records, "of another version", 0, 0.9)
    assert study_tables.tables("streets", tmp_path) == {}  # nothing to compare to yet
    for seed, miou in enumerate((0.4, 0.4, 0.7)):
        record(records, "recyclelora", seed, miou)
    for seed in (0, 1):
        record(records, "sub rank 2", seed, 0.38)
    for seed in (0, 1, 2):
        record(records, "recyclelora-main", seed, 0.41)
    (records / "streets" / "rates.json").write_text(
        json.dumps({"lora": {"chosen": 1e-3, "miou": {"0.001": 0.345, "0.003": 0.2}}})
    )
    means = {"main": dict.fromkeys(study_tables.MEASURES, 0.5), "sub": dict.fromkeys(study_tables.MEASURES)}
    analysis = {"recyclelora": {"means": means, "cka": {"fog": [0.9, 0.25]}}}
    (records / "streets-analysis.json").write_text(json.dumps(analysis))
    made = study_tables.tables("streets", tmp_path / "plots")
    assert set(made) == {"core", "ablations", "rates", "weights"}
    lines = made["core"].splitlines()
    assert (
        lines[0] == "|  | clear | fog | unseen | unseen, minus recyclelora | unseen, minus frozen | seeds | trained |"
    )
    assert "| lora | 34.0 | 34.0 | 34.0 | -6.0 [-6.0, -6.0] | +4.0 [+4.0, +4.0] | 1 | 1,000 |" in lines
    spread = "50.0 ± 17.3"
    assert f"| recyclelora | {spread} | {spread} | {spread} |  | +10.0 [+10.0, +10.0] | 3 | 1,000 |" in lines
    assert lines[-1] == "8 trainings, 0.2 hours of their processes."
    # the seed that the ablation has not is left out
    assert "| recyclelora | 40.0 ± 0.0 |" in made["ablations"]
    assert "-2.0 [-2.0, -2.0] | 2 |" in made["ablations"]
    assert [row.split(" | ")[0] for row in made["ablations"].splitlines()[2:5]] == [
        "| recyclelora", "| sub rank 0", "| sub rank 2",
    ]  # fmt: skip
    assert "| sub rank 0 | 41.0 ± 0.0 |" in made["ablations"]
    assert "| lora | 0.001 | 0.001: 34.5, 0.003: 20.0 |" in made["rates"]
    assert "| effective rank of the update | 0.5 | – |" in made["weights"]
    assert r"| mean \|cos\| among rows of A | 0.5 | – |" in made["weights"]
    assert "| CKA of the last block, fog | 0.25 | 0.25 |" in made["weights"]
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        f"streets-{part}{kind}.svg" for part in ("core", "ablations") for kind in ("", "-difference")
    }


def test_a_claim_holds_where_its_interval_lies_above_zero(records):
    record(records, "frozen", 0, 0.3)
    for seed in (0, 1):
        record(records, "recyclelora", seed, 0.4)
        record(records, "rein", seed, 0.3)
        record(records, "lora", seed, 0.5)
    for seed, miou in enumerate((0.4, 0.45, 0.35)):
        record(records, "recyclelora-main", seed, miou)
        record(records, "recyclelora-sub", seed, 0.4 - (seed == 1) / 100)
    told = dict(line.split(" | ")[:2] for line in study_tables.claims().splitlines()[2:])
    assert told["| adapting beats the frozen backbone"] == "+10.0 [+10.0, +10.0] not shown"  # of one seed
    assert told["| better than Rein"] == "+10.0 [+10.0, +10.0] **holds**"
    assert told["| better than a plain LoRA of the same size"] == "-10.0 [-10.0, -10.0] **the opposite**"
    assert told["| main alone is better than sub alone"].startswith("+0.3 [-")
    assert told["| main alone is better than sub alone"].endswith("] not shown")
    assert told["| better than SoMA"] == ""


def test_only_what_is_between_the_marks_is_written(records, tmp_path):
    record(records, "recyclelora", 0, 0.4)
    record(records, "frozen", 0, 0.3)
    document = tmp_path / "page.md"
    document.write_text(
        "before\n<!-- streets core -->\nold\n<!-- end -->\nafter\n<!-- camvid core -->\nkept\n<!-- end -->\n"
    )
    assert study_tables.write_tables(document) == ["streets core"]
    before, table, after = document.read_text().partition(study_tables.tables("streets", tmp_path / "page")["core"])
    assert table
    assert before == "before\n<!-- streets core -->\n\n"
    assert after == "\n\n<!-- end -->\nafter\n<!-- camvid core -->\nkept\n<!-- end -->\n"
