"""The cache of single-task scores."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from merganser.learner.references import _read_cached
from merganser.metrics.score import Score


@pytest.mark.parametrize(
    "content", ['{"value": 0.5, "n"', "[]", '{"value": 0.5, "value": 1, "n": 2}', "\0", "9" * 5000]
)
def test_a_damaged_score_is_measured_again(content: str, tmp_path: Path) -> None:
    file = tmp_path / "score.json"
    file.write_text(content)
    assert _read_cached(file) is None


def test_a_whole_score_is_taken(tmp_path: Path) -> None:
    score = Score(value=0.5, n=2, stderr=0.25)
    (tmp_path / "score.json").write_text(score.model_dump_json())
    assert _read_cached(tmp_path / "score.json") == score.model_dump()
    os.mkfifo(tmp_path / "pipe.json")
    assert _read_cached(tmp_path / "pipe.json") is None
    assert _read_cached(tmp_path / "absent.json") is None
