"""Checks of plain values by their annotations: the fields of dataclasses, as files hold them, and arguments."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import inf
from numbers import Number
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, Self, get_args, get_origin, get_type_hints

from rnn_runtime.errors import SettingsError

_LONGEST = 200  # characters of a value in an error
_KINDS = {int: "a whole number", bool: "true or false", str: "text", Path: "a path"}
_FIELDS: dict[type, dict[str, tuple[str, Any]]] = {}  # by class, filled on first use


@dataclass(frozen=True, slots=True)
class Range:
    """The range of a number, as in `Annotated[int, Range(1, 64)]`."""

    least: float = -inf
    most: float = inf
    above: float = -inf
    below: float = inf

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        if self.above > -inf:
            return f"above {self.above}"
        upper = f"up to, not including, {self.below}" if self.below < inf else f"to {self.most}"
        return f"from {self.least} {upper if min(self.below, self.most) < inf else 'up'}"


class PlainFields:
    """Base of a dataclass whose fields are plain values, tuples of them, or such a dataclass.

    In files, a field has its own name, or the one that its metadata gives it: `field(metadata={"key": "image"})`.
    """

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values, for a checkpoint or JSON. `from_dict` reverses it."""
        plain = {key: getattr(self, name) for key, (name, _) in _fields_of(type(self)).items()}
        for key, value in plain.items():
            if isinstance(value, PlainFields):
                plain[key] = value.to_dict()
            elif isinstance(value, tuple):
                plain[key] = list(value)
        return plain

    @classmethod
    def from_dict(cls, plain: object) -> Self:
        """Rebuild an instance from the values of `to_dict`.

        Raises:
            SettingsError: a field is missing, unknown, of a wrong type or out of range.
        """
        if not isinstance(plain, Mapping):
            raise SettingsError(f"{cls.__name__} must be a mapping, not {type(plain).__name__}")
        expected = _fields_of(cls)
        if odd := set(plain) ^ set(expected):
            raise SettingsError(f"{cls.__name__} has missing or unknown fields: {', '.join(sorted(map(str, odd)))}")
        values = {name: plain[key] for key, (name, _) in expected.items()}
        for name, hint in expected.values():
            if isinstance(hint, type) and issubclass(hint, PlainFields):
                values[name] = hint.from_dict(values[name])
            elif isinstance(values[name], list):
                values[name] = tuple(values[name])
        return cls(**values)


def check_fields(instance: PlainFields, prefix: str = "") -> None:
    """Check the type and range of each field; for `__post_init__`.

    Args:
        instance: The dataclass.
        prefix: Text before a field's name in an error, such as `image `.

    Raises:
        SettingsError: names the field, what it must be, and what it is.
    """
    for name, hint in _fields_of(type(instance)).values():
        _check(prefix + name if prefix else f"`{name}`", getattr(instance, name), hint)


def check_argument(name: str, value: Any, hint: Any) -> None:
    """Check the type and range of a function's argument.

    Args:
        name: The argument's name.
        value: Its value.
        hint: Its annotation: `Annotated[int, Range(1, 64)]`, a `Literal`, a class, or one of them `| None`. `Path`
            stands for a path of any kind.

    Raises:
        SettingsError: names the argument, what it must be, and what it is.
    """
    if isinstance(value, Number) and hasattr(value, "item"):
        value = value.item()  # NumPy's numbers are as good as Python's
    _check(f"`{name}`", value, hint)


def _fields_of(cls: Any) -> dict[str, tuple[str, Any]]:
    """The name and annotation of each field, by its key in files."""
    if cls not in _FIELDS:
        hints = get_type_hints(cls, include_extras=True)
        _FIELDS[cls] = {field.metadata.get("key", field.name): (field.name, hints[field.name]) for field in fields(cls)}
    return _FIELDS[cls]


def _check(name: str, value: Any, hint: Any) -> None:
    origin, arguments = get_origin(hint), get_args(hint)
    if NoneType in arguments:  # `X | None`
        if value is not None:
            _check(name, value, arguments[0])
    elif origin is tuple:
        kinds = arguments
        if arguments[-1] is ... and isinstance(value, tuple):
            kinds = arguments[:1] * len(value)
        if not isinstance(value, tuple) or len(value) != len(kinds):
            raise SettingsError(
                f"{name} must be a list of {'values' if ... in kinds else len(kinds)}, not {_short(value)}"
            )
        for i, (item, kind) in enumerate(zip(value, kinds, strict=True)):
            _check(f"{name}[{i}]", item, kind)
    else:
        kind, bounds = arguments if origin is Annotated else (hint, Range())
        if origin is Literal:
            fits = any(type(value) is type(choice) and value == choice for choice in arguments)
            expected = f"one of {', '.join(map(str, arguments))}"
        elif kind is float:
            fits = type(value) in (int, float) and abs(value) <= sys.float_info.max and value in bounds
            expected = f"a number {bounds}" if bounds != Range() else "a finite number"
        else:  # `type() is`, since True would pass as an int
            fits = (
                isinstance(value, str | os.PathLike)
                if kind is Path
                else type(value) is kind and (kind is not int or value in bounds)
            )
            expected = f"a whole number {bounds}" if bounds != Range() else _KINDS.get(kind, kind.__name__)
        if not fits:
            raise SettingsError(f"{name} must be {expected}, not {_short(value)}")


def _short(value: object) -> str:
    """A value for an error: the bytes of a file, for instance, would fill the screen."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({type(value).__name__})"
