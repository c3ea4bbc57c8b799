"""The files beside ``tasks/`` that are made from the rows: ``scores.json``, ``ledger.jsonl`` and ``model/``."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from merganser.files.atomic import StagedChanges, json_bytes, json_lines_bytes, make_folder, write
from merganser.files.markdown import escaped
from merganser.files.temporary_names import PARTIAL
from merganser.metrics.score import Score
from merganser.runs.card import CARD, History, record_sections
from merganser.runs.card_head import Subject, card_head, licence_section, pipeline_tag
from merganser.runs.checksums import CHANGED, MISSING, files_of, problem_of, sealed_text, text_problem
from merganser.runs.record import RunInfo
from merganser.runs.rows import IMAGES, Row
from merganser.runs.summary import scores_file

SCORES, LEDGER, MODEL = "scores.json", "ledger.jsonl", "model"

ROW_MARK = "ROW"
"""File in ``model/`` with the name of the row whose weights they are."""

OUTDATED = "it is not that of the last task"
"""As an interruption leaves it, between the last task and what is made from it."""


LINKED = "it was a link, and what it points to is left alone"


def stage_derived(
    changes: StagedChanges, run: Path, rows: Sequence[Row], references: Mapping[str, Score], info: RunInfo
) -> None:
    """Prepare the files beside these rows; ``model/`` last, whose mark records that all of them are up to date.

    Args:
        info: what the run was started with.

    Raises:
        InputError: the weights of the last row are damaged.
    """
    for name, content in _contents(rows, references).items():
        changes.write(run / name, content)
    weights = rows[-1].checked("adapter")
    model = changes.folder(run / MODEL)
    for name in _weight_files(rows[-1]):
        make_folder((model / name).parent)
        shutil.copy2(weights / name, model / name)
    write(model / CARD, sealed_text(_card(rows, info).encode()))
    write(model / ROW_MARK, _mark(rows[-1]))


def _card(rows: Sequence[Row], info: RunInfo) -> str:
    """Return the model card of ``model/``."""
    model, resolved = info.config.get("model", {}), info.config.get("resolved", {})
    modality = "image" if any(IMAGES in row.file.sha256 for row in rows) else "text"
    name, adapter = str(model.get("name", "")), model.get("lora") is not None
    hub_id = name if resolved.get("model_commit") else None
    pipeline = pipeline_tag(model.get("kind", "causal"), modality)
    subject = Subject("model", "peft" if adapter else "transformers", pipeline, hub_id, adapter)
    history = History(info, [row.file for row in rows])
    lines = [
        card_head(subject, history),
        f"# {escaped(Path(name).name)}, continually fine-tuned",
        "",
        "The weights of a run of Merganser. `merganser ask RUN TEXT` answers with them; `merganser export RUN FOLDER` "
        "writes them for other programs, with code that uses them.",
        "",
        record_sections(history, "RUN"),
        licence_section(history),
    ]
    return "\n".join(lines)


def derived_problems(run: Path, rows: Sequence[Row], references: Mapping[str, Score]) -> dict[str, str]:
    """Return what is wrong with the files beside these rows, by their path in the run.

    Nothing is said of files that are merely older than the last row, except by ``model``: its mark is written last.
    """
    model, last = run / MODEL, rows[-1]
    if model.is_symlink():
        return {MODEL: LINKED}
    mark = model / ROW_MARK
    if not mark.is_file() or mark.read_bytes() in [_mark(row) for row in rows[:-1]]:
        return {MODEL: OUTDATED}
    if mark.read_bytes() != _mark(last):
        return {f"{MODEL}/{ROW_MARK}": "it names no task that was learned"}
    problems = {}
    for name, content in _contents(rows, references).items():
        if not (run / name).is_file():
            problems[name] = MISSING
        elif (run / name).read_bytes() != content:
            problems[name] = "it is not what the rows have"
    for name in _weight_files(last):
        if problem := _weight_problem(last, name, model / name):
            problems[f"{MODEL}/{name}"] = problem
    # By its own checksum: its words may be those of another version.
    if problem := text_problem((model / CARD).read_bytes()) if (model / CARD).is_file() else MISSING:
        problems[f"{MODEL}/{CARD}"] = problem
    return problems


def _contents(rows: Sequence[Row], references: Mapping[str, Score]) -> dict[str, bytes]:
    scores = scores_file([row.file for row in rows], references)
    merges = (merge.model_dump() for row in rows for merge in row.merges)
    return {SCORES: json_bytes(scores.model_dump()), LEDGER: json_lines_bytes(merges)}


def _mark(row: Row) -> bytes:
    return (row.folder.name.removesuffix(PARTIAL) + "\n").encode()


def model_files(row: Row) -> list[str]:
    """Return the paths of the files that ``model/`` has after a row, in it; others are not of the run."""
    return [*_weight_files(row), CARD, ROW_MARK]


def _weight_files(row: Row) -> list[str]:
    """Return the paths of the files of a row's weights, in their folder."""
    if not row.file.sha256:
        return files_of(row.folder / "adapter")
    return [name.removeprefix("adapter/") for name in row.file.sha256 if name.startswith("adapter/")]


def _weight_problem(row: Row, name: str, copy: Path) -> str:
    """Return what is wrong with a copy of a file of the row's weights; empty: nothing."""
    if row.file.sha256:
        return problem_of(copy, row.file.sha256[f"adapter/{name}"])
    if not copy.is_file():
        return MISSING
    return "" if filecmp.cmp(row.folder / "adapter" / name, copy, shallow=False) else CHANGED
