"""Export the model of a run: as it is, or as it was after a task."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from merganser.checkpoints.merge import check_target
from merganser.errors import InputError
from merganser.events import Notice
from merganser.files.atomic import new_folder
from merganser.learner.lineage import lineage_after
from merganser.learner.merged_difference import measure_difference
from merganser.learner.session import Session
from merganser.lineage import Lineage, write_lineage
from merganser.methods import make_method
from merganser.models.base_reference import base_reference
from merganser.models.export import ANYWHERE, Destination, check_destination, export_model
from merganser.models.exported import ExportedRecord, write_record
from merganser.models.model_card import LABELS
from merganser.models.pretrained import DTYPES
from merganser.runs.card import CARD, History
from merganser.runs.rows import Row
from merganser.streams.answers import AnswerSpec
from merganser.streams.task import Task


@dataclass(frozen=True)
class Form:
    """The form of an export.

    Attributes:
        merged: add the adapter to the weights of the model and write the whole.
        dtype: number format of the weights: ``float32``, ``float16`` or ``bfloat16``; ``None``: that of the
            pretrained model, for an adapter fp32.
        to: the name of the pretrained model there, and whether a GGUF file is needed.
        overwrite: the folder may be an earlier export, which is replaced when the new one is complete.
    """

    merged: bool = False
    dtype: str | None = None
    to: Destination = ANYWHERE
    overwrite: bool = False


def export(session: Session, out: Path, form: Form, *, task: str | None = None, after: str | None = None) -> Lineage:
    """Write the model for use without Merganser: a PEFT adapter, or the whole model.

    Args:
        out: a folder that does not exist yet.
        form: what is written.
        task: with a method that keeps several models, the one that answers this task.
        after: the model as it was after this task was learned, or after the row of this tag; ``None``: as it is.

    Returns:
        What the export was made from, as in its ``lineage.json``. How a merged adapter on a quantised base differs is
        told to the listener.

    Raises:
        InputError: ``out`` exists or is being written by another process, nothing was learned yet, a task must be
            named or is not known, or the weights cannot be written so.
        RunError: the conversion to GGUF fails; nothing was written.
    """
    known = session.require_learned()
    if out.resolve().is_relative_to(session.directory.path.resolve()):
        raise InputError(f"'{out}' is in the folder of the run.", "Choose a folder outside of it.")
    _check_place(session, out, form.overwrite)
    if form.dtype is not None and form.dtype not in DTYPES:
        raise InputError(f"There is no type '{form.dtype}' to export.", f"Choose one of {', '.join(DTYPES)}.")
    check_destination(session.backbone, form.to, form.merged)
    row, known = _exported(session, known, task, after)
    session.use(row)
    specs = {name: task.spec for name, task in known.items()}
    history = History(session.directory.info, [other.file for other in session.rows if other.file.row <= row.file.row])
    to = replace(form.to, name=out.resolve().name, history=history)
    with new_folder(out, shared=True, replace=form.overwrite) as folder:
        export_model(session.backbone, folder, specs, form.merged, form.dtype, to)
        if form.merged and (difference := measure_difference(session, folder, known)) is not None:
            session.listener(Notice(str(difference)))
        return _write_origin(session, folder, specs, row, form)


def _check_place(session: Session, out: Path, overwrite: bool) -> None:
    """Refuse a place where something is; with ``overwrite``, anything but an export that nothing here needs.

    Raises:
        InputError: naming what is there.
    """
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise InputError(f"'{out}' exists.", "Choose a new folder, or replace an earlier export with --overwrite.")
    if out.is_symlink():
        raise InputError(f"'{out}' is a link.", "Name the folder itself.")
    inputs = [session.directory.path, session.backbone.pretrained_from.source.folder()]
    check_target(out.resolve(), True, inputs, "export")
    if any(out.iterdir()) and not all((out / name).is_file() for name in (LABELS, CARD)):
        raise InputError(f"'{out}' is not an export, and --overwrite replaces only one.", "Choose a new folder.")


def _exported(
    session: Session, known: dict[str, Task], task: str | None, after: str | None
) -> tuple[Row, dict[str, Task]]:
    """Return the row whose weights are exported, and the tasks that these answer."""
    if after is not None:
        if task is not None:
            raise InputError("Both a task and a task after which to export were named.", "Leave one out.")
        row = session.directory.find(after)
        if row.is_start:
            raise InputError(f"'{row.folder.name}' is the row before any training.", "Name a row with a task.")
        return row, {name: known[name] for name in tasks_of(session, row)}
    if session.method.per_task_models:
        if task not in known:
            raise InputError("This method keeps several models.", f"Name a task: {', '.join(known)}.")
        rows = session.answered_by()
        return session.rows[rows[task]], {name: other for name, other in known.items() if rows[name] == rows[task]}
    if task is not None:
        raise InputError(f"One model answers all tasks, so there is none of '{task}' alone.", "Leave --task out.")
    return session.rows[-1], known


def tasks_of(session: Session, row: Row) -> list[str]:
    """Return the tasks that a row's weights answered when it was the last row."""
    method = make_method(session.config.method)
    if (state := row.checked("method")).is_dir():
        method.load(state)
    learned = {name: number for name, number in session.learned_in().items() if number <= row.file.row}
    return [name for name, number in method.answered_by(learned).items() if number == row.file.row]


def _write_origin(session: Session, folder: Path, specs: Mapping[str, AnswerSpec], row: Row, form: Form) -> Lineage:
    """Write ``merganser.json`` and ``lineage.json`` into the folder of an export, whose other files are complete.

    Args:
        specs: how the tasks are answered.
        row: whose weights were exported.
    """
    options = session.backbone.options
    holds = "model" if form.merged or options.lora is None else "adapter"
    lineage = lineage_after(session.directory, row)
    reference = base_reference(session.backbone.pretrained_from, form.to.base_model)
    name = reference.name if reference.on_hub else reference.short
    base = lineage.base.model_copy(update={"name": name, "revision": reference.revision})
    apart = session.method.per_task_models  # the weights have seen the tasks that they answer
    data = [task for task in lineage.data if task.task in specs or not apart]
    lineage = lineage.model_copy(update={"base": base, "holds": holds, "data": data})
    resolved = {"precision": session.backbone.precision, "weights": session.backbone.weights}
    model = options.model_copy(update={"name": name, "revision": None, "adapter": None, **resolved})
    record = ExportedRecord(
        model=model.model_dump(mode="json"),
        holds=holds,
        lengths=session.backbone.lengths,
        per_task_models=session.method.per_task_models,
        tasks=dict(specs),
    )
    write_record(folder, record)
    return write_lineage(folder, lineage, without=(CARD,))
