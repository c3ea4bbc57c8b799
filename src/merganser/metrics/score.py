"""The score of a task and the scores of a moment, as they are computed, written to files and drawn."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Score(BaseModel):
    """Mean score of one task's test set.

    Raises:
        pydantic.ValidationError: a value outside [0, 1], no test example, or a standard error that is negative or not
            finite.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float = Field(ge=0, le=1, allow_inf_nan=False, description="mean score, a fraction in [0, 1]")
    n: int = Field(ge=1, description="test examples")
    stderr: float = Field(
        ge=0, allow_inf_nan=False, description="standard error of the mean over the test examples, same unit"
    )


class ScoreRow(BaseModel):
    """Scores of every task that was evaluated at one moment: one row of the score matrix."""

    model_config = ConfigDict(extra="forbid")

    learned: list[str] = Field(description="tasks learned since the row before; empty for the row before training")
    scores: dict[str, Score] = Field(description="task -> score; a task that was not evaluated is omitted")
