"""One cell of a study as a record: what was run, with what, how it scored, and what it cost.

A cell is a method with its options on one stream in one order with one seed. Its record is one JSON file, written from
the cell's finished run; a folder of such files is all that tables and pages of a study need, so that results of several
people and machines add up by copying files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_serializer, field_validator

from merganser.errors import InputError
from merganser.files.atomic import make_folder, write_bytes
from merganser.files.documents import read_bytes
from merganser.metrics.continual import Metric
from merganser.metrics.score import Score, ScoreRow
from merganser.runs.answers import AnswersOfRows
from merganser.runs.checksums import CHANGED, is_clutter, is_intact, sealed
from merganser.runs.directory import RunDirectory
from merganser.runs.reading import damaged, read_record
from merganser.runs.record import CostRecord, Record, RunInfo
from merganser.runs.rows import Row
from merganser.study.order_names import RecordedOrder, arrangement, names_of_orders

FORMAT = 1
"""Version of the layout of a record; a record with another number is refused."""

MACHINE = ("system", "processor", "cores", "gpu")
"""Keys of a run's versions that describe the machine."""

RECORDS = "records"
"""Folder of them in the folder of a study."""

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=,-]{0,199}")


class ExampleScores(Record):
    """How the weights of the last row answered one task's test examples."""

    test_sha256: str = Field(description="SHA-256 of the test examples in order: scores of equal ones can be paired")
    scores: list[float] = Field(description="one per test example, in [0, 1]; in the file a text of digits if all are "
                                "0 or 1")  # fmt: skip

    @field_validator("scores", mode="before")
    @classmethod
    def _from_digits(cls, value: Any) -> Any:
        if isinstance(value, str):
            if set(value) - {"0", "1"}:
                raise ValueError("a text of scores has other characters than 0 and 1")
            return [float(digit) for digit in value]
        return value

    @field_serializer("scores")
    def _as_digits(self, scores: list[float]) -> str | list[float]:
        if all(score in (0.0, 1.0) for score in scores):
            return "".join("1" if score else "0" for score in scores)
        return scores


class CellCost(Record):
    """What a cell cost, over all of its tasks."""

    examples_trained: int = Field(description="training examples of new tasks, counted once per pass")
    examples_rehearsed: int = Field(description="examples of earlier tasks that optimizer steps were taken on")
    examples_probed: int = Field(0, description="examples of earlier tasks in forward passes alone")
    seconds: float = Field(description="wall-clock time of its tasks: encoding, training, evaluating, writing")
    training_seconds: float = Field(description="wall-clock time without evaluating, encoding and writing")
    processes: int = Field(1, description="that trained together")
    device: str = Field("cpu", description="cpu, cuda, ...")
    processor_seconds: float | None = Field(
        None,
        description="of all its processes, as measured by the operating system, without single-task references; null: "
        "not measured",
    )
    gpu_seconds: float | None = Field(
        None, description="training_seconds times the processes, each of which has one accelerator; null: none was used"
    )
    bytes_stored: dict[str, int] = Field(
        default_factory=dict, description="what the method keeps after the last task, by name (memory, weights, ...)"
    )


class CellRecord(Record):
    """One cell of a study, complete."""

    format: int = FORMAT
    name: str = Field(description="of the cell, unique in its study")
    method: str = Field(description="name under which the study compares it")
    options: dict[str, Any] = Field(default_factory=dict, description="what distinguishes it: keys of a run's file")
    stream: str = Field(description="name of the stream; cells of one stream are compared")
    order: str = Field(description="name of the order of the tasks")
    seed: int
    tuning: str | None = Field(
        None, description="name of the tuning that it is a trial of, scored on development data; null: a result"
    )
    stopped_by: str | None = Field(None, description="the rule that stopped it before its last task; null: none did")
    run: str = Field(description="its run directory, relative to the folder of the study, with forward slashes")
    created: str = Field(description="UTC time, ISO 8601")
    finished: str = Field(description="UTC time, ISO 8601")
    configuration: dict[str, Any] = Field(description="of the run, fully resolved")
    versions: dict[str, str]
    hardware: dict[str, str] = Field(
        description="system, processor, cores, device; gpu: name of the accelerator, if one was used"
    )
    tasks: list[str] = Field(description="learned, in order")
    metrics: dict[str, str] = Field(description="text score used for each task")
    rows: list[ScoreRow] = Field(description="the score matrix, the row before training first")
    references: dict[str, Score] = Field(
        default_factory=dict, description="score of a fresh model trained on that task alone, when measured"
    )
    summary: list[Metric] = Field(description="OP, BWT, FWT, ... with their definitions")
    examples: dict[str, ExampleScores] = Field(
        default_factory=dict, description="task -> scores of its test examples; empty where answers were not kept"
    )
    cost: CellCost
    checksum: str = Field("", description="SHA-256 of this file with this value left empty; empty: not written yet")

    def metric(self, name: str) -> Metric | None:
        """Return a metric of the summary by its name; ``None``: it has none of that name."""
        return next((metric for metric in self.summary if metric.name == name), None)

    def value(self, name: str) -> float | None:
        """Return the value of a metric (``OP``, ``BWT``, ``FWT (single-task)``, ...); ``None``: undefined."""
        metric = self.metric(name)
        return None if metric is None else metric.value

    @property
    def op(self) -> float | None:
        """Overall performance, a fraction."""
        return self.value("OP")

    @property
    def bwt(self) -> float | None:
        """Backward transfer, a difference of fractions."""
        return self.value("BWT")

    @property
    def fwt(self) -> float | None:
        """Forward transfer against single-task references, a difference of fractions; undefined without them."""
        return self.value("FWT (single-task)")

    @property
    def bytes_stored(self) -> int:
        """Bytes that the method keeps after the last task."""
        return sum(self.cost.bytes_stored.values())

    @property
    def final(self) -> dict[str, Score]:
        """Task -> its score in the last row."""
        return dict(self.rows[-1].scores) if self.rows else {}


