"""The results of a study's folder: read from whatever is done, and written as a page with tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from merganser.errors import InputError
from merganser.files.documents import Malformed, parse_json, read_text
from merganser.study.cell_record import CellRecord, read_cells
from merganser.study.comparison import compare
from merganser.study.figures import write_study_figures
from merganser.study.page import write_study_page
from merganser.study.tables import StudyTable, write_tables

PAGE = "study.html"
RESULTS = "results"
"""Folder with tables and figures beside the page."""


@dataclass(frozen=True)
class StudyResults:
    """The cells of a folder, compared.

    Attributes:
        folder: of the study, or of records alone.
        title: of the study.
        records: all cells.
        table: the methods.
    """

    folder: Path
    title: str
    records: Sequence[CellRecord]
    table: StudyTable

    def publish(self, out: Path | None = None) -> Path:
        """Write the page ``study.html``, and its tables and figures into ``results/`` beside it.

        Args:
            out: folder to write to; default: that of the study.

        Returns:
            The path of the page.

        Raises:
            InputError: the folder cannot be written.
            RunError: the disk is full.
        """
        out = out or self.folder
        figures = out / RESULTS / "figures"
        files = write_tables(self.records, out / RESULTS, self.table) + write_study_figures(self.table.results, figures)
        return write_study_page(
            self.records, out / PAGE, title=self.title, results=self.table.results, study=self.folder, files=files
        )


def read_results(folder: Path, reference: str | None = None, confidence: float = 0.95) -> StudyResults:
    """Read whatever is done in the folder of a study, or a folder of records, and compare it.

    Args:
        folder: with ``records/``, or with records themselves, which may be of several people.
        reference: method that the others are compared with; default: the study's, else ``replay``, ``sequential`` or
            the best.
        confidence: of intervals and verdicts, in (0, 1).

    Raises:
        InputError: nothing is done yet, a record is damaged, there is no such reference, or cells of one stream were
            scored on different test examples.
    """
    within = folder / "records"
    state = _state(folder)
    if state and not within.is_dir():
        raise InputError(f"No cell of '{folder}' is done yet.", "Run the study first, or wait for its first cell.")
    records = read_cells(within if within.is_dir() else folder)
    if not records:
        raise InputError(f"'{folder}' has no records of cells.", "Name the folder of a study, or of its records.")
    own = state.get("reference")
    if reference is None and any(record.method == own and record.tuning is None for record in records):
        reference = own
    results = compare(records, reference, confidence)
    return StudyResults(folder, state.get("name") or folder.absolute().name, records, StudyTable(results))


def _state(folder: Path) -> dict[str, str]:
    """Return name and reference of a study's folder; none of records alone."""
    file = folder / "study.json"
    if not file.is_file():
        return {}
    try:
        value = parse_json(read_text(file))
    except (OSError, Malformed) as error:
        raise InputError(f"'{file}' cannot be read: {error}.", "Restore it from a copy.") from error
    known = value if isinstance(value, dict) else {}
    return {key: known[key] for key in ("name", "reference") if isinstance(known.get(key), str)}
