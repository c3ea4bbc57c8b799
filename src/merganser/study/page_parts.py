"""What the page of a study shows of one stream: every number as the text that is shown, with the place it leads to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from merganser.report.formatting import MISSING, day, metric_title, p_value, plural, score
from merganser.report.overview import SIGNS
from merganser.report.score_table import FULL_SCALE
from merganser.study.cell_record import CellRecord
from merganser.study.costs import budget_views
from merganser.study.matrices import MeanMatrix, mean_matrices
from merganser.study.results import AXES, MethodResult, StreamResult
from merganser.study.statistics import LEAST_CHANGE, LEAST_SCORE, Estimate
from merganser.study.tables import COSTS_MORE, cost, cost_with_factor, factor, interval, mean_with_error, verdict

MOST_MATRICES = 60
"""Score matrices in one page; of more, those of the first orders are shown."""

STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5)
"""Distances of ticks on a track."""

WORDS = {"better": "gained", "worse": "lost"}
"""Verdict -> class of a row, as in a run's page."""

AXIS_NAMES = {"examples": "examples trained and rehearsed", "bytes": "bytes stored"}


def method_ids(result: StreamResult, number: int) -> dict[str, str]:
    """Return label -> id of the section with the method's cells."""
    return {method.label: f"s{number}m{rank}" for rank, method in enumerate(result.methods, 1)}


def order_id(result: StreamResult, method_id: str, order: str) -> str:
    """Return the id of the rows of a method's cells in one order, in the list of cells."""
    return f"{method_id}o{result.orders.index(order)}"


def when(records: Sequence[CellRecord]) -> str:
    """Return from when to when the cells ran."""
    first, last = (day(text).rsplit(",", 1)[0] for text in (
        min(record.created for record in records), max(record.finished for record in records)
    ))  # fmt: skip
    return first if first == last else f"{first} to {last}"


def counts(records: Sequence[CellRecord], results: Sequence[StreamResult]) -> str:
    """Return how many cells the study has, and of what."""
    methods = len({method.label for result in results for method in result.methods})
    parts = [plural(len(records), "cell"), plural(methods, "method")]
    return ", ".join(parts + ([plural(len(results), "stream")] if len(results) > 1 else []))


def runs_text(result: StreamResult) -> str:
    """Return over what the means of a stream are."""
    parts = (plural(len(result.orders), "order"), plural(len(result.seeds), "seed"), plural(len(result.tasks), "task"))
    return f"{parts[0]}, {parts[1]}, {parts[2]}"


def sentence(result: StreamResult) -> str:
    """Say what was found on one stream."""
    others = [method for method in result.methods if method.difference is not None]
    if not result.reference:
        return "No cell of this stream can be compared."
    if not others:
        alone = result.method(result.reference)
        return f"{alone.label} reaches {score(alone.op.mean)} %, and there is no method to compare it with."
    said = {word: [m for m in others if m.difference is not None and m.difference.verdict == word] for word in
            ("better", "worse", "cannot be told apart")}  # fmt: skip
    parts = []
    if said["better"]:
        best = said["better"][0]
        more = f", the best by {_points(best)}" if len(said["better"]) > 1 else f" by {_points(best)}"
        parts.append(f"{_names(said['better'])} better than {result.reference}{more}")
    if said["cannot be told apart"]:
        than = "it" if parts else result.reference
        parts.append(f"{_names(said['cannot be told apart'], verb='')} cannot be told apart from {than}")
    if said["worse"]:
        than = "" if parts else f" than {result.reference}"
        parts.append(f"{_names(said['worse'])} worse{than}")
    return f"{'; '.join(parts)}."


def study_sentence(results: Sequence[StreamResult]) -> str:
    """Say of what a study of several streams is."""
    methods = {method.label for result in results for method in result.methods}
    return f"{plural(len(methods), 'method')} on {plural(len(results), 'stream')}"


def _names(methods: Sequence[MethodResult], verb: str = "is", most: int = 4) -> str:
    labels = [method.label for method in methods]
    shown = labels if len(labels) <= most else [*labels[: most - 1], f"{len(labels) - most + 1} more"]
    text = shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
    return f"{text} {'are' if len(labels) > 1 else verb}" if verb else text


def _points(method: MethodResult) -> str:
    change = 0.0 if method.difference is None else method.difference.estimate.mean
    return f"{score(abs(change))} points"


# Ranking and differences ---------------------------------------------------------------------------------------------


