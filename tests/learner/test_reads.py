"""How many files of a run are opened while a task is learned: as many for the eighth as for the second."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from merganser import AnswerSpec, Example, Learner, Task
from tests.learner import toys
from tests.learner.test_learner import sections

_watched: list[tuple[Path, Counter[str]]] = []


def _note_open(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _watched and isinstance(arguments[0], str):
        run, opened = _watched[-1]
        path = Path(arguments[0])
        if path.is_relative_to(run):
            opened[re.sub(r"\d+", "#", path.name)] += 1


sys.addaudithook(_note_open)


def small_task(number: int) -> Task:
    values = toys.rows("mood", 8, seed=number)
    examples = [Example(row["input"], row["output"], "") for row in values]
    return Task(f"task{number}", examples, test=examples[:4], spec=AnswerSpec(tuple(toys.LABELS["mood"]), mode="rank"))


@pytest.mark.parametrize("method", ["aim", "single", "ewc"])
def test_files_opened_per_task_do_not_grow(method: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = sections(training={"steps": 2}, evaluation={"future": False})
    if method != "aim":
        options["method"] = method
    opened: dict[int, Counter[str]] = {}
    with Learner.open(run, **options) as learner:
        for number in range(1, 6):
            opened[number] = _learn(learner, run, number)
    with Learner.open(run) as learner:
        for number in range(6, 9):
            opened[number] = _learn(learner, run, number)
    assert opened[5] == opened[2]
    assert opened[8] == opened[2]
    assert opened[2]["row.json.partial"] > 0  # something is counted


def _learn(learner: Learner, run: Path, number: int) -> Counter[str]:
    opened: Counter[str] = Counter()
    _watched.append((run, opened))
    try:
        learner.learn(small_task(number))
    finally:
        _watched.pop()
    return opened
