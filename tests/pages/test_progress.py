"""How far long work is: what a terminal, a notebook and a log file are shown, and when."""

import logging
import os
import pty
import re
import subprocess
import sys
import termios
import threading
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest

from recyclelora.pages import progress
from recyclelora.pages.progress import LOGGER, Progress, duration, shown
from recyclelora.pages.terminal import ToStandardError, heard


class Lines(logging.Handler):
    """The lines that are logged; `wait` returns them once there are so many."""

    def __init__(self):
        super().__init__()
        self.lines, self.more = [], threading.Condition()

    def emit(self, record):
        with self.more:
            self.lines.append(record.getMessage())
            self.more.notify_all()

    def wait(self, count):
        with self.more:
            assert self.more.wait_for(lambda: len(self.lines) >= count, timeout=10)
            return list(self.lines)


@pytest.fixture
def lines():
    handler = Lines()
    with heard(LOGGER, handler):
        yield handler


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until its `now` is set."""
    clock = SimpleNamespace(now=1000.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"), (45, "45 s"), (99.4, "99 s"), (99.6, "2 min"), (150, "2 min"), (720, "12 min"),
        (59.4 * 60, "59 min"), (59.6 * 60, "1 h 0 min"), (3 * 3600 + 20 * 60, "3 h 20 min"),
        (23 * 3600 + 59.4 * 60, "23 h 59 min"), (24 * 3600 - 10, "1 d 0 h"), (24 * 3600, "1 d 0 h"),
        (52 * 3600 + 59 * 60, "2 d 4 h"),
    ],
)  # fmt: skip
def test_a_duration_has_one_or_two_units(seconds, words):
    assert duration(float(seconds)) == words


# How long the rest takes


def test_the_rest_takes_as_long_as_the_parts_after_the_first(clock):
    with Progress("training", 11, "steps", shown=False) as work:
        assert work.seconds_left() is None
        clock.now += 60  # the first part is slower than the others
        work.advance()
        assert work.seconds_left() is None
        for seconds in (2, 4):
            clock.now += seconds
            work.advance()
        assert work.seconds_left() == pytest.approx(3 * 8)
        clock.now += 3  # within a part
        assert work.seconds_left() == pytest.approx(4.5 * 8)
        work.advance(8)
        assert work.seconds_left() == 0


def test_parts_that_were_done_earlier_do_not_count_for_the_pace(clock):
    with Progress("training", 100, "steps", done=40, shown=False) as work:
        work.advance(0)
        for _ in range(3):
            clock.now += 5
            work.advance(2)
        assert work.done == 46
        assert work.seconds_left() == pytest.approx(54 * 2.5)


def test_a_line_says_what_how_far_how_well_and_how_long(clock):
    work = Progress("training a\x1bb", 40_000, "steps", done=10_000)
    assert work.line() == r"training a\x1bb: 10000 of 40000 steps (25 %)"
    with work:
        work.advance()
        clock.now += 2
        work.advance(loss="0.531", **{"images/s": "8.1"})
        expected = r"training a\x1bb: 10002 of 40000 steps (25 %), loss 0.531, images/s 8.1, about 16 h 40 min left"
        assert work.line() == expected
    assert Progress("reading", 0, "images").line() == "reading: 0 of 0 images (0 %)"


# When there is a line


def test_work_without_a_part_done_gets_lines_all_the_same(lines, monkeypatch):
    monkeypatch.setattr(progress, "PAUSE", 0.05)
    with Progress("training", 40, "steps"):
        assert set(lines.wait(3)) == {"training: 0 of 40 steps (0 %)"}
    assert lines.lines[-1] == "training: 0 of 40 steps in 0 s"


def test_the_pause_leaves_time_for_a_line_every_thirty_seconds():
    assert progress.PAUSE + 1 <= 30


def test_only_the_innermost_work_talks(lines, monkeypatch):
    monkeypatch.setattr(progress, "PAUSE", 0.05)
    with Progress("all trainings", 2, "trainings"):
        lines.wait(1)
        with Progress("training", 40, "steps"), Progress("validating", 9, "images"):
            before = len(lines.lines)
            inside = lines.wait(before + 4)[before + 1 :]  # one may have been on its way
        after = len(lines.lines)
        outside = lines.wait(after + 3)[after + 1 :]
    assert {line.partition(":")[0] for line in inside} == {"validating"}
    assert {line.partition(":")[0] for line in outside} == {"all trainings"}


def test_hidden_work_leaves_the_word_to_what_waits_for_it(lines, monkeypatch):
    monkeypatch.setattr(progress, "PAUSE", 0.05)
    with Progress("training", 40, "steps"), Progress("hidden", 9, "images", shown=False):
        assert set(lines.wait(2)) == {"training: 0 of 40 steps (0 %)"}
    lines.lines.clear()
    with Progress("hidden", 9, "images", shown=False), Progress("evaluating", 5, "images"):
        assert set(lines.wait(2)) == {"evaluating: 0 of 5 images (0 %)"}


def test_works_that_are_shorter_than_the_pause_do_not_silence_it(lines, monkeypatch):
    monkeypatch.setattr(progress, "PAUSE", 0.15)
    with Progress("all trainings", 100, "trainings"):
        for _ in range(100):
            with Progress("training", 40, "steps"):
                time.sleep(0.05)
            if lines.lines:
                break
        assert lines.lines


def test_long_work_is_announced_after_three_parts_and_seconds(lines, clock):
    with Progress("training", 40, "steps") as work:
        for seconds in (0.5, 0.5, 0.5):
            clock.now += seconds
            work.advance()
        assert lines.lines == []  # three parts, but not three seconds
        clock.now += 2
        work.advance()
        assert lines.lines == ["training: 4 of 40 steps (10 %), about 36 s left"]
        clock.now += 9
        work.advance()
        assert len(lines.lines) == 1
        clock.now += 87.5
    assert lines.lines[1:] == ["training: 5 of 40 steps in 2 min"]


def test_work_that_is_over_soon_is_not_mentioned(lines, clock):
    with Progress("evaluating", 8, "images") as work:
        for _ in range(8):
            clock.now += 1.9  # 9.5 s are left after three parts
            work.advance()
    assert lines.lines == []


def test_work_that_fails_has_no_last_line(lines, monkeypatch):
    monkeypatch.setattr(progress, "PAUSE", 0.05)

    def fail():
        with Progress("training", 40, "steps"):
            lines.wait(1)
            raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        fail()
    assert " in " not in lines.lines[-1]
    assert progress._at_work == []


def test_nothing_is_printed_without_a_handler(capfd, monkeypatch):
    monkeypatch.setattr(progress, "PAUSE", 0.01)
    monkeypatch.setattr(progress, "FIRST_SECONDS", 0)
    monkeypatch.setattr(progress, "SHORT", 0)
    before = threading.active_count()
    with Progress("training", 40, "steps") as work:
        for _ in range(5):
            work.advance()
            threading.Event().wait(0.02)
        assert work.bar is None
        assert threading.active_count() <= before
    assert capfd.readouterr() == ("", "")


def test_lines_go_to_standard_error_for_the_first_process_only(capfd, monkeypatch):
    with heard(LOGGER, ToStandardError()):
        logging.getLogger(LOGGER).info("training %s", "a\x1b")
        monkeypatch.setenv("LOCAL_RANK", "1")
        logging.getLogger(LOGGER).info("another process")
    assert capfd.readouterr() == ("", "training a\\x1b\n")


# Items


def test_items_are_counted_when_the_consumer_is_done_with_them(lines, clock):
    seen = []
    for item in shown(range(10, 14), "reading", "images"):
        seen.append((item, progress._at_work[-1].done, progress._at_work[-1].total))
    assert seen == [(10, 0, 4), (11, 1, 4), (12, 2, 4), (13, 3, 4)]
    assert progress._at_work == []


def test_an_iterator_has_the_total_that_is_given():
    for given, total in ((7, 7), (None, 0)):
        items = shown(iter("ab"), "reading", "images", given)
        assert next(items) == "a"
        assert progress._at_work[-1].total == total
        assert list(items) == ["b"]


def test_items_are_closed_when_their_consumer_raises():
    def consume():
        for _ in shown(range(4), "reading", "images"):
            raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        consume()
    assert progress._at_work == []


# Bars

WORK = """
import logging, sys, time
from recyclelora.pages.progress import LOGGER, Progress, shown
from recyclelora.pages.terminal import ToStandardError, heard
with heard(LOGGER, ToStandardError()), Progress("training mine", 4, "steps") as work:
    for step in range(1, 5):
        time.sleep(0.15)
        work.advance(loss="0.53", **{"images/s": "8.1"})
        if step == 2:
            for _ in shown(range(2), "validating", "images"):
                time.sleep(0.15)
            logging.getLogger(LOGGER).info("step 2: mIoU 12.00 %")
