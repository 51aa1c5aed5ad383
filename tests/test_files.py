"""Files are whole or absent, locks keep others out, and caches are in the folder that was chosen."""

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
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
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