def record_cell(
    run_directory: Path | str,
    *,
    name: str,
    method: str,
    options: Mapping[str, Any],
    stream: str,
    order: str,
    seed: int,
    study: Path | None = None,
) -> CellRecord:
    """Read a finished run as a cell.

    What only the program that ran it records (``stopped_by``, ``tuning``, ``cost.processor_seconds``) is left empty.

    Args:
        run_directory: of the cell.
        name: of the cell; also that of its file.
        method, options, stream, order, seed: what it is a cell of.
        study: folder of the study, which the path of the run is relative to; default: the folder above the run.

    Raises:
        InputError: there is no run, no task was learned in it, a file of it is damaged, or the name is not that of a
            file.
    """
    run_directory = Path(run_directory)
    _check_name(name)
    directory = RunDirectory.open(run_directory)
    rows, info = directory.rows, directory.info
    learned = [task for row in rows for task in row.file.tasks]
    if not learned:
        raise InputError(f"No task was learned yet in '{run_directory}'.", "Let the run finish before it is recorded.")
    scores = directory.scores()
    return CellRecord(
        name=name,
        method=method,
        options=dict(options),
        stream=stream,
        order=order,
        seed=seed,
        run=Path(os.path.relpath(run_directory.absolute(), (study or run_directory.parent).absolute())).as_posix(),
        created=info.created,
        finished=learned[-1].finished,
        configuration=info.config,
        versions={key: value for key, value in info.versions.items() if key not in MACHINE},
        hardware={
            **{key: value for key, value in info.versions.items() if key in MACHINE},
            "device": _device(info),
        },
        tasks=[task.name for task in learned],
        metrics=scores.metrics,
        rows=scores.rows,
        references=scores.references,
        summary=scores.summary,
        examples=_example_scores(rows),
        cost=_cost([task.cost for task in learned], learned[-1].method_bytes, info),
    )


def _device(info: RunInfo) -> str:
    return str(info.config.get("resolved", {}).get("device", "cpu"))


def _cost(costs: Sequence[CostRecord], stored: Mapping[str, int], info: RunInfo) -> CellCost:
    training = sum(
        cost.inner_seconds
        + cost.probing_seconds
        + cost.rehearsal_seconds
        + cost.merging_seconds
        + cost.merge_eval_seconds
        + cost.bookkeeping_seconds
        for cost in costs
    )
    device = _device(info)
    return CellCost(
        examples_trained=sum(cost.examples_trained for cost in costs),
        examples_rehearsed=sum(cost.examples_rehearsed for cost in costs),
        examples_probed=sum(cost.examples_probed for cost in costs),
        seconds=sum(cost.seconds for cost in costs),
        training_seconds=training,
        processes=info.processes,
        device=device,
        gpu_seconds=None if device == "cpu" else training * info.processes,
        bytes_stored=dict(stored),
    )


def _example_scores(rows: Sequence[Row]) -> dict[str, ExampleScores]:
    """Return the scores of the test examples in the last row, of the tasks whose answers were kept."""
    answers, last = AnswersOfRows(rows), len(rows) - 1
    examples = {}
    for row in rows:
        for task in row.file.tasks:
            kept = answers.find(task.name, last)
            if kept is not None and task.name in rows[last].file.scores.scores:
                examples[task.name] = ExampleScores(test_sha256=_test_digest(row, task.name), scores=kept.scores)
    return examples


def _test_digest(row: Row, task: str) -> str:
    """Return the SHA-256 of a task's test examples: of its lineage, or where a run has none, of the stored ones."""
    for data in row.file.lineage.data if row.file.lineage else ():
        if data.task == task and "test" in data.splits:
            return data.splits["test"].sha256
    examples = [example.model_dump(exclude={"id"}) for example in row.examples("test") if example.task == task]
    return hashlib.sha256(json.dumps(examples, sort_keys=True).encode()).hexdigest()


