"""Reads `classes.txt`, the list of classes of a folder; what may not be such a list is refused.

# a comment
ground
sky 70 130 180          a name and its colour, or `70 130 180 sky`, also with commas
road #804080            # a colour in hexadecimal, and a comment
ignored 0 0 0           at the end: a colour of pixels that are ignored, where labels are read by colours
"""

from __future__ import annotations

import codecs
import difflib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from recyclelora.data.colours import Colour, distinct_colours
from recyclelora.data.labels import IGNORE, LabelSpace
from recyclelora.data.stored import LFS_POINTER, kind_of, named, read_file
from recyclelora.errors import UserError, did_you_mean

FILE = "classes.txt"
IGNORED = "ignored"
"""The name in front of the colours of ignored pixels; it is no class."""

STEMS = {"class", "classes", "class_names", "classnames", "class-names"}
"""How files are called that are meant as a list of classes, without suffix."""

_COMMENT = re.compile(r"(^|\s)#(\s.*)?$|^#(?![0-9a-fA-F]{6}([\s,;]|$)).*$")
"""A `#` with a space or nothing behind it; at the start of a line also with a word that is no colour."""

_BETWEEN = r"(?:\s*[,;]\s*|\s+)"
_RGB = rf"(?P<rgb>[0-9]+{_BETWEEN}[0-9]+{_BETWEEN}[0-9]+)"
_LAST = re.compile(rf"(?P<name>.+?){_BETWEEN}(?:{_RGB}|(?P<hex>#\S*))[,;]?")
_FIRST = re.compile(rf"(?:{_RGB}|(?P<hex>#[0-9a-fA-F]{{6}})){_BETWEEN}(?P<name>\S.*?)[,;]?")
_HEADING = re.compile(r"(name|class(es)?|label|id)\b.*\b(colou?rs?|r\W+g\W+b|rgb)", re.IGNORECASE)


class ClassList(NamedTuple):
    """The classes of a list, and which id each colour in a label stands for.

    There are no `colours` if labels cannot be read by them; `why` then says why.
    """

    space: LabelSpace
    colours: dict[Colour, int]
    why: str


class Line(NamedTuple):
    """A class, its colour as written if there is one, and where it stands in which file."""

    name: str
    colour: str
    where: str


def find_classes(root: Path) -> Path | None:
    """The list of classes in a folder; None if there is none.

    Raises:
        UserError: there is only a file that is called almost so.
    """
    if (root / FILE).exists() or (root / FILE).is_symlink():
        return root / FILE
    for path in sorted(root.iterdir()):
        name = unicodedata.normalize("NFKC", path.name).casefold()
        near = name.split(".")[0].strip() in STEMS or difflib.SequenceMatcher(None, name, FILE).ratio() > 0.85
        if near and not name.startswith(".") and not path.is_dir():
            raise UserError(
                f"{path}: called almost as a list of classes, expected {FILE}, in exactly these letters; "
                f"rename it to {FILE}, or to something else if the ids are the 19 Cityscapes train ids"
            )
    return None


def read_classes(path: Path) -> ClassList:
    """The classes in a list: one name per line, with or without a colour, `R G B` or `#rrggbb`.

    Empty lines and comments are skipped; the order of the names gives the ids. Classes without a colour get one that
    differs from all others as much as possible. Behind them may stand colours of ignored pixels.

    Raises:
        UserError: the file is no text in UTF-8 or UTF-16, a line is not a class, a colour is not valid, a name is
            repeated, there are not 2 to 255 names, or a colour of ignored pixels is that of a class or does not stand
            at the end.
    """
    lines = list(_lines(path))
    _refuse_other_lists(path, [line.name for line in lines])
    colours: dict[str, Colour | None] = {}
    ignored: list[Colour] = []
    for name, colour, where in lines:
        if name.casefold() == IGNORED:
            ignored.append(_ignored_colour(colour, where))
        elif ignored:
            raise UserError(
                f"{where} names the class {name!r} behind {IGNORED!r}; put the {IGNORED} colours at the end"
            )
        elif name in colours:
            raise UserError(f"{where} names the class {name!r} a second time; give every class one line")
        else:
            colours[name] = _colour(colour, where)
    if not 2 <= len(colours) <= IGNORE:
        raise UserError(
            f"{path}: lists {len(colours)} classes, expected 2 to {IGNORE}; "
            "write one name per line; if only one class matters, name the background in the first line"
        )
    given = [colour for colour in colours.values() if colour]
    fresh = iter(distinct_colours(given, len(colours) - len(given)))
    space = LabelSpace(tuple(colours), tuple(colour or next(fresh) for colour in colours.values()))
    why = _ambiguous(path, colours, ignored)
    ids = {} if why else {colour: identity for identity, colour in enumerate(space.colours)}
    return ClassList(space, ids | dict.fromkeys(ignored if ids else (), IGNORE), why)


def recoloured(space: LabelSpace, path: Path) -> LabelSpace:
    """The classes with the colours that a list gives some of them, in the form of `classes.txt`.

    Raises:
        UserError: the file is no list of classes, or a line names no class of `space`, gives no colour, or names a
            class a second time.
    """
    colours: dict[str, Colour] = {}
    for name, text, where in _lines(path):
        colour = _colour(text, where)
        if name not in space.names:
            raise UserError(
                f"{where} names {name!r}, which is no class of the model; {did_you_mean(name, space.names)}"
            )
        if colour is None:
            raise UserError(f"{where} gives {name!r} no colour, expected one behind the name (`{name} 70 130 180`)")
        if name in colours:
            raise UserError(f"{where} names the class {name!r} a second time; give every class one line")
        colours[name] = colour
    if not colours:
        raise UserError(f"{path}: no colours, expected lines such as `{space.names[0]} 70 130 180`")
    return LabelSpace(
        space.names, tuple(colours.get(name, old) for name, old in zip(space.names, space.colours, strict=True))
    )