class _Track:
    """A scale from the smallest to the largest value, a little wider, with a few ticks."""

    def __init__(self, values: Iterable[Estimate | None], least: float, also: Sequence[float] = ()) -> None:
        self.least = least  # that the metric can be; the most is 1
        shown = [value.within(least) for value in values if value is not None]
        ends = [end for value in shown for end in (value.mean, value.low, value.high) if end is not None]
        known = [*ends, *also] or [0.0]
        low, high = min(known), max(known)
        space = max(0.005, 0.06 * (high - low))
        self.low, self.high = low - space, high + space

    def at(self, value: float | None) -> str | None:
        """Return the place of a value in percent of the width."""
        return None if value is None else f"{100 * (value - self.low) / (self.high - self.low):.1f}"

    def ticks(self) -> list[dict[str, Any]]:
        """Return about four ticks that the metric can reach: place and text."""
        step = next((step for step in STEPS if (self.high - self.low) / step <= 4), STEPS[-1])
        first = math.ceil(self.low / step)
        values = [number * step for number in range(first, math.floor(self.high / step) + 1)]
        return [
            {"at": self.at(value), "text": f"{100 * value:.4g}".replace("-", "−")}
            for value in values
            if self.least <= value <= 1.0
        ]

    def bar(self, value: Estimate) -> dict[str, Any]:
        """Return the places of an interval and its mean."""
        shown = value.within(self.least)
        low, high = self.at(shown.low), self.at(shown.high)
        width = None if low is None or high is None else f"{float(high) - float(low):.1f}"
        return {"dot": self.at(value.mean), "low": low, "width": width}


def _row(method: MethodResult, result: StreamResult, ids: Mapping[str, str], rank: int) -> dict[str, Any]:
    said = verdict(method, result)
    difference = method.difference
    of = None if difference is None else difference.estimate
    word = WORDS.get(said, "")
    return {
        "rank": rank,
        "label": method.label,
        "href": f"#{ids[method.label]}",
        "runs": plural(method.op.runs, "run"),
        "word": word,
        "sign": SIGNS[word],
        "verdict": said,
        "reference": said == "reference",
        "op": mean_with_error(method.op),
        "interval": interval(method.op),
        "bwt": mean_with_error(method.bwt),
        "fwt": None if method.fwt is None else mean_with_error(method.fwt),
        "change": MISSING if of is None else score(of.mean, signed=True),
        "change_interval": interval(of, signed=True),
        "p": MISSING if difference is None else p_value(difference.p) or MISSING,
        "mark": COSTS_MORE if method.more else "",
    }


def _axis_name(axis: str, result: StreamResult) -> str:
    return AXIS_NAMES.get(axis, result.seconds)


def ranking(result: StreamResult, ids: Mapping[str, str]) -> dict[str, Any]:
    """Return the methods by overall performance, each with its interval on a common track."""
    track = _Track([method.op for method in result.methods], LEAST_SCORE)
    rows = [
        {**_row(method, result, ids, rank), **track.bar(method.op)} for rank, method in enumerate(result.methods, 1)
    ]
    mark = track.at(result.method(result.reference).op.mean) if result.reference else None
    return {"rows": rows, "ticks": track.ticks(), "mark": mark, "marked": any(method.more for method in result.methods)}


def forest(result: StreamResult, ids: Mapping[str, str]) -> dict[str, Any]:
    """Return the paired differences to the reference, each with its interval around zero on a common track."""
    compared = [(rank, method) for rank, method in enumerate(result.methods, 1) if method.difference is not None]
    estimates = [method.difference.estimate for _, method in compared if method.difference]
    track = _Track(estimates, LEAST_CHANGE, also=[0.0])
    rows = []
    for rank, method in compared:
        if method.difference is None:
            continue
        of = method.difference.estimate
        rows.append(
            {
                **_row(method, result, ids, rank),
                **track.bar(of),
                "pairs": plural(of.runs, "pair"),
                "ahead": f"ahead in {method.difference.orders_ahead} of {plural(method.difference.orders, 'order')}",
                "test": "t test alone" if of.p is not None and of.permutation_p is None else "",
                "detectable": MISSING if of.detectable is None else score(of.detectable),
                "without_examples": method.difference.examples == 0,
            }
        )
    return {"rows": rows, "ticks": track.ticks(), "mark": track.at(0.0)}


# Costs ---------------------------------------------------------------------------------------------------------------


def costs(result: StreamResult, ids: Mapping[str, str]) -> dict[str, Any]:
    """Return the table of what each method costs per run."""
    return {
        "head": [_axis_name(axis, result) for axis in AXES],
        "rows": [
            {
                "rank": rank,
                "label": method.label,
                "href": f"#{ids[method.label]}",
                "cells": [
                    {"text": cost_with_factor(method, axis), "more": axis in method.more, "href": "", "best": False}
                    for axis in AXES
                ],
            }
            for rank, method in enumerate(result.methods, 1)
        ],
    }


