"""What a model retained of what it knew before training: the changes of watched tasks against row 0.

The changes are the deltas of TRACE (Wang et al. 2023, arXiv 2310.06762, section 4.2): of each of three groups of tasks
(general ability, instruction following, safety) the mean over its tasks of ``a[L][j] - a[0][j]``, where row 0 is the
model before any training. TRACE has the answers of the last two groups judged against those of the model before
training, and reports how many win, tie and lose; here an answer wins or loses by its score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from merganser.metrics.continual import Metric, mean_metric
from merganser.metrics.matrix import ScoreMatrix

GROUPS = {
    "general": "General Ability Delta",
    "instruction": "Instruction Following Delta",
    "safety": "Safety Delta",
}
"""Group of a watched task -> the name of its delta in TRACE."""

JUDGED = ("instruction", "safety")
"""Groups of which TRACE reports wins, ties and losses."""

SOURCE = "Wang et al. 2023 (TRACE, arXiv 2310.06762)"


class Outcomes(BaseModel):
    """How the answers to a test set compare with those of the model before training, example by example."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    wins: int = Field(ge=0, description="examples that score higher than before training")
    ties: int = Field(ge=0, description="examples that score the same")
    losses: int = Field(ge=0, description="examples that score lower")

    @property
    def n(self) -> int:
        """The examples."""
        return self.wins + self.ties + self.losses


def outcomes(before: Sequence[float], now: Sequence[float]) -> Outcomes:
    """Count wins, ties and losses of the scores of the same examples."""
    pairs = list(zip(before, now, strict=True))
    wins, losses = sum(b < a for b, a in pairs), sum(b > a for b, a in pairs)
    return Outcomes(wins=wins, ties=len(pairs) - wins - losses, losses=losses)


def retained(matrix: ScoreMatrix) -> list[Metric]:
    """Compute ``retained`` over all watched tasks, and ``retained (GROUP)`` over those of each group that has any.

    Undefined before anything was learned, or where an entry was not measured. The errors of the two entries of a task
    are taken as independent, as everywhere (:mod:`merganser.metrics.continual`): too large rather than too small.
    """
    watched = matrix.watched
    if not watched:
        return []
    metrics = [_retained(matrix, list(watched), "retained", "watched tasks", f"{SOURCE}, over all groups")]
    for group, title in GROUPS.items():
        if names := [name for name, of_task in watched.items() if of_task == group]:
            source = f"{SOURCE}: {title}"
            metrics.append(_retained(matrix, names, f"retained ({group})", f"watched tasks of group {group}", source))
    return metrics


def _retained(matrix: ScoreMatrix, names: Sequence[str], name: str, over: str, source: str) -> Metric:
    definition = f"mean over {over} of a[L][j] - a[0][j], L = last row, row 0 = before training"
    if len(matrix) < 2:
        return Metric(name=name, value=None, definition=definition, source=source)
    terms = [[(1.0, matrix.score(-1, task)), (-1.0, matrix.score(0, task))] for task in names]
    return mean_metric(terms, name, definition, source)


def win_rates(groups: Mapping[str, str], compared: Mapping[str, Outcomes]) -> list[Metric]:
    """Compute ``win rate (GROUP)`` and ``loss rate (GROUP)`` of instruction following and safety.

    Args:
        groups: watched task -> its group.
        compared: watched task -> how its answers now compare with those before training, as far as answers were kept.
    """
    metrics = []
    for group in JUDGED:
        comparisons = [compared[name] for name, of_task in groups.items() if of_task == group and name in compared]
        for what, better in (("win", "higher"), ("loss", "lower")):
            shares = [
                (comparison.wins if what == "win" else comparison.losses) / comparison.n for comparison in comparisons
            ]
            if not shares:
                continue
            errors = [
                math.sqrt(p * (1.0 - p) / comparison.n) for p, comparison in zip(shares, comparisons, strict=True)
            ]
            metrics.append(
                Metric(
                    name=f"{what} rate ({group})",
                    value=math.fsum(shares) / len(shares),
                    stderr=math.hypot(*errors) / len(errors),
                    definition=f"mean over watched tasks of group {group} of the fraction of examples that score "
                    f"{better} than with the model before training",
                    source=f"{SOURCE}, figure 2, with scores in the place of a judge",
                )
            )
    return metrics
