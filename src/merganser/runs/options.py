"""The ``runs`` section of a configuration: what the directory of a run keeps."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from merganser.options import StrictOptions

Keep = Literal["all", "tagged"] | int
"""Rows whose weights are kept: all, those with a tag, or the last N and those with a tag."""

OF_WHOLE_WEIGHTS = 2
"""Rows kept by default where each is a whole model: the model in use, and the one that `undo` goes back to."""


class RunsOptions(StrictOptions):
    """What the directory of a run keeps."""

    keep_weights: Literal["auto", "all", "tagged"] | Annotated[int, Field(ge=1)] = Field(
        "auto",
        description="rows whose weights are kept: all; N: the last N, and those with a tag (`merganser tag`); tagged: "
        "the last, and those with a tag; auto: all with LoRA, 2 with whole weights. Row 0 and what the method reads "
        "again are always kept, and so are scores, answers and examples of every row",
    )

    def kept(self, whole_weights: bool, per_task_models: bool) -> Keep:
        """Return the rows whose weights are kept.

        Args:
            whole_weights: each row has a whole model, not an adapter.
            per_task_models: the method answers tasks with different rows: any may answer one, now or after an undo.
        """
        if per_task_models:
            return "all"
        if self.keep_weights == "auto":
            return OF_WHOLE_WEIGHTS if whole_weights else "all"
        return self.keep_weights
