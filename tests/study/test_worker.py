"""A process on a machine of a cluster: whether it can work for the caller, and what it finds when it does."""

import os
import pickle
import platform
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from recyclelora import __version__
from recyclelora.errors import UserError
from recyclelora.stopping import Stopped
from recyclelora.study.worker import Caller, refusal, versions, work


@pytest.fixture
def caller(tmp_path):
    for name in ("out", "home"):
        (tmp_path / name).mkdir()
    shared = tmp_path / "out" / ".shared-1"
    shared.touch()
    return Caller(shared, tmp_path / "home", versions(), {"RECYCLELORA_DATA": "/data"})


@pytest.fixture
def own_process(monkeypatch):
    """Puts back what `work` changes in its process."""
    monkeypatch.chdir(".")
    monkeypatch.setattr(os, "environ", os.environ.copy())
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_same_versions_and_the_same_folder_are_enough(caller):
    assert versions() == {"Python": platform.python_version(), "recyclelora": __version__}
    assert refusal(caller) is None


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"versions": {**versions(), "recyclelora": "9.9"}}, [f"it has recyclelora {__version__}, expected 9.9"]),
        ({"versions": {**versions(), "Python": "2.7.1"}}, ["it has Python", "expected 2.7.1", "install that"]),
        ({"shared": ".shared-2"}, ["out is not the same folder there as here", "--out"]),
        ({"folder": "elsewhere"}, ["it has no folder", "elsewhere", "call from a folder"]),
    ],
)
def test_a_machine_with_other_versions_or_folders_is_refused(caller, change, parts, own_process):
    paths = {name: caller.shared.with_name(path) for name, path in change.items() if isinstance(path, str)}
    caller = replace(caller, **{**change, **paths})
    reason = refusal(caller)
    assert all(part in reason for part in (f"machine {platform.node()} of the cluster", *parts)), reason
    with pytest.raises(UserError) as error:
        work(caller, 1, pickle.dumps((os.getpid, ())))
    assert str(error.value) == reason


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to_is_refused(caller):
    caller.shared.parent.chmod(0o500)
    assert "cannot be written to there" in refusal(caller)


def surroundings(*names):
    return os.getcwd(), [os.environ.get(name) for name in names]


def test_a_function_finds_the_callers_folder_and_variables_and_none_of_who_started_ray(caller, own_process):
    os.environ.update(SLURM_STEP_NUM_TASKS="2", SLURM_PROCID="1", TORCHELASTIC_RUN_ID="x", LOCAL_RANK="1", KEPT="y")
    names = ("RECYCLELORA_DATA", "OMP_NUM_THREADS", "KEPT", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "LOCAL_RANK")
    folder, values = work(caller, 3, pickle.dumps((surroundings, (*names, "TORCHELASTIC_RUN_ID"))))
    assert folder == str(caller.folder)
    assert values == ["/data", "3", "y", None, None, None, None]


def cancelled():
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])  # the second below `ray start ... &`
def test_what_the_caller_cancels_is_stopped(caller, own_process, handler):
    signal.signal(signal.SIGINT, handler)
    with pytest.raises(Stopped) as stop:
        work(caller, 1, pickle.dumps((cancelled, ())))
    assert stop.value.number == signal.SIGINT


ENDED = """
import os, pickle, signal, sys
from pathlib import Path
import recyclelora.study.worker as worker
assert "torch" not in sys.modules
caller = worker.Caller(Path(sys.argv[1]), Path(sys.argv[2]), worker.versions(), {})
worker.work(caller, 1, pickle.dumps((signal.raise_signal, (signal.SIGTERM,))))
"""


def test_a_process_that_others_end_ends_as_one_that_is_lost(caller):
    done = subprocess.run(
        [sys.executable, "-c", ENDED, caller.shared, caller.folder], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "")  # not the traceback of an exception
