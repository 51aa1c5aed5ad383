"""Files that are whole or absent: only this module renames a file, locks a folder or names a cache.

path  <--- renamed, once it is on the disk ---  .HOST-PID-RANDOM.part  <--- written
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recyclelora.errors import FIXES, UserError

if TYPE_CHECKING:
    from torch import Tensor

NO_SPACE = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
PART = re.compile(r"\.(\w{8})-(\d+)-\w{8}\.part")
"""The name of a file that is being written: the host, the process, and something random."""
LOCK = ".lock"
BUSY = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES}
"""The errors of a lock that another process holds."""
_swept: set[Path] = set()


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path as users write it, in which `~` stands for their folder; shells leave that of `--out=~/runs` as it is."""
    return Path(os.path.expanduser(path))


@contextmanager
def replacing(path: Path, size: int | None = None, older: Path | None = None) -> Iterator[Path]:
    """Write a file whole or not at all: yields a path beside `path`; its file replaces `path` at the end.

    The file reaches the disk before it is renamed, and the folder after it. Its permissions are those of any new file
    (the umask). Missing folders are made. If the writing fails, what was there before stays. What dead processes left
    half written in the folder is removed.

    Args:
        size: of the new file in bytes, if it is known, for the message where there is no space.
        older: the name that the file before gets.

    Raises:
        UserError: the disk is full, the folder cannot be written to, or something is in the way.
    """
    part = path.with_name(f".{_host()}-{os.getpid()}-{secrets.token_hex(4)}.part")
    with writing(path, size):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent not in _swept:  # once for each process
            _swept.add(path.parent)
            sweep(path.parent)
        try:
            part.touch(exist_ok=False)
            mode = part.stat().st_mode
            yield part
            part.chmod(mode)  # some writers make a file of their own, which only its owner can read
            _sync(part)
            if older is not None and path.is_file():
                os.replace(path, older)
            os.replace(part, path)
            _sync(path.parent)
        finally:
            with suppress(OSError):  # of the folder, which is named already
                part.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, size: int | None = None) -> Iterator[None]:
    """Turn an error of the operating system into one that says what could not be written, and what to do.

    Args:
        size: of the file in bytes, if it is known.

    Raises:
        UserError: the disk is full, the place cannot be written to, or something is in the way.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not (isinstance(error, OSError) and error.errno):
            found = re.search(r"\(os error (\d+)\)", str(error))  # as safetensors says it
            if not found:
                raise
            error = OSError(int(found[1]), os.strerror(int(found[1])))
        needed = ""
        if error.errno in NO_SPACE:
            needed = "" if size is None else f", {_amount(size)} needed"
            with suppress(OSError):
                needed += f", {_amount(shutil.disk_usage(path.parent).free)} free on this disk"
        fix = FIXES.get(error.errno or 0, "allow writing there, or choose another place")
        raise UserError(f"{path}: could not be written ({error.strerror}{needed}); {fix}") from error


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Write the files of a folder together or not at all: yields a new folder beside it, which takes its place.

    Files that `folder` holds already are replaced if they have the names of new ones, and stay otherwise. If the block
    fails, nothing is changed.

    Raises:
        UserError: as `replacing`.
    """
    part = folder.with_name(f".{_host()}-{os.getpid()}-{secrets.token_hex(4)}.part")
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        sweep(folder.parent)
        try:
            part.mkdir()
            yield part
            files = [file for file in sorted(part.rglob("*")) if file.is_file()]
            for file in files:
                file.chmod(part.stat().st_mode & 0o666)  # some writers make files that only their owner can read
                _sync(file)
            if folder.is_dir():
                for file in files:
                    place = folder / file.relative_to(part)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(file, place)
            else:
                os.replace(part, folder)
            _sync(folder.parent)
        except UserError as error:
            if str(part) not in str(error):
                raise
            raise UserError(str(error).replace(str(part), str(folder))) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _amount(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB" if size >= 2**20 else f"{size:,} bytes"


def _host() -> str:
    """Where a process number means something: the computer, and its container."""
    with suppress(OSError):
        return hashlib.sha256(f"{platform.node()} {os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()[:8]
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def sweep(folder: Path) -> None:
    """Remove the parts of files, and of folders, that dead processes left half written in a folder."""
    for file in folder.iterdir() if os.name != "nt" else ():  # Windows has no harmless way to ask for a process
        name = PART.fullmatch(file.name)
        if name and name[1] == _host() and not _alive(int(name[2])):
            if file.is_dir():
                shutil.rmtree(file, ignore_errors=True)
            else:
                file.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_place(path: Path) -> None:
    """Refuse a path for a new file or folder that could not be written; nothing is made.

    Raises:
        UserError: the path is not UTF-8, so that `safetensors` could not read the files there.
        OSError: a part of the path is a file or cannot be written to, there is a device, a pipe or a link to nothing,
            or the name is too long.
    """
    if str(path.absolute()) != str(path.absolute()).encode(errors="replace").decode():
        raise UserError(f"{path}: a path that is not UTF-8, expected one for results; choose another place")
    with suppress(FileNotFoundError):  # other errors say what is wrong with the path
        path.lstat()
        if not (path.is_file() or path.is_dir()):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    above = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    folder = above.parent if above.is_file() and above == path.absolute() else above
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def write_bytes(path: Path, content: bytes) -> None:
    """Write these bytes; see `replacing`."""
    with replacing(path, len(content)) as part:
        part.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    r"""Write a text in UTF-8; see `replacing`. Bytes of file names that are not UTF-8 become text such as `\udcff`."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def append_line(path: Path, text: str) -> None:
    """Add a line to a file, which is made if missing; a process that dies afterwards does not take it along.

    A line that a dead process left without its end is dropped first. Nothing is written through a link.

    Raises:
        UserError: as `replacing`.
    """
    line = text.encode(errors="backslashreplace") + b"\n"
    with writing(path, len(line)):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        with open(handle, "rb+", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            if end and not _ends_a_line(file, end):
                file.truncate(_whole(path.read_bytes()))
            end = file.seek(0, os.SEEK_END)
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(end)
                raise


def _ends_a_line(file: Any, end: int) -> bool:
    file.seek(end - 1)
    return bool(file.read(1) == b"\n")


def _whole(content: bytes) -> int:
    """The length of a text up to the end of its last whole line."""
    return content.rfind(b"\n") + 1


def read_lines(path: Path) -> list[Any]:
    """The values in a file with one JSON value per line; a last line without its end is left out.

    Raises:
        UserError: a line is not JSON.
        OSError: the file cannot be read.
    """
    content = path.read_bytes()
    lines = []
    for number, line in enumerate(content[: _whole(content)].splitlines(), 1):
        try:
            lines.append(parse_json(line.decode()))
        except ValueError as error:
            raise UserError(f"{path}: damaged, line {number} is not JSON ({error}); restore the file") from error
    return lines


def read_last_lines(path: Path, count: int) -> list[Any]:
    """The last values in a file with one JSON value per line, at most `count`; only the end of the file is read.

    Raises:
        UserError: one of these lines is not JSON.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        start, size, content = file.seek(0, os.SEEK_END), 4096, b""
        while start and content.count(b"\n") <= count:  # one more, because the first of them may be cut off
            size, end = 2 * size, start
            start = max(0, end - size)
            file.seek(start)
            content = file.read(end - start) + content
    lines = content[: _whole(content)].splitlines()[-count:]
    try:
        return [parse_json(line.decode()) for line in lines]
    except ValueError as error:
        raise UserError(
            f"{path}: damaged, one of its last {len(lines)} lines is not JSON ({error}); restore the file"
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Write plain values as JSON; see `replacing`."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """The values in a JSON file.

    Raises:
        UserError: the file is not JSON, holds NaN, or is nested too deeply.
        OSError: the file cannot be read.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: damaged, it is not JSON ({error}); restore the file") from error


def parse_json(text: str) -> Any:
    """The values in a text of JSON.

    Raises:
        ValueError: it is not JSON, holds NaN or infinity, or is nested too deeply.
    """

    def refuse(name: str) -> Any:
        raise ValueError(f"it holds {name}")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None, older: Path | None = None
) -> None:
    """Write tensors of any device as a safetensors file; see `replacing`."""
    from safetensors.torch import save_file

    size = sum(value.numel() * value.element_size() for value in tensors.values())
    with replacing(path, size, older) as part:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, part, metadata)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as `sha256sum` prints it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder, which is made if missing; the lock ends with its process.

    The process itself may lock the folder again.

    Raises:
        UserError: another process is at work there, or the folder cannot be written to.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder / LOCK, folder):
        yield


