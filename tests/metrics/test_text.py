from __future__ import annotations

import math
import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merganser.errors import InputError
from merganser.metrics import TEXT_SCORES, mean_and_stderr, score_answers
from merganser.metrics.text import accuracy, exact_match, rouge_l, token_f1
from merganser.streams.answers import MetricName


def test_every_metric_that_a_task_may_name_has_a_function() -> None:
    assert set(TEXT_SCORES) == set(MetricName.__args__)  # type: ignore[attr-defined]


def test_exact_match_ignores_case_and_surrounding_space_only() -> None:
    answers = [" World\n", "STRASSE", "sports.", "sci  tech", "cafe\u0301", ""]
    references = ["world", "straße", "sports", "sci tech", "café", "x"]
    np.testing.assert_array_equal(exact_match(answers, references), [1, 1, 0, 0, 1, 0])


def test_accuracy_keeps_letter_case() -> None:
    np.testing.assert_array_equal(accuracy(["US ", "us", "US"], ["US", "US", "us"]), [1, 0, 0])


def test_rouge_l_by_hand() -> None:
    # "the cat sat" against "the cat sat on the mat": common subsequence 3, precision 3/3, recall 3/6 -> F 2/3.
    # "mat the cat" against "the cat mat": common subsequence "the cat", 2/3 and 2/3 -> 2/3: order counts.
    # "running" and "runs" share the stem "run".
    answers = ["the cat sat", "mat the cat", "running", "The cat!", "dog", ""]
    references = ["the cat sat on the mat", "the cat mat", "runs", "the cat", "cat", "cat"]
    np.testing.assert_allclose(rouge_l(answers, references), [2 / 3, 2 / 3, 1, 1, 0, 0])


def test_rouge_l_reads_other_scripts() -> None:
    answers = ["Кошка, сидит на GPU!", "猫が寝る", "बिल्ली सोती है", "wrong", "猫"]
    references = ["кошка сидит на gpu", "猫が寝た", "बिल्ली सोती है", "кошка", "犬"]
    # 猫 が 寝 る against 猫 が 寝 た: three of four characters in common.
    np.testing.assert_allclose(rouge_l(answers, references), [1, 3 / 4, 1, 0, 0])


def test_rouge_l_of_mostly_latin_text_is_that_of_the_package() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    pairs = [("Il a pris le café glacé", "Elle prend un café"), ("…", "…"), ("naïve Bayes wins", "naive Bayes won")]
    expected = [scorer.score(reference, answer)["rougeL"].fmeasure for answer, reference in pairs]
    found = rouge_l([answer for answer, _ in pairs], [reference for _, reference in pairs])
    np.testing.assert_array_equal(found, expected)


def test_token_f1_by_hand() -> None:
    # "a cat sat" -> cat sat; "the cat sat down" -> cat sat down: 2 common, F = 2*2/(2+3).
    # "new new york" against "new york": the bag holds "new" twice on one side, once on the other: 2 common of 3 and 2.
    answers = ["A cat sat.", "new new york", "York, New", "the", "the", "", "北京市"]
    references = ["the cat sat down", "new york", "new york", "an", "cat", "cat", "北京"]
    np.testing.assert_allclose(token_f1(answers, references), [4 / 5, 4 / 5, 1, 1, 0, 0, 4 / 5])


texts = st.lists(st.text(max_size=12), min_size=1, max_size=6)


@pytest.mark.parametrize("name", sorted(TEXT_SCORES))
@settings(deadline=None)
@given(data=st.data())
def test_scores_are_shares_per_example(name: str, data: st.DataObject) -> None:
    answers = data.draw(texts)
    references = data.draw(st.lists(st.text(max_size=12), min_size=len(answers), max_size=len(answers)))
    scores = TEXT_SCORES[name](answers, references)
    assert scores.shape == (len(answers),)
    assert scores.dtype == np.float64
    assert ((scores >= 0) & (scores <= 1)).all()
    # One example's score does not depend on the others.
    one_by_one = [TEXT_SCORES[name]([a], [r])[0] for a, r in zip(answers, references, strict=True)]
    np.testing.assert_array_equal(scores, one_by_one)
    if name in ("accuracy", "exact_match", "f1"):
        np.testing.assert_array_equal(TEXT_SCORES[name](answers, answers), np.ones(len(answers)))


@settings(deadline=None)
@given(st.lists(st.text(string.ascii_letters + " ", max_size=12), min_size=1, max_size=5), st.data())
def test_an_accurate_answer_is_an_exact_match(labels: list[str], data: st.DataObject) -> None:
    answers = data.draw(st.permutations(labels))
    assert (accuracy(answers, labels) <= exact_match(answers, labels)).all()
    assert (exact_match(answers, labels) <= token_f1(answers, labels)).all()


words = st.lists(st.sampled_from(["ab", "Cd", "ef"]), min_size=1, max_size=8).map(" ".join)


@settings(deadline=None)
@given(words, words)
def test_rouge_l_and_f1_are_symmetric_and_ordered(answer: str, reference: str) -> None:
    assert rouge_l([answer], [reference]) == pytest.approx(rouge_l([reference], [answer]))
    assert token_f1([answer], [reference]) == pytest.approx(token_f1([reference], [answer]))
    # A common subsequence is a common bag of words.
    assert rouge_l([answer], [reference])[0] <= token_f1([answer], [reference])[0] + 1e-12


@pytest.mark.parametrize("name", sorted(TEXT_SCORES))
@pytest.mark.parametrize(
    ("answers", "references", "said"),
    [
        ([], [], "There are no answers"),
        (["a"], ["a", "b"], "1 answers for 2 references"),
        ("ab", ["a", "b"], "answers are one string"),
        (["a", "b"], "ab", "references are one string"),
        (["a", None], ["a", "b"], "Example 1: None"),
        (["a"], [3], "Example 0: 3"),
    ],
)
def test_bad_lists(name: str, answers: list[str], references: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        TEXT_SCORES[name](answers, references)


def test_mean_and_stderr_by_hand() -> None:
    # 1 1 1 0: mean .75, sample variance .25, standard error sqrt(.25 / 4).
    assert mean_and_stderr([1, 1, 1, 0]) == (0.75, pytest.approx(0.25))
    assert mean_and_stderr(np.ones(9)) == (1.0, 0.0)
    assert mean_and_stderr([1.0]) == (1.0, 0.5)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_stderr_never_exceeds_the_one_of_a_single_example(scores: list[float]) -> None:
    mean, stderr = mean_and_stderr(scores)
    assert 0.0 <= mean <= 1.0
    assert 0.0 <= stderr <= 0.5 + 1e-12
    assert stderr == pytest.approx(np.std(scores) / math.sqrt(len(scores) - 1), abs=1e-9)


@pytest.mark.parametrize("scores", [[], [[0.5]], [0.5, 1.5], [0.5, math.nan], [-0.1, 0.0]])
def test_bad_scores(scores: list[float]) -> None:
    with pytest.raises(InputError):
        mean_and_stderr(scores)


def test_score_answers_is_an_entry_of_the_matrix() -> None:
    entry = score_answers("exact_match", ["A", "b", "c", "d"], ["a", "b", "c", "x"])
    assert (entry.value, entry.n) == (0.75, 4)
    assert entry.stderr == pytest.approx(0.25)
    with pytest.raises(InputError, match="Did you mean 'rouge_l'"):
        score_answers("rougeL", ["a"], ["a"])
