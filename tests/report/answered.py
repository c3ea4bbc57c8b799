"""A made-up run on disk with the answers to its test examples, consistent with its scores."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path

from merganser.runs import RunDirectory
from merganser.runs.record import KeptAnswers, KeptExample, RowFile, RunRecord, WatchedColumn, WatchRecord
from merganser.streams.answers import AnswerSpec
from merganser.streams.watch_options import Group
from tests.report.conftest import one_score

LABELS = ("sport", "trade", "space")


def examples_of(task: str, n: int) -> list[KeptExample]:
    return [
        KeptExample(
            task=task, input=f"Text {number} of {task}: who won, and what does it cost?", output=LABELS[number % 3]
        )
        for number in range(n)
    ]


def answers_of(task: str, row: int, value: float, n: int) -> KeptAnswers:
    """Right answers to a share ``value`` of the examples; mostly the same ones at similar scores."""
    order = list(range(n))
    random.Random(task).shuffle(order)
    noise = random.Random(f"{task} {row}")
    hardness = {place: rank + noise.uniform(0, 0.12 * n) for rank, place in enumerate(order)}
    right = set(sorted(order, key=hardness.__getitem__)[: round(value * n)])
    return KeptAnswers(
        row=row,
        task=task,
        answers=[LABELS[(place + (place not in right)) % 3] for place in range(n)],
        scores=[float(place in right) for place in range(n)],
    )


def watching(run: RunRecord, watched: Mapping[str, tuple[Group | None, float]]) -> RunRecord:
    """Return the run with watched tasks -> their group and what each row takes from their score of .8."""
    rows = [
        row.model_copy(
            update={"scores": row.scores | {name: one_score(0.8 - n * each[1]) for name, each in watched.items()}}
        )
        for n, row in enumerate(run.scores.rows)
    ]
    columns = {"tasks": [*run.scores.tasks, *watched], "metrics": run.scores.metrics | dict.fromkeys(watched, "em")}
    marks = [WatchedColumn(name=name, group=group) for name, (group, _) in watched.items()]
    return run.model_copy(update={"scores": run.scores.model_copy(update={**columns, "rows": rows, "watched": marks})})


def to_disk(run: RunRecord, path: Path, *, answers: bool = True) -> Path:
    """Write the run directory of which ``run`` is the record."""
    directory = RunDirectory.create(path, run.info)
    names = [*(task.name for task in run.tasks), *(each.name for each in run.scores.watched)]
    watched = [
        WatchRecord(name=each.name, group=each.group, fingerprint="0", test_examples=200, spec=AnswerSpec(LABELS))
        for each in run.scores.watched
    ]
    try:
        for number, row in enumerate(run.scores.rows):
            tasks = [task for task in run.tasks if task.row == number]
            name = tasks[0].name if tasks else "start"
            folder = directory.path_of_new_row(number, name)
            directory.begin_row(folder)
            (folder / "adapter").mkdir()
            (folder / "adapter" / "adapter_config.json").write_text("{}")
            file = RowFile(row=number, tasks=tasks, scores=row, metrics=run.scores.metrics)
            file.watched = [] if tasks else watched
            kept = [answers_of(each, number, row.scores[each].value, row.scores[each].n) for each in names]
            lines = {
                "signals": run.signals.get(name, []),
                "merges": [merge for merge in run.merges if merge.task == name],
                "test": [each for task in tasks for each in examples_of(task.name, task.test_examples)],
                "watch": [each for task in file.watched for each in examples_of(task.name, task.test_examples)],
                "answers": kept if answers else [],
            }
            file.lines = {kind: len(records) for kind, records in lines.items()}
            (folder / "row.json").write_text(file.model_dump_json())
            for kind, records in lines.items():
                text = "".join(json.dumps(record.model_dump()) + "\n" for record in records)
                (folder / f"{kind}.jsonl").write_text(text)
            directory.commit_row(folder)
    finally:
        directory.lock.release()
    return path
