"""What is no fault of the program is one line with the fix; what may be one is not hidden."""

import errno
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from recyclelora.errors import MissingExtraError, UserError, explained, printable, shortened


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENOSPC, OSError, ["No space left on device; free disk space"]),
        (errno.EDQUOT, OSError, ["free disk space"]),
        (errno.EROFS, OSError, ["Read-only file system; choose a place"]),
        (errno.EACCES, PermissionError, ["Permission denied; allow it"]),
        (errno.ENAMETOOLONG, OSError, ["give a shorter name"]),
        (errno.EISDIR, IsADirectoryError, ["a folder is where a file should be"]),
        (errno.ENOTDIR, NotADirectoryError, ["a part of the path is a file"]),
        (errno.EFBIG, OSError, ["File too large; allow larger files"]),
        (errno.EIO, OSError, ["check the disk and the path"]),
    ],
)
def test_an_error_of_the_system_names_path_reason_and_fix(number, kind, words):
    error = OSError(number, os.strerror(number), "runs/a.json")
    assert type(error) is kind
    line = explained(error)
    assert line.startswith("runs/a.json: ")
    for word in words:
        assert word in line


def test_a_lack_of_memory_says_what_to_make_smaller():
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(2**45)
    with pytest.raises(RuntimeError) as of_sizes:
        torch.empty(2**40, 2**40)
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(2**45)
    for caught in (of_torch, of_sizes, of_numpy):
        assert explained(caught.value).startswith("not enough memory (")
        assert "smaller crop, batch_size or evaluation.window" in explained(caught.value)
    assert explained(MemoryError()).startswith("not enough memory;")
    assert "not enough memory" in explained(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"))


def test_a_missing_package_is_named_by_another_process_too():
    error = MissingExtraError("a logger", "wandb.sdk", "logging")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, MissingExtraError)
    assert str(again) == str(error)
    assert "the package wandb" in str(again)
    assert 'pip install "recyclelora[logging]"' in str(again)


def test_errors_that_come_from_another_process_as_text():
    text = (
        "Caught PermissionError in DataLoader worker process 0.\nPermissionError: [Errno 13] Permission denied: 'a/b'"
    )
    assert explained(PermissionError(text)) == "a/b: Permission denied; allow it, or choose another place"
    killed = RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")
    assert "was killed, most likely for want of memory" in explained(killed)


def test_faults_of_the_program_stay_faults():
    for error in (KeyError("a"), RuntimeError("shape"), ValueError("x"), OSError("truncated"), AssertionError()):
        assert explained(error) is None
    assert explained(UserError("a\nb")) == "a b"
    assert "nested too deeply" in explained(RecursionError())


def test_long_and_unprintable_texts_are_shown_safely():
    assert shortened("a" * 200) == "a" * 200
    assert shortened("a" * 201) == "a" * 200 + "..."
    assert printable("a\x1b[31m\udcff\n\u202eé") == r"a\x1b[31m\udcff\n\u202eé"


CALL = """
import os, sys, warnings
sys.argv = ["recyclelora", "train", "--recipe", os.fsdecode(b"no\\xff\\x1b[31m.yaml"), "--out", "out"]
import recyclelora
def warn(*_):
    warnings.warn("two\\nlines \\x1b[31m", stacklevel=2)
    raise OSError(28, "No space left on device", os.fsdecode(b"\\xff"))
recyclelora.read_recipe = warn
from recyclelora.__main__ import main
main()
"""


def test_warnings_and_errors_are_one_plain_line_each_in_any_encoding(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CALL], capture_output=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.decode("ascii").splitlines()[-2:] == [
        r"warning: two lines \x1b[31m",
        r"error: \udcff: No space left on device; free disk space, or choose another place",
    ]
