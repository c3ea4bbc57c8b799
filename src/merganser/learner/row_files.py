"""Write the records and examples of one row of a run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from merganser.evaluation import ScoredTask
from merganser.files.atomic import write_json_lines
from merganser.learner.best_weights import BestWeights
from merganser.learner.checks import memory_options, memory_slots, remarks
from merganser.learner.example_store import as_line, kept_example, write_images, write_prototypes
from merganser.learner.lineage import row_lineage
from merganser.learner.row_scores import answered_by, tasks_to_score
from merganser.learner.session import Session
from merganser.learner.train_row import TrainedRow
from merganser.learner.watching import against_start, metrics_of, watch_lines, watch_records
from merganser.metrics.score import ScoreRow
from merganser.runs.record import CostRecord, RowFile, TaskRecord, TrainedRecord
from merganser.runs.rows import row_checksums, write_row_record
from merganser.streams.memory import MemorySummary, in_force, memory_bytes, summarise_memory
from merganser.streams.task import Example, Task
from merganser.training.data import MIX, OWN
from merganser.training.determinism import derive_seed


def write_row_files(
    session: Session,
    tasks: Sequence[Task],
    folder: Path,
    trained: TrainedRow,
    scores: ScoreRow,
    measured: dict[int, dict[str, ScoredTask]],
    began: float,
) -> None:
    """Write all files of a row but its weights and the method's state.

    Args:
        scores: of this row.
        measured: row -> examples that its weights answered: this row, and earlier ones for tasks that were not known
            when those were measured.
        began: value of ``time.perf_counter`` when the row was begun.

    Raises:
        RunError: the disk is full.
    """
    examples = {
        "memory": [(task, example) for task, chosen in trained.memory.items() for example in chosen],
        "test": [(task.name, example) for task in tasks for example in task.test],
    }
    if session.config.training.select_best:
        examples["dev"] = [(task.name, example) for task in tasks for example in task.dev]
    lines = {name: [as_line(kept_example(*pair)) for pair in pairs] for name, pairs in examples.items()}
    lines |= watch_lines(session)
    lines["answers"] = answer_lines(session, measured)
    lines["merges"] = [merge.model_dump() for merge in trained.records.merges]
    lines["signals"] = [signal.model_dump() for signal in trained.records.signals]
    for name, values in lines.items():
        write_json_lines(folder / f"{name}.jsonl", values)
    watched = [example for task in session.new_watched.values() for example in task.test]
    write_images(folder, [*(example for pairs in examples.values() for _, example in pairs), *watched])
    method_bytes = _method_bytes(session, tasks, folder, examples["memory"])
    sha256, run_sha256 = row_checksums(folder)
    trained.cost.seconds = time.perf_counter() - began
    records: list[TaskRecord] = []
    for task in tasks:
        # Tasks learned together share one training; its cost is written once, with the first.
        cost = CostRecord() if records else trained.cost
        position = len(session.learned) + len(records) + 1
        record = _task_record(session, task, position, trained.memory[task.name], trained.selector, cost, method_bytes)
        records.append(record if records else record.model_copy(update={"trained": _trained(tasks, trained)}))
    file = RowFile(
        row=len(session.rows),
        tasks=records,
        scores=scores,
        earlier={
            row: {name: result.score for name, result in scored.items()}
            for row, scored in measured.items()
            if row < len(session.rows)
        },
        metrics=metrics_of(tasks_to_score(session, tasks)),
        watched=watch_records(session),
        against_start=against_start(session, measured),
        lines={name: len(values) for name, values in lines.items()},
        sha256=sha256,
        run_sha256=run_sha256,
        lineage=row_lineage(session, tasks, sha256),
    )
    write_row_record(folder, file)


def _trained(tasks: Sequence[Task], trained: TrainedRow) -> list[TrainedRecord]:
    """Return what was trained on, by source."""
    rows, tokens = trained.trained[OWN]
    own_data = TrainedRecord(source=OWN, examples=sum(len(task.train) for task in tasks), rows=rows, tokens=tokens)
    mix = tasks[0].mix
    if mix is None:
        return [own_data]
    rows, tokens = trained.trained[MIX]
    examples = len(mix.examples)
    return [
        own_data,
        TrainedRecord(source=mix.source, share=mix.share, examples=examples, rows=rows, tokens=tokens),
    ]


def answer_lines(session: Session, measured: dict[int, dict[str, ScoredTask]]) -> list[dict[str, Any]]:
    """Return the lines of ``answers.jsonl``; none where answers are not kept."""
    if not session.config.evaluation.keep_answers:
        return []
    return [
        # Right and wrong as 1 and 0: a test set may have many examples.
        {
            "row": row,
            "task": name,
            "answers": list(result.answers),
            "scores": [int(value) if value in (0.0, 1.0) else value for value in result.values],
        }
        for row, scored in measured.items()
        for name, result in scored.items()
    ]


def _task_record(
    session: Session,
    task: Task,
    position: int,
    memory: Sequence[Example],
    selector: BestWeights | None,
    cost: CostRecord,
    method_bytes: dict[str, int],
) -> TaskRecord:
    number = len(session.rows)
    summary = (
        summarise_memory(memory, task.train, task.spec.labels, memory_options(session), memory_slots(session, task))
        if memory
        else MemorySummary()
    )
    return TaskRecord(
        name=task.name,
        index=position,
        row=number,
        seed=derive_seed(session.config.seed, "task", number),
        fingerprint=task.fingerprint(),
        train_examples=len(task.train),
        dev_examples=len(task.dev),
        test_examples=len(task.test),
        truncated=session.truncated.get(task.name, {}),
        spec=task.spec,
        source=dict(task.source),
        remarks=remarks(session, task),
        memory=summary,
        cost=cost,
        selected_step=selector.step if selector else None,
        dev_scores=selector.scores if selector else {},
        method_bytes=method_bytes,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _method_bytes(
    session: Session, tasks: Sequence[Task], folder: Path, kept: Sequence[tuple[str, Example]]
) -> dict[str, int]:
    """Return the bytes that the method keeps after this row, by name; label vectors are written on the way."""
    rows = [*(row.folder for row in session.rows), folder]
    answering = {rows[row] / "adapter" for row in answered_by(session, tasks, len(session.rows)).values()}
    bytes_kept = {
        "memory": memory_bytes(
            [example for _, example in in_force([*session.examples("memory"), *kept], session.memory_total)]
        ),
        # Weights that must survive: those of every row that answers a task.
        "weights": sum(_weight_bytes(weights) for weights in [*answering, folder / "trained"]),
    }
    if session.method.keeps_pretrained(session.backbone.options.lora is not None):
        bytes_kept["pretrained weights"] = _weight_bytes(rows[0] / "adapter")
    if prototypes := _write_new_prototypes(session, tasks, folder):
        bytes_kept["prototypes"] = prototypes
    return {**bytes_kept, **session.method.bytes_kept()}


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _write_new_prototypes(session: Session, tasks: Sequence[Task], folder: Path) -> int:
    """Write the label vectors that these tasks add; return the bytes of those of all tasks so far."""
    before = {label for task in session.known_tasks().values() for label in task.spec.labels or ()}
    new = [label for task in tasks for label in task.spec.labels or () if label not in before]
    write_prototypes(folder, session.backbone.prototypes(list(dict.fromkeys(new))))
    everything = session.backbone.prototypes([*before, *new])
    return sum(vector.numel() * vector.element_size() for vector in everything.values())
