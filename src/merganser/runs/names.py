"""Give rows of a run names, take these back, and keep names apart from each other."""

from __future__ import annotations

from collections.abc import Mapping

from merganser.errors import InputError, nearest
from merganser.files.atomic import write_bytes
from merganser.runs.directory import RunDirectory
from merganser.runs.row_names import names_of
from merganser.runs.rows import Row
from merganser.runs.tags import TAGS, check_tag_name, is_of, read_tags, tag_of, tags_bytes


def tag_row(directory: RunDirectory, name: str, row: str | None = None) -> Row:
    """Give a row a name, and keep its weights from then on.

    Args:
        directory: whose lock the caller holds.
        row: its folder under ``tasks/``, a task that was learned in it, or a tag; default: the last.

    Raises:
        InputError: the name is no name or taken, there is no such row, or its weights were removed.
    """
    tagged = directory.tags()
    if name in tagged:
        where = tagged[name].folder.name
        raise InputError(f"There is a tag '{name}' of '{where}'.", "Delete it first (--delete), or choose another.")
    rows = directory.rows
    if not rows:
        raise InputError(f"Nothing was measured yet in '{directory.path}'.", "Learn a task first.")
    check_new_name(directory, name)
    waiting = [folder for version in directory.undone().values() for folder in version.rows]
    check_tag_name(name, names_of([*(row.folder for row in rows), *waiting]))
    chosen = rows[-1] if row is None else directory.find(row)
    chosen.checked("adapter")
    _write(directory, {**tagged, name: chosen})
    return chosen


def delete_tag(directory: RunDirectory, name: str) -> Row:
    """Delete a tag; its row stays, and is returned.

    Args:
        directory: whose lock the caller holds.

    Raises:
        InputError: there is none.
    """
    tagged = directory.tags()
    if name not in tagged:
        listed = f"Tags: {', '.join(tagged)}." if tagged else "The run has none."
        raise InputError(f"There is no tag '{name}' in '{directory.path}'.", nearest(name, tagged) or listed)
    _write(directory, {other: row for other, row in tagged.items() if other != name})
    return tagged[name]


def check_new_name(directory: RunDirectory, name: str) -> None:
    """Refuse a name of a new task or tag that something else has.

    Raises:
        InputError: a tag, or what undo has kept, has it.
    """
    if name in directory.tags():
        raise InputError(f"'{name}' is a tag of '{directory.path}'.", "Choose another name, or delete the tag.")
    if name in directory.undone():
        raise InputError(f"'{name}' is what undo has kept in '{directory.path}'.", "Choose another name.")


def _write(directory: RunDirectory, tagged: Mapping[str, Row]) -> None:
    file = directory.path / TAGS
    known = read_tags(file)
    tags = {
        name: known[name] if name in known and is_of(known[name], row.folder) else tag_of(row.folder)
        for name, row in tagged.items()
    }
    write_bytes(file, tags_bytes(tags))
