"""The model card of a run's weights, from its records: data, scores, what was forgotten, training, how to undo it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from merganser.files.documents import yaml_document
from merganser.files.markdown import code_block, code_span, escaped
from merganser.metrics.continual import Metric, average_performance, backward_transfer, forgetting_since_learned
from merganser.metrics.matrix import ScoreMatrix
from merganser.metrics.retained import retained
from merganser.metrics.score import Score
from merganser.runs.record import RowFile, RunInfo, TaskRecord
from merganser.runs.rows import folder_name
from merganser.runs.summary import score_matrix
from merganser.streams.formats import parse_hub
from merganser.tables import score

CARD = "README.md"

WIDEST = 16
"""Columns up to which the score matrix is shown."""

SECTIONS = ("method", "memory", "training", "evaluation")
"""Sections of a run's configuration that a card shows, beside the model's."""


@dataclass(frozen=True)
class History:
    """What led to a model.

    Attributes:
        info: of its run.
        rows: of the run up to the one whose weights they are, row 0 first.
    """

    info: RunInfo
    rows: Sequence[RowFile]

    @property
    def tasks(self) -> list[TaskRecord]:
        """Return the tasks learned, in order."""
        return [task for row in self.rows for task in row.tasks]

    @property
    def matrix(self) -> ScoreMatrix:
        """Return the score matrix."""
        return score_matrix(self.rows)

    def metric_of(self, task: str) -> str:
        """Return the name of the text score of a task."""
        return next(row.metrics[task] for row in reversed(self.rows) if task in row.metrics)


def hub_data(task: TaskRecord) -> str | None:
    """Return the hub id of a task's training data; ``None`` if it was read from a file or made in Python."""
    name = task.source.get("train", "").partition(" sha256:")[0]
    return parse_hub(name, "train")[0] if name.startswith("hub:") else None


def record_sections(history: History, run: str) -> str:
    """Return the sections of a card that the records of a run tell, as Markdown.

    Args:
        run: the run directory as commands name it.
    """
    kept = [*_scores(history), *_forgetting(history), *_watched(history)]
    return "\n".join([*_data(history), *kept, *_training(history), *_undo(history, run)])


def _data(history: History) -> list[str]:
    lines = [
        "## Data",
        "",
        "| task | training texts | development texts | test texts | SHA-256 |",
        "|---|--:|--:|--:|---|",
    ]
    for task in history.tasks:
        counts = (task.train_examples, task.dev_examples, task.test_examples)
        lines.append(f"| {escaped(task.name)} | {' | '.join(f'{n:,}' for n in counts)} | `{task.fingerprint}` |")
    lines += ["", "The SHA-256 is of all texts and answers in order, and of how they are answered.", ""]
    sources = [
        f"* {escaped(task.name)}, {escaped(part)}: {code_span(_without_path(source))}"
        for task in history.tasks
        for part, source in task.source.items()
    ]
    return [*lines, *sources, *([""] if sources else [])]


def _scores(history: History) -> list[str]:
    matrix = history.matrix
    learned = list(matrix.learned_tasks)
    measured = [name for name in learned if matrix.score(-1, name) is not None]
    if not measured:
        return ["## Scores", "", "Nothing was measured: no task has a test set.", ""]
    if len(measured) > WIDEST:
        return []
    lines = [
        "## Scores",
        "",
        "In percent, each row after learning one more task, each column on the test texts of a task.",
        "",
        f"| after | {' | '.join(escaped(f'{name} ({history.metric_of(name)})') for name in measured)} |",
        f"|---|{'--:|' * len(measured)}",
    ]
    for number, row in enumerate(matrix.rows):
        cells = [_percent(matrix.score(number, name)) for name in measured]
        lines.append(f"| {escaped(', '.join(row.learned) or 'no training')} | {' | '.join(cells)} |")
    return [*lines, ""]


