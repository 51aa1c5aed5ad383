"""Files are whole or absent, locks keep others out, and caches are in the folder that was chosen."""

import errno
import json
import os
import stat
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from labelled_files import refused
from recyclelora import files


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o027, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_files_get_the_permissions_of_any_new_file(tmp_path, umask):
    files.write_text(tmp_path / "a.txt", "text")
    files.write_json(tmp_path / "a.json", {"a": 1})
    files.save_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2)})
    with files.replacing(tmp_path / "a.bin") as part:
        part.write_bytes(b"0")
    with files.staged(tmp_path / "folder") as part:
        (part / "a.txt").touch(mode=0o600)
    (tmp_path / "folder" / "a.txt").rename(tmp_path / "b.txt")
    (tmp_path / "folder").rmdir()
    assert {mode(path) for path in tmp_path.iterdir()} == {0o666 & ~umask}


def test_a_file_replaces_the_one_before_and_folders_are_made(tmp_path):
    path = tmp_path / "deep" / "er" / "a.json"
    for value in ({"a": 1}, {"b": [1.5, None]}):
        files.write_json(path, value)
        assert files.read_json(path) == value
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]
    assert path.read_text() == json.dumps({"b": [1.5, None]}, indent=1) + "\n"


@pytest.mark.parametrize("there", [True, False])
def test_a_failure_while_writing_leaves_what_was_there(tmp_path, there):
    path = tmp_path / "a.txt"
    if there:
        path.write_text("before")

    def fail():
        with files.replacing(path) as part:
            part.write_text("half")
            raise OSError(errno.ENOSPC, "disk full")

    refused(fail, path, "disk full", "free on this disk")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"] * there
    assert not there or path.read_text() == "before"


def test_the_file_is_on_the_disk_before_it_is_renamed_and_the_folder_after(tmp_path, monkeypatch):
    done = []
    sync, replace = os.fsync, os.replace
    kinds = {True: "folder", False: "file"}
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(kinds[stat.S_ISDIR(os.fstat(fd).st_mode)]), sync(fd)))
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("renamed"), replace(*paths)))
    files.write_text(tmp_path / "a.txt", "text")
    assert done == ["file", "renamed", "folder"]


def test_a_link_is_replaced_but_not_the_file_it_leads_to(tmp_path):
    (tmp_path / "other.txt").write_text("of somebody else")
    (tmp_path / "a.txt").symlink_to(tmp_path / "other.txt")
    files.write_text(tmp_path / "a.txt", "ours")
    assert (tmp_path / "other.txt").read_text() == "of somebody else"
    assert (tmp_path / "a.txt").read_text() == "ours"


def test_tensors_of_any_layout_come_back_with_their_metadata(tmp_path):
    value = torch.arange(6.0).view(2, 3).T.requires_grad_()
    files.save_tensors(tmp_path / "a.safetensors", {"x": value}, {"made": "here"})
    assert torch.equal(load_file(tmp_path / "a.safetensors")["x"], value)
    assert b'"made":"here"' in (tmp_path / "a.safetensors").read_bytes()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_a_file_that_is_not_json_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    refused(lambda: files.read_json(tmp_path / "a.json"), "a.json: damaged, it is not JSON")


def test_a_locked_folder_keeps_other_processes_out_until_it_is_left(tmp_path):
    code = "import sys, pathlib; from recyclelora.files import locked\nwith locked(pathlib.Path(sys.argv[1])): pass"

    def other():
        return subprocess.run([sys.executable, "-c", code, tmp_path / "x"], capture_output=True, text=True, check=False)

    with files.locked(tmp_path / "x"):
        blocked = other()
    assert blocked.returncode != 0
    assert "another process is at work there" in blocked.stderr
    assert other().returncode == 0


def test_a_folder_can_be_locked_again_by_its_own_process(tmp_path):
    with files.locked(tmp_path):
        with files.locked(tmp_path):
            pass
        assert files.holds_nothing(tmp_path)
        (tmp_path / "a.txt").write_text("a")
        assert not files.holds_nothing(tmp_path)


