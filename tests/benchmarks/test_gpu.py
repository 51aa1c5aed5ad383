"""The check that comes before the figures of a GPU, on the CPU: it passes there, and sees what is wrong."""

import pytest

import gpu


def test_the_cpu_computes_what_the_cpu_computes():
    found = gpu.layer_errors("cpu") | gpu.training_errors("cpu")
    assert gpu.same_pivots("cpu", [(48, 40), (40, 48)])
    assert gpu.wrong(found | {"same pivots": True}) == []
    assert found["loss"] == found["gradients"] == 0
    assert 0 < found["output"] < 1e-6  # float32 against float64


def test_other_pivots_are_seen(monkeypatch):
    plain, calls = gpu.draw_factors, []

    def other_at_first(weights, config):
        calls.append(weights)
        return plain({key: weight.flip(1) if len(calls) == 1 else weight for key, weight in weights.items()}, config)

    monkeypatch.setattr(gpu, "draw_factors", other_at_first)
    assert not gpu.same_pivots("cpu", [(48, 40)])


@pytest.mark.parametrize("value", [False, 1e-3, float("nan"), float("inf")])
def test_what_is_wrong_is_named(value):
    assert gpu.wrong({"loss": 0.0, "gradients": value, "same pivots": True}) == ["gradients"]


def test_the_file_has_the_name_of_the_card():
    assert gpu.results_file("NVIDIA H100 80GB HBM3 (x1)").name == "gpu_NVIDIA_H100_80GB_HBM3_x1.json"
