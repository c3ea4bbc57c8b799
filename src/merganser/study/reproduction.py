"""Published and measured figures side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from merganser.errors import InputError
from merganser.study.catalogue import MEASURES, Entry, Measure, PublishedRow
from merganser.study.cell_record import CellRecord
from merganser.study.cells import Cell
from merganser.study.comparison import Pair, over_runs, pair, paired_sample
from merganser.study.folder import StudyFolder, config_changes
from merganser.study.published import read_results
from merganser.study.results import StreamResult
from merganser.study.statistics import Estimate, estimate

METRICS: dict[Measure, str] = {
    "op": "OP",
    "bwt": "BWT",
    "fwt": "FWT (single-task)",
    "forgetting": "forgetting (Chaudhry)",
}
"""Measure -> metric of a run's summary."""

ALWAYS: tuple[Measure, ...] = ("op", "bwt")
"""Shown of every method of the study, published or not; BWT not of joint training."""


@dataclass(frozen=True)
class Comparison:
    """One figure of one method.

    Attributes:
        method: its label.
        minus: the figure is the difference to this method; ``None``: it is not one.
        measure: what it is.
        published: percent; ``None``: no source gives it.
        row: where it is from.
        measured: fractions, over orders and seeds; ``None``: there are no runs of it, or it is undefined for them.
        runs: of the method, or that both have.
        offered: whether the study has the method.
    """

    method: str
    minus: str | None
    measure: Measure
    published: float | None
    row: PublishedRow | None
    measured: Estimate | None
    runs: int
    offered: bool

    @property
    def title(self) -> str:
        """The method, or both methods of a difference."""
        return self.method if self.row is None else self.row.title


@dataclass(frozen=True)
class Reproduction:
    """An entry of the catalogue beside what was measured.

    Attributes:
        comparisons: by method, as in the study.
        otherwise: how the runs differ from the study of the entry; empty: not at all, or there are none.
        planned: runs of each method in the study of the entry.
    """

    entry: Entry
    comparisons: Sequence[Comparison]
    otherwise: Sequence[str]
    planned: int


def reproduce(entry: Entry, folder: Path | None = None) -> Reproduction:
    """Put the figures of an entry beside those of a study.

    Args:
        entry: of the catalogue.
        folder: of a study, or of records; ``None``: nothing was run.

    Raises:
        InputError: there is no such folder, a record is damaged, or the records are of other tasks.
    """
    cells = entry.study().cells
    result = None if folder is None else _measured(entry, folder, cells)
    measured = {} if result is None else _runs_by_label(result)
    labels = list(dict.fromkeys(cell.method for cell in cells))
    joint = {cell.method for cell in cells if cell.joint}  # it learns all at once, and transfers nothing backward
    published = [(row, measure, value) for row in entry.figures for measure, value in row.values.items()]
    comparisons = []
    for label in dict.fromkeys([*labels, *(row.method for row, _, _ in published)]):
        of_label = [entry for entry in published if entry[0].method == label and entry[0].minus is None]
        for measure in MEASURES:
            given = [entry for entry in of_label if entry[1] == measure]
            for row, _, value in given:
                comparisons.append(_compared(row.method, None, measure, value, row, measured, labels))
            if not given and label in labels and measure in ALWAYS and (measure == "op" or label not in joint):
                comparisons.append(_compared(label, None, measure, None, None, measured, labels))
    comparisons += [
        _compared(row.method, row.minus, measure, value, row, measured, labels)
        for row, measure, value in published
        if row.minus is not None
    ]
    of_first = [cell for cell in cells if cell.method == cells[0].method]
    return Reproduction(entry, comparisons, _otherwise(measured, cells), len(of_first))


def _compared(
    method: str,
    minus: str | None,
    measure: Measure,
    value: float | None,
    row: PublishedRow | None,
    measured: dict[str, Sequence[CellRecord]],
    labels: Sequence[str],
) -> Comparison:
    runs = measured.get(method, ())
    if minus is None:
        mean = over_runs(runs, METRICS[measure])
        return Comparison(method, minus, measure, value, row, mean, len(runs), method in labels)
    pairs = pair(runs, measured.get(minus, ()))
    return Comparison(method, minus, measure, value, row, _difference(pairs, measure), len(pairs), method in labels)


def _measured(entry: Entry, folder: Path, cells: Sequence[Cell]) -> StreamResult | None:
    """Return the results on the entry's tasks; ``None``: nothing is done yet."""
    if not folder.is_dir():
        raise InputError(f"There is no folder '{folder}'.", "Give that of the study, or of its records.")
    within = StudyFolder(folder).records
    begun = bool(StudyFolder(folder).state())
    if not any(within.glob("*.json")) and (begun or within.is_dir() or not any(folder.glob("*.json"))):
        return None
    wanted = _tasks(entry, cells)
    results = read_results(folder).table.results
    for result in results:
        if set(result.tasks) == wanted:
            return result
    listed = ", ".join(sorted(results[0].tasks)[:4]) if results and results[0].tasks else "none"
    raise InputError(
        f"The results in '{folder}' are of other tasks ({listed}, ...) than '{entry.name}'.",
        f"Run its study: merganser reproduce {entry.name} --write STUDY.yaml",
    )


def _tasks(entry: Entry, cells: Sequence[Cell]) -> set[str]:
    from merganser.streams.images.image_sets import IMAGE_SETS

    names = cells[0].stream.names()
    if names is not None:
        return set(names)
    images = IMAGE_SETS[entry.settings["stream"]["name"]]
    return {f"{images.name}-{number:02d}" for number in range(1, images.tasks + 1)}


def _runs_by_label(result: StreamResult) -> dict[str, Sequence[CellRecord]]:
    """Return the runs of each method by its label; labels with options stand for methods that have a grid."""
    return {method.label: method.cells for method in result.methods}


def _difference(pairs: Sequence[Pair], measure: Measure) -> Estimate | None:
    metric = METRICS[measure]
    values = [(a.value(metric), b.value(metric)) for a, b in pairs]
    differences = [first - second for first, second in values if first is not None and second is not None]
    if not pairs or len(differences) < len(pairs):
        return None
    return estimate(paired_sample(pairs, differences))


OF_RUN = ("stream.name", "stream.folder", "stream.tasks", "stream.order", "seed")
"""Settings in which runs of one study differ, or which say where the data are."""


def _otherwise(measured: dict[str, Sequence[CellRecord]], cells: Sequence[Cell]) -> list[str]:
    """Return how runs were made otherwise than in the study of the entry, each difference once."""
    differences: dict[str, None] = {}
    for cell in cells:
        for record in measured.get(cell.method, ())[:1]:
            changes = config_changes(record.configuration, cell)
            differences |= dict.fromkeys(change for change in changes if change.split(":")[0] not in OF_RUN)
    return list(differences)
