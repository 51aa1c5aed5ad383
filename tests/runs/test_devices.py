"""Devices and types that are not there are refused in one line."""

import pytest
import torch

from labelled_files import refused
from recyclelora.runs.devices import checked_device, checked_dtype, usual_tensors


def test_devices_and_types_are_taken_by_their_names_and_as_torchs():
    assert checked_device("cpu") == checked_device(torch.device("cpu")) == torch.device("cpu")
    assert checked_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("float32", "float16", "bfloat16"):
        assert checked_dtype(name) == checked_dtype(getattr(torch, name)) == getattr(torch, name)


@pytest.mark.parametrize("device", ["cuda:97", "gpu", "", "cpu:x", "meta", "bfloat16", torch.float16])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(device):
    refused(lambda: checked_device(device), f"device {device}: ", "take cpu")


def test_a_type_in_the_place_of_a_device_is_shown_its_own():
    refused(lambda: checked_device(torch.bfloat16), "device torch.bfloat16: ", "dtype='bfloat16'")


@pytest.mark.parametrize("defaults", [{"dtype": torch.float64}, {"device": "meta"}], ids=str)
def test_usual_tensors_are_made_whatever_the_program_around_has_set(defaults):
    torch.set_default_dtype(defaults.get("dtype", torch.float32))
    try:
        with torch.device(defaults.get("device", "cpu")):
            with usual_tensors():
                inside = torch.zeros(1)
            outside = torch.zeros(1)
    finally:
        torch.set_default_dtype(torch.float32)
    assert (inside.dtype, inside.device.type) == (torch.float32, "cpu")
    assert (outside.dtype, outside.device.type) == (defaults.get("dtype", torch.float32), defaults.get("device", "cpu"))


def test_usual_tensors_leave_the_random_numbers_of_the_program_alone():
    before = torch.random.get_rng_state()
    with usual_tensors():
        torch.rand(3)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("dtype", ["float64", torch.int8, "half", ""])
def test_another_type_is_refused(dtype):
    refused(lambda: checked_dtype(dtype), "expected float32, float16 or bfloat16")
