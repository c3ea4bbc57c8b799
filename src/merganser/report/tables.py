"""The numbers of a run as CSV files with one header row each. Scores are fractions, not percent."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from merganser.files.atomic import make_folder
from merganser.report.files import write_whole
from merganser.report.formatting import finite, metric_title
from merganser.report.sections import merging_share, other_seconds
from merganser.report.series import learned_before, rows_learned, task_order
from merganser.runs.record import CostRecord, MergeRecord, RunRecord, SignalRecord, TrainedRecord

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings of texts that spreadsheets may run as a formula."""

Cells = Sequence[str | int | float | None]


def _write(path: Path, head: Sequence[str], rows: Iterable[Cells]) -> Path:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(csv_cell, head))
    for row in rows:
        writer.writerow(map(csv_cell, row))
    return write_whole(path, text.getvalue().encode("utf-8"))


def csv_cell(value: str | int | float | None) -> str | int | float:
    """Return a cell as it is written: floats keep all their digits, missing and non-finite numbers are empty.

    A text that a spreadsheet would run as a formula gets an apostrophe before it, which spreadsheets do not show
    (OWASP, "CSV Injection").
    """
    if isinstance(value, str):
        # The csv module quotes a cell for a line feed, and not for a carriage return.
        return (f"'{value}" if value.startswith(FORMULA) else value).replace("\r", "\n")
    return "" if value is None or (isinstance(value, float) and finite(value) is None) else value


def _scores(run: RunRecord) -> Iterable[Cells]:
    row_of = rows_learned(run)
    watched = {task.name for task in run.scores.watched}
    for number, (row, learned) in enumerate(zip(run.scores.rows, learned_before(run), strict=True)):
        after = " + ".join(row.learned) if row.learned else ("" if learned else "before training")
        for task in run.scores.tasks:
            entry = row.scores.get(task)
            if entry is not None:
                metric = run.scores.metrics.get(task)
                state = (
                    "watched"
                    if task in watched
                    else "own"
                    if row_of.get(task) == number
                    else ("earlier" if row_of.get(task, number + 1) < number else "later")
                )
                yield number, learned, after, task, state, metric, entry.value, entry.stderr, entry.n
    for task, entry in run.scores.references.items():
        yield "alone", None, task, task, "own", run.scores.metrics.get(task), entry.value, entry.stderr, entry.n


def write_tables(run: RunRecord, folder: Path) -> list[Path]:
    """Write the numbers of ``run`` as UTF-8 CSV files into ``folder`` and return their paths.

    * ``scores.csv``: the matrix, one line per evaluated entry: row, tasks learned so far, after which task, task, its
      state in that row (earlier, own, later), metric, score as a fraction in [0, 1], standard error, test examples.
      Rows called ``alone`` are the single-task references, where measured.
    * ``summary.csv``: summary metrics with their abbreviation spelled out, standard error, definition and source.
    * ``merges.csv``: the ledger; one column per field of :class:`~merganser.runs.record.MergeRecord`.
    * ``signals.csv``: one line per inner step, never thinned; losses in nats.
    * ``memory.csv``: per task, examples and bytes kept, budget, share, sampler, and bytes kept by the method.
    * ``cost.csv``: per task, wall-clock seconds per part, examples, and the share spent on merging (probing, rehearsal,
      merging and merge losses, of the whole).
    * ``trained.csv``: per task and source of training examples, rows and tokens trained on.

    A missing number is an empty field; a text that a spreadsheet would run as a formula has an apostrophe before it.
    Existing files of these names are replaced.

    Raises:
        InputError: ``folder`` cannot be created or written.
        RunError: writing stopped half-way (a full disk).
    """
    make_folder(folder)
    summary = run.scores.summary
    merge_fields = list(MergeRecord.model_fields)
    signal_fields = list(SignalRecord.model_fields)
    cost_fields = list(CostRecord.model_fields)
    kept = list(dict.fromkeys(name for task in run.tasks for name in task.method_bytes))
    signals = (
        [name, *(getattr(signal, field) for field in signal_fields)]
        for name in task_order(run)
        for signal in run.signals.get(name, [])
    )
    memory = (
        [
            task.name,
            task.train_examples,
            task.memory.budget,
            task.memory.examples,
            task.memory.share,
            task.memory.bytes,
            task.memory.sampler,
            len(task.memory.per_label),
            *(task.method_bytes.get(name) for name in kept),
        ]
        for task in run.tasks
    )
    memory_head = ["task", "train_examples", "budget", "examples", "share", "bytes", "sampler", "labels"]
    cost = (
        [task.name, *(getattr(task.cost, f) for f in cost_fields), other_seconds(task.cost), merging_share([task.cost])]
        for task in run.tasks
    )
    trained_fields = list(TrainedRecord.model_fields)
    trained = ([task.name, *(getattr(part, f) for f in trained_fields)] for task in run.tasks for part in task.trained)
    return [
        _write(
            folder / "scores.csv",
            ["row", "tasks_learned", "after", "task", "state", "metric", "score", "stderr", "n"],
            _scores(run),
        ),
        _write(
            folder / "summary.csv",
            ["metric", "title", "value", "stderr", "definition", "source"],
            ([m.name, metric_title(m.name), m.value, m.stderr, m.definition, m.source] for m in summary),
        ),
        _write(folder / "merges.csv", merge_fields, ([getattr(m, f) for f in merge_fields] for m in run.merges)),
        _write(folder / "signals.csv", ["task", *signal_fields], signals),
        _write(folder / "memory.csv", [*memory_head, *(f"method_{name}_bytes" for name in kept)], memory),
        _write(folder / "cost.csv", ["task", *cost_fields, "other_seconds", "merging_share"], cost),
        _write(folder / "trained.csv", ["task", *trained_fields], trained),
    ]
