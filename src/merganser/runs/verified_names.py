"""Check the tags of a run, and the rows that undo has kept."""

from __future__ import annotations

from pathlib import Path

from merganser.errors import InputError
from merganser.runs.checksums import problem_of
from merganser.runs.directory import RunDirectory
from merganser.runs.findings import Verification, problem_in
from merganser.runs.links import TASKS, UNDONE
from merganser.runs.removal import read_removal
from merganser.runs.rows import RECORD, read_row_record
from merganser.runs.tags import TAGS, is_of, read_tags


def check_tags(run: Path, verification: Verification) -> None:
    """Check ``tags.json``; a tag of a row that is not there any more is noted."""
    path = run / TAGS
    try:
        tags = read_tags(path)
    except InputError as error:
        verification.note_damaged(
            TAGS, problem_in(error), "Restore it from a copy of the run, or delete it and tag again."
        )
        return
    if path.is_file():
        verification.note_intact(path)
    for name, tag in tags.items():
        if not is_of(tag, run / TASKS / tag.row):
            verification.notes.append(f"Tag '{name}' is that of a row '{tag.row}' which is not there any more.")


def check_undone(directory: RunDirectory, verification: Verification) -> None:
    """Check every file of the rows that undo has kept."""
    try:
        kept = directory.undone()
    except InputError as error:
        verification.note_damaged(UNDONE, problem_in(error), "Restore it from a copy of the run, or delete it.")
        return
    for name, version in kept.items():
        remedy = f"Restore it from a copy of the run, or delete '{name}' (merganser undo --discard)."
        for folder in version.rows:
            for file, problem in _problems(folder).items():
                if problem:
                    verification.note_damaged((folder / file).relative_to(directory.path).as_posix(), problem, remedy)
                else:
                    verification.note_intact(folder / file)


def _problems(folder: Path) -> dict[str, str]:
    """Return what is wrong with each file of a row; empty: nothing."""
    try:
        record = read_row_record(folder)
        removal = read_removal(folder, record)
    except InputError as error:
        return {RECORD: problem_in(error)}
    removed = () if removal is None else removal.parts
    expected = {name: value for name, value in record.sha256.items() if name.split("/")[0] not in removed}
    return {RECORD: "", **{name: problem_of(folder / name, value, again=True) for name, value in expected.items()}}
