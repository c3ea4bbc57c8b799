"""Scores of text answers against references: one number in [0, 1] per example.

Every function takes ``answers`` and ``references``, two lists of strings of equal length, and returns a float64 array
of shape ``[examples]``. ``TEXT_SCORES`` names them as a task's ``metric`` does. Which text an answer holds (special
tokens stripped, prompt cut off) is decided by the backbone.
"""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from merganser.errors import InputError, nearest
from merganser.metrics.function import MetricFunction, function_scores
from merganser.metrics.score import Score

Scores = NDArray[np.float64]
TextScore = Callable[[Sequence[str], Sequence[str]], Scores]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
# Scripts written without spaces between words: each character counts as a word (kana, Han).
_UNSPACED = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])")


def exact_match(answers: Sequence[str], references: Sequence[str]) -> Scores:
    """Return 1 where answer and reference are equal up to letter case and surrounding white space, else 0.

    The score of AimMerging (Feng et al. 2025) on classification tasks. Letter case is removed by Unicode case folding
    after canonical composition, so two spellings of the same accented letter are equal. Punctuation counts.

    Raises:
        InputError: lists empty, of different length, or not of strings.
    """
    return np.array([float(_folded(a) == _folded(r)) for a, r in _pairs(answers, references)])


def accuracy(answers: Sequence[str], references: Sequence[str]) -> Scores:
    """Return 1 where the answer is the reference label, letter case included, else 0; outer white space is ignored.

    For tasks with a label set: a label is an identifier, and two labels may differ in letter case only. Equal to
    :func:`exact_match` when answers are picked from labels that differ in more than case.

    Raises:
        InputError: lists empty, of different length, or not of strings.
    """
    return np.array([float(a.strip() == r.strip()) for a, r in _pairs(answers, references)])


def rouge_l(answers: Sequence[str], references: Sequence[str]) -> Scores:
    """Compute ROUGE-L F1: harmonic mean of the longest common subsequence's fraction of the words of either side.

    Lin 2004, as computed by the package ``rouge_score`` with Porter stemming, the score of SuperNI and of AimMerging on
    generation tasks. That package drops every character but a-z and 0-9: any text in another script scores 0. Where
    more than half of the reference's letters and digits are others, words are runs of Unicode letters, marks and digits
    instead (each Han or kana character a word of its own), without stemming. A reference without any letter or digit
    scores 0, as in that package.

    Raises:
        InputError: lists empty, of different length, or not of strings.
    """
    from rouge_score.rouge_scorer import RougeScorer  # brings nltk along

    pairs = _pairs(answers, references)
    latin = RougeScorer(["rougeL"], use_stemmer=True)
    other = RougeScorer(["rougeL"], tokenizer=_UnicodeWords())
    return np.array(
        [(latin if _mostly_basic_latin(r) else other).score(r, a)["rougeL"].fmeasure for a, r in pairs],
        dtype=np.float64,
    )


def token_f1(answers: Sequence[str], references: Sequence[str]) -> Scores:
    """Compute the token F1 of SQuAD (Rajpurkar et al. 2016): harmonic mean of precision and recall of bags of words.

    Lower case, ASCII punctuation deleted, the articles a, an, the dropped, split at white space; each Han or kana
    character a word of its own (as MLQA, Lewis et al. 2020, for Chinese). If either side has no word left, 1 when both
    have none, else 0 (SQuAD 2.0). Known as ``f1`` in a task's ``metric``. This is a score per example; it is neither
    the F1 of a class nor macro-F1 over classes, which are not means over examples.

    Raises:
        InputError: lists empty, of different length, or not of strings.
    """
    return np.array([_bag_f1(_squad_words(a), _squad_words(r)) for a, r in _pairs(answers, references)])


TEXT_SCORES: dict[str, TextScore] = {
    "accuracy": accuracy,
    "exact_match": exact_match,
    "rouge_l": rouge_l,
    "f1": token_f1,
}
"""Text scores by the name used in a task's ``metric``."""


