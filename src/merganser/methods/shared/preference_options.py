"""Options of the methods that prefer some tasks to others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from merganser.methods.base import MethodOptions
from merganser.methods.shared.task_preferences import SHARPNESS, check_numbers, check_wanted


class PreferenceOptions(MethodOptions):
    """Preferences between the tasks of a stream."""

    preference: list[float] | Literal["uniform", "label_overlap", "feature_similarity"] = Field(
        "uniform",
        description="share of the weights that each task supplies: a number per task in the order of learning, the "
        "same for all, or by the similarity of its labels or inputs to those of the wanted tasks",
    )
    sharpness: float = Field(
        SHARPNESS,
        ge=0,
        allow_inf_nan=False,
        description="feature_similarity: a task counts exp(-sharpness (1 - cosine) / 2); 0: all alike",
    )
    wanted: list[str] | None = Field(
        None, description="tasks that the merged model is meant for (label_overlap, feature_similarity); null: all"
    )

    @model_validator(mode="after")
    def _preferences(self) -> PreferenceOptions:
        numbers = self.preference
        if isinstance(numbers, list) and not (
            numbers and numbers[0] > 0 and all(math.isfinite(number) and number >= 0 for number in numbers)
        ):
            raise ValueError("preference: give a number per task, not negative, and the first above 0")
        if self.wanted is not None and (not self.wanted or not isinstance(numbers, str) or numbers == "uniform"):
            raise ValueError("wanted: name tasks, with preference label_overlap or feature_similarity")
        return self

    def check(self, names: Sequence[str], whole: bool) -> str | None:
        """Refuse preferences that do not fit the tasks (:meth:`merganser.methods.base.Method.check_tasks`)."""
        remark = check_numbers(self.preference, names, whole) if isinstance(self.preference, list) else None
        if whole:
            check_wanted(self.wanted or (), names)
        return remark
