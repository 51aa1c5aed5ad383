"""A published file through the command line: import, evaluate, predict."""

import json

import published_files as files
from labelled_files import make_cityscapes, shot, write


def test_import_evaluate_predict(command, tmp_path):
    base = files.base_weights(tmp_path / "base.pth")
    state, _ = files.recyclelora_state(base)
    file = files.save(tmp_path / "published.pth", state | files.published_head(files.random_head()))
    run = tmp_path / "run"
    arguments = ("import-checkpoint", file, "--kind", "recyclelora", "--base", base, "--out", run)
    code, out, err = command(*arguments)
    assert (code, err) == (0, "")
    assert "not used: backbone.mask_token" in out
    assert "residual weights" in out
    code, _, err = command(*arguments)
    assert code == 1
    assert "--overwrite" in err

    make_cityscapes(tmp_path / "cityscapes")
    scores = tmp_path / "scores.json"
    target = f"cityscapes={tmp_path / 'cityscapes'}"
    settings = ("--protocol", "full", "--window", 64)
    code, out, err = command("evaluate", run, "--target", target, *settings, "--out", scores)
    assert (code, err) == (0, "")
    result = json.loads(scores.read_text())
    assert (result["method"], result["step"]) == ("recyclelora", 40000)
    assert (result["recipe"]["method"], result["recipe"]["sources"]) == ("recyclelora", [])
    page = scores.with_suffix(".html").read_text()
    assert "recyclelora from the file published.pth" in page
    assert "residual weights" in page
    write(tmp_path / "new" / "a.png", shot(3, (64, 48)))
    code, _, err = command("predict", run, tmp_path / "new", "--out", tmp_path / "pictures")
    assert (code, err) == (0, "")
    assert (tmp_path / "pictures" / "a_labels.png").is_file()

    code, _, err = command("train", "--recipe", run / "recipe.yaml", "--out", tmp_path / "trained")
    assert code == 1
    assert "sources: at least 1 is required" in err
    assert not (tmp_path / "trained").exists()

    code, _, err = command("evaluate", run, "--out", tmp_path / "none.json")
    assert code == 1
    assert "--target" in err
