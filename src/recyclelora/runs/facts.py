"""What `run.json` and `metrics.jsonl` have to hold; a run of version 0.1 has no hashes that would show a change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from recyclelora.data.labels import LabelSpace
from recyclelora.errors import UserError
from recyclelora.files import read_last_lines, read_lines

VALIDATION = "validation.jsonl"
"""Below a run's folder: one JSON line per validation on the sources during the training."""


class _Record(BaseModel):
    """A part of a record; it may hold more than what is read."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


_Level = Annotated[int, Field(ge=0, le=255)]


class _Classes(_Record):
    names: list[str]
    colours: list[Annotated[list[_Level], Field(min_length=3, max_length=3)]]


class _Source(_Record):
    label: str
    images: int
    fingerprint: str


class _Parameters(_Record):
    backbone: int
    adapters: int
    head: int


class _Imported(_Record):
    file: str
    file_sha256: str
    note: str
    unused: list[str]


class _Facts(_Record):
    classes: _Classes
    weights_sha256: str
    sources: list[_Source]
    parameters: _Parameters
    step: int | None = None
    imported: _Imported | None = None
    trained_sha256: str = ""
    backbone_sha256: str = ""


class _Step(_Record):
    step: int
    loss: float
    seconds: float


_Share = Annotated[float, Field(ge=0, le=1)]


class _SourceScores(_Record):
    images: int
    miou: _Share | None
    iou: dict[str, _Share | None]


class _Validation(_Record):
    step: int
    seconds: float
    miou: _Share | None
    sources: dict[str, _SourceScores]


def check_facts(file: Path, content: Any) -> None:
    """Refuse the content of a `run.json` from which no run can be opened.

    Raises:
        UserError: a key is missing, or a value has the wrong type.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{file}: damaged: it holds a {type(content).__name__}, expected facts; restore the file")
    try:
        classes = _Facts.model_validate(content).classes
        LabelSpace(tuple(classes.names), tuple((r, g, b) for r, g, b in classes.colours))
    except ValidationError as error:
        missing = [".".join(map(str, each["loc"])) for each in error.errors() if each["type"] == "missing"]
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        wrong = f"it lacks {', '.join(missing)}" if missing else f"{place}: {first['msg']}"
        raise UserError(f"{file}: damaged: {wrong}; restore the file") from error
    except ValueError as error:
        raise UserError(f"{file}: damaged: {error}; restore the file") from error


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, one mapping with step, loss, seconds and lr per step; none if it is missing.

    Raises:
        UserError: a line is not as the training wrote it.
    """
    return _read(file, _Step, "a step with its loss and seconds")


def read_validations(file: Path) -> list[dict[str, Any]]:
    """The lines of a `validation.jsonl`, with step, seconds, miou and the scores of the sources; none if it is missing.

    Raises:
        UserError: a line is not as the training wrote it.
    """
    return _read(file, _Validation, "a step with its seconds, mIoU and the scores of the sources")


def best_validation(lines: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The first of the validations with the highest mIoU; None if there is none with an mIoU."""
    return max((line for line in lines if line["miou"] is not None), key=lambda line: float(line["miou"]), default=None)


def _read(file: Path, kind: type[_Record], expected: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_lines(file) if file.is_file() else []
    for number, row in enumerate(rows, 1):
        _check_row(file, f"line {number}", row, kind, expected)
    return rows


def read_last_steps(file: Path, count: int) -> list[dict[str, Any]]:
    """As `read_metrics`, for at most `count` last lines; the lines before them are not read.

    Raises:
        UserError: as `read_metrics`.
    """
    try:
        rows: list[dict[str, Any]] = read_last_lines(file, count) if file.is_file() else []
        for row in rows:
            _check_row(file, "one of the last lines", row, _Step, "a step with its loss and seconds")
    except UserError:
        read_metrics(file)  # which tells the number of the line
        raise
    return rows


def read_last_miou(file: Path) -> float | None:
    """The mIoU of the last line of a `validation.jsonl`, 0 to 1; None if no class was scored, or without a line.

    Raises:
        UserError: the line is not as the training wrote it.
    """
    rows = read_last_lines(file, 1) if file.is_file() else []
    for row in rows:
        _check_row(file, "the last line", row, _Validation, "a step with its mIoU")
    return rows[-1]["miou"] if rows else None


def _check_row(file: Path, place: str, row: Any, record: type[_Record], expected: str) -> None:
    try:
        record.model_validate(row)
    except ValidationError as error:
        raise UserError(
            f"{file}: {place} is damaged ({error.errors()[0]['msg']}), expected {expected}; "
            "restore the file, or remove the line"
        ) from error
