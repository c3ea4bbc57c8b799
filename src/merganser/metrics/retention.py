"""Whether to keep what a model has become: a verdict per task with promised error rates, and one in all.

A task may lose up to an allowed drop. For each task there are two one-sided tests of its paired change: *dropped*, if a
loss beyond the allowed one is shown, and *kept*, if it is shown that the loss stays within it (a non-inferiority test).
With confidence 95 %, the chance of "do not keep" although every task is within its bound is at most 5 % (Holm over the
tasks), and so is the chance of "keep" although one is not (all tests must agree: Berger 1982).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist

from merganser.metrics.intervals import wilson_interval
from merganser.metrics.paired import PairedChange, examples_needed, holm, tango_statistic
from merganser.metrics.score import Score
from merganser.settings import CONFIDENCE, MAX_DROP


class Verdict(StrEnum):
    """What to do, in one word or two."""

    KEEP = "keep"
    DROP = "do not keep"
    UNCLEAR = "cannot be told"


@dataclass(frozen=True)
class Bounds:
    """What a task may lose, and what a new one must reach.

    Attributes:
        max_drop: largest allowed loss of a task, a fraction (0.02: two points).
        max_drop_of: of single tasks, by name.
        min_new: least score of a new task; ``None`` or 0: any.
        confidence: of the verdict, in (0, 1).
    """

    max_drop: float = MAX_DROP
    max_drop_of: Mapping[str, float] | None = None
    min_new: float | None = None
    confidence: float = CONFIDENCE

    def allowed(self, task: str) -> float:
        """Return the largest allowed loss of a task."""
        return (self.max_drop_of or {}).get(task, self.max_drop)


@dataclass(frozen=True)
class TaskVerdict:
    """The verdict on one task.

    Attributes:
        task: its name.
        change: against what it is compared with; ``None`` for a new task.
        score: now.
        bound: allowed loss, or of a new task the least score; ``None``: there is none.
        p: two-sided p value of no change, adjusted for the number of tasks (Holm).
        verdict: of this task.
        needed: about how many test examples would tell, where it cannot be told.
    """

    task: str
    change: PairedChange | None
    score: Score
    bound: float | None
    p: float | None
    verdict: Verdict
    needed: int | None = None


def beyond_p(change: PairedChange, allowed: float) -> tuple[float, float]:
    """Return the one-sided p values of "the loss is within the allowed one" and of "it is beyond".

    A small first one shows a loss beyond the allowed one, a small second one that it stays within.
    """
    if change.right_or_wrong:
        statistic = tango_statistic(change.lost, change.gained, change.n, -allowed)
        below = NormalDist().cdf(max(-40.0, min(40.0, statistic)))
        return below, 1.0 - below
    from scipy.stats import t  # takes about a second to import

    error = change.deviation / math.sqrt(max(change.n - 1, 1))
    distance = change.change + allowed
    if error == 0.0:
        return (1.0, 0.0) if distance > 0 else (0.0, 1.0) if distance < 0 else (0.5, 0.5)
    below = float(t.cdf(distance / error, max(change.n - 1, 1)))
    return below, 1.0 - below


def judge(
    changes: Mapping[str, PairedChange], scores: Mapping[str, Score], new: Sequence[str], bounds: Bounds
) -> tuple[Verdict, list[TaskVerdict]]:
    """Judge the tasks and all of them together.

    Args:
        changes: task -> its change, of the tasks that were known before.
        scores: task -> its score now.
        new: tasks that are judged by their score alone.
        bounds: what they may lose, and must reach.

    Returns:
        The verdict in all, and one per task in the order of ``changes`` and ``new``.
    """
    level = 1.0 - bounds.confidence
    sides = {task: beyond_p(change, bounds.allowed(task)) for task, change in changes.items()}
    fresh = [task for task in new if bounds.min_new]
    sides |= {task: _below_p(scores[task], bounds.min_new or 0.0) for task in fresh}
    dropped = dict(zip(sides, holm([side[0] for side in sides.values()]), strict=True))
    plain = dict(zip(changes, holm([change.p for change in changes.values()]), strict=True))
    judged = []
    for task in [*changes, *new]:
        change = changes.get(task)
        if task not in sides:
            judged.append(TaskVerdict(task, None, scores[task], None, None, Verdict.KEEP))
            continue
        bound = bounds.allowed(task) if change is not None else bounds.min_new
        verdict = Verdict.UNCLEAR
        if dropped[task] <= level:
            verdict = Verdict.DROP
        elif sides[task][1] <= level:
            verdict = Verdict.KEEP
        needed = None
        if verdict is Verdict.UNCLEAR and bound is not None:
            needed = _needed(change, scores[task], bound, bounds.confidence)
        judged.append(TaskVerdict(task, change, scores[task], bound, plain.get(task), verdict, needed))
    verdicts = {judgement.verdict for judgement in judged}
    for verdict in (Verdict.DROP, Verdict.UNCLEAR):
        if verdict in verdicts:
            return verdict, judged
    return Verdict.KEEP, judged


def _below_p(score: Score, least: float) -> tuple[float, float]:
    """Return the one-sided p values of "the score reaches the least" and of "it does not", by the score test."""
    spread = math.sqrt(max(least * (1.0 - least), 1e-12) / score.n)
    below = NormalDist().cdf(max(-40.0, min(40.0, (score.value - least) / spread)))
    return below, 1.0 - below


def _needed(change: PairedChange | None, score: Score, bound: float, confidence: float) -> int | None:
    if change is not None:
        return examples_needed(change, bound, confidence)
    if score.value == bound:
        return None
    # As many as let the interval end at the bound.
    number = score.n
    while number < 1 << 40:
        low, high = wilson_interval(score.value, number, 2 * confidence - 1)
        if not low < bound < high:
            return number
        number *= 2
    return None
