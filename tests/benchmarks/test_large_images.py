"""Every way that is measured is a command that runs, and a command that fails gives no figure."""

import pytest

import memory
from recyclelora.cli import app


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("memory")
    memory.make_run(root / "run")
    memory.make_data(root / "tiny", memory.SIZES["tiny"])
    return root


@pytest.mark.parametrize("way", memory.WAYS)
def test_every_way_runs(inputs, tmp_path, way):
    app(memory.arguments_of(way, inputs, "tiny", tmp_path / "out"), standalone_mode=False)
    assert any(tmp_path.iterdir())


def test_a_command_that_fails_gives_no_figure(capfd):
    with pytest.raises(RuntimeError, match=r"recyclelora predict nothing: exit status 2"):
        memory.measure(["predict", "nothing"])
