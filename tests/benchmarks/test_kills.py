"""A process that is killed at a change of a file loses nothing; a few of the kills of `benchmarks/kills.py`."""

import pytest
import torch

import kills


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    return {trial.name: trial for trial in kills.trials(tmp_path_factory.mktemp("kills"))}


@pytest.mark.parametrize(
    ("name", "every", "first", "count"),
    [("train", 46, 5, 3), pytest.param("train --overwrite", 58, 8, 3, marks=pytest.mark.slow),
     pytest.param("train --resume", 57, 7, 3, marks=pytest.mark.slow), ("evaluate", 9, 4, 2), ("predict", 19, 6, 3),
     ("predict --overwrite", 17, 12, 3)],
)  # fmt: skip
def test_what_was_killed_goes_on_to_the_same_files(name, every, first, count, trials, tmp_path):
    assert torch.get_num_threads() == 1
    counts = kills.try_out(trials[name], tmp_path, every, first)
    assert counts["kills"] >= count
    at_an_end = counts["before anything was changed"] + counts["after all was done"]
    assert counts["calls afterwards"] >= counts["kills"] - at_an_end > 0
    assert counts["right"] == counts["calls afterwards"]


@pytest.mark.slow
def test_a_killed_prediction_of_a_video_goes_on_wherever_it_was(trials, tmp_path):
    counts = kills.try_out(trials["predict a video"], tmp_path)
    assert counts["kills"] > 20
    assert counts["right"] == counts["calls afterwards"] > 20


def test_a_folder_that_is_not_understood_afterwards_is_noticed(trials, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("recyclelora.training.train.is_torn", lambda path: False)
    counts = kills.try_out(trials["train"], tmp_path, every=1000, first=9)
    assert (counts["calls afterwards"], counts["right"]) == (2, 1)
    assert "killed at change 9, way 0: wrong in the call failed" in capsys.readouterr().out
