"""The results of a study as tables: for the terminal, Markdown, LaTeX (booktabs) and CSV."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from merganser.files.markdown import escaped
from merganser.report.files import write_whole
from merganser.report.formatting import MISSING, p_value, score, seconds, significant, size
from merganser.report.tables import csv_cell
from merganser.study.cell_record import CellRecord
from merganser.study.comparison import method_labels
from merganser.study.notes import detectable_sentence
from merganser.study.results import Axis, MethodResult, StreamResult
from merganser.study.statistics import LEAST_CHANGE, LEAST_SCORE, Estimate

if TYPE_CHECKING:
    from rich.table import Table

AXIS_TITLES: dict[Axis, str] = {"examples": "examples", "seconds": "seconds", "bytes": "stored"}

STANDARD_ERROR = "one standard error of the mean: the largest of those over runs, over orders and over seeds"
"""What stands behind ±, see :mod:`merganser.study.statistics`."""

COSTS_MORE = "†"
"""Mark of a method that cost more than the reference."""

_TEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "±": r"$\pm$",
    "×": r"$\times$", "–": "--", COSTS_MORE: r"\textsuperscript{\dag}", "∞": r"$\infty$", "<": r"$<$", ">": r"$>$",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}  # fmt: skip

Rows = list[list[str]]


def interval(value: Estimate | None, signed: bool = False) -> str:
    """Format the interval of a mean in percent: ``[69.0, 71.2]``; of a score, or, signed, of a difference of scores."""
    if value is None:
        return MISSING
    shown = value.within(LEAST_CHANGE if signed else LEAST_SCORE)
    if shown.low is None or shown.high is None:
        return MISSING
    return f"[{score(shown.low, signed)}, {score(shown.high, signed)}]"


def mean_with_error(value: Estimate | None) -> str:
    """Format a mean and its standard error in percent: ``70.1 ± 0.4``."""
    if value is None:
        return MISSING
    return score(value.mean) + (f" ± {score(value.stderr)}" if value.stderr is not None else "")


def cost(axis: Axis, value: float | None) -> str:
    """Format an amount of a cost with its unit."""
    if value is None:
        return MISSING
    return seconds(value) if axis == "seconds" else size(round(value)) if axis == "bytes" else f"{round(value):,}"


def factor(value: float) -> str:
    """Format how many times as much: ``1.8×``."""
    return "∞×" if math.isinf(value) else f"{significant(value, 2 if value < 10 else 3)}×"


def verdict(method: MethodResult, result: StreamResult) -> str:
    """Say what the difference to the reference allows to say."""
    if method.label == result.reference:
        return "reference"
    return "not compared" if method.difference is None else method.difference.verdict


def has_fwt(result: StreamResult) -> bool:
    """Return whether a method of a stream has a forward transfer, so that the tables show it."""
    return any(method.fwt is not None for method in result.methods)


def score_rows(result: StreamResult) -> tuple[list[str], Rows]:
    """Return the table of scores: its head, and a row per method, best first."""
    with_fwt = has_fwt(result)
    percent = f"{100 * result.confidence:g} %"
    head = ["method", "runs", "OP", f"{percent} interval", "BWT", *(["FWT"] if with_fwt else [])]
    head += [f"OP − {result.reference}", f"{percent} interval", "p", "verdict"]
    rows = []
    for method in result.methods:
        difference = method.difference
        of = None if difference is None else difference.estimate
        rows.append(
            [
                method.label + (COSTS_MORE if method.more else ""),
                str(method.op.runs),
                mean_with_error(method.op),
                interval(method.op),
                mean_with_error(method.bwt),
                *([mean_with_error(method.fwt)] if with_fwt else []),
                MISSING if of is None else score(of.mean, signed=True),
                interval(of, signed=True),
                MISSING if difference is None else p_value(difference.p) or MISSING,
                verdict(method, result),
            ]
        )
    return head, rows


def narrow_rows(result: StreamResult) -> tuple[list[str], Rows]:
    """Return the table of scores without the columns for which a terminal has no room; the legend has the runs."""
    head, rows = score_rows(result)
    kept = [place for place, name in enumerate(head) if place != head.index("OP") + 1 and name not in ("runs", "FWT")]
    bwt = head.index("BWT")
    rows = [[*row[:bwt], row[bwt].split(" ")[0], *row[bwt + 1 :]] for row in rows]
    return [head[place] for place in kept], [[row[place] for place in kept] for row in rows]


def cost_rows(result: StreamResult) -> tuple[list[str], Rows]:
    """Return the table of costs per run; where a method cost more than the reference, with the factor."""
    head = ["method", "examples trained and rehearsed", result.seconds, "bytes stored"]
    rows = [
        [method.label, *(cost_with_factor(method, axis) for axis in ("examples", "seconds", "bytes"))]
        for method in result.methods
    ]
    return head, rows


def cost_with_factor(method: MethodResult, axis: Axis) -> str:
    """Format a cost, with its factor where it is more than the reference's: ``48 s (1.8×)``."""
    text = cost(axis, method.cost.get(axis))
    return f"{text} ({factor(method.more[axis])})" if axis in method.more else text