"""


def on_a_terminal(code):
    """What a terminal gets on standard error, and what goes to standard output."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    seen = b""
    with suppress(OSError):  # how a terminal ends
        while read := os.read(ours, 4096):
            seen += read
    os.close(ours)
    out = process.communicate()[0]
    assert process.returncode == 0, seen
    return seen.decode(), out


def test_a_terminal_shows_a_bar_and_lines_above_it():
    seen, out = on_a_terminal(WORK)
    assert out == b""
    assert re.search(r"training mine:  75%\|.* 3/4 \[00:0\d<00:0\d, .*loss=0.53, images/s=8.1\]", seen)
    assert "validating:  50%" in seen
    assert "of 4 steps" not in seen  # no lines beside bars
    kept = [line.rsplit("\r", 1)[-1] for line in seen.replace("\r\n", "\n").split("\n")]
    assert kept.count("step 2: mIoU 12.00 %") == 1
    assert kept[-2].startswith("training mine: 100%")  # the inner bar is gone, the outer one stays


def test_there_is_no_bar_elsewhere():
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "step 2: mIoU 12.00 %\n")


def test_a_notebook_shows_a_bar(lines, monkeypatch, capsys):
    with Progress("training", 4, "steps") as work:
        assert work.bar is None
    monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace())
    with Progress("training", 4, "steps", done=1) as work:
        work.advance(loss="0.53")
        assert (work.bar.n, work.bar.total) == (2, 4)
        with Progress("hidden", 4, "images", shown=False) as hidden:
            assert hidden.bar is None
    assert "training:  50%" in capsys.readouterr().err
    assert lines.lines == []