def budgets(result: StreamResult, ids: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return for each kind of cost the methods that spend no more than the reference, and those that spend more."""
    views = []
    for view in budget_views(result):

        def lines(labels: Sequence[str]) -> list[dict[str, Any]]:
            methods = [result.method(label) for label in labels]
            return [
                {
                    "label": method.label,
                    "href": f"#{ids[method.label]}",
                    "op": score(method.op.mean),
                    "verdict": verdict(method, result),
                    "factor": factor(method.more[view.axis]) if view.axis in method.more else "",  # noqa: B023
                }
                for method in methods
            ]

        views.append(
            {
                "name": _axis_name(view.axis, result),
                "budget": cost(view.axis, view.budget),
                "href": f"#{ids[result.reference]}",
                "within": lines(view.within),
                "beyond": lines(view.beyond),
            }
        )
    return views


# Orders, tasks, matrices ---------------------------------------------------------------------------------------------


def _table(result: StreamResult, ids: Mapping[str, str], columns: Sequence[str], kind: str) -> dict[str, Any]:
    rows = []
    best = {column: max((_value(method, kind, column) for method in result.methods), default=0.0) for column in columns}
    for rank, method in enumerate(result.methods, 1):
        values = method.by_order if kind == "order" else method.by_task
        rows.append(
            {
                "rank": rank,
                "label": method.label,
                "href": f"#{ids[method.label]}",
                "cells": [
                    {
                        "text": mean_with_error(values.get(column)),
                        "href": f"#{order_id(result, ids[method.label], column)}" if kind == "order" else "",
                        "best": _value(method, kind, column) == best[column],
                        "more": False,
                    }
                    for column in columns
                ],
            }
        )
    return {"columns": list(columns), "rows": rows}


def _value(method: MethodResult, kind: str, column: str) -> float:
    value = (method.by_order if kind == "order" else method.by_task).get(column)
    return -1.0 if value is None else value.mean


def by_order(result: StreamResult, ids: Mapping[str, str]) -> dict[str, Any]:
    """Return overall performance per order, with the tasks of each order."""
    table = _table(result, ids, result.orders, "order")
    cells = [cell for method in result.methods for cell in method.cells]
    orders = {order: next(cell.tasks for cell in cells if cell.order == order) for order in result.orders}
    return {**table, "orders": orders}


def by_task(result: StreamResult, ids: Mapping[str, str]) -> dict[str, Any]:
    """Return the final score per task."""
    return _table(result, ids, sorted(result.tasks), "task")


def matrices(result: StreamResult, ids: Mapping[str, str]) -> dict[str, Any]:
    """Return the mean score matrices per order, side by side."""
    groups: list[dict[str, Any]] = []
    shown = 0
    every = mean_matrices(result)
    for order, of_order in every.items():
        if groups and shown + len(of_order) > MOST_MATRICES:
            break
        shown += len(of_order)
        groups.append({"order": order, "matrices": [_matrix(matrix, result, ids) for matrix in of_order]})
    return {"groups": groups, "left": len(every) - len(groups)}


def _matrix(matrix: MeanMatrix, result: StreamResult, ids: Mapping[str, str]) -> dict[str, Any]:
    rows = []
    for task, values in zip(matrix.tasks, matrix.values, strict=True):
        learned_in = matrix.learned.get(task)
        learned = values[learned_in] if learned_in is not None else None
        rows.append({"task": task, "cells": [_cell(v, learned, n, learned_in) for n, v in enumerate(values)]})
    return {
        "method": matrix.method,
        "href": f"#{order_id(result, ids[matrix.method], matrix.order)}",
        "seeds": plural(matrix.seeds, "seed"),
        "rounds": [{"number": number, "title": ", ".join(names)} for number, names in enumerate(matrix.rounds)],
        "rows": rows,
    }


def _cell(value: float | None, learned: float | None, number: int, learned_in: int | None) -> dict[str, Any]:
    cell = {"text": score(value), "known": value is not None, "class": "", "depth": ""}
    if learned_in is None or number < learned_in:
        cell["class"] = "future"
    elif number == learned_in:
        cell["class"] = "own"
    elif value is not None and learned is not None and round(change := value - learned, 3):
        cell["class"] = "loss" if change < 0 else "gain"
        cell["depth"] = f"{min(1.0, abs(change) / FULL_SCALE):.2f}"
    return cell


def definitions(records: Sequence[CellRecord]) -> list[dict[str, str]]:
    """Return the metrics of the page with their definitions and sources."""
    shown = ("OP", "BWT", "FWT (single-task)")
    known = {
        metric.name: metric
        for record in records
        for metric in record.summary
        if metric.name in shown and record.value(metric.name) is not None
    }
    return [
        {"name": metric_title(name), "definition": known[name].definition, "source": known[name].source}
        for name in shown
        if name in known
    ]
