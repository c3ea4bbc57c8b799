"""Base class of every section of a configuration."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WrapValidator, model_validator
from pydantic_core import ErrorDetails, InitErrorDetails

from merganser.errors import short
from merganser.settings import Settings, alternatives, described, expected

LARGEST = 1 << 63
"""Whole numbers are smaller: larger ones are no count of anything, and overflow where they become other types."""


class StrictOptions(BaseModel):
    """Refuse unknown keys, numbers beyond :data:`LARGEST`, and booleans where no boolean is expected: pydantic would
    read them as 1 and 0."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unexpected_numbers(cls, values: Any) -> Any:
        given = values.items() if isinstance(values, Mapping) else ()
        known = {key: field.annotation for key, field in cls.model_fields.items()}
        wrong = [
            InitErrorDetails(type="value_error", loc=(key,), input=value, ctx={"error": ValueError(problem)})
            for key, value in given
            if key in known and (problem := _number_problem(value, known[key]))
        ]
        if wrong:
            raise ValidationError.from_exception_data(cls.__name__, wrong)
        return values


def _number_problem(value: Any, annotation: Any) -> str:
    """Return why a value is no number for a key, or an empty string; its bounds are checked by pydantic."""
    if isinstance(value, bool):
        problem = "true is not allowed here" if value else "false is not allowed here; zero is 0"
        return "" if _allows_boolean(annotation) else problem
    return "the number is too large" if isinstance(value, int) and abs(value) >= LARGEST else ""


def _allows_boolean(annotation: Any) -> bool:
    """Return whether a type allows true or false."""
    arguments = typing.get_args(annotation)
    return annotation in (bool, Any) or any(
        isinstance(argument, bool) or _allows_boolean(argument) for argument in arguments
    )


def first_problem(error: ValidationError) -> ErrorDetails:
    """Return the problem to report: an unknown key comes before the key that is missing because of it."""
    problems = error.errors()
    return next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])


def problem_text(problem: ErrorDetails) -> str:
    """Return the message of a problem with the wrong value, without a full stop."""
    message, value = problem["msg"].removeprefix("Value error, ").rstrip("."), problem["input"]
    if problem["type"] == "list_type" and isinstance(value, str):
        return f"a list is needed: [{value:.80}]"
    return (
        f"{message} (got {short(value)})" if isinstance(value, str | int | float | bool) or value is None else message
    )


def yaml_text(value: Any) -> str:
    """Return a number, word, boolean or ``None`` as it is written in a configuration file."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def option_fields(settings: type[Settings], section: str = "") -> dict[str, Any]:
    """Return the settings that stand in a section of a configuration file, as fields for ``pydantic.create_model``.

    Args:
        section: "" for the top of the section that the settings as a whole describe.
    """
    defaults = settings()
    return {
        name: (
            _bounded(annotation, metadata["bounds"]),
            Field(getattr(defaults, name), description=metadata["description"]),
        )
        for name, annotation, metadata in described(settings)
        if metadata["section"] == section
    }


def _bounded(annotation: Any, bounds: Mapping[str, Any]) -> Any:
    """Add bounds to the numbers of a type; a number or a word has one message for both."""
    kinds = alternatives(annotation)

    def member(kind: Any) -> Any:
        if kind is float:
            return Annotated[kind, Field(allow_inf_nan=False, **bounds)]
        return Annotated[kind, Field(**bounds)] if kind is int and bounds else kind

    def one_message(value: Any, validate: Callable[[Any], Any]) -> Any:
        try:
            return validate(value)
        except ValidationError:
            raise ValueError(f"give {expected(annotation, bounds)}") from None

    union: Any = Union[tuple(map(member, kinds))]  # noqa: UP007
    words = any(typing.get_origin(kind) is Literal for kind in kinds)
    return Annotated[union, WrapValidator(one_message)] if words and len(kinds) > 1 else union
