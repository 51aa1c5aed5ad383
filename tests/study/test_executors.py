"""Where functions run: what they return and raise arrives, and a process that is killed is named."""

import os
import signal
import sys
import threading

import pytest
import torch

from labelled_files import refused
from recyclelora.errors import MissingExtraError
from recyclelora.stopping import FROM_PARENT, Stopped
from recyclelora.study import executors
from recyclelora.study.executors import here, processes


def where():
    return os.getpid(), os.environ.get("OMP_NUM_THREADS"), os.isatty(2)


def missing():
    raise MissingExtraError("x", "ray.y", "cluster")


def stop():
    raise Stopped(signal.SIGTERM)


def die(path):
    path.touch()
    os._exit(9)


def wait_for_file(path):
    while not path.exists():
        pass
    signal.pause()


def test_in_this_process_a_function_is_done_when_it_is_submitted():
    with here() as executor:
        assert (executor.room, executor.threads, executor.patience) == (1, torch.get_num_threads(), 0)
        assert executor.submit("a", where).result()[0] == os.getpid()
        with pytest.raises(MissingExtraError):
            executor.submit("a", missing)


def test_each_function_has_a_new_process_and_its_share_of_the_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with processes(2) as executor:
        assert (executor.room, executor.threads, executor.patience) == (2, 3, 0)
        found = [future.result() for future in [executor.submit(name, where) for name in "abc"]]
    assert len({os.getpid(), *(process for process, *_ in found)}) == 4
    assert [threads for _, threads, _ in found] == ["3"] * 3
    assert os.environ["OMP_NUM_THREADS"] == "5"


def test_what_a_function_raises_in_another_process_arrives():
    with processes(1) as executor:
        with pytest.raises(MissingExtraError, match=r"x needs the package ray, .*\[cluster\]"):
            executor.submit("a", missing).result()
        with pytest.raises(Stopped) as stopped:
            executor.submit("b", stop).result()
    assert stopped.value.number == signal.SIGTERM


def test_of_a_killed_process_all_are_named_that_ran(tmp_path):
    with processes(2) as executor:
        assert executor.submit("done", where).result()
        waiting = executor.submit("waiting", wait_for_file, tmp_path / "there")
        refused(
            executor.submit("dead", die, tmp_path / "there").result, "waiting, dead: a process was killed", "--jobs"
        )
        refused(waiting.result, "waiting, dead: a process was killed")
        refused(lambda: executor.submit("late", where), "waiting, dead: a process was killed")


@pytest.fixture
def helper(monkeypatch):
    """This process as a helper of `processes`, for as long as the test lasts."""
    before = signal.getsignal(FROM_PARENT)
    monkeypatch.setattr(executors, "end_with_parent", lambda: None)
    monkeypatch.setattr(executors, "_asked", threading.Event())
    monkeypatch.setattr(executors, "_Plain", lambda *_, **__: sys.stderr)
    executors._start_helper()
    yield
    signal.signal(FROM_PARENT, before)


def test_a_helper_is_stopped_in_a_function_at_once_and_between_two_before_the_next(helper):
    reached = []

    def interrupted():
        os.kill(os.getpid(), FROM_PARENT)
        reached.append("the rest")

    with pytest.raises(Stopped):
        executors._stoppable(interrupted)
    assert executors._stoppable(lambda: 7) == 7
    os.kill(os.getpid(), FROM_PARENT)  # as while a result is handed over: nothing is ended
    with pytest.raises(Stopped):
        executors._stoppable(reached.append, "another")
    assert reached == []