HOLDER = """
import sys, pathlib, time
from recyclelora.files import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_seen_while_a_process_holds_it_and_nothing_is_changed(tmp_path):
    folder = tmp_path / "x"
    assert not files.is_locked(folder)
    assert not folder.exists()
    process = subprocess.Popen([sys.executable, "-c", HOLDER, folder], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "held\n"
        folder.chmod(0o500)
        before = (folder / files.LOCK).stat()
        assert [files.is_locked(folder) for _ in range(3)] == [True] * 3
        assert (folder / files.LOCK).stat() == before
        process.kill()
    assert (folder / files.LOCK).is_file()  # left by the dead process
    assert not files.is_locked(folder)
    folder.chmod(0o700)
    with files.locked(folder):
        assert files.is_locked(folder)
    assert not files.is_locked(folder)


def test_looking_at_a_lock_never_keeps_a_process_out(tmp_path):
    code = "import sys, pathlib; from recyclelora.files import is_locked\nprint('looking', flush=True)\n"
    code += "while True: is_locked(pathlib.Path(sys.argv[1]))"
    with files.locked(tmp_path):
        pass
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "looking\n"
        try:
            for _ in range(300):
                with files.locked(tmp_path):
                    pass
            assert process.poll() is None
        finally:
            process.kill()


@pytest.mark.parametrize("count", [1, 20, 5000, 10_000])
@pytest.mark.parametrize("cut", ["", '{"step": 1'])
def test_the_last_lines_are_those_of_the_whole_file(count, cut, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("".join(f'{{"step": {step}, "text": "{"é" * (step % 50)}"}}\n' for step in range(6000)) + cut)
    assert files.read_last_lines(file, count) == files.read_lines(file)[-count:]
    file.write_text(cut)
    assert files.read_last_lines(file, count) == []


def test_the_lock_of_a_file_is_removed_at_its_end(tmp_path):
    with files.locked_file(tmp_path / "deep" / "a.json"):
        assert [p.name for p in (tmp_path / "deep").iterdir()] == [".a.json.lock"]
    assert not any((tmp_path / "deep").iterdir())


WRITER = """
import os, sys, time
from pathlib import Path
from recyclelora import files
with files.replacing(Path(sys.argv[1])) as part:
    part.write_bytes(b"half")
    print(flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_is_removed_and_that_of_a_living_one_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_swept", set())
    file = tmp_path / "a.txt"
    file.write_text("before")
    dead, living = (
        subprocess.Popen([sys.executable, "-c", WRITER, file], stdout=subprocess.PIPE, text=True) for _ in range(2)
    )
    with dead, living:
        for process in (dead, living):
            process.stdout.readline()
        dead.kill()
        dead.wait()
        assert file.read_text() == "before"
        assert len(list(tmp_path.glob(".*.part"))) == 2
        assert not files.holds_nothing(tmp_path)
        files.write_text(tmp_path / "b.txt", "b")
        (left,) = tmp_path.glob(".*.part")
        assert f"-{living.pid}-" in left.name
        living.kill()


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "deep" / "out"

    def write(fail=False):
        with files.staged(folder) as part:
            (part / "inner").mkdir()
            (part / "inner" / "a.txt").write_text("new")
            assert not folder.exists() or not (folder / "inner" / "a.txt").exists()
            if fail:
                raise OSError(errno.ENOSPC, "disk full")

    refused(lambda: write(fail=True), folder, "disk full", "free on this disk")
    assert list(folder.parent.iterdir()) == []
    write()
    assert [path.name for path in folder.parent.iterdir()] == ["out"]
    assert (folder / "inner" / "a.txt").read_text() == "new"


def test_a_folder_that_is_there_keeps_its_other_files(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("a.txt", "mine.txt"):
        (folder / name).write_text("before")
    with files.staged(folder) as part:
        (part / "a.txt").write_text("new")
        assert (folder / "a.txt").read_text() == "before"
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"a.txt": "new", "mine.txt": "before"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


STAGER = WRITER.replace("replacing", "staged").replace("part.write_bytes", "(part / 'a').write_bytes")


def test_what_a_killed_process_staged_is_removed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", STAGER, tmp_path / "out"], stdout=subprocess.PIPE, text=True) as dead:
        dead.stdout.readline()
        (part,) = tmp_path.iterdir()
        assert part.is_dir()
        dead.kill()
    with files.staged(tmp_path / "out") as part:
        (part / "a").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def limited(code, *arguments):
    """Run code in a process that may write files of 4,096 bytes at most: larger ones end like those on a full disk."""
    start = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n" + code
    command = [sys.executable, "-c", start, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "call",
    [
        "files.write_text(path, 'x' * 5000)",
        "import torch; files.save_tensors(path, {'x': torch.zeros(1250)})",
    ],
)
def test_a_full_disk_is_one_line_with_the_path_and_what_was_needed(call, tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("before")
    code = "import sys; from pathlib import Path; from recyclelora import files; path = Path(sys.argv[1]); " + call
    done = limited(code, file)
    last = done.stderr.strip().splitlines()[-1]
    assert f"{file}: could not be written (File too large, 5,000 bytes needed, " in last
    assert "MiB free on this disk); allow larger files (`ulimit -f`)" in last
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert file.read_text() == "before"


def test_a_line_that_does_not_fit_is_not_written_in_part(tmp_path):
    file = tmp_path / "a.jsonl"
    lines = "for _ in range(9): files.append_line(path, 'x' * 599)"
    done = limited(
        "import sys; from pathlib import Path; from recyclelora import files; path = Path(sys.argv[1])\n" + lines, file
    )
    assert f"{file}: could not be written (No space left on device, 600 bytes needed" in done.stderr
    assert file.read_text() == ("x" * 599 + "\n") * 6


@pytest.mark.parametrize("way", ["file", "folder"])
def test_what_is_in_the_way_is_named(way, tmp_path):
    (tmp_path / "a").mkdir() if way == "folder" else (tmp_path / "a").write_text("mine")
    path = tmp_path / "a" if way == "folder" else tmp_path / "a" / "b"
    fix = "a folder is where a file should be" if way == "folder" else "choose another path"
    refused(lambda: files.write_text(path, "text"), path, "could not be written", fix)
    assert way == "folder" or (tmp_path / "a").read_text() == "mine"


def test_another_error_of_the_writer_stays_what_it_is(tmp_path):
    def fail():
        with files.replacing(tmp_path / "a"):
            raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    assert not any(tmp_path.iterdir())


def test_the_file_before_gets_its_name(tmp_path):
    for number in range(3):
        files.save_tensors(tmp_path / "new", {"x": torch.full((1,), number)}, older=tmp_path / "old")
    assert [load_file(tmp_path / name)["x"].item() for name in ("old", "new")] == [1, 2]


@pytest.mark.parametrize("torn", ["", '{"step": 3', "x", "é"])
def test_lines_are_appended_and_a_torn_one_is_dropped(torn, tmp_path, umask):
    path = tmp_path / "deep" / "a.jsonl"
    for step in (1, 2):
        files.append_line(path, json.dumps({"step": step}))
    assert mode(path) == 0o666 & ~umask
    with path.open("ab") as file:
        file.write(torn.encode()[: max(1, len(torn.encode()) - 1)] if torn else b"")
    assert files.read_lines(path) == [{"step": 1}, {"step": 2}]
    files.append_line(path, json.dumps({"step": 3}))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_a_line_that_is_not_json_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"step": 1}\nnot json\n{"step": 3}\n')
    refused(lambda: files.read_lines(tmp_path / "a.jsonl"), "a.jsonl: damaged, line 2 is not JSON", "restore the file")


def test_no_line_is_written_through_a_link(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "mine")
    refused(lambda: files.append_line(tmp_path / "a.jsonl", "x"), "a.jsonl: could not be written")
    assert (tmp_path / "mine").read_text() == "mine"


def test_the_cache_is_in_the_chosen_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.delenv("RECYCLELORA_CACHE", raising=False)
    assert files.cache_folder() == tmp_path / "user" / "recyclelora"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.cache_folder() == tmp_path / ".cache" / "recyclelora"
    monkeypatch.setenv("RECYCLELORA_CACHE", str(tmp_path / "own"))
    assert files.cache_folder() == tmp_path / "own"


def test_the_recipes_of_the_package_are_found_by_name():
    found = files.shipped_recipes()
    assert {"g2cbm", "gs2cbm", "gsu2cbm", "c2bm", "c2acdc", "streets"} <= found.keys()
    assert all(path.stem == name and path.suffix == ".yaml" for name, path in found.items())
