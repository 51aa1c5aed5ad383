"""Files that are whole or absent: only this module renames a file, locks a folder or names a cache.

path  <--- renamed, once it is on the disk ---  .path.PID-RANDOM.part  <--- written
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recyclelora.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all: yields a path beside `path`; its file replaces `path` at the end.

    The file reaches the disk before it is renamed, and the folder after it. Its permissions are those of any new file
    (the umask). Missing folders are made. If the writing fails, what was there before stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        part.touch(exist_ok=False)
        mode = part.stat().st_mode
        yield part
        part.chmod(mode)  # some writers make a file of their own, which only its owner can read
        _sync(part)
        os.replace(part, path)
        _sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8; see `replacing`."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write plain values as JSON; see `replacing`."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """The values in a JSON file.

    Raises:
        UserError: the file is not JSON.
        OSError: the file cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: damaged, it is not JSON ({error}); restore the file") from error


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors of any device as a safetensors file; see `replacing`."""
    from safetensors.torch import save_file

    with replacing(path) as part:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, part, metadata)


def set_aside(path: Path, older: Path) -> None:
    """Give a file the name `older`, in place of what has it; nothing happens if there is no file."""
    if path.is_file():
        os.replace(path, older)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as `sha256sum` prints it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder, which is made if missing; the lock ends with its process.

    Raises:
        UserError: another process is at work there.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise UserError(f"{folder}: another process is at work there; wait for it, or choose another folder") from None


def cache_folder() -> Path:
    """The folder for what can be made again: `RECYCLELORA_CACHE`, else `recyclelora` in the user's cache folder."""
    own = os.environ.get("RECYCLELORA_CACHE")
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(user) / "recyclelora"


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name; in a checkout they lie in `recipes/` at its root."""
    here = Path(__file__).parent
    folder = next((place for place in (here / "recipes", here.parents[1] / "recipes") if place.is_dir()), here)
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}
