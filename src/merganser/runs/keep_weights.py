"""Remove the weights of rows that need not be kept, once a later row is complete."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from merganser.runs.directory import RunDirectory
from merganser.runs.options import Keep
from merganser.runs.removal import WEIGHTS, remove_weights


def kept_positions(rows: int, keep: Keep, tagged: Collection[int]) -> set[int]:
    """Return the positions of the rows whose weights are kept.

    Args:
        rows: how many there are, row 0 included.
        keep: which are to be kept.
        tagged: those with a tag.
    """
    if keep == "all":
        return set(range(rows))
    last = 1 if keep == "tagged" else int(keep)
    # Row 0 is the pretrained model: methods start from it, and new tasks are scored with it.
    return {0, *range(max(rows - last, 0), rows), *tagged}


def keep_weights(directory: RunDirectory, keep: Keep, *, parts: Sequence[str] = WEIGHTS) -> list[str]:
    """Remove the weights of all rows that need not be kept; return the names of their folders.

    Rows without recorded checksums stay whole: the hash of their weights is known from the weights alone.

    Args:
        directory: whose lock the caller holds; its last row is complete.
        keep: which are to be kept, besides row 0 and those with a tag.
        parts: folders that are removed.

    Raises:
        RunError: the disk is full; what was not removed is whole.
    """
    rows = directory.rows
    tagged = {row.file.row for row in directory.tags().values()}
    kept = kept_positions(len(rows), keep, tagged)
    going = [row for row in rows if row.file.row not in kept and row.file.checksum and row.removal() is None]
    for row in going:
        remove_weights(row.folder, row.file, parts, f"runs.keep_weights: {keep}")
    return [row.folder.name for row in going]
