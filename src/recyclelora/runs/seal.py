"""The hashes in `run.json`, by which a changed or damaged file of a run is noticed before it is used.

    files_sha256   the SHA-256 of each file that the model depends on, as `sha256sum` prints it
    facts_sha256   the SHA-256 of all else in `run.json`, as JSON with sorted keys and without spaces

A training starts with the hash of `recipe.yaml`; the others are added when it is finished. Runs of version 0.1 have no
hashes: their files are used without this check.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from recyclelora.errors import UserError
from recyclelora.files import file_sha256

FILES_KEY, FACTS_KEY = "files_sha256", "facts_sha256"


def sealed(facts: Mapping[str, Any], hashes: Mapping[str, str]) -> dict[str, Any]:
    """The content of `run.json`: the facts, and the hashes of the run's files and of all this itself."""
    content = {**facts, FILES_KEY: dict(hashes)}
    return {**content, FACTS_KEY: _facts_sha256(content)}


def open_sealed(file: Path, content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str] | None]:
    """The facts in `run.json`, and the hashes of the run's files; None for a run of version 0.1.

    Raises:
        UserError: the content does not have the hash that it states.
    """
    facts = dict(content)
    stated, hashes = facts.pop(FACTS_KEY, None), facts.pop(FILES_KEY, None)
    if stated is None and hashes is None:
        return facts, None
    found = _facts_sha256({**facts, FILES_KEY: hashes})
    if not isinstance(hashes, dict) or found != stated:
        raise UserError(
            f"{file}: damaged or changed by hand: its content has the SHA-256 {found[:12]}…, but it states "
            f"{str(stated)[:12]}…; restore the file"
        )
    return facts, hashes


def check_file(folder: Path, name: str, hashes: Mapping[str, str] | None) -> None:
    """Refuse a file of a run that is not as the run wrote it; `name` is its path below `folder`.

    Raises:
        UserError: the file is missing, has another hash, or is not one of the run's files.
    """
    if hashes is None:
        return
    file = folder / name
    check_present(folder, [name])
    if name not in hashes:
        raise UserError(f"{file}: not a file of this run: run.json does not list it; remove the file")
    if (found := file_sha256(file)) != hashes[name]:
        fix = "restore the file" + ("; give other settings on the command line" if name == "recipe.yaml" else "")
        raise UserError(
            f"{file}: damaged, or not the file of this run: its SHA-256 is {found[:12]}…, but run.json says "
            f"{hashes[name][:12]}…; {fix}"
        )


def check_present(folder: Path, names: Iterable[str] | None) -> None:
    """Refuse a run that lacks one of its files; None for a run that does not list them.

    Raises:
        UserError: a file is missing; the message names it.
    """
    for name in names or ():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: missing, but it is a part of this run; restore the file or train again")


def check_files(folder: Path, possible: Iterable[str], hashes: Mapping[str, str] | None) -> None:
    """Refuse a finished run one of whose files is missing, changed, or not its own.

    Args:
        possible: the names of all files that any run would read.

    Raises:
        UserError: as `check_file`.
    """
    if hashes is not None:
        for name in {**hashes, **{name: "" for name in possible if (folder / name).exists()}}:
            check_file(folder, name, hashes)


def _facts_sha256(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
