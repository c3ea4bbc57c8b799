"""The lineage of a run's rows, and of an export of one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merganser.errors import InputError
from merganser.learner.model_fingerprint import fingerprint, hub_commit, tokenizer_digest
from merganser.learner.session import Session
from merganser.lineage import DIGITS, BaseModelLineage, Lineage, Parent, SplitLineage, TaskLineage, weights_digest
from merganser.models.base import Backbone
from merganser.models.options import ModelOptions
from merganser.runs.directory import RunDirectory
from merganser.runs.rows import Row
from merganser.streams.task import Task

QUANTISED_AS = {"4bit": "bitsandbytes nf4, doubly quantised", "8bit": "bitsandbytes int8"}
"""``model.weights`` -> the name of the quantisation."""


def base_of(directory: RunDirectory) -> BaseModelLineage:
    """Return the pretrained model that a run was started with."""
    resolved = _resolved(directory)
    return BaseModelLineage(
        name=directory.info.config["model"]["name"],
        revision=resolved.get("model_commit"),
        sha256=resolved.get("model_fingerprint", ""),
    )


def tokenizer_of(directory: RunDirectory) -> str:
    """Return the hash of the tokenizer that a run was started with; empty if none was recorded."""
    return str(_resolved(directory).get("tokenizer_sha256", ""))


def _resolved(directory: RunDirectory) -> Mapping[str, Any]:
    return directory.info.config.get("resolved", {})


def loaded_base(backbone: Backbone) -> BaseModelLineage:
    """Return the pretrained model that was loaded."""
    return BaseModelLineage(name=backbone.options.name, revision=hub_commit(backbone), sha256=fingerprint(backbone))


def check_base(directory: RunDirectory, backbone: Backbone) -> None:
    """Refuse a pretrained model, or a tokenizer, other than that of the run.

    Raises:
        InputError: naming both.
    """
    base, loaded = base_of(directory), loaded_base(backbone)
    if loaded.sha256 != base.sha256:
        raise InputError(
            f"The model {loaded.described} is not the one that '{directory.path}' was started with: {base.described}.",
            "Give the folder of the same pretrained model (--model, or model_path from Python).",
        )
    recorded, tokenizer = tokenizer_of(directory), tokenizer_digest(backbone)
    if recorded and tokenizer != recorded:
        raise InputError(
            f"The tokenizer of '{loaded.name}' ({tokenizer[:DIGITS]}) is not the one that '{directory.path}' was "
            f"started with ({recorded[:DIGITS]}): its vocabulary, special tokens or chat template differ.",
            "Give a folder with the tokenizer as it was (--model, or model_path from Python).",
        )


def quantisation(options: ModelOptions) -> str:
    """Return how the base's weights are quantised in training."""
    return QUANTISED_AS.get(options.weights, "none")


def row_lineage(session: Session, tasks: Sequence[Task], sha256: Mapping[str, str]) -> Lineage:
    """Return the lineage of the row that is being written.

    Args:
        tasks: learned in it.
        sha256: of its files, by path in its folder.
    """
    number = len(session.rows)
    return _lineage(session.directory, sha256, [_task_lineage(task, number) for task in tasks])


def _lineage(directory: RunDirectory, sha256: Mapping[str, str], data: list[TaskLineage]) -> Lineage:
    options = ModelOptions.model_validate(directory.info.config["model"])
    return Lineage(
        base=base_of(directory),
        tokenizer=tokenizer_of(directory),
        quantisation=quantisation(options),
        data=data,
        weights=weights_digest({name: value for name, value in sha256.items() if name.startswith("adapter/")}),
        holds="model" if options.lora is None else "adapter",
        parents=_begun_with(directory),
    )


def _begun_with(directory: RunDirectory) -> list[Parent]:
    """Return the adapter that a run began with."""
    adapter, sha256 = directory.info.config["model"].get("adapter"), _resolved(directory).get("adapter_sha256")
    return [] if adapter is None else [Parent(name=Path(adapter).name, weights=sha256 or "")]


def _task_lineage(task: Task, row: int) -> TaskLineage:
    rows = {"train": len(task.train), "dev": len(task.dev), "test": len(task.test)}
    if task.mix is not None:
        rows["mix"] = len(task.mix.examples)
    return TaskLineage(
        task=task.name,
        row=row,
        files=dict(task.source),
        splits={name: SplitLineage(rows=rows[name], sha256=digest) for name, digest in task.split_digests().items()},
    )


def lineage_after(directory: RunDirectory, row: Row) -> Lineage:
    """Return the lineage of the model after a row: with the data of all rows up to it.

    Of rows without a lineage, or without checksums, what is known from their records is used.
    """
    rows = [other for other in directory.rows if other.file.row <= row.file.row]
    data: list[TaskLineage] = []
    for other in rows:
        if other.file.lineage is not None:
            data += other.file.lineage.data
        else:
            data += [TaskLineage(task=task.name, row=other.file.row, files=task.source) for task in other.file.tasks]
    lineage = row.file.lineage or _lineage(directory, row.sha256(), [])
    return lineage.model_copy(update={"data": data})
