"""An adapter of every kind of model is loaded in another process; one process loads those of all kinds."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conformance.methods import METHODS, Method
from conformance.models import KINDS, Kind
from conformance.steps import output, trained

LOAD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import recyclelora  # registers the method
import torch
from peft import PeftModel
from conformance.models import KINDS
from conformance.steps import output
for folder in Path(sys.argv[2]).iterdir():
    kind = KINDS[folder.name]
    torch.save(output(kind, PeftModel.from_pretrained(kind.build(), folder)), folder / "output.pt")
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For each method a folder with the adapter and the output of every kind that it can adapt."""
    made = {}
    for method in METHODS:
        folder = made[method.name] = tmp_path_factory.mktemp(method.name)
        for kind in KINDS.values():
            try:
                trained(method, kind).save_pretrained(folder / kind.name)
            except (TypeError, ValueError):
                continue  # the check of this kind fails, the others go on
        arguments = [sys.executable, "-c", LOAD, str(Path(__file__).parents[1]), str(folder)]
        subprocess.run(arguments, check=False)
    return made


def test_an_adapter_is_loaded_in_another_process(method: Method, kind: Kind, folders: dict[str, Path]) -> None:
    found = torch.load(folders[method.name] / kind.name / "output.pt")
    assert torch.equal(found, output(kind, trained(method, kind)))
