"""Export the model of a run."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from merganser.checkpoints.merge import check_target
from merganser.errors import InputError
from merganser.files.atomic import new_folder
from merganser.learner.session import Session
from merganser.models.export import ANYWHERE, CARD, Destination, check_destination, export_model
from merganser.models.model_card import LABELS
from merganser.models.pretrained import DTYPES


def export(
    session: Session,
    out: Path,
    *,
    merged: bool = False,
    task: str | None = None,
    dtype: str | None = None,
    to: Destination = ANYWHERE,
    overwrite: bool = False,
) -> None:
    """Write the model for use without Merganser: a PEFT adapter, or the whole model.

    Args:
        out: a folder that does not exist yet.
        merged: add the adapter to the weights of the model and write the whole.
        task: with a method that keeps several models, the one that answers this task.
        dtype: number format of the weights: ``float32``, ``float16`` or ``bfloat16``; ``None``: that of the
            pretrained model, for an adapter fp32.
        to: the name of the pretrained model there, and whether a GGUF file is needed.
        overwrite: ``out`` may be an earlier export, which is replaced when the new one is complete.

    Raises:
        InputError: ``out`` exists or is being written by another process, nothing was learned yet, a task must be
            named, or the weights cannot be written so.
        RunError: the conversion to GGUF fails; nothing was written.
    """
    known = session.require_learned()
    if out.resolve().is_relative_to(session.directory.path.resolve()):
        raise InputError(f"'{out}' is in the folder of the run.", "Choose a folder outside of it.")
    _check_place(session, out, overwrite)
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"There is no type '{dtype}' to export.", f"Choose one of {', '.join(DTYPES)}.")
    check_destination(session.backbone, to, merged)
    if session.method.per_task_models:
        if task not in known:
            raise InputError("This method keeps several models.", f"Name a task: {', '.join(known)}.")
        rows = session.answered_by()
        known = {name: other for name, other in known.items() if rows[name] == rows[task]}
        session.use_task(task)
    elif task is not None:
        raise InputError(f"One model answers all tasks, so there is none of '{task}' alone.", "Leave --task out.")
    specs = {name: task.spec for name, task in known.items()}
    with new_folder(out, shared=True, replace=overwrite) as folder:
        export_model(session.backbone, folder, specs, merged, dtype, replace(to, name=out.resolve().name))


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