# Files ---------------------------------------------------------------------------------------------------------------


def _check_name(name: str) -> None:
    if not _FILE_NAME.fullmatch(name):
        raise InputError(
            f"A cell cannot have the name {name!r}.",
            "Use at most 200 letters, digits and . _ + = , - and begin with a letter or a digit.",
        )


def write_cell(folder: Path, record: CellRecord) -> Path:
    """Write the record as ``NAME.json`` into a folder, whole or not at all, and return its path.

    Raises:
        InputError: the folder cannot be written.
        RunError: the disk is full; an earlier record is as it was.
    """
    _check_name(record.name)
    make_folder(folder)
    file = folder / f"{record.name}.json"
    write_bytes(file, sealed(record.model_dump(mode="json")), shared=True)
    return file


def read_cell(file: Path) -> CellRecord:
    """Read one record.

    Raises:
        InputError: it is missing, damaged or changed, or another version wrote it.
    """
    record = read_record(file, CellRecord)
    if record.format != FORMAT:
        age = "a newer" if record.format > FORMAT else "an older"
        raise InputError(
            f"'{file}' was written by {age} version (format {record.format}; this version reads {FORMAT}).",
            "Read it with the version that its key 'versions' names, or record the cell again from its run.",
        )
    if not is_intact(read_bytes(file), record.checksum):
        raise damaged(file, CHANGED)
    return record


def read_cells(folder: Path) -> list[CellRecord]:
    """Read all records in a folder and its folders, by name.

    Records of several people may have one name: each of them is then called as its file, with the folders that it is
    in. Their runs are looked for beside their folders. Orders that are equal get one name.

    Raises:
        InputError: there is no such folder, a record is damaged, or two files record the same cell.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder '{folder}' with records of cells.", "Name the folder of a study's cells.")
    files = [file for file in sorted(folder.rglob("*.json")) if not is_clutter(file.name)]
    records = [read_cell(file) for file in files]
    called = [record.order for record in records]
    records = with_one_name_per_order(records, [file.parent for file in files])
    cells: dict[str, tuple[Path, CellRecord]] = {}
    names: dict[str, str] = {}
    for file, record, name in zip(files, records, called, strict=True):
        key = identity(record)
        if key in cells:
            also = "" if name == names[key] else f" (its order is called '{names[key]}' and '{name}')"
            raise InputError(
                f"'{cells[key][0]}' and '{file}' record the same cell: {describe(record)}{also}.",
                "Keep one of them: counted twice, it would look like an independent run.",
            )
        cells[key], names[key] = (file, record), name
    counts = Counter(record.name for _, record in cells.values())
    named = (_located(record, file, folder, counts[record.name] > 1) for file, record in cells.values())
    return sorted(named, key=lambda record: record.name)


def _located(record: CellRecord, file: Path, folder: Path, ambiguous: bool) -> CellRecord:
    """Return a record with its run as seen from the folder of the study that is read, and with a name of its own."""
    where = os.path.relpath(_study_of(file.parent), _study_of(folder))
    changes = {"run": Path(where, record.run).as_posix()}
    if ambiguous:
        changes["name"] = file.relative_to(folder).with_suffix("").as_posix()
    return record.model_copy(update=changes)


def _study_of(records: Path) -> Path:
    return records.parent if records.name == RECORDS else records


def with_one_name_per_order(records: Sequence[CellRecord], places: Sequence[Hashable] = ()) -> list[CellRecord]:
    """Return records in which equal orders of a stream have one name, and different ones different names.

    Args:
        places: of each record: folders whose names of orders belong together; default: one for all.
    """
    places = places or [None] * len(records)
    runs = Counter((place, record.run) for record, place in zip(records, places, strict=True))
    orders = []
    for record, place in zip(records, places, strict=True):
        for_all_orders = runs[place, record.run] > 1 or any(len(row.learned) > 1 for row in record.rows)
        is_of_order = not for_all_orders or Path(record.run).name == Path(record.name).name
        made = arrangement(record.tasks, record.configuration.get("stream") or {}) if is_of_order else None
        orders.append(RecordedOrder(record.stream, record.order, made, place))
    names = names_of_orders(orders)
    return [record.model_copy(update={"order": name}) for record, name in zip(records, names, strict=True)]


def identity(record: CellRecord) -> str:
    """Return what distinguishes a cell from all others, as text; equal orders must have one name."""
    parts = (record.stream, record.order, record.method, record.options, record.seed, record.tuning)
    return json.dumps(parts, sort_keys=True)


def describe(record: CellRecord) -> str:
    """Describe a cell in a few words."""
    return f"{record.method} on {record.stream}, order {record.order}, seed {record.seed}"