def legend(result: StreamResult) -> str:
    """Say in sentences what the numbers of the tables are."""
    orders, seeds = len(result.orders), len(result.seeds)
    runs = f"{orders} {'order' if orders == 1 else 'orders'} and {seeds} {'seed' if seeds == 1 else 'seeds'}"
    fwt = "; FWT: forward transfer, each task right after it was learned less a model trained on it alone"
    sentences = [
        f"{result.stream}: {len(result.tasks)} tasks, {runs}. Percent; ± is {STANDARD_ERROR}; intervals are "
        f"{100 * result.confidence:g} %. OP: overall performance, the mean final score of the tasks; BWT: backward "
        f"transfer, what they changed since they were learned{fwt if has_fwt(result) else ''}."
    ]
    if result.reference:
        sentences.append(
            f"Differences to {result.reference} are paired by order, seed and test example; p is corrected for the "
            "number of methods (Holm)."
        )
        sentences.append(detectable_sentence(result))
    if any(method.more for method in result.methods):
        sentences.append(f"{COSTS_MORE} costs more than {result.reference}.")
    return " ".join([*sentences, *result.notes])


class StudyTable:
    """The methods of a study, best first, one table per stream.

    Args:
        results: of :func:`merganser.study.comparison.compare`.
    """

    def __init__(self, results: Sequence[StreamResult]) -> None:
        self.results = list(results)

    def terminal(self) -> list[Table | str]:
        """Return what a console of rich prints: per stream the legend, a table of scores and one of costs."""
        printed: list[Table | str] = []
        for result in self.results:
            printed += [legend(result), "", _rich_table(*narrow_rows(result)), "", _rich_table(*cost_rows(result)), ""]
        return printed

    def text(self, width: int = 120) -> str:
        """Return the tables as plain text of at most so many columns."""
        from rich.console import Console

        console = Console(
            file=io.StringIO(), width=width, markup=False, emoji=False, highlight=False, color_system=None
        )
        with console.capture() as capture:
            for part in self.terminal():
                console.print(part)
        return capture.get()

    def markdown(self) -> str:
        """Return the tables in Markdown, below the legend that explains them."""
        parts = []
        for result in self.results:
            parts += [escaped(legend(result)) + "\n", _markdown(*score_rows(result)), _markdown(*cost_rows(result))]
        return "\n".join(parts)

    def latex(self) -> str:
        """Return a ``table`` with ``booktabs`` rules per stream; the text needs ``\\usepackage{booktabs}``."""
        return "\n".join(_latex(result) for result in self.results)

    def csv(self) -> str:
        """Return one line per stream and method; scores, differences and limits are fractions, with all their digits.

        A missing number is an empty field; a text that a spreadsheet would run as a formula has an apostrophe in front.
        """
        return _csv(_CSV_HEAD, (_csv_row(result, method) for result in self.results for method in result.methods))

    def __str__(self) -> str:
        return self.text()

    def _repr_markdown_(self) -> str:
        return self.markdown()


def cells_csv(records: Sequence[CellRecord]) -> str:
    """Return one line per cell in CSV: what it is, its metrics as fractions, its cost, and its final score per task."""
    tasks = sorted({task for record in records for task in record.tasks})
    labels = method_labels(records)
    head = [
        "cell", "stream", "method", "order", "seed", "OP", "BWT", "FWT", "examples_trained", "examples_rehearsed",
        "training_seconds", "processor_seconds", "gpu_seconds", "bytes_stored", "stopped_by", "tuning",
        *(f"final {task}" for task in tasks),
    ]  # fmt: skip
    lines = []
    for record in records:
        spent, final = record.cost, record.final
        lines.append(
            [
                record.name, record.stream, labels[record.name], record.order, record.seed, record.op, record.bwt,
                record.fwt, spent.examples_trained, spent.examples_rehearsed, spent.training_seconds,
                spent.processor_seconds, spent.gpu_seconds, record.bytes_stored, record.stopped_by, record.tuning,
                *(final[task].value if task in final else None for task in tasks),
            ]
        )  # fmt: skip
    return _csv(head, lines)


