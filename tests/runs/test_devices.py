"""Devices and types that are not there are refused in one line."""

import pytest
import torch

from labelled_files import refused
from recyclelora.runs.devices import checked_device, checked_dtype


def test_devices_and_types_are_taken_by_their_names_and_as_torchs():
    assert checked_device("cpu") == checked_device(torch.device("cpu")) == torch.device("cpu")
    assert checked_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("float32", "float16", "bfloat16"):
        assert checked_dtype(name) == checked_dtype(getattr(torch, name)) == getattr(torch, name)


@pytest.mark.parametrize("device", ["cuda:97", "gpu", "", "cpu:x"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(device):
    refused(lambda: checked_device(device), f"device {device}: ", "take cpu")


@pytest.mark.parametrize("dtype", ["float64", torch.int8, "half", ""])
def test_another_type_is_refused(dtype):
    refused(lambda: checked_dtype(dtype), "expected float32, float16 or bfloat16")
