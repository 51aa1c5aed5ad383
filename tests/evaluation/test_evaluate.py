"""The verb `evaluate`: what it scores and writes, what stays when a target fails, and what the terminal shows."""

import functools
import json
import subprocess
import sys

import pytest
from untrained import SPACE, make_run

import recyclelora
from labelled_files import refused
from miniatures import write_folder
from recyclelora import cli
from recyclelora.evaluation.evaluate import evaluate, score_targets
from recyclelora.evaluation.result import Evaluation
from recyclelora.evaluation.targets import open_targets
from recyclelora.files import locked_file
from recyclelora.runs import run as runs
from recyclelora.runs.predictor import Predictor, load


@pytest.fixture
def town(tmp_path):
    return write_folder(tmp_path / "town", classes=SPACE.names)


@pytest.fixture
def night(tmp_path):
    return write_folder(tmp_path / "night", classes=SPACE.names, seed=9, size=(50, 34))


@pytest.fixture
def model(tmp_path):
    return load(make_run(tmp_path / "run"))


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Scoring target by target


def test_a_target_that_fails_does_not_lose_those_before(model, town, night, tmp_path):
    evaluation = Evaluation(model, open_targets([f"town:folder={town}", f"night:folder={night}"]))
    file = tmp_path / "scores.json"
    page = file.with_suffix(".html")
    page.write_text("of an earlier result")
    (night / "labels" / "03.png").write_bytes(b"damaged")
    refused(lambda: score_targets(evaluation, file), "03.png")
    result = json.loads(file.read_text())
    assert (result["complete"], result["mean_miou"]) == (False, None)
    assert [score["label"] for score in result["targets"]] == [score.label for score in evaluation.scores] == ["town"]
    assert list(result["protocol"]["targets"]) == ["town", "night"]
    assert not page.exists()


def test_nothing_is_scored_if_a_target_cannot_be(model, town, tmp_path, monkeypatch):
    monkeypatch.setattr(Predictor, "predict", None)
    file = tmp_path / "scores.json"
    targets = open_targets([f"folder={town}", "streets:fog"], limit=1)
    both = Evaluation(model, targets)
    refused(lambda: score_targets(both, file), "19 classes", "trained on 2 classes")
    narrow = Evaluation(model.with_evaluation(window=40), targets[:1])
    refused(lambda: score_targets(narrow, file), "window 40 is not a multiple of the backbone's patch 16", "32 or 48")
    assert both.scores == narrow.scores == []
    assert not file.exists()


# The function


def test_it_is_the_function_of_the_package():
    assert recyclelora.evaluate is evaluate


def test_without_a_file_nothing_is_written_and_nothing_is_printed(tmp_path, town, capsys, monkeypatch):
    path = make_run(tmp_path / "run", targets=[f"town:folder={town}"])
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    before = files_of(tmp_path)
    found = evaluate(path)
    assert [(score.label, score.images, score.split) for score in found.scores] == [("town", 4, "test")]
    assert 0 <= found.mean_miou <= 1
    assert files_of(tmp_path) == before
    assert capsys.readouterr() == ("", "")
    evaluate(path, out=tmp_path / "scores.json")
    assert capsys.readouterr() == ("", "")
    assert files_of(tmp_path).keys() - before.keys() == {tmp_path / "scores.json", tmp_path / "scores.html"}


def test_the_hash_of_what_was_trained_is_computed_once_for_all_targets(tmp_path, town, night, monkeypatch):
    path = make_run(tmp_path / "run")
    hashed, weights_hash = [], runs.weights_hash
    monkeypatch.setattr(runs, "weights_hash", lambda state: hashed.append(sorted(state)) or weights_hash(state))
    targets = [f"town:folder={town}", f"night:folder={night}", f"again:folder={town}"]
    found = evaluate(path, targets, tmp_path / "scores.json", pictures=0)
    assert len(found.scores) == 3
    assert len(hashed) == 1
    assert {name.partition(".")[0] for name in hashed[0]} == {"head", "adapter"}
    assert found.to_json()["trained_sha256"] == json.loads((tmp_path / "scores.json").read_text())["trained_sha256"]
    assert len(hashed) == 1


def test_what_is_returned_is_what_the_file_holds(tmp_path, town, night):
    path = make_run(tmp_path / "run")
    file = tmp_path / "deep" / "scores.json"
    found = evaluate(path, [f"town:folder={town}", f"night:folder={night}"], str(file), limit=2, pictures=1)
    assert json.loads(file.read_text()) == json.loads(json.dumps(found.to_json()))
    assert [score.images for score in found.scores] == [2, 2]


def test_the_targets_of_the_recipe_are_scored_unless_others_are_named(tmp_path, town, night):
    path = make_run(tmp_path / "run", targets=[f"town:folder={town}"])
    assert [score.label for score in evaluate(path).scores] == ["town"]
    named = evaluate(path, [f"folder={night}"], limit=1)
    assert [(score.label, score.images) for score in named.scores] == [("night", 1)]
    without = make_run(tmp_path / "other")
    refused(lambda: evaluate(without), "its recipe names no targets", "--target")


