"""The record of a folder of pictures: what is there, and of what."""

import json

import pytest

from labelled_files import refused
from recyclelora.runs.record import Record


def test_the_last_line_of_an_image_counts(tmp_path):
    record = Record(tmp_path / "predictions.jsonl")
    record.begin({"opacity": 0.5}, anew=False)
    record.add("a", None, ["labels"])
    record.add("b", None, ["labels"])
    record.add("a", "1234", ["labels", "overlay"])
    again = Record(record.file)
    assert again.settings == {"opacity": 0.5}
    assert again.hashes == {"a": "1234", "b": None}
    assert again.kinds == {"a": ("labels", "overlay"), "b": ("labels",)}


def test_a_new_begin_knows_the_pictures_but_not_what_they_show(tmp_path):
    record = Record(tmp_path / "predictions.jsonl")
    record.begin({"opacity": 0.5}, anew=False)
    record.add("a", "1234", ["confidence"])
    Record(record.file).begin({"opacity": 0.7}, anew=False)
    assert Record(record.file).hashes == {"a": "1234"}
    Record(record.file).begin({"opacity": 0.7}, anew=True)
    again = Record(record.file)
    assert (again.settings, again.hashes, again.kinds) == ({"opacity": 0.7}, {"a": None}, {"a": ("confidence",)})


def test_lines_without_kinds_are_of_labels_and_overlay(tmp_path):
    (tmp_path / "r").write_text('{"opacity": 1}\n{"image": "a", "sha256": "12"}\n')
    assert Record(tmp_path / "r").kinds == {"a": ("labels", "overlay")}


@pytest.mark.parametrize("line", ["[1]", '{"image": "a"}', "3", '{"image": "a", "sha256": "1", "saved": 4}'])
def test_a_damaged_record_is_named(line, tmp_path):
    (tmp_path / "r").write_text(f"{json.dumps({})}\n{line}\n")
    refused(lambda: Record(tmp_path / "r"), tmp_path / "r", "damaged", "remove it")
