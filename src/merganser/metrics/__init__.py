"""Numbers out of answers and scores: text scores, the score matrix, metrics of continual learning, intervals."""

from __future__ import annotations

from merganser.metrics.continual import Metric, summary
from merganser.metrics.intervals import t_interval, wilson_interval
from merganser.metrics.matrix import ScoreMatrix
from merganser.metrics.score import Score, ScoreRow
from merganser.metrics.text import TEXT_SCORES, mean_and_stderr, score_answers

__all__ = [
    "TEXT_SCORES",
    "Metric",
    "Score",
    "ScoreMatrix",
    "ScoreRow",
    "mean_and_stderr",
    "score_answers",
    "summary",
    "t_interval",
    "wilson_interval",
]