def _ignored_colour(text: str, where: str) -> Colour:
    colour = _colour(text, where)
    if colour is None:
        raise UserError(
            f"{where} is {IGNORED!r} without a colour: the name is kept for colours of pixels that are ignored, which "
            f"have the id {IGNORE} and no line in labels of ids; give it a colour, remove it, or choose another name"
        )
    return colour


def _ambiguous(path: Path, colours: dict[str, Colour | None], ignored: list[Colour]) -> str:
    """Why labels cannot be read by these colours; empty if they can."""
    owners: dict[Colour, str] = {}
    for name, colour in colours.items():
        if colour is None:
            return f"{path.name} gives no colour to {name!r}"
        if colour in owners:
            return f"{path.name} gives {owners[colour]!r} and {name!r} the same colour"
        owners[colour] = name
    if both := next((colour for colour in ignored if colour in owners), None):
        raise UserError(
            f"{path}: ignores the colour {both} of the class {owners[both]!r}; give one of them another colour"
        )
    return ""


def _text(path: Path) -> str:
    content = read_file(path)
    kind = kind_of(content)
    if kind in ("Git LFS pointer", "web page") or (kind and not content.isascii()):  # `BMW` begins as a BMP does
        fix = "fetch it with `git lfs pull`" if content.startswith(LFS_POINTER) else "write one class per line as text"
        raise UserError(f"{path}: holds {named(kind)}, expected a list of classes; {fix}")
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); save the list of classes as UTF-8") from error
    if "\0" in text:
        raise UserError(f"{path}: not UTF-8 text (it holds zero bytes); save the list of classes as UTF-8")
    return unicodedata.normalize("NFC", text)


def _lines(path: Path) -> Iterator[Line]:
    """The classes in a file, line by line."""
    text = _text(path)
    try:
        written = json.loads(text)
    except ValueError:
        written = None
    if isinstance(written, (list, dict)):
        raise UserError(f"{path}: holds JSON, expected one class per line; write the names as lines")
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        content = _COMMENT.sub("", line.replace("\ufeff", "")).strip()
        if content:
            yield _line(content, f"{path}: line {number}")


def _line(text: str, where: str) -> Line:
    if strange := next((c for c in text if not c.isprintable() and c not in "\t\u00a0"), None):
        raise UserError(f"{where} holds the character {strange!a}, which cannot be shown; remove it")
    if _HEADING.fullmatch(text):
        raise UserError(f"{where} is {text!r}, a heading and not a class; remove it, or begin it with `# `")
    match = _LAST.fullmatch(text) or _FIRST.fullmatch(text)
    name, colour = (match["name"], match["rgb"] or match["hex"]) if match else (text.rstrip(",;"), "")
    name = " ".join(name.strip(" \t,;").split())
    if not name or "," in name or re.fullmatch(r"[\d\s.;]+|#\S*|(//|%|;|--).*", name):
        found = "a comma" if "," in name else "no name (a comment begins with `#`)"
        raise UserError(
            f"{where} is {text!r}, with {found}; expected one class: write one name per line, with or without a colour "
            "behind it (`sky 70 130 180`)"
        )
    return Line(name, colour, where)


def _refuse_other_lists(path: Path, names: Iterable[str]) -> None:
    """Refuse lists in which each line holds something beside its name, such as a number or a dash."""
    names = list(names)
    marks = {
        r"\d+\s*[:.)=\t ]\s*\S.*": "begins with a number: the ids follow from the order; leave the numbers out",
        r".*[:=]\s*\d+": "ends with a number: the ids follow from the order; leave the numbers out",
        r"[-*•]\s+\S.*": "begins with a dash; leave the dashes out",
        r"(['\"]).*\1": "is in quotes; leave the quotes out",
    }
    for mark, text in marks.items():
        if len(names) > 1 and all(re.fullmatch(mark, name) for name in names):
            raise UserError(f"{path}: every line {text} (found {names[0]!r}, expected a name)")
    if names and names[0].casefold() in ("name", "names", "class", "classes", "label", "labels", "id", "classes:"):
        raise UserError(f"{path}: begins with {names[0]!r}, a heading and not a class; remove it, or write `# ` before")
    ends = [re.fullmatch(r"(.*)\s(\d+)", name) for name in names]
    counted = [int(end[2]) for end in ends if end]
    if (
        len(names) > 1
        and len({end[1] for end in ends if end}) == len(names)
        and counted[-1] - counted[0] + 1 == len(names)
    ):
        raise UserError(f"{path}: every line ends with its number (found {names[0]!r}, expected a name); leave it out")


def _colour(text: str, where: str) -> Colour | None:
    """The colour on a line of a list of classes, if there is one."""
    if not text:
        return None
    if text.startswith("#"):
        digits = re.fullmatch("#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})", text)
        values = [int(pair, 16) for pair in digits.groups()] if digits else []
    else:
        values = [int(number) for number in re.split(r"[\s,;]+", text)]
    if len(values) != 3 or max(values) > 255:
        raise UserError(f"{where} has the colour {text!r}, expected `R G B` of 0 to 255 or `#rrggbb`")
    return values[0], values[1], values[2]
