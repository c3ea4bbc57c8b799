"""Base class of every section of a configuration."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails


class StrictOptions(BaseModel):
    """Refuse unknown keys, and booleans where no boolean is expected: pydantic would read them as 1 and 0."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unexpected_booleans(cls, values: Any) -> Any:
        given = values.items() if isinstance(values, Mapping) else ()
        known = {key: field.annotation for key, field in cls.model_fields.items()}
        wrong = [
            InitErrorDetails(
                type="value_error",
                loc=(key,),
                input=value,
                ctx={"error": ValueError("true is not meant here" if value else "false is not meant here; zero is 0")},
            )
            for key, value in given
            if isinstance(value, bool) and key in known and not _allows_boolean(known[key])
        ]
        if wrong:
            raise ValidationError.from_exception_data(cls.__name__, wrong)
        return values


def _allows_boolean(annotation: Any) -> bool:
    """Return whether a type allows true or false."""
    arguments = typing.get_args(annotation)
    return annotation in (bool, Any) or any(
        isinstance(argument, bool) or _allows_boolean(argument) for argument in arguments
    )
