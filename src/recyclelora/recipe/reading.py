"""From a file, single changes and plain values to a recipe; what is wrong is named with what was expected."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from recyclelora.errors import UserError, did_you_mean, shortened
from recyclelora.files import shipped_recipes, user_path
from recyclelora.recipe.settings import Recipe
from recyclelora.recipe.strict_yaml import read_text_file, read_yaml


def read_recipe(path: str | Path, changes: dict[str, str] | None = None) -> Recipe:
    """Read a recipe file, or a recipe of the package by its name, such as "g2cbm".

    Args:
        changes: new values of single keys, `{"optim.lr": "3e-4"}`, in YAML; see `changed`.

    Raises:
        UserError: the file does not exist or is not a YAML mapping, a key is unknown, or a value has the wrong type.
    """
    path = _recipe_file(user_path(path))
    try:
        values = read_yaml(read_text_file(path))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path}: not valid YAML: {error}; correct the file") from error
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: found {type(values).__name__}, expected a mapping of settings such as `sources: [...]`"
        )
    read = {key: read_value(key, text) for key, text in (changes or {}).items()}
    return make_recipe(changed(values, read), str(path))


def _recipe_file(path: Path) -> Path:
    """The file of a recipe; a name that is not a file is looked up among the shipped recipes."""
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if str(path) in shipped:
        return shipped[str(path)]
    if path.exists():
        kind = "a folder" if path.is_dir() else "a pipe or device"
        raise UserError(f"{path}: {kind}, expected a recipe file; no such recipe is shipped: {', '.join(shipped)}")
    nearby = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
    raise UserError(
        f"{path}: no such recipe; recipes in {path.parent}: {', '.join(nearby) or 'none'}; "
        f"shipped, by name: {', '.join(shipped)}"
    )


def make_recipe(values: dict[str, Any], origin: str = "recipe") -> Recipe:
    """A recipe from plain values; errors as `read_recipe`."""
    try:
        return Recipe.model_validate(values)
    except UnicodeEncodeError as error:  # pydantic looks for a number in a text that is not UTF-8
        raise UserError(f"{origin}: found {ascii(error.object)[:200]}, expected text in UTF-8; correct it") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = shortened(".".join(str(part) for part in first["loc"]))
        if first["type"] == "extra_forbidden":
            last = key.rpartition(".")[2]
            known = _known_keys(first["loc"][:-1])
            raise UserError(f"{origin}: unknown key {key!r}; {did_you_mean(last, known)}") from None
        found = f", found {shortened(repr(first['input']))}" if not isinstance(first["input"], dict) else ""
        raise UserError(
            f"{origin}: {key + ': ' if key else ''}{first['msg'].removeprefix('Value error, ')}{found}"
        ) from None


def _known_keys(parents: tuple[Any, ...]) -> list[str]:
    """The keys of the group of settings at a place such as ("sources", 0, "rare_classes")."""
    group: type[BaseModel] = Recipe
    for parent in parents:
        if isinstance(parent, str):  # a number is a place in a list, whose items are one kind of group
            field = group.model_fields.get(parent)
            group = (field and _group(field.annotation)) or group
    return list(group.model_fields)


def _group(annotation: Any) -> type[BaseModel] | None:
    """The group of settings in a type such as `list[SourceSettings]` or `RareClassSettings | None`."""
    if arguments := get_args(annotation):
        return next(filter(None, map(_group, arguments)), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def read_value(key: str, text: str) -> Any:
    """The value of a `--set KEY=TEXT`.

    Raises:
        UserError: the text is not valid YAML.
    """
    try:
        return read_yaml(text)
    except ValueError as error:
        raise UserError(f"--set {key}={shortened(text)}: not valid YAML: {error}; correct it") from error


def changed(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with new values for some keys, written as in `optim.lr`.

    Changing `method` drops the old `adapter` section; the new method's defaults apply.

    Raises:
        UserError: as `put`.
    """
    values = copy.deepcopy(values)
    method = values.get("method", Recipe.model_fields["method"].default)
    if changes.get("method", method) != method:
        values.pop("adapter", None)
    for key, value in changes.items():
        put(values, key, value)
    return values


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Change one value of nested settings; `key` as in `optim.lr`.

    Raises:
        UserError: a part of the key is not a group of settings.
    """
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise UserError(f"--set {key}: {parent!r} is not a group of settings")
    values[last] = value
