"""What all sections of a configuration have in common."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails


class StrictOptions(BaseModel):
    """Refuses unknown keys, and true or false where neither is meant: pydantic would take them for 1 and 0."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, values: Any) -> Any:
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
            if isinstance(value, bool) and key in known and not _takes_truth(known[key])
        ]
        if wrong:
            raise ValidationError.from_exception_data(cls.__name__, wrong)
        return values


def _takes_truth(annotation: Any) -> bool:
    """Whether a type allows true or false."""
    arguments = typing.get_args(annotation)
    return annotation in (bool, Any) or any(isinstance(one, bool) or _takes_truth(one) for one in arguments)
