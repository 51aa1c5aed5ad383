"""The command line in a process of its own."""

import signal
import subprocess
import sys
import time

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]


SLOW = """
import time
from recyclelora.training.module import SegmentationModule
forward = SegmentationModule.forward
def slow(self, batch, *rest):
    print("step", flush=True)
    time.sleep(60)
    return forward(self, batch, *rest)
SegmentationModule.forward = slow
"""
"""Code before a training that prints `step` and then takes a minute for it."""


def listening(ignored=()):
    """Start with the usual handlers: tests in the background ignore interrupts."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)


def started(*arguments, ignored=(), before="", group=False):
    """The command line in a process of its own, after some code."""
    code = f"import sys; sys.argv[0] = 'recyclelora'\n{before}\nfrom recyclelora.__main__ import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=group, preexec_fn=lambda: listening(ignored),
    )  # fmt: skip


def wait_for(condition, process):
    deadline = time.monotonic() + 90
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def steps_of(run):
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def said(err):
    """The lines on standard error without those of progress, and the one that bitsandbytes prints on import."""
    others = ("Failed to load CPU gemm_4bit_forward", "training ", "evaluating ", "predicting:", "all trainings:")
    return [line for line in err.splitlines() if not line.startswith(others)]
