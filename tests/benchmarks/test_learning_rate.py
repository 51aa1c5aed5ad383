"""The learning rates of the demo are those that were chosen, on scenes that are still the same."""

import json

import learning_rate
from recyclelora.data.opening import open_domain
from recyclelora.demo import LEARNING_RATES, METHODS, STEPS

RESULTS = json.loads(learning_rate.RESULTS.read_text())


def test_the_scenes_of_the_results_are_those_of_today():
    assert open_domain("streets", "val", RESULTS["scenes"]).fingerprint() == RESULTS["fingerprint"]


def test_the_demo_trains_at_the_rates_that_scored_best():
    assert RESULTS["steps"] == STEPS
    for method in METHODS:
        scores = {float(rate): miou for rate, miou in RESULTS[method]["miou"].items()}
        assert LEARNING_RATES[method] == RESULTS[method]["chosen"] == max(scores, key=scores.get)


def test_the_grid_grows_while_the_best_lies_at_an_end(monkeypatch):
    monkeypatch.setattr(learning_rate, "score", lambda method, lr: -abs(lr - 1e-3))
    assert set(learning_rate.choose("frozen")) == {3e-4, 1e-3, 3e-3, 1e-2, 3e-2}
    monkeypatch.setattr(learning_rate, "score", lambda method, lr: lr)
    assert set(learning_rate.choose("frozen")) == {3e-3, 1e-2, 3e-2, 1e-1}
