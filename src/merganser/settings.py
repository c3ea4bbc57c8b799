"""Settings as frozen dataclasses: every number once, with its default, its bounds and its description.

Standard library only, so that the pure floor can use it. :func:`merganser.options.option_fields` makes the keys of a
configuration file from such a class.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self

from merganser.errors import nearest

CONFIDENCE = 0.95
"""Of intervals, tests and verdicts where none is given. Here, since the command reads it before numpy is imported."""

MAX_DROP = 0.02
"""What a task may lose, a fraction, where nothing is given."""

ABLATION = "ablation"
"""Section of a configuration file for settings that only switch parts of a method off."""


def setting(
    default: Any,
    description: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    section: str | None = "",
) -> Any:
    """Make a field of a :class:`Settings` class.

    Args:
        default: the value where none is given.
        description: what it does, for help and documentation.
        ge, gt, le, lt: bounds of a number, as in pydantic. A number is always finite.
        section: where it stands in a configuration file: at the top of its section, in a section within it, or
            nowhere (``None``).
    """
    bounds = {name: bound for name, bound in (("ge", ge), ("gt", gt), ("le", le), ("lt", lt)) if bound is not None}
    metadata = {"description": description, "bounds": bounds, "section": section}
    return dataclasses.field(default=default, metadata=metadata)


def with_default(settings: type[Settings], name: str, default: Any) -> Any:
    """Make the field of a parent class anew, with another default."""
    inherited = next(item for item in dataclasses.fields(settings) if item.name == name)
    return dataclasses.field(default=default, metadata=inherited.metadata)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base of all settings: checks types and bounds once, when it is made.

    Raises:
        ValueError: a value is impossible; the message names the setting and what it takes.
    """

    def __post_init__(self) -> None:
        for name, annotation, metadata in described(type(self)):
            value = _checked(name, annotation, metadata["bounds"], getattr(self, name))
            object.__setattr__(self, name, value)

    @classmethod
    def implied(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that take another value than their default because of those that are given."""
        return {}

    def changed(self, **changes: Any) -> Self:
        """Return a copy with other values, and with what they imply.

        Raises:
            TypeError: there is no such setting; the message names the nearest one.
            ValueError: a value is impossible.
        """
        known = [item.name for item in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise TypeError(f"There is no setting '{name}'. {nearest(name, known)}".rstrip())
        return dataclasses.replace(self, **self.implied(changes), **changes)


_KNOWN: dict[Any, tuple[tuple[str, Any, Mapping[str, Any]], ...]] = {}
"""What :func:`described` has returned: reading type hints takes long."""


def described(settings: type[Settings]) -> tuple[tuple[str, Any, Mapping[str, Any]], ...]:
    """Return name, type and metadata (``description``, ``bounds``, ``section``) of every setting of a class."""
    if settings not in _KNOWN:
        _KNOWN[settings] = _read(settings)
    return _KNOWN[settings]


def _read(settings: Any) -> tuple[tuple[str, Any, Mapping[str, Any]], ...]:
    types_of = typing.get_type_hints(settings)
    return tuple((item.name, types_of[item.name], item.metadata) for item in dataclasses.fields(settings))


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union type; a type that is no union alone."""
    union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    return typing.get_args(annotation) if union else (annotation,)


def _checked(name: str, annotation: Any, bounds: Mapping[str, float], value: Any) -> Any:
    """Check a value, and return it as a plain Python value of its type.

    Raises:
        ValueError: it has another type, or is out of bounds.
    """
    for kind in alternatives(annotation):
        if typing.get_origin(kind) is Literal:
            if isinstance(value, str) and value in typing.get_args(kind):
                return value
        elif kind in (bool, types.NoneType):
            if isinstance(value, kind):
                return value
        elif isinstance(value, numbers.Integral if kind is int else numbers.Real) and not isinstance(value, bool):
            try:
                number = kind(value)  # a number of numpy becomes a plain one
            except OverflowError:
                continue  # a whole number beyond all floats
            if math.isfinite(number) and _within(number, bounds):
                return number
    raise ValueError(f"{name} is {value!r}; give {expected(annotation, bounds)}")


def _within(number: float, bounds: Mapping[str, float]) -> bool:
    return (
        bounds.get("ge", -math.inf) <= number <= bounds.get("le", math.inf)
        and number > bounds.get("gt", -math.inf)
        and number < bounds.get("lt", math.inf)
    )


def expected(annotation: Any, bounds: Mapping[str, float]) -> str:
    """Describe what a setting takes, for a message: ``a number > 0 and <= 1 or None``."""
    return " or ".join(_expected(annotation, bounds))


def _expected(annotation: Any, bounds: Mapping[str, float]) -> Iterator[str]:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = " and ".join(f"{signs[key]} {bound:g}" for key, bound in bounds.items())
    for kind in alternatives(annotation):
        if typing.get_origin(kind) is Literal:
            yield from map(repr, typing.get_args(kind))
        elif kind is types.NoneType:
            yield "None"
        elif kind is bool:
            yield "True or False"
        else:
            yield f"a {'whole number' if kind is int else 'number'} {limits}".rstrip()