def test_wrong_settings_are_refused_before_anything_is_scored(tmp_path, town, monkeypatch):
    path = make_run(tmp_path / "run", targets=[f"folder={town}"])
    monkeypatch.setattr(Predictor, "predict", None)
    refused(lambda: evaluate(path, windows=3), "unknown key 'evaluation.windows'", "window")
    refused(lambda: evaluate(path, protocol="soma"), "unknown protocol 'soma'")
    refused(lambda: evaluate(path, split="dev"), "unknown split 'dev'")


def test_earlier_results_are_replaced_only_if_asked(tmp_path, town):
    path, file = make_run(tmp_path / "run", targets=[f"folder={town}"]), tmp_path / "scores.json"
    evaluate(path, out=file, pictures=1)
    refused(lambda: evaluate(path, out=file), "scores.json exists", "--overwrite")
    file.unlink()
    refused(lambda: evaluate(path, out=file), "scores.html exists", "--overwrite")
    again = evaluate(path, out=file, pictures=1, protocol="rein-1024", overwrite=True)
    assert again.protocol == json.loads(file.read_text())["protocol"]["name"] == "rein-1024"
    refused(lambda: evaluate(path, out=tmp_path / "scores.txt"), "scores.txt", "ending in .json")


def test_a_stopped_evaluation_goes_on_with_the_targets_that_are_missing(tmp_path, town, night, monkeypatch):
    path, file = make_run(tmp_path / "run"), tmp_path / "scores.json"
    targets = [f"town:folder={town}", f"night:folder={night}"]
    whole = evaluate(path, targets, tmp_path / "whole.json", pictures=1)
    label = night / "labels" / "03.png"
    content = label.read_bytes()
    label.write_bytes(content[:20] + bytes([content[20] ^ 1]) + content[21:])
    refused(lambda: evaluate(path, targets, file), "03.png")
    assert json.loads(file.read_text())["complete"] is False
    label.write_bytes(content)
    scored, untouched = [], sys.modules[evaluate.__module__].score_domain

    def score(predict, space, domain, **settings):
        scored.append(domain.label)
        return untouched(predict, space, domain, **settings)

    monkeypatch.setattr(sys.modules[evaluate.__module__], "score_domain", score)
    refused(lambda: evaluate(path, targets, file, flip=True), file, "another evaluation", "protocol", "--overwrite")
    refused(lambda: evaluate(path, targets[::-1], file), file, "another evaluation", "target night")
    assert scored == []
    found = evaluate(path, targets, file, pictures=1)
    assert scored == ["night"]
    assert found.to_json() == whole.to_json() == {**json.loads(file.read_text()), "recipe": whole.to_json()["recipe"]}
    file.with_suffix(".html").unlink()  # a stop before the page was made
    assert evaluate(path, targets, file, pictures=1).scores == whole.scores
    assert scored == ["night"]
    assert file.with_suffix(".html").is_file()
    refused(lambda: evaluate(path, targets, file), "scores.json exists")
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == [
        "scores.html", "scores.json", "whole.html", "whole.json",
    ]  # fmt: skip


@pytest.mark.parametrize("content", ["[]", "{}", '{"complete": false}', '{"complete": false, "targets": [3]}'])
def test_a_file_of_something_else_is_kept(content, tmp_path, town):
    path, file = make_run(tmp_path / "run"), tmp_path / "scores.json"
    file.write_text(content)
    refused(lambda: evaluate(path, f"folder={town}", file), file, "--overwrite")
    assert file.read_text() == content


def test_two_evaluations_do_not_write_one_file(tmp_path, town):
    path, file = make_run(tmp_path / "run"), tmp_path / "scores.json"
    code = "import sys; from recyclelora.evaluation.evaluate import evaluate; evaluate(*sys.argv[1:])"
    with locked_file(file):
        other = [sys.executable, "-c", code, path, f"folder={town}", file]
        blocked = subprocess.run(list(map(str, other)), capture_output=True, text=True, check=False)
    assert "scores.json: another process is at work there" in blocked.stderr
    assert not file.exists()


# Through the command line's function


@pytest.fixture
def command(tmp_path):
    return functools.partial(cli.evaluate, out=tmp_path / "scores.json", pictures=1)


def test_file_page_and_terminal_name_the_protocol(tmp_path, command, town, capsys):
    path = make_run(tmp_path / "run", sources=[f"folder={town}"])
    settings = {"window": 16, "stride": 8, "batch_size": 2, "flip": True, "scales": "0.5,1", "blend": "hann"}
    assert command(path, target=[f"a:folder={town}"], **settings) is None
    name = "full, flip, scales 0.5 1, blend hann"
    result = json.loads((tmp_path / "scores.json").read_text())
    assert result["protocol"]["name"] == name
    assert result["protocol"]["scales"] == [0.5, 1]
    assert result["protocol"]["targets"]["a"].items() >= {"window": 16, "stride": 8}.items()
    told = capsys.readouterr().out
    assert f"mIoU (%), protocol {name}" in told
    assert f"{100 * result['mean_miou']:.2f}" in told
    assert f"written: {tmp_path / 'scores.json'} and {tmp_path / 'scores.html'}" in told
    page = (tmp_path / "scores.html").read_text()
    assert f"Protocol: {name}" in page
    assert "scored on a (test)" in page
    assert 'badge seen">seen' in page


def test_scales_that_are_not_numbers_are_refused(tmp_path, command, town):
    path = make_run(tmp_path / "run", targets=[f"folder={town}"])
    refused(lambda: command(path, scales="0.5;1"), "--scales 0.5;1", "0.75,1,1.25")
