"""The results of a study's folder: read from whatever is done, and written as a page with tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from merganser.errors import InputError
from merganser.settings import CONFIDENCE
from merganser.study.cell_record import CellRecord, read_cells
from merganser.study.cells import Study
from merganser.study.comparison import compare
from merganser.study.figures import write_study_figures
from merganser.study.folder import StudyFolder
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


def read_results(folder: Path, reference: str | None = None, confidence: float = CONFIDENCE) -> StudyResults:
    """Read whatever is done in the folder of a study, or a folder of records, and compare it.

    Args:
        folder: with ``records/``, or with records themselves, which may be of several people.
        reference: method that the others are compared with; default: the study's, else ``replay``, ``sequential`` or
            the best.
        confidence: of intervals and verdicts, in (0, 1).

    Raises:
        InputError: it is no folder of a study, nothing is done yet, a record is damaged, there is no such reference,
            or cells of one stream were scored on different test examples.
    """
    within, state = folder / "records", StudyFolder(folder).state() if folder.is_dir() else {}
    if state and not within.is_dir():
        raise InputError(f"No cell of '{folder}' is done yet.", "Run the study first, or wait for its first cell.")
    records, title = _read(within if within.is_dir() else folder), folder.absolute().name
    if not records:
        raise InputError(f"'{folder}' has no records of cells.", "Name the folder of a study, or of its records.")
    if state:
        study = StudyFolder(folder).study()
        records, title = _as_the_study_is(records, study, StudyFolder(folder)), study.name
        default = study.options.reference
        if reference is None and any(record.method == default and record.tuning is None for record in records):
            reference = default
    results = compare(records, reference, confidence)
    return StudyResults(folder, title, records, StudyTable(results))


def _read(folder: Path) -> list[CellRecord]:
    try:
        return read_cells(folder)
    except InputError as error:
        if not folder.is_dir() or any(map(_may_be_a_record, folder.rglob("*.json"))):
            raise
        raise InputError(
            f"'{folder}' holds no study: it has neither study.json nor a record of a cell.",
            "Name the folder of a study, or of its records.",
        ) from error


def _may_be_a_record(file: Path) -> bool:
    """Return whether a file has keys of a record, which may be damaged."""
    try:
        with file.open("rb") as content:
            head = content.read(1 << 16)
    except OSError:
        return True  # the error that was found first is shown
    return all(f'"{key}"'.encode() in head for key in ("method", "stream", "order", "seed"))


def _as_the_study_is(records: Sequence[CellRecord], study: Study, folder: StudyFolder) -> list[CellRecord]:
    """Leave out records of cells that the study has otherwise now."""
    changed = {cell.name for cell in study.cells if folder.status(cell).stage == "changed"}
    return [record for record in records if record.name not in changed]
