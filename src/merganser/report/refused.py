"""What is left of a row that a check refused: its records and answers, beside the run."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from merganser.files.atomic import make_folder, write_json, write_json_lines
from merganser.report.changed_answers import flips, tests_of
from merganser.report.retention import Check
from merganser.runs.answers import AnswersOfRows
from merganser.runs.rows import Row

KEPT = ("row.json", "answers.jsonl", "test.jsonl", "watch.jsonl", "merges.jsonl", "signals.jsonl")
"""Files of the row that are kept; its weights are not."""


def keep_refused(run: Path, rows: Sequence[Row], check: Check) -> Path:
    """Copy a refused row's records and answers to ``RUN-refused/NN-task``, and write what the check found.

    ``check.json`` has the verdicts, ``changed.jsonl`` every example whose score changed, losses first.

    Args:
        rows: of the run, the refused one last.

    Returns:
        The folder, which is new.

    Raises:
        RunError: the disk is full.
    """
    beside = run.resolve().with_name(f"{run.resolve().name}-refused")
    names = (check.row if number == 1 else f"{check.row}-{number}" for number in itertools.count(1))
    folder = make_folder(next(path for name in names if not (path := beside / name).exists()))
    for name in KEPT:
        if (rows[-1].folder / name).is_file():
            shutil.copyfile(rows[-1].folder / name, folder / name)
    write_json(folder / "check.json", check.as_dict())
    changed = sorted(changed_examples(rows, check), key=lambda example: example["score_now"] - example["score_before"])
    write_json_lines(folder / "changed.jsonl", changed)
    return folder


def changed_examples(rows: Sequence[Row], check: Check) -> Iterator[dict[str, Any]]:
    """Yield the examples whose score in the last row is another than in the row it was compared with."""
    numbers = {row.folder.name: number for number, row in enumerate(rows)}
    answers, tests = AnswersOfRows(rows), tests_of(rows)
    for task, folder in check.compared.items():
        before, now = (answers.of(task, number) for number in (numbers[folder], len(rows) - 1))
        for flip in flips(before, now, tests.get(task, ())):
            yield {
                "task": task,
                "input": flip.text,
                "expected": flip.expected,
                "before": flip.before,
                "now": flip.after,
                "score_before": before.scores[flip.number - 1],
                "score_now": now.scores[flip.number - 1],
            }