@contextmanager
def locked_file(file: Path) -> Iterator[None]:
    """As `locked`, for a file that is going to be written; the lock beside it is removed at the end."""
    lock = file.with_name(f".{file.name}.lock")
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    with _lock(lock, file):
        if not lock.is_file():  # another process has just left
            raise UserError(f"{file}: another process was at work there; call again")
        try:
            yield
        finally:
            with suppress(OSError):  # Windows removes no open file
                lock.unlink()


def is_locked(folder: Path) -> bool:
    """Whether a process, this one included, is at work in a folder under `locked`; nothing there is made or changed.

    A shared lock is asked for and given back at once. `_lock` waits for longer than that, so that a process which
    begins its work at this moment is not refused.

    Raises:
        OSError: the folder or its lock cannot be read.
    """
    if not (folder / LOCK).is_file():
        return False
    if sys.platform == "win32":  # there is no shared lock, and a lock needs no right to write
        from filelock import FileLock, Timeout

        try:
            FileLock(folder / LOCK, timeout=0).acquire().lock.release()
        except Timeout:
            return True
        return False
    import fcntl

    handle = os.open(folder / LOCK, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(handle, fcntl.LOCK_UN)
    except OSError as error:
        if error.errno not in BUSY:
            raise
        return True
    finally:
        os.close(handle)
    return False


@contextmanager
def _lock(lock: Path, what: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    held = FileLock(lock, timeout=0.2, is_singleton=True)
    with writing(what):
        try:
            held.acquire(poll_interval=0.01)  # `is_locked` may look at it just now
        except Timeout:
            raise UserError(f"{what}: another process is at work there; wait for it, or choose another place") from None
    try:
        yield
    finally:
        held.release()


def holds_nothing(folder: Path) -> bool:
    """Whether a folder is missing, or holds nothing but a lock and what a dead process left half written."""
    return not folder.is_dir() or all(file.name == LOCK or PART.fullmatch(file.name) for file in folder.iterdir())


def cache_folder() -> Path:
    """The folder for what can be made again: `RECYCLELORA_CACHE`, else `recyclelora` in the user's cache folder."""
    own = os.environ.get("RECYCLELORA_CACHE")
    user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(own) if own else Path(user) / "recyclelora"


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name; in a checkout they lie in `recipes/` at its root."""
    here = Path(__file__).parent
    folder = next((place for place in (here / "recipes", here.parents[1] / "recipes") if place.is_dir()), here)
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}
