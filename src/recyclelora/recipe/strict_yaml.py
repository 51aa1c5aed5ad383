"""Reads and writes YAML without surprises: the part of it that settings need, by the rules of YAML 1.2.

    text        032   1e-3   1_000   1:30    2020-01-01   yes, no, on, off   ~ or nothing
    is read as  32    0.001  1000    text    text         true or false      null

PyYAML reads YAML 1.1, where `032` is 26, `1:30` is 90 and `1e-3` is text, and of two equal keys the last one counts.
Here equal keys are refused, keys are text, and there are no tags such as `!!python/name`. Size, nesting and aliases are
limited, so that a small file cannot become large in memory.
"""

from __future__ import annotations

import codecs
import math
import re
import stat
from pathlib import Path
from typing import Any

import yaml

from recyclelora.errors import UserError

MOST_BYTES = 2**20
"""The largest text that is read."""
MOST_LEVELS = 20
MOST_VALUES = 20_000
"""The largest number of values, with those of aliases counted at each place."""
MOST_DIGITS = 400
"""A longer number is no setting, and takes Python long to read."""

_BOOLEANS = {"yes": True, "no": False, "true": True, "false": False, "on": True, "off": False}
_PATTERNS = {
    "null": (r"~|null|Null|NULL|", [*"~nN", ""]),
    "bool": ("|".join(form(word) for word in _BOOLEANS for form in (str, str.title, str.upper)), [*"yYnNtTfFoO"]),
    "int": (r"[-+]?[0-9][0-9_]*", [*"-+0123456789"]),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        [*"-+.0123456789"],
    ),
}  # the first that fits decides
_CORE = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """PyYAML's parser, which makes a tree of the text; nesting is limited while it is built."""

    level = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.level += 1
        if self.level > MOST_LEVELS:
            raise yaml.MarkedYAMLError(None, None, f"more than {MOST_LEVELS} levels", self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.level -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Writes text in quotes wherever `_Loader` or YAML 1.1 would read something else."""


_Loader.yaml_implicit_resolvers = {}  # none of PyYAML's own
for _kind, (_pattern, _starts) in _PATTERNS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_CORE + _kind, re.compile(rf"^(?:{_pattern})$"), _starts)


def read_yaml(content: bytes | str) -> Any:
    """The values in a text: mappings, lists, text, numbers, booleans and null.

    Raises:
        ValueError: it is not such a text; the message says why, and in which line.
    """
    text = _decoded(content) if isinstance(content, bytes) else content
    if len(text) > MOST_BYTES:
        raise ValueError(f"{len(text):,} characters, expected at most {MOST_BYTES:,}")
    try:
        node = yaml.compose(text, Loader=_Loader)
        return None if node is None else _Values().of(node)
    except yaml.MarkedYAMLError as error:
        problem = " ".join(filter(None, (error.context, error.problem)))
        mark = error.problem_mark or error.context_mark
        raise ValueError(f"{_line(mark)}: {problem}" if mark else problem) from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split()).replace(' in "<unicode string>",', "")) from error


def write_yaml(values: Any) -> str:
    """The text of plain values, from which `read_yaml` reads the same."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


def read_text_file(path: Path) -> bytes:
    """The bytes of a small file.

    Raises:
        UserError: it is no file, or too large.
        OSError: it cannot be read.
    """
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise UserError(f"{path}: not a file, expected a file of settings; give its path")
    if facts.st_size > MOST_BYTES:
        raise UserError(f"{path}: {facts.st_size:,} bytes, expected settings of at most {MOST_BYTES:,}; give a recipe")
    return path.read_bytes()


def _decoded(content: bytes) -> str:
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not text in UTF-8 ({error.reason} at byte {error.start})") from error


def _line(mark: Any) -> str:
    return f"line {mark.line + 1}"


class _Values:
    """Turns the tree of a text into values, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def of(self, node: Any, level: int = 1) -> Any:
        """The value of a node."""
        self.count += 1
        where = _line(node.start_mark)
        if self.count > MOST_VALUES or level > MOST_LEVELS:
            what = f"{MOST_VALUES:,} values" if self.count > MOST_VALUES else f"{MOST_LEVELS} levels"
            raise ValueError(f"{where}: more than {what}, those of aliases included")
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_CORE}seq":
            return [self.of(item, level + 1) for item in node.value]
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_CORE}map":
            return self._mapping(node, level)
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node, where)
        raise ValueError(f"{where}: the tag {node.tag!r}, expected plain values")

    def _mapping(self, node: yaml.MappingNode, level: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, item in node.value:
            key, where = self.of(name, level + 1), _line(name.start_mark)
            if not isinstance(key, str):
                raise ValueError(f"{where}: the key {key!r}, expected text as a key; write it in quotes")
            if key in values:
                raise ValueError(f"{where}: the key {key!r} for a second time; keep one of them")
            values[key] = self.of(item, level + 1)
        return values


def _scalar(node: yaml.ScalarNode, where: str) -> Any:
    text, kind = node.value, node.tag.removeprefix(_CORE)
    if kind == "str":
        strange = [c for c in text if c == "\0" or ("\ud800" <= c <= "\udfff" and not "\udc80" <= c <= "\udcff")]
        if strange:  # the surrogates left out stand for bytes of file names that are not UTF-8
            raise ValueError(f"{where}: the character {strange[0]!a}, which no name can have; remove it")
        return text
    if kind not in _PATTERNS or not re.fullmatch(_PATTERNS[kind][0], text):
        raise ValueError(f"{where}: {text[:40]!r} with the tag {node.tag!r}, expected plain values")
    if kind == "null":
        return None
    if kind == "bool":
        return _BOOLEANS[text.lower()]
    if len(text) > MOST_DIGITS:
        raise ValueError(f"{where}: a number of {len(text)} digits, expected at most {MOST_DIGITS}")
    digits = text.replace("_", "")
    if kind == "float":
        number = float(re.sub(r"\.(inf|nan)", r"\1", digits.lower()))
        if math.isinf(number) and "inf" not in digits.lower():
            raise ValueError(f"{where}: the number {text[:40]} is too large")
        return number
    return int(digits)
