"""What values may be: annotations, such as `Annotated[int, Meta(ge=1, le=64)]`, and their check by msgspec.

A range stands at one place. The fields of dataclasses, the arguments of functions and the options of commands are
checked by the same annotation.
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import is_dataclass
from numbers import Number
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, Self, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from rnn_runtime.errors import Argument, SettingsError
from rnn_runtime.text import shorten

_LARGEST = 2**63 - 1
_LARGEST_FLOAT = sys.float_info.max  # beyond it are infinity and NaN

Count = Annotated[int, Meta(ge=1, le=_LARGEST)]
CountFromZero = Annotated[int, Meta(ge=0, le=_LARGEST)]
Finite = Annotated[float, Meta(ge=-_LARGEST_FLOAT, le=_LARGEST_FLOAT)]
FromZero = Annotated[float, Meta(ge=0, le=_LARGEST_FLOAT)]
Positive = Annotated[float, Meta(gt=0, le=_LARGEST_FLOAT)]
Probability = Annotated[float, Meta(ge=0, le=1)]
Share = Annotated[float, Meta(ge=0, lt=1)]

BatchSize = Annotated[int, Meta(ge=1, le=1 << 24)]
Threads = Annotated[int, Meta(ge=1, le=4096)]
DeviceId = Annotated[int, Meta(ge=0, le=2**31 - 1)]

_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
_LONGEST = 200  # characters of a value in an error
_HINTS: dict[type, dict[str, Any]] = {}  # by class, filled on first use


class PlainFields:
    """Base of a frozen dataclass whose fields are plain values, tuples of them, or such a dataclass.

    They are checked when it is made. One with more to check has its own `__post_init__`, which calls `check_fields`.
    """

    __slots__ = ()

    def __post_init__(self) -> None:
        check_fields(self)

    def to_dict(self) -> dict[str, Any]:
        """Convert to what JSON knows, such as lists instead of tuples. `from_dict` reverses it."""
        return json.loads(json.dumps(msgspec.to_builtins(self)))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, plain: object) -> Self:
        """Rebuild an instance from the values of `to_dict`.

        Raises:
            SettingsError: a field is missing, unknown, of a wrong type or out of range.
        """
        if not isinstance(plain, Mapping):
            raise SettingsError(f"{cls.__name__} must be a mapping, not {type(plain).__name__}")
        hints = _hints(cls)
        if odd := set(plain) ^ set(hints):
            raise SettingsError(f"{cls.__name__} has missing or unknown fields: {', '.join(sorted(map(str, odd)))}")
        return cls(**{name: _from_dict(plain[name], hint) for name, hint in hints.items()})


def check_fields(instance: PlainFields, prefix: str = "") -> None:
    """Check the type and range of each field; for `__post_init__`. A list becomes a tuple where the field is one.

    Args:
        instance: The dataclass.
        prefix: Text before a field's name in an error, such as `image `.

    Raises:
        SettingsError: names the field, what it must be, and what it is.
    """
    for name, hint in _hints(type(instance)).items():
        try:
            object.__setattr__(instance, name, converted(getattr(instance, name), hint))
        except ValueError as error:
            raise SettingsError(prefix + name if prefix else Argument(name), f" {error}") from None


def check_argument(name: str, value: Any, hint: Any) -> None:
    """Check the type and range of a function's argument.

    Args:
        name: The argument's name.
        value: Its value.
        hint: Its annotation: `Annotated[int, Meta(ge=1, le=64)]`, a `Literal`, a class, or one of them `| None`. `Path`
            stands for a path of any kind.

    Raises:
        SettingsError: names the argument, what it must be, and what it is.
    """
    try:
        converted(value, hint)
    except ValueError as error:
        raise SettingsError(Argument(name), f" {error}") from None


def converted(value: Any, hint: Any, *, typed: bool = False) -> Any:
    """A value as its annotation says: a tuple for a list, a number of Python's for one of NumPy's.

    Args:
        value: Any value.
        hint: As for `check_argument`.
        typed: Whether someone typed the value, so that numbers are text.

    Raises:
        ValueError: the value is another. The text begins with `must be`.
    """
    kind = get_args(hint)[0] if NoneType in get_args(hint) else hint
    if value is None and kind is not hint:
        return None
    if isinstance(value, Number) and hasattr(value, "item"):
        value = value.item()  # NumPy's numbers are as good as Python's
    if kind is Path or is_dataclass(kind):
        if isinstance(value, str | os.PathLike if kind is Path else kind):  # type: ignore[arg-type]
            return value
    else:
        try:
            number = get_args(kind)[0](value) if typed and isinstance(value, str) else value  # msgspec refuses `.5`
            return msgspec.convert(number, kind)
        except (msgspec.ValidationError, ValueError):
            pass
    raise ValueError(f"must be {_describe(kind)}, not {shorten(value if typed else repr(value), _LONGEST)}")


def _hints(cls: type[PlainFields]) -> dict[str, Any]:
    """The annotation of each field of a dataclass."""
    if cls not in _HINTS:
        _HINTS[cls] = get_type_hints(cls, include_extras=True)
    return _HINTS[cls]


def _from_dict(value: object, hint: Any) -> object:
    """A field's value; the hint of one that may be missing is `X | None`."""
    kind = get_args(hint)[0] if NoneType in get_args(hint) else hint
    is_plain = value is not None and isinstance(kind, type) and issubclass(kind, PlainFields)
    return kind.from_dict(value) if is_plain else value


def _describe(kind: Any) -> str:
    """What a value must be, for people: `a whole number from 1 to 64`."""
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if get_origin(kind) is tuple:
        length = "" if ... in arguments else f" of {len(arguments)} values"
        return f"a list{length}, each {_describe(arguments[0])}"
    if kind is Finite:
        return "a finite number"
    if get_origin(kind) is Annotated:
        return f"{_KINDS[arguments[0]]} {_describe_range(arguments[1])}"
    return _KINDS.get(kind) or str(kind.__name__)


def _describe_range(meta: Meta) -> str:
    if meta.gt is not None:
        return f"above {meta.gt}"
    if meta.lt is not None:
        return f"at least {meta.ge} and less than {meta.lt}"
    return f"from {meta.ge} up" if meta.le in (_LARGEST, _LARGEST_FLOAT) else f"from {meta.ge} to {meta.le}"