def write_tables(records: Sequence[CellRecord], folder: Path, table: StudyTable) -> list[Path]:
    """Write ``study.md``, ``study.tex``, ``study.csv`` and ``cells.csv`` into a folder and return their paths.

    Raises:
        InputError: the folder cannot be written.
        RunError: the disk is full.
    """
    files = {
        "study.md": table.markdown(),
        "study.tex": table.latex(),
        "study.csv": table.csv(),
        "cells.csv": cells_csv(records),
    }
    return [write_whole(folder / name, text.encode()) for name, text in files.items()]


# Formats -------------------------------------------------------------------------------------------------------------


def _rich_table(head: Sequence[str], rows: Rows) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for number, name in enumerate(head):
        words = number == 0 or name == "verdict"
        longest = max((len(row[number]) for row in rows), default=0)
        table.add_column(
            textwrap.fill(name, max(longest, 9), break_long_words=False),
            justify="left" if words else "right",
            overflow="fold",
            max_width=10 if name == "verdict" else None,  # cannot be / told apart
            no_wrap=not words,
            min_width=min(longest, 16 if number == 0 else 9),
        )
    for row in rows:
        table.add_row(*row)
    return table


def _markdown(head: Sequence[str], rows: Rows) -> str:
    sides = ["---" if number == 0 or name == "verdict" else "--:" for number, name in enumerate(head)]
    lines = [[escaped(text) for text in line] for line in (head, *rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (lines[0], sides, *lines[1:]))


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)


def _latex(result: StreamResult) -> str:
    head, rows = score_rows(result)
    head = [*head, *AXIS_TITLES.values()]
    costs = [[cost(axis, method.cost.get(axis)) for axis in AXIS_TITLES] for method in result.methods]
    sides = "".join("l" if number == 0 or name == "verdict" else "r" for number, name in enumerate(head))
    lines = [" & ".join(map(_tex, [*row, *more])) + r" \\" for row, more in zip(rows, costs, strict=True)]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{_tex(legend(result))}}}",
            rf"\begin{{tabular}}{{{sides}}}",
            r"\toprule",
            " & ".join(map(_tex, head)) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


_CSV_HEAD = [
    "stream", "method", "reference", "runs", "orders", "seeds", "op", "op_stderr", "op_low", "op_high", "bwt",
    "bwt_stderr", "fwt", "fwt_stderr", "pairs", "difference", "difference_stderr", "difference_low", "difference_high",
    "p", "permutation_p", "p_holm", "verdict", "detectable", "orders_ahead", "confidence", "examples", "seconds",
    "seconds_of", "bytes_stored", "costs_more",
]  # fmt: skip


def _csv_row(result: StreamResult, method: MethodResult) -> list[str | int | float | None]:
    op, bwt, fwt, difference = method.op, method.bwt, method.fwt, method.difference
    of = None if difference is None else difference.estimate
    orders, seeds = {cell.order for cell in method.cells}, {cell.seed for cell in method.cells}
    return [
        result.stream, method.label, result.reference, op.runs, len(orders), len(seeds),
        op.mean, op.stderr, op.low, op.high,
        *((None, None) if bwt is None else (bwt.mean, bwt.stderr)),
        *((None, None) if fwt is None else (fwt.mean, fwt.stderr)),
        *((None,) * 7 if of is None else (of.runs, of.mean, of.stderr, of.low, of.high, of.p, of.permutation_p)),
        None if difference is None else difference.p, verdict(method, result),
        None if of is None else of.detectable, None if difference is None else difference.orders_ahead,
        result.confidence, method.cost.get("examples"), method.cost.get("seconds"), result.seconds,
        method.cost.get("bytes"), " ".join(method.more),
    ]  # fmt: skip


def _csv(head: Sequence[str], rows: Iterable[Sequence[str | int | float | None]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(csv_cell, head))
    for row in rows:
        writer.writerow(map(csv_cell, row))
    return text.getvalue()
