"""The file that says from which images the pictures in a folder were made, line by line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from recyclelora.errors import UserError
from recyclelora.files import append_line, read_lines, write_text
from recyclelora.runs.pictures import possible_files

RECORD = "predictions.jsonl"
"""The name of the file."""
FIRST_KINDS = ("labels", "overlay")
"""The kinds of pictures where a line does not say."""


class Record:
    """The settings of pictures, and the images that they were made of.

    An image is listed before its pictures are written, and again, with its hash, after them.

    Attributes:
        settings: what they were made with; None if there is no file.
        hashes: the SHA-256 of each image, by its name; None if its pictures may be missing or those of another image.
        kinds: the kinds of pictures of each image that are there, or may be.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.settings: dict[str, Any] | None = None
        self.hashes: dict[str, str | None] = {}
        self.kinds: dict[str, tuple[str, ...]] = {}
        lines = read_lines(file) if file.is_file() else []
        try:
            self.settings = dict(lines[0]) if lines else None
            for line in lines[1:]:
                self._note(str(line["image"]), line["sha256"], line.get("saved", FIRST_KINDS))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{file}: damaged ({error}); remove it, and the pictures beside it") from error

    def begin(self, settings: Mapping[str, Any], anew: bool) -> None:
        """Write the settings if they are not there, or `anew`; the list of images that have pictures stays."""
        if anew or self.settings is None:
            self.hashes = dict.fromkeys(self.hashes)
            lines = [json.dumps(settings), *(_line(name, None, self.kinds[name]) for name in self.hashes)]
            write_text(self.file, "".join(f"{line}\n" for line in lines))

    def add(self, name: str, sha256: str | None, kinds: Iterable[str]) -> None:
        """List an image."""
        kinds = tuple(kinds)
        append_line(self.file, _line(name, sha256, kinds))
        self._note(name, sha256, kinds)

    def _note(self, name: str, sha256: str | None, kinds: Iterable[str]) -> None:
        self.hashes[name], self.kinds[name] = sha256, tuple(kinds)


def _line(name: str, sha256: str | None, kinds: Iterable[str]) -> str:
    return json.dumps({"image": name, "sha256": sha256, "saved": list(kinds)})


def made_before(out: Path, record: Record) -> Callable[[Path], bool]:
    """Whether a file was written by a call, to `out` or to another folder that it is in."""
    made = {out.resolve(): _files_in(out, record)}

    def made_in(folder: Path) -> set[Path]:
        if folder not in made:
            made[folder] = set()
            if (folder / RECORD).is_file():
                with suppress(UserError):  # a file of another program, of the same name
                    made[folder] = _files_in(folder, Record(folder / RECORD))
        return made[folder]

    return lambda file: any(file.resolve() in made_in(above) for above in file.resolve().parents)


def _files_in(out: Path, record: Record) -> set[Path]:
    return {file.resolve() for name, made in record.kinds.items() for file in possible_files(out, name, made)}
