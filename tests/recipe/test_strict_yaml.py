"""YAML is read by the rules of 1.2, what could be misread is refused, and what is written is read back."""

import codecs
import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recyclelora.recipe.strict_yaml import MOST_BYTES, MOST_LEVELS, MOST_VALUES, read_text_file, read_yaml, write_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("032", 32),
        ("-07", -7),
        ("1_000", 1000),
        ("1e-3", 0.001),
        ("1e5", 100000.0),
        (".5", 0.5),
        ("10.", 10.0),
        (".inf", float("inf")),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("0x10", "0x10"),
        ("no", False),
        ("On", True),
        ("TRUE", True),
        ("'no'", "no"),
        ("y", "y"),
        ("~", None),
        ("", None),
        ("&a [1, 2]", [1, 2]),
        ("[&a {b: 1}, *a]", [{"b": 1}, {"b": 1}]),
        ("!!str 5", "5"),
    ],
)
def test_plain_values_are_read_by_the_rules_of_yaml_1_2(text, value):
    found = read_yaml(text)
    assert found == value
    assert type(found) is type(value)


LAUGHS = "\n".join(["- &b0 [1]", *(f"- &b{i + 1} [{', '.join([f'*b{i}'] * 10)}]" for i in range(9))])


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' for a second time"),
        ("a: {b: 1,\n b: 2}", "line 2: the key 'b' for a second time"),
        ("1: 2", "line 1: the key 1, expected text as a key"),
        ("on: 2", "line 1: the key True, expected text as a key"),
        ("? [a]\n: 1", "expected text as a key"),
        ("[" * 10_000, f"more than {MOST_LEVELS} levels"),
        ("{a: " * 10_000, f"more than {MOST_LEVELS} levels"),
        ("- " * 10_000, f"more than {MOST_LEVELS} levels"),
        ("&a [*a]", f"more than {MOST_LEVELS} levels"),
        (LAUGHS, f"more than {MOST_VALUES:,} values"),
        ("a: !!python/object/apply:os.system [ls]", "line 1: the tag"),
        ("a: !!python/name:os.system", "line 1: "),
        ("a: !!int x", "line 1: 'x' with the tag"),
        ("a: !!binary aGk=", "expected plain values"),
        ("a: " + "9" * 5000, "a number of 5000 digits"),
        ("a: 1e999", "line 1: the number 1e999 is too large"),
        ("a: *b", "undefined alias"),
        ("a: 1\n---\nb: 2", "line 2: "),
        ("a:\n\tb: 1", "line 2: "),
        ("a: [1", "line 1: "),
        ("a: b: c", "line 1: "),
        ('"\\0"', "which no name can have"),
        ('"\\ud800"', "which no name can have"),
        ("\0", "special characters are not allowed"),
        ("a" * (MOST_BYTES + 1), f"expected at most {MOST_BYTES:,}"),
        (b"\xff\xd8\xff\xe0", "not text in UTF-8"),
        (b"\xff\xfea", "not text in UTF-8"),
    ],
)
def test_what_could_be_misread_is_refused_with_its_line(text, part):
    with pytest.raises(ValueError, match=re.escape(part)) as caught:
        read_yaml(text)

    assert "\n" not in str(caught.value)


def test_utf_16_and_a_byte_order_mark_are_read():
    for encoded in (codecs.BOM_UTF8 + "a: é".encode(), "a: é".encode("utf-16")):
        assert read_yaml(encoded) == {"a": "é"}


texts = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"])) | st.sampled_from(
    ["032", "089", "1e5", "1:30", "no", "On", "~", "", "2020-01-01", "1_0", "0x10", "=", "<<", "a\udcffb", "\x1b[31m"]
)
scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | texts
nested = st.recursive(scalars, lambda s: st.lists(s, max_size=3) | st.dictionaries(texts, s, max_size=3), max_leaves=8)


@given(nested)
def test_what_is_written_is_read_back(value):
    assert read_yaml(write_yaml(value)) == value


@given(st.binary(max_size=60) | st.text("ab:-[]{}&*!|>'\"%@,?# \n\t0e.", max_size=60))
def test_any_bytes_are_read_or_refused(content):
    with contextlib.suppress(ValueError):  # any other error fails
        read_yaml(content)


def test_a_file_of_settings_is_a_small_file(tmp_path):
    (tmp_path / "a.yaml").write_text("a: 1")
    assert read_text_file(tmp_path / "a.yaml") == b"a: 1"
    (tmp_path / "a.yaml").write_bytes(b"#" * (MOST_BYTES + 1))
    for place, part in ((tmp_path / "a.yaml", "1,048,577 bytes"), (tmp_path, "not a file")):
        with pytest.raises(ValueError, match=part):
            read_text_file(place)