def score_each(
    metric: str | MetricFunction, answers: Sequence[str], references: Sequence[str], inputs: Sequence[str] = ()
) -> Scores:
    """Score the answers one by one.

    Args:
        metric: a name of :data:`TEXT_SCORES`, or a :data:`~merganser.metrics.function.MetricFunction`.
        inputs: the texts that were answered, for a function.

    Raises:
        InputError: unknown metric, a function that fails, or lists that the score refuses.
    """
    if not isinstance(metric, str):
        _pairs(answers, references)  # the same checks
        return function_scores(metric, answers, references, inputs)
    if metric not in TEXT_SCORES:
        hint = nearest(metric, TEXT_SCORES) or f"Choose from {', '.join(TEXT_SCORES)}."
        raise InputError(f"Text score '{metric}' is unknown.", hint)
    return TEXT_SCORES[metric](answers, references)


def score_answers(
    metric: str | MetricFunction, answers: Sequence[str], references: Sequence[str], inputs: Sequence[str] = ()
) -> Score:
    """Score a test set: mean of :func:`score_each` over the examples, their number, standard error.

    Raises:
        InputError: as :func:`score_each`.
    """
    return score_of(score_each(metric, answers, references, inputs))


def score_of(values: Scores | Sequence[float]) -> Score:
    """Return the score of a test set from those of its examples."""
    mean, stderr = mean_and_stderr(values)
    return Score(value=mean, n=len(values), stderr=stderr)


def mean_and_stderr(scores: Scores | Sequence[float]) -> tuple[float, float]:
    """Compute the mean of per-example scores and its standard error ``s / sqrt(n)``, s the sample deviation (n - 1).

    The spread of one example cannot be measured; its standard error is set to 0.5, the largest deviation of a variable
    in [0, 1] (Popoviciu's inequality), so that it is never mistaken for an exact result.

    Args:
        scores: shape ``[examples]``, each in [0, 1].

    Raises:
        InputError: no scores, more than one dimension, or a score outside [0, 1].
    """
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise InputError(f"The scores have shape {list(array.shape)}.", "Give one score per example, at least one.")
    wrong = np.flatnonzero(~((array >= 0.0) & (array <= 1.0)))  # true for NaN as well
    if wrong.size:
        raise InputError(
            f"Score {array[wrong[0]]} of example {wrong[0]} is not in [0, 1].", "Give fractions, not percent."
        )
    if array.size == 1:
        return float(array[0]), 0.5
    return float(array.mean()), float(array.std(ddof=1)) / math.sqrt(array.size)


def _pairs(answers: Sequence[str], references: Sequence[str]) -> list[tuple[str, str]]:
    for name, texts in (("answers", answers), ("references", references)):
        if isinstance(texts, str):
            raise InputError(f"The {name} are one string.", "Give a list of strings.")
    if len(answers) != len(references):
        raise InputError(
            f"{len(answers)} answers for {len(references)} references.", "Give one answer per reference, in order."
        )
    if len(answers) == 0:
        raise InputError("There are no answers to score.", "Give at least one test example.")
    for index, (answer, reference) in enumerate(zip(answers, references, strict=True)):
        if not isinstance(answer, str) or not isinstance(reference, str):
            wrong = answer if not isinstance(answer, str) else reference
            raise InputError(f"Example {index}: {wrong!r} is not a string.", "Answers and references are strings.")
    return list(zip(answers, references, strict=True))


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold()).strip()


def _squad_words(text: str) -> list[str]:
    return _UNSPACED.sub(r" \1 ", _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION))).split()


def _bag_f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    common = (Counter(answer) & Counter(reference)).total()
    return 2.0 * common / (len(answer) + len(reference))


def _mostly_basic_latin(text: str) -> bool:
    letters = [character for character in text.lower() if character.isalnum()]
    return 2 * sum(character.isascii() for character in letters) >= len(letters)


class _UnicodeWords:
    """Tokenize for ``rouge_score``: words are runs of letters, marks and digits of any script."""

    def tokenize(self, text: str) -> list[str]:
        folded = unicodedata.normalize("NFKC", text).casefold()
        kept = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in folded)
        return _UNSPACED.sub(r" \1 ", kept).split()