def _forgetting(history: History) -> list[str]:
    """Return the table of each task's score when it was learned and now, and the metrics over all of them."""
    matrix = history.matrix
    lines, lost = [], []
    for number, row in enumerate(matrix.rows):
        for name in row.learned:
            before, after = matrix.score(number, name), matrix.score(-1, name)
            change = "not measured"
            if before is not None and after is not None:
                difference = after.value - before.value
                change = "the last task" if number == len(matrix) - 1 else score(difference, signed=True)
                if change.startswith("−") and number < len(matrix) - 1:
                    lost.append(f"{escaped(name)} ({change} points)")
            lines.append(f"| {escaped(name)} | {_percent(before, True)} | {_percent(after, True)} | {change} |")
    metrics = [
        ("Overall performance (OP)", average_performance(matrix)),
        ("Backward transfer (BWT)", backward_transfer(matrix)),
        ("Forgetting", forgetting_since_learned(matrix)),
    ]
    forgotten = "No task scores lower than when it was learned."
    return [
        "## What was forgotten",
        "",
        f"Lower than right after learning: {', '.join(lost)}." if lost else forgotten,
        "",
        "| task | when learned | now | change in points |",
        "|---|--:|--:|--:|",
        *lines,
        "",
        "Scores in percent, with the standard error from the finite test set.",
        "",
        *(f"* {title}: {_value(metric)} ({escaped(metric.definition)})" for title, metric in metrics),
        "",
    ]


def _watched(history: History) -> list[str]:
    """Return the table of the watched tasks before any training and now; nothing where there are none."""
    matrix = history.matrix
    if not matrix.watched:
        return []
    lines = []
    for name, group in matrix.watched.items():
        before, now = matrix.score(0, name), matrix.score(-1, name)
        title = escaped(f"{name} ({group})" if group else name)
        change = "not measured" if before is None or now is None else score(now.value - before.value, signed=True)
        lines.append(f"| {title} | {_percent(before, True)} | {_percent(now, True)} | {change} |")
    return [
        "## What it knew before",
        "",
        "Tasks that were scored and never learned: what the pretrained model knew.",
        "",
        "| task | before training | now | change in points |",
        "|---|--:|--:|--:|",
        *lines,
        "",
        *(f"* {metric.name}: {_value(metric)} ({escaped(metric.definition)})" for metric in retained(matrix)),
        "",
    ]


def _training(history: History) -> list[str]:
    info, costs = history.info, [task.cost for task in history.tasks]
    model = {key: value for key, value in info.config.get("model", {}).items() if key != "name"}
    if isinstance(adapter := model.get("adapter"), str):
        model["adapter"] = _without_path(adapter)
    shown = {"model": model, **{key: info.config[key] for key in SECTIONS if key in info.config}}
    content = yaml_document({**shown, "seed": info.seed})
    versions = ", ".join(f"{escaped(name)} {escaped(version)}" for name, version in info.versions.items())
    return [
        "## How it was trained",
        "",
        f"{len(history.tasks)} tasks, {sum(cost.steps for cost in costs):,} optimizer steps on "
        f"{sum(cost.examples_trained for cost in costs):,} examples of new tasks and "
        # No times: equal runs have equal cards.
        f"{sum(cost.examples_rehearsed for cost in costs):,} of earlier ones; {versions}.",
        "",
        code_block(content, "yaml"),
    ]


def _undo(history: History, run: str) -> list[str]:
    """Return the commands that take tasks back."""
    commands = [f"merganser undo {run}    # takes back the last task"]
    if len(history.rows) > 2:
        first = history.rows[1]
        folder = folder_name(first.row, [task.name for task in first.tasks])
        commands.append(f"merganser undo {run} --to {shlex.quote(folder)}    # every task after that one")
    commands.append(f"merganser export {run} NEW-FOLDER")
    return [
        "## How to undo it",
        "",
        "The run directory keeps the weights after every task. Take tasks back there, then export again:",
        "",
        code_block("\n".join(commands), "sh"),
        "The pretrained model itself is unchanged; without this adapter or export it answers as before.",
        "",
    ]


def _value(metric: Metric) -> str:
    return "undefined" if metric.value is None else f"{score(metric.value)} %"


def _percent(entry: Score | None, error: bool = False) -> str:
    if entry is None:
        return "not measured"
    return score(entry.value) + (f" ± {score(entry.stderr)}" if error else "")


def _without_path(text: str) -> str:
    """Return a source without the folders of this machine, which mean nothing elsewhere."""
    name, mark, digest = text.partition(" sha256:")
    return (Path(name).name if Path(name).is_absolute() or name.startswith("~") else name) + mark + digest


def unique(values: Iterable[str]) -> list[str]:
    """Return values once each, in their order."""
    return list(dict.fromkeys(values))
