"""The base of all groups of settings: what is not known, not finite or not of the right type is refused."""

from __future__ import annotations

import math
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator

MOST = 2**53
"""No whole number of a setting is larger; from here on, floats do not represent each of them."""


class Settings(BaseModel):
    """A group of settings. Unknown keys are errors, and values cannot be changed after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_other_kind(cls, values: Any) -> Any:
        """Refuse true and false where a number is expected, which pydantic reads as 1 and 0; NaN and absurd numbers."""
        for name, value in values.items() if isinstance(values, dict) else ():
            _check_plain(name, value)
            kinds = _kinds(cls.model_fields[name].annotation) if name in cls.model_fields else set()
            if kinds & {int, float} and not kinds & {bool, Any}:
                items = value if isinstance(value, list | tuple) else [value]
                if wrong := [item for item in items if isinstance(item, bool)]:
                    raise ValueError(f"{name}: found {wrong[0]}, expected another value than true or false")
        return values


def _kinds(annotation: Any) -> set[Any]:
    """All types inside a type such as `list[int] | None`."""
    inner = get_args(annotation)
    return set().union(*map(_kinds, inner)) if inner else {annotation}


def _check_plain(name: str, value: Any) -> None:
    """Refuse numbers and keys that cannot be stored, also inside values of any kind such as `model_args`."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}: found {value}, expected a finite number")
    if isinstance(value, int) and abs(value) > MOST:
        raise ValueError(f"{name}: found a whole number that is too large, expected at most 2^53")
    if isinstance(value, dict) and (odd := [key for key in value if not str(key).isprintable()]):
        raise ValueError(f"{name}: found the key {odd[0]!a}, expected a name of printable characters")
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, item in inner:
        _check_plain(f"{name}.{key}", item)
