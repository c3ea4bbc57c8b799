"""What is left of a row that a check refused: its records and answers, beside the run."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from merganser.files.atomic import make_folder, write_json, write_json_lines
from merganser.report.retention import Check
from merganser.runs.record import KeptAnswers, KeptExample
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
    changed = sorted(changed_examples(rows, check), key=lambda each: each["score_now"] - each["score_before"])
    write_json_lines(folder / "changed.jsonl", changed)
    return folder


def changed_examples(rows: Sequence[Row], check: Check) -> Iterator[dict[str, Any]]:
    """Yield the examples whose score in the last row is another than in the row it was compared with."""
    numbers = {row.folder.name: number for number, row in enumerate(rows)}
    kept: dict[tuple[int, str], KeptAnswers] = {(each.row, each.task): each for row in rows for each in row.answers()}
    examples: dict[str, list[KeptExample]] = {}
    for row in rows:
        for example in (*row.examples("test"), *row.examples("watch")):
            examples.setdefault(example.task, []).append(example)
    for task, folder in check.compared.items():
        before, now = (
            next(kept[number, task] for number in range(last, -1, -1) if (number, task) in kept)
            for last in (numbers[folder], len(rows) - 1)
        )
        for number, example in enumerate(examples[task]):
            if before.scores[number] != now.scores[number]:
                yield {
                    "task": task,
                    "input": example.input or example.messages,
                    "expected": example.output,
                    "before": before.answers[number] if before.answers else None,
                    "now": now.answers[number] if now.answers else None,
                    "score_before": before.scores[number],
                    "score_now": now.scores[number],
                }
