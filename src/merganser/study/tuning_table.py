"""What the tuning of each method tried: every trial with its score on development data, and which one was chosen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from merganser.report.formatting import MISSING, plural, score
from merganser.study.cell_record import CellRecord
from merganser.study.cell_sections import Links
from merganser.study.costs import kind_of_seconds, seconds_of
from merganser.study.statistics import mean_of
from merganser.study.tables import cost


def tuning_tables(records: Sequence[CellRecord], links: Links) -> list[dict[str, Any]]:
    """Return a table per stream and method that was tuned, trials best first.

    A trial is chosen if results of the method have its options. Its cells are named by their seeds.
    """
    trials: dict[tuple[str, str, str], dict[str, list[CellRecord]]] = {}
    for record in records:
        if record.tuning is not None:
            group = trials.setdefault((record.stream, record.method, record.tuning), {})
            group.setdefault(json.dumps(record.options, sort_keys=True), []).append(record)
    results = {
        (record.stream, record.method, json.dumps(record.options, sort_keys=True))
        for record in records
        if record.tuning is None
    }
    tables = []
    for (stream, method, tuning), group in trials.items():
        rows = [_row(cells, (stream, method, options) in results, links) for options, cells in group.items()]
        rows.sort(key=lambda row: -row["mean"])
        total = sum(
            cell.cost.examples_trained + cell.cost.examples_rehearsed for cells in group.values() for cell in cells
        )
        tables.append(
            {
                "stream": stream,
                "method": method,
                "tuning": tuning,
                "rows": rows,
                "trials": plural(len(rows), "setting"),
                "total": cost("examples", float(total)),
                "cells": plural(sum(map(len, group.values())), "cell"),
            }
        )
    return tables


def _row(cells: Sequence[CellRecord], chosen: bool, links: Links) -> dict[str, Any]:
    mean = mean_of([cell.op for cell in cells])
    kind = kind_of_seconds(cells)
    stopped = sorted({cell.stopped_by for cell in cells if cell.stopped_by is not None})
    return {
        "options": ", ".join(f"{key}: {value}" for key, value in cells[0].options.items()) or "defaults",
        "mean": -1.0 if mean is None else mean,
        "op": MISSING if mean is None else score(mean),
        "cells": [(f"seed {cell.seed}", links.get(cell.name, "")) for cell in cells],
        "href": links.get(cells[0].name, "") if len(cells) == 1 else "",
        "seconds": cost("seconds", mean_of([seconds_of(cell, kind) for cell in cells])),
        "seconds_of": kind,
        "chosen": chosen,
        "stopped": ", ".join(stopped),
    }
