"""Settings as dataclasses: checked once, and the keys of a configuration file derived from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest
from pydantic import ValidationError, create_model

from merganser.control import ControllerConfig
from merganser.options import StrictOptions, option_fields
from merganser.settings import Settings, setting, with_default


@dataclass(frozen=True)
class Parent(Settings):
    size: int = setting(3, "how many", ge=1, le=9)
    share: float | None = setting(0.5, "how much", gt=0, lt=1)
    steps: int | Literal["half"] = setting("half", "how long", ge=0)
    fast: bool = setting(True, "how soon", section="ablation")
    seed: int | None = setting(None, "not in files", section=None)


@dataclass(frozen=True)
class Child(Parent):
    size: int = with_default(Parent, "size", 5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": 0}, "size is 0; give a whole number >= 1 and <= 9"),
        ({"size": 2.0}, "size is 2.0"),
        ({"size": None}, "size is None"),
        ({"share": 1}, "share is 1; give a number > 0 and < 1 or None"),
        ({"share": float("nan")}, "share is nan"),
        ({"steps": "all"}, "steps is 'all'; give a whole number >= 0 or 'half'"),
        ({"fast": 1}, "fast is 1; give True or False"),
    ],
)
def test_impossible_values_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Parent(**given)


def test_another_default_keeps_bounds_and_description() -> None:
    assert (Parent().size, Child().size) == (3, 5)
    with pytest.raises(ValueError, match="size is 10"):
        Child(size=10)
    with pytest.raises(ValueError, match="size is 10"):
        Child().changed(size=10)


def test_keys_of_a_file_have_defaults_bounds_and_descriptions() -> None:
    options = create_model("Options", __base__=StrictOptions, **option_fields(Child))
    inner = create_model("Inner", __base__=StrictOptions, **option_fields(Child, "ablation"))
    assert list(options.model_fields) == ["size", "share", "steps"]
    assert list(inner.model_fields) == ["fast"]
    size = options.model_json_schema()["properties"]["size"]
    assert (size["default"], size["minimum"], size["maximum"], size["description"]) == (5, 1, 9, "how many")
    assert options().model_dump() == {"size": 5, "share": 0.5, "steps": "half"}
    for wrong in ({"size": 0}, {"share": 1.0}, {"share": float("inf")}, {"size": True}):
        with pytest.raises(ValidationError):
            options(**wrong)
    with pytest.raises(ValidationError, match="give a whole number >= 0 or 'half'"):
        options(steps="all")


def test_numbers_beyond_all_floats() -> None:
    with pytest.raises(ValueError, match="threshold_factor is 1000"):
        ControllerConfig(threshold_factor=10**400)
